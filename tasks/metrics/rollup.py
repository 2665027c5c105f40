"""Roll-ups: hours made of samples and days made of hours, and made again when samples came late."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import LiteralString

import psycopg
from psycopg import sql

from tasks import connection, queries
from tasks.metrics import partitions

_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
# A transaction that wrote into an hour while it lasted has committed, or was ended, when so much time has passed.
_GRACE_SECONDS = 300
_OLDEST_WORTH_LOOKING = timedelta(days=16)
_OF_SERVER = sql.SQL(
    "AND sample.series_id IN (SELECT series_id FROM monitoring.series WHERE server_hk = %(server_hk)s)"
)


@dataclass(frozen=True, slots=True)
class RollUp:
    """What one call did: hours and days of all servers, hours of one server that were made again, rows written.

    is_complete is False when the call reached its bound, or another one was at it: call again.
    """

    hours: int = 0
    days: int = 0
    late_hours: int = 0
    rows: int = 0
    is_complete: bool = True


@dataclass(slots=True)
class _Work:
    now: datetime
    hours: int = 0
    days: int = 0
    late_hours: int = 0
    rows: int = 0


def roll_up(
    conn: psycopg.Connection, now: datetime, *, hours: int = 48, late_hours: int = 1_000
) -> RollUp:
    """Roll up the hours that ended five minutes ago, and their days, then what came late; at most so many a call.

    One short transaction an hour, so that a call that is cut off loses nothing. Needs an autocommit connection.
    Raises Unavailable when the vault may be back later.
    """
    work = _Work(now)
    with connection.translating("roll up the metrics"):
        complete = _repeat(_next_hour, conn, work, hours)
        complete = _repeat(_next_late, conn, work, late_hours) and complete
    return RollUp(work.hours, work.days, work.late_hours, work.rows, complete)


def _repeat(
    step: Callable[[psycopg.Connection, _Work], bool],
    conn: psycopg.Connection,
    work: _Work,
    most: int,
) -> bool:
    """Do a step, each time in a transaction of its own, until there is nothing left; False when the bound was first."""
    for _ in range(most):
        with conn.transaction():
            if not connection.fetch_value(conn, _text("take_roll_up")):
                return False
            if not step(conn, work):
                return True
    return False


def _next_hour(conn: psycopg.Connection, work: _Work) -> bool:
    done, last = _standing(conn, work)
    hour = max(done, last - _OLDEST_WORTH_LOOKING)
    if hour >= last:
        return False
    conn.execute(_text("forget_late"), {"bucket_at": hour})
    work.rows += _roll_up(conn, "hour", hour, None)
    work.hours += 1
    if (hour + _HOUR).hour == 0:
        work.rows += _roll_up(conn, "day", _day(hour), None)
        work.days += 1
    conn.execute(_text("set_rolled_up_until"), {"until": hour + _HOUR})
    return True


def _next_late(conn: psycopg.Connection, work: _Work) -> bool:
    done, _ = _standing(conn, work)
    mark = conn.execute(_text("take_late"), {"until": done}).fetchone()
    if mark is None:
        return False
    server_hk, at = mark
    hour = at.astimezone(UTC)
    work.rows += _roll_up(conn, "hour", hour, server_hk)
    work.late_hours += 1
    if _day(hour) + _DAY <= done:
        work.rows += _roll_up(conn, "day", _day(hour), server_hk)
    return True


def _standing(conn: psycopg.Connection, work: _Work) -> tuple[datetime, datetime]:
    """Return up to when hours are rolled up, and up to when they can be."""
    values = {"now": work.now, "grace_seconds": _GRACE_SECONDS}
    done, last = conn.execute(_text("rolled_up_until"), values).fetchall()[0]
    return done.astimezone(UTC), last.astimezone(UTC)


def _roll_up(
    conn: psycopg.Connection, step: str, bucket_at: datetime, server_hk: bytes | None
) -> int:
    table = "metric_hourly" if step == "hour" else "metric_daily"
    partitions.ensure_span(conn, table, bucket_at, bucket_at)
    of_server = _OF_SERVER if server_hk else sql.SQL("")
    statement = queries.load("tasks.metrics").compose(f"roll_up_{step}", 15, of_server=of_server)
    return conn.execute(statement, {"bucket_at": bucket_at, "server_hk": server_hk}).rowcount


def _day(at: datetime) -> datetime:
    return at.replace(hour=0)


def _text(name: str) -> LiteralString:
    return queries.load("tasks.metrics").get(name, 15)
