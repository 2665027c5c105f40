"""Between the nouns of alerts and the rows of their tables."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any

from psycopg import sql

from tasks.alerts.models import (
    Alert,
    AlertStatus,
    Health,
    LevelMemory,
    Memory,
    Severity,
    Transition,
)
from tasks.datavault import hash_key

# The attributes of an alert, and the columns of monitoring.alert_instance_s that hold them.
COLUMNS: Mapping[str, str] = {
    "alert_hk": "alert_instance_hk",
    "fingerprint": "fingerprint",
    "rule": "rule_name",
    "server": "server_name",
    "labels": "labels",
    "category": "alert_category",
    "status": "alert_status",
    "severity": "urgency_level",
    "started_at": "started_timestamp",
    "triggered_at": "triggered_timestamp",
    "summary": "summary",
    "trigger_value": "trigger_value",
    "threshold": "threshold_value",
    "details": "trigger_details",
    "acknowledged_at": "acknowledged_timestamp",
    "acknowledged_by": "acknowledged_by",
    "resolved_at": "resolved_timestamp",
    "resolution_notes": "resolution_notes",
    "suppression_reason": "suppression_reason",
    "is_flapping": "is_flapping",
    "false_positive": "false_positive",
    "escalation_level": "escalation_level",
    "last_notified_at": "last_notified_timestamp",
}


def selected() -> sql.Composed:
    """Return the columns of alert, each under its attribute's name."""
    return sql.SQL(", ").join(
        sql.SQL("alert.{} AS {}").format(sql.Identifier(column), sql.Identifier(name))
        for name, column in COLUMNS.items()
    )


def written() -> sql.Composed:
    """Return the columns as an INSERT lists them."""
    return sql.SQL(", ").join(map(sql.Identifier, COLUMNS.values()))


def changed() -> sql.Composed:
    """Return the columns of the row source named change."""
    return sql.SQL(", ").join(
        sql.SQL("change.{}").format(sql.Identifier(column)) for column in COLUMNS.values()
    )


def alert_of(row: Mapping[str, Any]) -> Alert:
    """Make an alert of a row read with the selected columns."""
    values = {name: row[name] for name in COLUMNS}
    values["status"], values["severity"] = AlertStatus(row["status"]), Severity(row["severity"])
    return Alert(**values)


def row_of(alert: Alert) -> dict[str, Any]:
    """Make a row of an alert, of plain JSON values."""
    return {column: plain(getattr(alert, name)) for name, column in COLUMNS.items()}


def transition_row(transition: Transition) -> dict[str, Any]:
    """Make a row of monitoring.alert_transition."""
    alert = transition.alert
    return {
        "alert_instance_hk": plain(alert.alert_hk),
        "fingerprint": alert.fingerprint,
        "happened_at": plain(transition.happened_at),
        "from_status": transition.from_status,
        "to_status": alert.status,
        "urgency_level": alert.severity,
        "metric_value": transition.value,
        "notify_reason": transition.notify,
        "not_notified_because": transition.not_notified_because,
    }


def health_key(health: Health) -> str:
    """Return the business key of a health metric."""
    labels = ",".join(f"{name}={value}" for name, value in sorted(health.labels.items()))
    key = f"{health.server}|{health.metric}|{labels}"
    # Names of objects may be as long as their owner likes.
    return key if len(key) <= 900 else f"{key[:800]}#{hash_key(key).hex()}"  # noqa: PLR2004


def health_row(health: Health) -> dict[str, Any]:
    """Make a row of monitoring.system_health_metric_s."""
    return {
        "health_metric_hk": plain(hash_key(health_key(health))),
        "server_name": health.server,
        "metric_name": health.metric,
        "labels": dict(health.labels),
        "metric_category": health.category,
        "metric_value": health.value,
        "metric_unit": health.unit[:50],
        "metric_direction": health.direction,
        "threshold_warning": health.warning,
        "threshold_critical": health.critical,
        "measurement_timestamp": plain(health.measured_at),
        "status": health.status,
    }


def state_of(memory: Memory) -> dict[str, Any]:
    """Write a memory down as plain JSON values."""
    state: dict[str, Any] = {
        each.name: plain(getattr(memory, each.name)) for each in fields(Memory)
    }
    state["levels"] = {
        severity: {
            "since": plain(level.since),
            "active": level.active,
            "clear_since": plain(level.clear_since),
        }
        for severity, level in memory.levels.items()
    }
    state["flips"] = [plain(flip) for flip in memory.flips]
    return state


def memory_of(state: Mapping[str, Any]) -> Memory:
    """Read a memory; what it does not say is as in a new one."""
    levels = {
        Severity(name): LevelMemory(_at(level["since"]), level["active"], _at(level["clear_since"]))
        for name, level in state["levels"].items()
    }
    severities = {
        name: Severity(state[name]) if state.get(name) else None
        for name in ("held", "notified_severity")
    }
    return Memory(
        rule=state["rule"],
        server=state["server"],
        labels=state["labels"],
        levels=levels,
        last_at=_at(state["last_at"]),
        held=severities["held"],
        flips=tuple(datetime.fromisoformat(flip) for flip in state["flips"]),
        is_flapping=state["is_flapping"],
        notified_at=_at(state["notified_at"]),
        notified_severity=severities["notified_severity"],
        notified_episode=state["notified_episode"],
        notified_flapping=state["notified_flapping"],
    )


def plain(value: object) -> Any:
    """Return a value as JSON carries it and PostgreSQL reads it."""
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, datetime):
        return value.isoformat()
    return dict(value) if isinstance(value, Mapping) else value


def _at(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
