"""PostgreSQL's client programs in a backup: how they log in, and what they mean when they fail."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg.conninfo import make_conninfo

from tasks import processes
from tasks.backup.comparison import schema_lines
from tasks.backup.ports import Server
from tasks.errors import Unavailable
from tasks.home import make_home
from tasks.processes import PIPE, Process, ProgramFailed
from tasks.programs import Installation
from tasks.scratch import scratch_folder, sweep

_SCHEMA_TIMEOUT_SECONDS = 600.0
_LOCKED = re.compile(r"LOCK TABLE (.+) IN ACCESS SHARE MODE")
# pg_dump bounds its wait for locks by a time limit on the statement.
_GAVE_UP = re.compile(r"canceling statement due to (?:statement|lock) timeout")


@contextmanager
def client_environment(server: Server) -> Iterator[dict[str, str]]:
    """Yield the PG* variables for client programs; the password file lives as long as the block.

    One that a killed run left is removed by the next.
    """
    place = make_home() / "logins"
    sweep(place)
    with scratch_folder(place) as folder:
        passfile = folder / "pgpass"
        server.write_passfile(passfile)
        yield server.libpq_environment(passfile)


@contextmanager
def naming_locks(lock_wait_seconds: int) -> Iterator[None]:
    """Say of a program that gave up waiting for a lock which table it was and what to do; raises Unavailable."""
    try:
        yield
    except ProgramFailed as error:
        found = [match[1] for line in error.lines if (match := _LOCKED.search(line))]
        if not found or not any(_GAVE_UP.search(line) for line in error.lines):
            raise
        message = (
            f"{error.program} waited {lock_wait_seconds} s for a lock on {_named(found[0])} and gave up: "
            "see who holds it (pg_locks, pg_blocking_pids), or raise lock_wait_seconds"
        )
        raise Unavailable(message) from error


def read_schema(
    tools: Installation,
    environment: dict[str, str],
    *,
    snapshot: str | None = None,
    lock_wait_seconds: int,
    timeout_seconds: float,
    on_start: Callable[[Process], None],
) -> tuple[str, ...]:
    """Return the schema of the database that PGDATABASE names, as the lines of a dump.

    `on_start` gets the running program, for whoever may have to end it from another thread.
    """
    argv: list[str | Path] = [tools.program("pg_dump"), "--schema-only", "--no-password"]
    argv.append(f"--lock-wait-timeout={lock_wait_seconds * 1000}")
    # pg_dump writes no script that would have to connect to a name with a line end in it.
    if not re.search(r"[\r\n]", environment["PGDATABASE"]):
        argv.append("--create")
    if snapshot:
        argv.append(f"--snapshot={snapshot}")
    limit = min(timeout_seconds, _SCHEMA_TIMEOUT_SECONDS)
    with (
        naming_locks(lock_wait_seconds),
        processes.running(argv, env=environment, stdout=PIPE, stderr=PIPE) as process,
    ):
        on_start(process)
        finished = processes.finish(process, "pg_dump", limit)
    return schema_lines(finished.stdout.decode("utf-8", "surrogateescape"))


def as_conninfo(database: str) -> str:
    """Return a database's name for an option that takes a connection string, whatever is in the name."""
    return make_conninfo(dbname=database)


def _named(tables: str) -> str:
    names = tables.split(", ")
    return names[0] if len(names) == 1 else f"one of {len(names)} tables, among them {names[0]}"
