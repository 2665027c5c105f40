"""The rules as the vault knows them: a new version for every change of a rule, so that history can be read."""

from typing import Any

import psycopg

from tasks import datavault, queries
from tasks.alerts.models import Rule
from tasks.alerts.rules import RuleSet

_QUERIES = queries.load("tasks.alerts")
_NEWEST = 99
_TABLE = "monitoring.alert_definition_s"


def keep(conn: psycopg.Connection, rules: RuleSet) -> int:
    """Write a version of every rule that is new or was changed, switch off those taken out; return how many."""
    statement = _QUERIES.get("definitions", _NEWEST)
    known = {name: (digest, on) for name, digest, on in conn.execute(statement).fetchall()}
    changed = 0
    for rule in rules.rules.values():
        if known.get(rule.name) != (rules.digests[rule.name], rule.enabled):
            version = _version(rule, rules)
            _append(conn, rule.name, version)
            changed += 1
    for name, (_, is_enabled) in known.items():
        if is_enabled and name not in rules.rules:
            _append(conn, name, {"is_enabled": False})
            changed += 1
    return changed


def _append(conn: psycopg.Connection, name: str, version: dict[str, Any]) -> None:
    key = datavault.insert_hub(conn, "monitoring.alert_definition_h", "alert_definition", name)
    datavault.append_version(conn, _TABLE, "alert_definition_hk", key, version)


def _version(rule: Rule, rules: RuleSet) -> dict[str, Any]:
    minutes = int(rules.window(rule).total_seconds() // 60)
    condition = rules.condition(rule)
    condition["digest"] = rules.digests[rule.name]
    return {
        "alert_name": rule.name,
        "alert_description": rule.description,
        "alert_category": rule.category.value,
        "metric_source": rule.metric,
        "threshold_operator": rule.operator,
        "condition_logic": condition,
        "is_enabled": rule.enabled,
        "suppression_window_minutes": minutes,
        "runbook": rule.runbook,
        "next_step": rule.next_step,
    }
