"""What is usual at an hour of the week: bands that annotate alerts. They never page.

A band is made of the hours of the last 28 days: of that hour of the week and its two neighbours, from the tenth of the
lows to nine tenths of the highs, so that one odd week moves it little. Measured on public series, alerting on such bands
is wrong too often; as a note beside an alert that has a mechanism, they help.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tasks import queries
from tasks.alerts import wording
from tasks.alerts.models import Alert

METRICS = (
    "connections.active",
    "connections.total",
    "connections.used_percent",
    "databases.xact_commit",
    "databases.temp_bytes",
    "databases.deadlocks",
    "wal_stats.wal_bytes",
    "host_cpu.cpu_percent",
    "host_memory.memory_used_percent",
    "locks_waiting.waiting",
    "sessions_long.idle_in_transaction",
)
"""The metrics that get a baseline unless others are asked for."""

FEWEST_WEEKS = 3
_SPAN = timedelta(days=28)
_FRESH = timedelta(minutes=15)
_FAR = 0.25
_POINTS = 2
_QUERIES = queries.load("tasks.alerts")
_NEWEST = 99


@dataclass(frozen=True, slots=True)
class Anomaly:
    """A metric whose last two values lie far outside what is usual at this hour of the week."""

    metric: str
    labels: Mapping[str, str]
    value: float
    low: float
    high: float
    weeks: int


def hour_of_week(now: datetime) -> int:
    """Return 0 (Monday 00:00 UTC) to 167."""
    utc = now.astimezone(UTC)
    return utc.weekday() * 24 + utc.hour


def is_far(value: float, low: float, high: float) -> bool:
    """Tell whether a value lies outside the band by more than a quarter of its width."""
    margin = _FAR * (high - low)
    return value > high + margin or value < low - margin


def compute(conn: psycopg.Connection, now: datetime, metrics: Collection[str] = METRICS) -> int:
    """Make the bands anew from the last 28 days of hourly roll-ups, and return how many there are."""
    since = (now - _SPAN).replace(minute=0, second=0, microsecond=0)
    with conn.transaction():
        values = {"now": now, "since": since, "metrics": list(metrics)}
        made = conn.execute(_QUERIES.get("compute_baselines", _NEWEST), values).rowcount
        conn.execute(_QUERIES.get("drop_old_baselines", _NEWEST), {"now": now})
    return made


def annotate(
    conn: psycopg.Connection, alerts: Mapping[int, Alert], now: datetime
) -> dict[int, Alert]:
    """Say beside each new alert what is usual at this hour, where at least three weeks are known. Keys are series."""
    if not alerts:
        return {}
    values = {"series": list(alerts), "hour": hour_of_week(now)}
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(_QUERIES.get("baselines_of", _NEWEST), values).fetchall()
    found = {(row["series_id"], row["metric"]): row for row in rows}
    return {number: _annotated(alert, number, found) for number, alert in alerts.items()}


def anomalies(conn: psycopg.Connection, server: str, now: datetime) -> tuple[Anomaly, ...]:
    """List the metrics of a server whose last two values lie far outside their band."""
    values = {
        "server": server,
        "hour": hour_of_week(now),
        "weeks": FEWEST_WEEKS,
        "now": now,
        "since": now - _FRESH,
    }
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(_QUERIES.get("anomalies", _NEWEST), values).fetchall()
    return tuple(
        Anomaly(
            row["metric"], row["labels"], row["recent"][0], row["low"], row["high"], row["weeks"]
        )
        for row in rows
        if _is_anomalous(row)
    )


def _is_anomalous(row: Mapping[str, Any]) -> bool:
    recent = row["recent"] or []
    return len(recent) >= _POINTS and all(is_far(each, row["low"], row["high"]) for each in recent)


def _annotated(
    alert: Alert, series_id: int, found: Mapping[tuple[int, str], Mapping[str, Any]]
) -> Alert:
    row = found.get((series_id, str(alert.details.get("metric", "")).partition(".")[2]))
    if row is None or row["weeks"] < FEWEST_WEEKS or alert.trigger_value is None:
        return alert
    low, high, value = (
        wording.shown(number, "") for number in (row["low"], row["high"], alert.trigger_value)
    )
    usual = f"usually {low}-{high} at this hour of the week ({row['weeks']} weeks); now {value}"
    return replace(alert, details={**alert.details, "usually": usual})
