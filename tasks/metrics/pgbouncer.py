"""What a PgBouncer says of its pools, by the names of its columns: they differ by version."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic, perf_counter
from typing import Any, LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, dict_row

from tasks import connection
from tasks.errors import OneVaultError, Refused, Unavailable
from tasks.metrics.models import Family, FamilyAnswer, FamilyState, Observation

CONSOLE = "pgbouncer"
"""The pseudo database of the admin console, which no client of the server uses."""

_CONNECT_SECONDS = 5
_DEADLINE_SECONDS = 10.0
_NEVER = re.compile(
    r"authentication failed|auth failed|not allowed|no such user|no password supplied|does not support SSL|certificate"
)


@dataclass(frozen=True, slots=True)
class Show:
    """A command of the console, and how its columns become ours.

    labels gives the column of a label that is called otherwise; terms gives, for a metric, the columns and factors
    that it is the sum of, as far as they exist. is_list tells that each row is one number, as in SHOW LISTS.
    """

    command: LiteralString
    labels: Mapping[str, str] = field(default_factory=dict)
    terms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    is_list: bool = False


_MICRO = 1e-6
SHOWS: Mapping[str, Show] = {
    "pgbouncer_pools": Show(
        "SHOW POOLS", terms={"maxwait_seconds": {"maxwait": 1, "maxwait_us": _MICRO}}
    ),
    "pgbouncer_databases": Show(
        "SHOW DATABASES",
        labels={"database": "name"},
        # Renamed in 1.24: a console has one of them.
        terms={"reserve_pool_size": {"reserve_pool": 1, "reserve_pool_size": 1}},
    ),
    "pgbouncer_stats": Show(
        "SHOW STATS",
        terms={
            "transactions": {"total_xact_count": 1},
            "queries": {"total_query_count": 1},
            "received_bytes": {"total_received": 1},
            "sent_bytes": {"total_sent": 1},
            "transaction_seconds": {"total_xact_time": _MICRO},
            "query_seconds": {"total_query_time": _MICRO},
            "wait_seconds": {"total_wait_time": _MICRO},
        },
    ),
    "pgbouncer_lists": Show("SHOW LISTS", is_list=True),
}


async def scrape(conninfo: str, families: Sequence[Family]) -> tuple[FamilyAnswer, ...]:
    """Ask a console for these families of Source.PGBOUNCER, over a connection of its own; never raises for its faults.

    conninfo is the console's (dbname=pgbouncer); a user of stats_users is enough.
    """
    if not families:
        return ()
    try:
        async with asyncio.timeout(_DEADLINE_SECONDS), await _open(conninfo) as conn:
            return tuple([await _ask(conn, family) for family in families])
    except TimeoutError:
        words = f"The PgBouncer at {connection.describe(conninfo)} did not answer within {_DEADLINE_SECONDS:g} s."
        return _all_failed(families, FamilyState.UNAVAILABLE, words)
    except Refused as error:
        return _all_failed(families, FamilyState.REFUSED, str(error))
    except (OneVaultError, psycopg.Error) as error:
        return _all_failed(families, FamilyState.UNAVAILABLE, str(error))


async def _open(conninfo: str) -> "psycopg.AsyncConnection[DictRow]":
    # The console knows neither prepared statements nor transactions nor parameters that the server would fill in.
    where = connection.describe(conninfo)
    limits = {"connect_timeout": _CONNECT_SECONDS, **conninfo_to_dict(conninfo)}
    try:
        return await psycopg.AsyncConnection.connect(
            make_conninfo("", **limits),
            autocommit=True,
            prepare_threshold=None,
            row_factory=dict_row,
            cursor_factory=psycopg.AsyncClientCursor,
        )
    except psycopg.OperationalError as error:
        words = " ".join(str(error).split("failed: ")[-1].split()).rstrip(".")
        sentence = f"Could not connect to PgBouncer at {where}: {words}."
        if _NEVER.search(words):
            raise Refused(f"{sentence} Correct the console's login.") from None
        raise Unavailable(f"{sentence} Check that it runs and can be reached.") from None


async def _ask(conn: "psycopg.AsyncConnection[DictRow]", family: Family) -> FamilyAnswer:
    begun = perf_counter()
    show = SHOWS.get(family.name)
    if show is None:
        words = f"This version has no command of the console for {family.name}: update the catalogue or the program."
        return _answer(family, FamilyState.NOT_APPLICABLE, words)
    try:
        cursor = await conn.execute(show.command)
        seen = observations(family, show, await cursor.fetchall())
    except psycopg.Error as error:
        # The console calls every refusal a protocol violation; a connection that is gone takes the other families along.
        if conn.closed:
            raise
        return _answer(family, FamilyState.REFUSED, f"{show.command}: {error}")
    milliseconds = 1000 * (perf_counter() - begun)
    return _answer(family, FamilyState.OK, duration_ms=milliseconds, seen=seen)


def observations(
    family: Family, show: Show, rows: Sequence[Mapping[str, Any]]
) -> tuple[Observation, ...]:
    """Read a command's rows by column name: unknown columns are ignored, missing ones are absent."""
    if show.is_list:
        rows = [{row["list"]: row["items"] for row in rows}]
    kept = [row for row in rows if CONSOLE not in (row.get("database"), row.get("name"))]
    return tuple(_observation(family, show, row) for row in kept)


def _observation(family: Family, show: Show, row: Mapping[str, Any]) -> Observation:
    numbers = {name: _number(row, show.terms.get(name, {name: 1})) for name in family.metrics}
    return Observation(
        labels={name: str(row.get(show.labels.get(name, name)) or "") for name in family.labels},
        numbers={name: number for name, number in numbers.items() if number is not None},
        texts={name: str(row[name]) for name in family.texts if row.get(name) is not None},
    )


def _number(row: Mapping[str, Any], terms: Mapping[str, float]) -> float | None:
    found = [float(row[name]) * by for name, by in terms.items() if row.get(name) is not None]
    return sum(found) if found else None


def _answer(
    family: Family,
    state: FamilyState,
    message: str = "",
    *,
    duration_ms: float = 0.0,
    seen: tuple[Observation, ...] = (),
) -> FamilyAnswer:
    return FamilyAnswer(
        family=family.name,
        state=state,
        read_at=datetime.now(UTC),
        monotonic=monotonic(),
        message=message,
        duration_ms=duration_ms,
        observations=seen,
    )


def _all_failed(
    families: Sequence[Family], state: FamilyState, message: str
) -> tuple[FamilyAnswer, ...]:
    return tuple(_answer(family, state, message) for family in families)
