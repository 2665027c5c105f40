"""Brings the vault's schema to the version of the code: forward only, one migrator at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import LiteralString

import psycopg
from psycopg.rows import class_row

from tasks import connection, queries
from tasks.errors import Refused
from tasks.schema import plan
from tasks.schema.models import Applied, Migration, Standing

OLDEST_SERVER = 15
LOCK_TIMEOUT_MS = 4_000
STATEMENT_TIMEOUT_MS = 300_000
_WAIT_FOR_TURN_MS = 600_000


def migrate(
    target: str | psycopg.Connection, *, directory: Path = plan.MIGRATIONS
) -> list[Applied]:
    """Apply what is missing, each migration in its own transaction, and return what was applied now.

    `target` is a connection string or an autocommit connection outside a transaction. Safe to repeat and to run
    twice at once. Raises Refused when code and vault do not belong together or a right is missing,
    Unavailable when a lock was not free within 4 s; what was applied before stays applied.
    """
    migrations = plan.read_migrations(directory)
    applied: list[Applied] = []
    with _session(target) as conn:
        while row := _apply_next(conn, migrations):
            applied.append(row)
    return applied


def pending(
    target: str | psycopg.Connection, *, directory: Path = plan.MIGRATIONS
) -> list[Migration]:
    """Return what migrate would apply, changing nothing; refused where migrate would refuse."""
    with _session(target) as conn:
        return list(plan.to_apply(plan.read_migrations(directory), _read_log(conn)))


def status(
    target: str | psycopg.Connection, *, directory: Path = plan.MIGRATIONS
) -> list[Standing]:
    """Return the state of every migration, in order, changed and unknown ones too."""
    with _session(target) as conn:
        return list(plan.standing(plan.read_migrations(directory), _read_log(conn)))


@contextmanager
def _session(target: str | psycopg.Connection) -> Iterator[psycopg.Connection]:
    if isinstance(target, str):
        with connection.connect(target, application_name="onevault migrate") as conn:
            _check(conn)
            yield conn
    else:
        _check(target)
        yield target


def _check(conn: psycopg.Connection) -> None:
    if not conn.autocommit:
        message = (
            "Migrations need an autocommit connection: each of them is a transaction of its own."
        )
        raise ValueError(message)
    if connection.server_major(conn) < OLDEST_SERVER:
        message = (
            f"The vault runs on PostgreSQL {connection.server_major(conn)}; it needs {OLDEST_SERVER} or newer. "
            "Upgrade the server, or point ONEVAULT_VAULT_URL at another one."
        )
        raise Refused(message)


def _apply_next(conn: psycopg.Connection, migrations: tuple[Migration, ...]) -> Applied | None:
    with connection.translating("migrate the vault"), conn.transaction():
        _take_turn(conn)
        missing = plan.to_apply(migrations, _read_log(conn))
        return _apply(conn, missing[0]) if missing else None


def _take_turn(conn: psycopg.Connection) -> None:
    conn.execute(_sql(conn, "see_what_others_commit"))
    conn.execute(_sql(conn, "limits_while_waiting"), {"wait_ms": str(_WAIT_FOR_TURN_MS)})
    conn.execute(_sql(conn, "take_turn"))
    conn.execute(
        _sql(conn, "limits_while_applying"),
        {"lock_ms": str(LOCK_TIMEOUT_MS), "statement_ms": str(STATEMENT_TIMEOUT_MS)},
    )


def _apply(conn: psycopg.Connection, migration: Migration) -> Applied:
    if not _has_log(conn):
        conn.execute(_sql(conn, "make_log"))
    started = monotonic()
    _run(conn, migration)
    entry = {
        "number": migration.number,
        "name": migration.name,
        "checksum": migration.checksum,
        "duration_ms": round((monotonic() - started) * 1000),
    }
    with conn.cursor(row_factory=class_row(Applied)) as cursor:
        (written,) = cursor.execute(_sql(conn, "write_log"), entry).fetchall()
    return written


def _run(conn: psycopg.Connection, migration: Migration) -> None:
    try:
        with connection.translating(f"apply migration {migration}"):
            conn.execute(migration.sql)
    except (psycopg.errors.DuplicateSchema, psycopg.errors.DuplicateTable) as error:
        message = (
            f"The database {conn.info.dbname} holds objects of other origin ({error.diag.message_primary}), "
            "and nothing of theirs was touched. Give the vault a database of its own: set ONEVAULT_VAULT_URL."
        )
        raise Refused(message) from error
    except psycopg.Error as error:
        message = (
            f"Migration {migration} failed and was undone: {error.diag.message_primary or error}."
        )
        raise Refused(message) from error


def _has_log(conn: psycopg.Connection) -> bool:
    return bool(connection.fetch_value(conn, _sql(conn, "has_log")))


def _read_log(conn: psycopg.Connection) -> list[Applied]:
    with connection.translating("read the vault's log of migrations"):
        if not _has_log(conn):
            return []
        with conn.cursor(row_factory=class_row(Applied)) as cursor:
            return cursor.execute(_sql(conn, "read_log")).fetchall()


def _sql(conn: psycopg.Connection, name: str) -> LiteralString:
    return queries.load("tasks.schema").get(name, connection.server_major(conn))
