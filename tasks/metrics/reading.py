"""What people look at: the fleet, one server's health and metrics, its worst statements, and history.

Each function is one query. Ages are computed by the vault's clock when it is read; None means that there never was one.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString, NamedTuple, TypeVar

import psycopg
from psycopg.rows import class_row

from tasks import connection, datavault, queries
from tasks.metrics.models import FamilyState, HealthStatus

_Row = TypeVar("_Row")
_RAW_SPAN = timedelta(hours=26)
_RAW_KEPT = timedelta(days=14)
_HOURLY_SPAN = timedelta(days=40)
_MOST_POINTS = 300


@dataclass(frozen=True, slots=True)
class ServerRow:
    """One server of the fleet. is_up is what its last sample said, which age_seconds may make worthless."""

    server: str
    tenant: str
    server_version: str | None
    is_in_recovery: bool | None
    host: str | None
    port: int | None
    is_up: bool | None
    sampled_at: datetime | None
    age_seconds: float | None
    worst_alert: str | None
    open_alerts: int
    critical: int
    warning: int
    unknown: int
    faulty_families: int

    @property
    def role(self) -> str:
        """Return primary, standby or unknown."""
        if self.is_in_recovery is None:
            return "unknown"
        return "standby" if self.is_in_recovery else "primary"


@dataclass(frozen=True, slots=True)
class SeriesRow:
    """The newest sample of one series; is_gone when the object was not in the family's later answer."""

    family: str
    labels: Mapping[str, str]
    values: Mapping[str, float]
    texts: Mapping[str, str]
    interval_seconds: float | None
    sampled_at: datetime
    age_seconds: float
    is_gone: bool

    def per_second(self, counter: str) -> float | None:
        """Return a counter's growth per second, or None when it is not known."""
        value = self.values.get(counter)
        return (
            value / self.interval_seconds if value is not None and self.interval_seconds else None
        )


@dataclass(frozen=True, slots=True)
class FamilyRow:
    """A family that did not answer the last time; the age is that of its last answer."""

    server: str
    family: str
    database: str
    state: FamilyState
    message: str
    attempted_at: datetime
    collected_at: datetime | None
    age_seconds: float | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", FamilyState(self.state))


@dataclass(frozen=True, slots=True)
class HealthRow:
    """One health metric: its value at the last change of status, and since when the status stands."""

    server: str
    metric: str
    labels: Mapping[str, str]
    category: str
    value: float | None
    unit: str
    direction: str
    threshold_warning: float | None
    threshold_critical: float | None
    status: HealthStatus
    measured_at: datetime | None
    since: datetime
    age_seconds: float | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", HealthStatus(self.status))


@dataclass(frozen=True, slots=True)
class AlertRow:
    """An alert that is open, acknowledged, escalated or suppressed."""

    server: str
    rule: str
    labels: Mapping[str, str]
    category: str
    status: str
    urgency: str
    summary: str
    trigger_value: float | None
    threshold_value: float | None
    started_at: datetime
    age_seconds: float


@dataclass(frozen=True, slots=True)
class StatementRow:
    """How much a statement grew over the window; share_percent is of all statements' time on its server."""

    server: str
    database: str
    role: str
    query_id: int
    query: str | None
    calls: int
    total_ms: float
    mean_ms: float | None
    rows: int
    hit_percent: float | None
    temp_blocks: int
    wal_bytes: int
    share_percent: float | None
    sampled_at: datetime
    age_seconds: float


class Point(NamedTuple):
    """What a metric was in one step of time: of a gauge low, mean and high, of a counter per_second."""

    at: datetime
    n: int
    total: float
    low: float
    high: float
    covered_seconds: float

    @property
    def mean(self) -> float:
        """Return the mean of the readings."""
        return self.total / self.n

    @property
    def per_second(self) -> float | None:
        """Return a counter's growth per second over the time in which it was seen."""
        return self.total / self.covered_seconds if self.covered_seconds else None


@dataclass(frozen=True, slots=True)
class History:
    """One metric of one object over time."""

    metric: str
    labels: Mapping[str, str]
    points: tuple[Point, ...]


def fleet(conn: psycopg.Connection, server: str | None = None) -> tuple[ServerRow, ...]:
    """Return every server, or one, by name."""
    return _rows(conn, "fleet", ServerRow, server=server)


def server_metrics(
    conn: psycopg.Connection, server: str, families: Sequence[str] | None = None
) -> tuple[SeriesRow, ...]:
    """Return the newest samples of one server, of all families or of these, by family and labels."""
    chosen = None if families is None else list(families)
    server_hk = datavault.hash_key(server)
    return _rows(conn, "server_metrics", SeriesRow, server_hk=server_hk, families=chosen)


def families_not_ok(conn: psycopg.Connection, server: str | None = None) -> tuple[FamilyRow, ...]:
    """Return families that did not answer the last time: faults first, then what does not apply there."""
    return _rows(conn, "families_not_ok", FamilyRow, server=server)


def health(conn: psycopg.Connection, server: str | None = None) -> tuple[HealthRow, ...]:
    """Return the evaluated health metrics, worst first."""
    return _rows(conn, "health", HealthRow, server=server)


def open_alerts(conn: psycopg.Connection, server: str | None = None) -> tuple[AlertRow, ...]:
    """Return alerts that are not resolved, worst and oldest first."""
    return _rows(conn, "open_alerts", AlertRow, server=server)


def top_statements(
    conn: psycopg.Connection, server: str | None = None, *, minutes: int = 60, limit: int = 20
) -> tuple[StatementRow, ...]:
    """Return the statements that took most of the last minutes, on one server or on all."""
    asked = {"server": server, "minutes": minutes, "limit": limit}
    return _rows(conn, "top_statements", StatementRow, **asked)


def history(
    conn: psycopg.Connection,
    server: str,
    metrics: Sequence[str],
    since: datetime,
    until: datetime,
    labels: Mapping[str, str] | None = None,
) -> tuple[History, ...]:
    """Return metrics (full names) of all objects that have these labels, in at most some 300 points each.

    Up to 26 hours come from samples, up to 40 days from hours, more from days; hours that are not over yet are in
    no roll-up.
    """
    split = [name.rpartition(".") for name in metrics]
    values = {
        "server_hk": datavault.hash_key(server),
        "families": [family for family, _, _ in split],
        "metrics": [metric for _, _, metric in split],
        "labels": json.dumps(dict(labels or {})),
        "since": since,
        "until": until,
        "step": max(timedelta(seconds=1), (until - since) / _MOST_POINTS),
    }
    with connection.translating(f"read the history of {server}"):
        name = source(datetime.now(UTC), since, until)
        rows = conn.execute(_text(name), values, binary=True).fetchall()
    return _histories(rows)


def source(now: datetime, since: datetime, until: datetime) -> LiteralString:
    """Return which statement answers for this span: finer ones as long as they are kept and few enough."""
    if until - since <= _RAW_SPAN and since >= now - _RAW_KEPT:
        return "history_of_samples"
    return "history_of_hours" if until - since <= _HOURLY_SPAN else "history_of_days"


def _histories(rows: Iterable[tuple[Any, ...]]) -> tuple[History, ...]:
    return tuple(
        History(f"{family}.{metric}", labels, tuple(map(Point, *steps)))
        for family, metric, labels, *steps in rows
    )


def _rows(
    conn: psycopg.Connection, name: str, row: type[_Row], **values: object
) -> tuple[_Row, ...]:
    with (
        connection.translating("read the vault's metrics"),
        conn.cursor(row_factory=class_row(row)) as cursor,
    ):
        return tuple(cursor.execute(_text(name), values).fetchall())


def _text(name: str) -> LiteralString:
    return queries.load("tasks.metrics").get(name, 15)
