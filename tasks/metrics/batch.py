"""Families asked in one pipelined batch, and rows made into observations."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.adapt import Buffer, Loader
from psycopg.rows import dict_row

from tasks import queries
from tasks.metrics.models import Family, FamilyState, Level, Observation
from tasks.redaction import redact

STATEMENTS = queries.load(Path(__file__).with_name("session.sql"))
STATEMENT_TIMEOUT_MS = 5_000
"""The session's own time limit; a family with another one has it set in the same batch."""

Row = Mapping[str, Any]

# A right, a function, a relation or a column is not there; the server cannot do it; it is not in the state for it.
_REFUSED = ("42", "0A", "55000")
_LOST = ("08", "57P01", "57P02", "57P03", "57P05", "25P03")
_TEXT_TYPES = ("text", "name", "varchar", "bpchar")


class _AnyText(Loader):
    """Text that need not be UTF-8: a database in SQL_ASCII checks nothing, and its names are seen everywhere."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Ask:
    """A family and the query to ask it by."""

    family: Family
    query: LiteralString | sql.Composed
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What a server was at the moment of a batch."""

    is_in_recovery: bool
    postmaster_started_at: datetime
    counters_began_at: datetime | None

    @property
    def epoch(self) -> str:
        """Return what changes with every restart, and with every crash."""
        # In UTC: a server whose TimeZone is changed counts on.
        began = self.counters_began_at
        since = began.astimezone(UTC).isoformat() if began else ""
        return f"{self.postmaster_started_at.astimezone(UTC).isoformat()}/{since}"


async def send(
    conn: psycopg.AsyncConnection, asks: Sequence[Ask], *, prepare: bool | None = None
) -> tuple[Standing, list[list[Row]]]:
    """Ask for all of it in one pipeline, which the server runs as one transaction, and return each family's rows.

    Raises psycopg.Error of the first statement that failed; then there are no rows at all. What is not UTF-8 fails
    once on a connection, which reads any bytes as text from then on.
    """
    try:
        return await _send(conn, asks, prepare)
    except UnicodeDecodeError:
        read_any_text(conn)
        message = "the answer is not text in UTF-8"
        raise psycopg.DataError(message) from None


def read_any_text(conn: psycopg.AsyncConnection) -> None:
    """Read text with a replacement character for what is not UTF-8 from now on; slower than the driver's own way."""
    for name in _TEXT_TYPES:
        conn.adapters.register_loader(name, _AnyText)


async def _send(
    conn: psycopg.AsyncConnection, asks: Sequence[Ask], prepare: bool | None
) -> tuple[Standing, list[list[Row]]]:
    major, cursors, limit = conn.info.server_version // 10_000, [], STATEMENT_TIMEOUT_MS
    first = conn.cursor(row_factory=dict_row)
    # Nothing is fetched before the pipeline ends: that would be another round trip.
    async with conn.pipeline():
        await first.execute(STATEMENTS.get("standing", major))
        for ask in asks:
            if ask.timeout_ms != limit:
                limit = ask.timeout_ms
                await _limit_statement(conn, major, limit)
            cursor = conn.cursor(row_factory=dict_row)
            cursors.append(await cursor.execute(ask.query, prepare=prepare))
    standing = await first.fetchall()
    return Standing(**standing[0]), [list(await cursor.fetchall()) for cursor in cursors]


async def _limit_statement(conn: psycopg.AsyncConnection, major: int, milliseconds: int) -> None:
    statement = STATEMENTS.get("limit_statement", major)
    await conn.execute(statement, {"milliseconds": str(milliseconds)})


def compose(
    family: Family, text: LiteralString, schema: str | None
) -> LiteralString | sql.Composed:
    """Put the schema of a family's extension where its query says `{extension}`; else return the query as it is."""
    if schema is None or family.needs_extension is None:
        return text
    return sql.SQL(text).format(**{family.needs_extension: sql.Identifier(schema)})


def observations(
    family: Family, rows: Iterable[Row], standing: Standing, database: str
) -> tuple[Observation, ...]:
    """Make rows into observations; of a family of databases each bears the label `database`."""
    extra = {"database": database} if family.level is Level.DATABASE else {}
    epoch = standing.epoch
    return tuple(_observation(family, row, epoch, extra) for row in rows)


def _observation(family: Family, row: Row, epoch: str, extra: Mapping[str, str]) -> Observation:
    own = text(row.get(family.epoch)) if family.epoch else ""
    return Observation(
        labels={**extra, **{name: text(row.get(name)) for name in family.labels}},
        numbers=_numbers(family.metrics, row),
        texts={name: text(row[name]) for name in family.texts if row.get(name) is not None},
        epoch=f"{epoch}|{own}",
    )


def _numbers(names: Iterable[str], row: Row) -> dict[str, float]:
    found = {}
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        # Thousands of statements are read a minute, most of their columns integers.
        known = float(value) if type(value) is int else number(value)
        if known is not None:
            found[name] = known
    return found


def number(value: object) -> float | None:
    """Return a finite number, or None for what is unknown: NULL, NaN, infinity, or no number at all."""
    if not isinstance(value, int | float | Decimal):
        return None
    found = float(value)
    return found if math.isfinite(found) else None


def text(value: object) -> str:
    """Return a column as text; NULL is empty, and a time is in ISO 8601."""
    if type(value) is str:
        return value
    if value is None:
        return ""
    return value.isoformat() if isinstance(value, datetime) else str(value)


def is_lost(conn: psycopg.AsyncConnection, error: psycopg.Error) -> bool:
    """Tell whether the connection went, and not only the statement."""
    driver = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return conn.closed or (error.sqlstate or ("08" if driver else "")).startswith(_LOST)


def state_of(error: psycopg.Error) -> FamilyState:
    """Tell a family that cannot be had there from one that failed this time."""
    refused = (error.sqlstate or "").startswith(_REFUSED)
    return FamilyState.REFUSED if refused else FamilyState.DEGRADED


def words_of(error: psycopg.Error) -> str:
    """Return the server's first line, without a full stop and without secrets."""
    first = str(error).strip().partition("\n")[0] or "the connection was lost"
    return redact(first).rstrip(".")
