"""The worst statements of each hour, rated, with what could be done about them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import LiteralString

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from tasks import connection, queries

_HOUR = timedelta(hours=1)
_LIMIT = 20
_ABOVE_CALLS = 5
_SLOW_MS = 1000
_LOW_HIT_PERCENT = 95


class Rating(StrEnum):
    """How fast a statement is by its mean time: above 1000 ms, above 500, above 100, or below."""

    CRITICAL = "CRITICAL"
    POOR = "POOR"
    GOOD = "GOOD"
    EXCELLENT = "EXCELLENT"


@dataclass(frozen=True, slots=True)
class StatementHour:
    """How much one statement grew in one hour."""

    server: str
    tenant_hk: bytes
    database: str
    role: str
    query_id: int
    query: str | None
    calls: int
    total_ms: float
    rows: int
    shared_blks_hit: int
    shared_blks_read: int
    shared_blks_dirtied: int
    temp_blks_read: int
    temp_blks_written: int

    @property
    def mean_ms(self) -> float:
        """Return the mean time of one call: all the time by all the calls."""
        return self.total_ms / self.calls

    @property
    def hit_percent(self) -> float | None:
        """Return the share of blocks found in shared buffers, or None when no block was asked for."""
        blocks = self.shared_blks_hit + self.shared_blks_read
        return 100.0 * self.shared_blks_hit / blocks if blocks else None


def rate(mean_ms: float) -> Rating:
    """Return the rating of a mean time."""
    for limit, rating in ((_SLOW_MS, Rating.CRITICAL), (500, Rating.POOR), (100, Rating.GOOD)):
        if mean_ms > limit:
            return rating
    return Rating.EXCELLENT


def suggest(statement: StatementHour) -> tuple[str, ...]:
    """Return what to look at first, in sentences."""
    return tuple(_suggestions(statement))


def record(conn: psycopg.Connection, now: datetime) -> int:
    """Write the worst twenty statements of each server for every complete hour; return how many rows are new.

    Hours of the last day that are missing are caught up, and the last ones looked at again for what came late: it
    makes a new version. Needs an autocommit connection. Raises Unavailable when the vault may be back later.
    """
    written = 0
    with connection.translating("record the worst statements"):
        hour = connection.fetch_value(conn, _text("performance_since"), now=now)
        while isinstance(hour, datetime) and hour + _HOUR <= now:
            written += _record_hour(conn, hour.astimezone(UTC))
            hour += _HOUR
    return written


def _record_hour(conn: psycopg.Connection, hour: datetime) -> int:
    values = {"since": hour, "until": hour + _HOUR}
    limits = {"limit": _LIMIT, "above_calls": _ABOVE_CALLS}
    with conn.transaction():
        with conn.cursor(row_factory=class_row(StatementHour)) as cursor:
            found = cursor.execute(_text("worst_statements"), {**values, **limits}).fetchall()
        if not found:
            return 0
        rows = Jsonb([_row(each, hour) for each in found])
        conn.execute(_text("add_performance_hubs"), {"rows": rows})
        conn.execute(_text("close_performance"), {"rows": rows})
        return conn.execute(_text("add_performance"), {"rows": rows, **values}).rowcount


def _row(statement: StatementHour, hour: datetime) -> dict[str, object]:
    named = (statement.server, statement.database, statement.role, str(statement.query_id))
    return {
        "key": json.dumps([*named, f"{hour:%Y-%m-%dT%HZ}"], ensure_ascii=False),
        "tenant": statement.tenant_hk.hex(),
        "server_name": statement.server,
        "query_hash": str(statement.query_id),
        "database_name": statement.database,
        "username": statement.role,
        "query_text": statement.query,
        "total_time_ms": statement.total_ms,
        "mean_time_ms": statement.mean_ms,
        "calls": statement.calls,
        "rows_returned": statement.rows,
        "shared_blks_hit": statement.shared_blks_hit,
        "shared_blks_read": statement.shared_blks_read,
        "shared_blks_dirtied": statement.shared_blks_dirtied,
        "temp_blks_read": statement.temp_blks_read,
        "temp_blks_written": statement.temp_blks_written,
        "cache_hit_percent": statement.hit_percent,
        "performance_rating": rate(statement.mean_ms).value,
        "optimization_suggestions": list(suggest(statement)),
    }


def _suggestions(statement: StatementHour) -> Iterator[str]:
    if statement.mean_ms > _SLOW_MS:
        yield f"A call takes {statement.mean_ms:,.0f} ms: read its plan and look for a missing index."
    hit = statement.hit_percent
    if hit is not None and hit < _LOW_HIT_PERCENT:
        yield f"Only {hit:.1f} % of its blocks were in shared buffers: read fewer blocks, or give it more memory."
    if temporary := statement.temp_blks_read + statement.temp_blks_written:
        yield f"It moved {temporary:,} temporary blocks: raise work_mem for it, or sort and hash less."


def _text(name: str) -> LiteralString:
    return queries.load("tasks.metrics").get(name, 15)
