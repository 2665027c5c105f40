"""Reading what an evaluation decides on, and writing what it decided: a few statements, however many alerts."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb

from tasks import connection, queries
from tasks.alerts import rows, watching
from tasks.alerts.deciding import Decisions
from tasks.alerts.models import (
    Alert,
    FamilyStatus,
    Growth,
    Health,
    Memory,
    Series,
    Silence,
    Transition,
    View,
    Watched,
)
from tasks.alerts.rules import RuleSet
from tasks.datavault import hash_key
from tasks.metrics.models import AVAILABILITY, HealthStatus

Part = TypeVar("Part", Series, FamilyStatus)
_QUERIES = queries.load("tasks.alerts")
_NEWEST = 99
_KEPT = timedelta(days=400)


def take_turn(conn: psycopg.Connection) -> bool:
    """Take the lock of evaluations for this transaction; False when another one holds it."""
    return connection.fetch_value(conn, _QUERIES.get("take_turn", _NEWEST)) is True


def wait_for_turn(conn: psycopg.Connection) -> None:
    """Take the same lock, waiting for an evaluation at work."""
    conn.execute(_QUERIES.get("wait_for_turn", _NEWEST))


def view(
    conn: psycopg.Connection, rules: RuleSet, now: datetime, servers: Collection[str] | None
) -> View:
    """Read everything that an evaluation of these servers decides on."""
    which: dict[str, Any] = {"servers": None if servers is None else sorted(servers)}
    return View(
        servers={row["name"]: Watched(**row) for row in _rows(conn, "servers", which)},
        series=_grouped(_all_series(conn, rules, now, which)),
        statuses=_grouped(FamilyStatus(**row) for row in _rows(conn, "family_statuses", which)),
        alerts={alert.fingerprint: alert for alert in open_alerts(conn, servers)},
        memories=memories(conn, servers),
        silences=tuple(Silence(**row) for row in _rows(conn, "silences", {"now": now})),
    )


def _all_series(
    conn: psycopg.Connection, rules: RuleSet, now: datetime, which: Mapping[str, Any]
) -> Iterator[Series]:
    families = sorted({rule.family for rule in rules.rules.values()})
    grown = _grown(conn, rules, now, which)
    for row in _rows(conn, "latest", {**which, "families": families}):
        yield Series(**row, grown=grown.get(row["series_id"], {}))
    for row in _rows(conn, "statement_means", {**which, "now": now}):
        values = {"slow": row["slow"], "critical": row["critical"]}
        texts = {"slowest": row["slowest"] or ""}
        name = watching.STATEMENT_MEANS
        yield Series(None, row["server"], name, {}, row["sampled_at"], values, texts=texts)


def _grown(
    conn: psycopg.Connection, rules: RuleSet, now: datetime, which: Mapping[str, Any]
) -> dict[int, dict[tuple[str, timedelta], Growth]]:
    """Read what the counters of all rules with `over` grew by, in one statement."""
    wanted = sorted(
        {(rule.family, rule.metric_name, rule.over) for rule in rules.rules.values() if rule.over}
    )
    found: dict[int, dict[tuple[str, timedelta], Growth]] = defaultdict(dict)
    if not wanted:
        return found
    named, metrics, spans = (list(column) for column in zip(*wanted, strict=True))
    values = {**which, "families": named, "metrics": metrics, "spans": spans, "now": now}
    for row in _rows(conn, "growths", values):
        growth = Growth(row["growth"], row["seconds"])
        found[row["series_id"]][row["metric"], row["span"]] = growth
    return found


def open_alerts(
    conn: psycopg.Connection, servers: Collection[str] | None = None
) -> tuple[Alert, ...]:
    """Return the alerts that are not resolved."""
    statement = _QUERIES.compose("open_alerts", _NEWEST, columns=rows.selected())
    which = {"servers": None if servers is None else sorted(servers)}
    with conn.cursor(row_factory=dict_row) as cursor:
        return tuple(rows.alert_of(row) for row in cursor.execute(statement, which))


def memories(conn: psycopg.Connection, servers: Collection[str] | None = None) -> dict[str, Memory]:
    """Return what the last evaluation remembered, by fingerprint."""
    which = {"servers": None if servers is None else sorted(servers)}
    return {
        row["fingerprint"]: rows.memory_of(row["state"]) for row in _rows(conn, "memories", which)
    }


def write(
    conn: psycopg.Connection,
    found: View,
    decided: Decisions,
    servers: Collection[str] | None,
    now: datetime,
) -> None:
    """Write what was decided; needs a transaction that holds the lock."""
    begun = [
        alert for key, alert in decided.versions.items() if _is_new(found.alerts.get(key), alert)
    ]
    _bulk(conn, "insert_alert_hubs", [_hub(alert, found) for alert in begun])
    append_versions(conn, decided.versions.values())
    add_transitions(conn, decided.transitions)
    kept = {key: memory for key, memory in decided.memories.items() if memory is not None}
    _bulk(conn, "remember", [_memory_row(key, memory, now) for key, memory in kept.items()])
    if forgotten := [key for key, memory in decided.memories.items() if memory is None]:
        conn.execute(_QUERIES.get("forget", _NEWEST), {"fingerprints": forgotten})
    _write_health(conn, found, decided.health, servers)


def append_versions(conn: psycopg.Connection, alerts: Iterable[Alert]) -> None:
    """Close the open versions of these alerts and add theirs."""
    statement = _QUERIES.compose(
        "append_alert_versions", _NEWEST, columns=rows.written(), changed=rows.changed()
    )
    if listed := [rows.row_of(alert) for alert in alerts]:
        conn.execute(statement, {"rows": Jsonb(listed)})


def not_emitted(conn: psycopg.Connection, limit: int = 500) -> list[DictRow]:
    """Return what happened to alerts for which no event was emitted yet, oldest first."""
    return _rows(conn, "not_emitted", {"limit": limit})


def mark_emitted(conn: psycopg.Connection, ids: Sequence[int], now: datetime) -> int:
    """Write down that the events of these transitions were emitted, and return of how many."""
    values = {"ids": list(ids), "now": now}
    return conn.execute(_QUERIES.get("mark_emitted", _NEWEST), values).rowcount


def find(conn: psycopg.Connection, prefix: str) -> tuple[Alert, ...]:
    """Return alerts whose id or fingerprint begins so; of a fingerprint its last episode, ten at most."""
    statement = _QUERIES.compose("find_alerts", _NEWEST, columns=rows.selected())
    with conn.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(statement, {"prefix": prefix.lower()}).fetchall()
    return tuple(rows.alert_of(row) for row in found)


def history(
    conn: psycopg.Connection, server: str | None, since: datetime, limit: int
) -> list[DictRow]:
    """Return what happened to alerts, newest first."""
    return _rows(conn, "history", {"server": server, "since": since, "limit": limit})


def forget(conn: psycopg.Connection, now: datetime) -> int:
    """Delete what happened more than 400 days ago to alerts that are resolved, and return how many rows it was."""
    values = {"before": now - _KEPT}
    return conn.execute(_QUERIES.get("forget_transitions", _NEWEST), values).rowcount


def unwatched(
    conn: psycopg.Connection, watched: Collection[str], since: datetime
) -> dict[str, Watched]:
    """Return the servers that are not among those watched, and were not heard of since."""
    values = {"watched": sorted(watched), "family": AVAILABILITY, "since": since}
    return {row["name"]: Watched(**row) for row in _rows(conn, "unwatched", values)}


def retire(
    conn: psycopg.Connection, servers: Collection[str], transitions: Sequence[Transition]
) -> None:
    """End the alerts of servers, close their health and forget the rest; needs a transaction that holds the lock."""
    append_versions(conn, [each.alert for each in transitions])
    add_transitions(conn, transitions)
    which = {"servers": sorted(servers)}
    conn.execute(_QUERIES.get("forget_servers", _NEWEST), which)
    if keys := [row["health_metric_hk"] for row in _rows(conn, "open_health", which)]:
        conn.execute(_QUERIES.get("close_health", _NEWEST), {"keys": keys})


def add_transitions(conn: psycopg.Connection, transitions: Iterable[Transition]) -> None:
    """Write down what happened to alerts."""
    _bulk(conn, "insert_transitions", [rows.transition_row(each) for each in transitions])


def _write_health(
    conn: psycopg.Connection,
    found: View,
    health: Sequence[Health],
    servers: Collection[str] | None,
) -> None:
    which = {"servers": None if servers is None else sorted(servers)}
    known = {
        row["health_metric_hk"]: (
            HealthStatus(row["status"]),
            row["threshold_warning"],
            row["threshold_critical"],
        )
        for row in _rows(conn, "open_health", which)
    }
    now_there = {hash_key(rows.health_key(each)): each for each in health}
    changed = {key: each for key, each in now_there.items() if not each.goes_on(known.get(key))}
    new = {key: each for key, each in changed.items() if key not in known}
    _bulk(conn, "insert_health_hubs", [_health_hub(key, each, found) for key, each in new.items()])
    _bulk(conn, "append_health_versions", [rows.health_row(each) for each in changed.values()])
    if gone := [key for key in known if key not in now_there]:
        conn.execute(_QUERIES.get("close_health", _NEWEST), {"keys": gone})


def _health_hub(key: bytes, health: Health, found: View) -> dict[str, Any]:
    return {
        "health_metric_hk": rows.plain(key),
        "health_metric_bk": rows.health_key(health),
        "tenant_hk": rows.plain(found.servers[health.server].tenant_hk),
    }


def _hub(alert: Alert, found: View) -> dict[str, Any]:
    return {
        "alert_instance_hk": rows.plain(alert.alert_hk),
        "alert_instance_bk": f"{alert.fingerprint} {alert.triggered_at.isoformat()}",
        "alert_definition_hk": rows.plain(hash_key(alert.rule)),
        "tenant_hk": rows.plain(found.servers[alert.server].tenant_hk),
    }


def _memory_row(key: str, memory: Memory, now: datetime) -> dict[str, Any]:
    return {
        "fingerprint": key,
        "server_name": memory.server,
        "rule_name": memory.rule,
        "state": rows.state_of(memory),
        "updated_at": now.isoformat(),
    }


def _is_new(before: Alert | None, alert: Alert) -> bool:
    return before is None or before.alert_hk != alert.alert_hk


def _bulk(conn: psycopg.Connection, name: str, listed: Sequence[Mapping[str, Any]]) -> None:
    if listed:
        conn.execute(_QUERIES.get(name, _NEWEST), {"rows": Jsonb(list(listed))})


def _rows(conn: psycopg.Connection, name: str, values: Mapping[str, Any]) -> list[DictRow]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_QUERIES.get(name, _NEWEST), values).fetchall()


def _grouped(parts: Iterable[Part]) -> dict[tuple[str, str], tuple[Part, ...]]:
    grouped: dict[tuple[str, str], list[Part]] = defaultdict(list)
    for part in parts:
        grouped[part.server, part.family].append(part)
    return {key: tuple(listed) for key, listed in grouped.items()}
