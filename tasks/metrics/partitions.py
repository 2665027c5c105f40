"""Partitions of the samples and roll-ups: made ahead of time, and dropped as a whole when they have expired."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import LiteralString

import psycopg
from psycopg import sql

from tasks import audit, connection, queries
from tasks.errors import Refused, Unavailable

_SCHEMA = "monitoring"
_LOCK_TIMEOUT_MS = 1_500
_BEHIND = timedelta(days=2)
_AHEAD_DAYS = timedelta(days=3)
_AHEAD_MONTHS = timedelta(days=62)
_CLOCK_TOLERANCE = timedelta(hours=1)


class Step(StrEnum):
    """How much time one partition holds."""

    DAY = "day"
    MONTH = "month"

    def start(self, at: datetime) -> datetime:
        """Return the beginning, in UTC, of the day or month that holds this moment."""
        midnight = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        return midnight if self is Step.DAY else midnight.replace(day=1)

    def next(self, start: datetime) -> datetime:
        """Return the beginning of the one after."""
        return self.start(start + timedelta(days=1 if self is Step.DAY else 32))

    @property
    def name_format(self) -> str:
        """Return how its beginning is written in a partition's name."""
        return "%Y%m%d" if self is Step.DAY else "%Y%m"


STEPS = {
    "metric_sample": Step.DAY,
    "statement_sample": Step.DAY,
    "metric_hourly": Step.MONTH,
    "metric_daily": Step.MONTH,
}


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition as we make it: from starts_at up to, and without, ends_at."""

    table: str
    starts_at: datetime
    ends_at: datetime

    @property
    def name(self) -> str:
        """Return its table's name."""
        return f"{self.table}_{self.starts_at.strftime(STEPS[self.table].name_format)}"

    @property
    def bound(self) -> str:
        """Return its bound as PostgreSQL writes it in a session that lives in UTC."""
        return f"FOR VALUES FROM ('{_written(self.starts_at)}') TO ('{_written(self.ends_at)}')"


@dataclass(frozen=True, slots=True)
class Retention:
    """How long samples and roll-ups are kept."""

    samples: timedelta = timedelta(days=14)
    statements: timedelta = timedelta(days=35)
    hourly: timedelta = timedelta(days=400)
    daily: timedelta = timedelta(days=2555)

    def of(self, table: str) -> timedelta:
        """Return the time for one of our partitioned tables."""
        return {
            "metric_sample": self.samples,
            "statement_sample": self.statements,
            "metric_hourly": self.hourly,
            "metric_daily": self.daily,
        }[table]


@dataclass(frozen=True, slots=True)
class Dropped:
    """What retention did: names of dropped partitions, and of those whose table was too busy; the next run gets them."""

    dropped: tuple[str, ...]
    busy: tuple[str, ...]


def spanning(table: str, since: datetime, until: datetime) -> Iterator[Partition]:
    """Give the partitions that hold these moments and all between them."""
    step = STEPS[table]
    start = step.start(since)
    while start <= until:
        yield Partition(table, start, step.next(start))
        start = step.next(start)


def named(table: str, name: str) -> Partition | None:
    """Return the partition that we would give this name, or None."""
    step = STEPS[table]
    match = re.fullmatch(rf"{table}_(\d{{8}}|\d{{6}})", name)
    try:
        start = datetime.strptime(match[1], step.name_format).replace(tzinfo=UTC) if match else None
    except ValueError:
        return None
    made = Partition(table, start, step.next(start)) if start else None
    return made if made and made.name == name else None


def ensure(conn: psycopg.Connection, now: datetime) -> tuple[str, ...]:
    """Make the partitions from two days ago to three days or two months ahead; return the names of new ones.

    Needs an autocommit connection. Readers and writers go on meanwhile; two at once are safe. Raises Unavailable
    when a lock was not free for a while, Refused when a foreign partition is in the way.
    """
    made: list[str] = []
    for table, step in STEPS.items():
        ahead = _AHEAD_DAYS if step is Step.DAY else _AHEAD_MONTHS
        made += ensure_span(conn, table, now - _BEHIND, now + ahead)
    return tuple(made)


def ensure_span(
    conn: psycopg.Connection, table: str, since: datetime, until: datetime
) -> tuple[str, ...]:
    """Make the partitions of one table that are missing between two moments; otherwise as ensure."""
    with connection.translating(f"make the partitions of {_SCHEMA}.{table}"):
        there = {name for name, _ in _existing(conn, table)}
        missing = [part for part in spanning(table, since, until) if part.name not in there]
        return tuple(part.name for part in missing if _make(conn, part))


def drop_expired(conn: psycopg.Connection, now: datetime, retention: Retention) -> Dropped:
    """Detach and drop our partitions that lie wholly before the retention; each leaves audit rows.

    A partition counts as ours when its name and its bounds are exactly as we make them. Needs an autocommit
    connection. Refused when `now` is ahead of the vault's clock, for such a clock would drop what is still wanted.
    """
    dropped: list[str] = []
    busy: list[str] = []
    with connection.translating("drop expired partitions"):
        _check_clock(conn, now)
        for partition in _expired(conn, now, retention):
            try:
                _drop(conn, partition)
            except Unavailable:
                busy.append(partition.name)
            else:
                dropped.append(partition.name)
    return Dropped(tuple(dropped), tuple(busy))


def _make(conn: psycopg.Connection, partition: Partition) -> bool:
    with conn.transaction():
        _take_turn(conn)
        if partition.name in {name for name, _ in _existing(conn, partition.table)}:
            return False
        names = {"parent": _identifier(partition.table), "partition": _identifier(partition.name)}
        conn.execute(_query("make_partition", **names))
        # No policy on it: whoever may read the parent sees his rows there, and nobody reads past it.
        conn.execute(_query("close_partition", partition=names["partition"]))
        bounds = {
            "starts_at": sql.Literal(_written(partition.starts_at)),
            "ends_at": sql.Literal(_written(partition.ends_at)),
        }
        try:
            conn.execute(_query("attach_partition", **names, **bounds))
        except psycopg.errors.InvalidObjectDefinition:
            message = (
                f"{_SCHEMA}.{partition.table} has a partition of other bounds where {partition.name} belongs: "
                "detach it, copy its rows, then try again."
            )
            raise Refused(message) from None
    return True


def _drop(conn: psycopg.Connection, partition: Partition) -> None:
    subject = f"{_SCHEMA}.{partition.name}"
    event = audit.Event("partition.drop", subject)
    details: dict[str, object] = {"bounds": partition.bound}
    with (
        audit.audited(conn, event, details),
        connection.translating(f"drop {subject}"),
        conn.transaction(),
    ):
        _take_turn(conn)
        # The row may be gone: two at once, and the other was first.
        if (partition.name, partition.bound) not in _existing(conn, partition.table):
            return
        names = {"parent": _identifier(partition.table), "partition": _identifier(partition.name)}
        conn.execute(_query("detach_partition", **names))
        conn.execute(_query("drop_partition", partition=names["partition"]))


def _expired(conn: psycopg.Connection, now: datetime, retention: Retention) -> Iterator[Partition]:
    for table in STEPS:
        for name, bound in sorted(_existing(conn, table)):
            partition = named(table, name)
            is_ours = partition is not None and bound == partition.bound
            if partition and is_ours and partition.ends_at <= now - retention.of(table):
                yield partition


def _existing(conn: psycopg.Connection, table: str) -> set[tuple[str, str]]:
    with conn.transaction():
        # Bounds are shown in the session's zone and style.
        conn.execute(_text("show_in_utc"))
        rows = conn.execute(_text("partitions"), {"parent": f"{_SCHEMA}.{table}"}).fetchall()
    return {(name, bound) for name, bound in rows}


def _take_turn(conn: psycopg.Connection) -> None:
    conn.execute(_text("limit_waiting"), {"lock_timeout": f"{_LOCK_TIMEOUT_MS}ms"})
    conn.execute(_text("take_partitions"))


def _check_clock(conn: psycopg.Connection, now: datetime) -> None:
    clock = connection.fetch_value(conn, _text("clock"))
    if isinstance(clock, datetime) and now > clock + _CLOCK_TOLERANCE:
        message = (
            f"The clock here says {now:%Y-%m-%d %H:%M} UTC and the vault's {clock.astimezone(UTC):%Y-%m-%d %H:%M}: "
            "nothing was dropped. Set the clocks right, then try again."
        )
        raise Refused(message)


def _written(at: datetime) -> str:
    return f"{at:%Y-%m-%d} 00:00:00+00"


def _identifier(name: str) -> sql.Identifier:
    return sql.Identifier(_SCHEMA, name)


def _text(name: str) -> LiteralString:
    return queries.load("tasks.metrics").get(name, 15)


def _query(name: str, **places: sql.Composable) -> sql.Composed:
    return queries.load("tasks.metrics").compose(name, 15, **places)
