"""Faults on purpose, on the demo's own server: each one begins, is seen by somebody else, and ends."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from deployments.demo.data import DATABASE, environment, tool
from tasks import connection, processes
from tasks.embedded import EmbeddedServer

_BLOCKED = 3
_WAIT_MS = 600_000


@contextmanager
def load(server: EmbeddedServer, clients: int = 4) -> Iterator[None]:
    """Run pgbench's transactions against the demo's database for the time of a block."""
    argv: list[str | Path] = [
        tool(server.major, "pgbench"),
        f"--client={clients}",
        "--time=600",
        "--no-vacuum",
    ]
    argv += ["--rate=150", "--progress=60"]
    with processes.running(argv, env=environment(server)):
        yield


@contextmanager
def blocked_chain(server: EmbeddedServer) -> Iterator[str]:
    """Let one session hold a row in an idle transaction, and others wait for it and for each other."""
    with ExitStack() as stack:
        holder = stack.enter_context(_session(server, "checkout-service"))
        holder.execute("BEGIN")
        holder.execute("UPDATE pgbench_branches SET bbalance = bbalance WHERE bid = 1")
        waiting = [stack.enter_context(_session(server, "billing")) for _ in range(_BLOCKED)]
        threads = [threading.Thread(target=_wait, args=[each], daemon=True) for each in waiting]
        for thread in threads:
            thread.start()
        try:
            yield f"{_BLOCKED} sessions wait for one that is idle in its transaction"
        finally:
            holder.execute("ROLLBACK")
            for thread in threads:
                thread.join(10)


@contextmanager
def failing_archiver(server: EmbeddedServer) -> Iterator[str]:
    """Let archive_command fail, and switch WAL segments so that there is something to archive."""
    with connection.connect(server.url()) as admin:
        admin.execute("ALTER SYSTEM SET archive_command = 'false'")
        admin.execute("SELECT pg_reload_conf()")
        admin.execute("SELECT pg_switch_wal()")
        try:
            yield "archive_command fails"
        finally:
            admin.execute("ALTER SYSTEM SET archive_command = 'true'")
            admin.execute("SELECT pg_reload_conf()")


def prepare(server: EmbeddedServer, role: str, password: str) -> bool:
    """Give the demo's server what monitoring needs; say whether it must be restarted for it.

    The role is the documented one: pg_monitor and nothing else.
    """
    with connection.connect(server.url()) as admin:
        _make_role(admin, role, password)
        wanted = {
            "shared_preload_libraries": "pg_stat_statements",
            "archive_mode": "on",
            "archive_command": "true",
        }
        before = connection.fetch_value(admin, "SHOW archive_mode")
        for name, value in wanted.items():
            admin.execute(
                sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
            )
    return before != "on"


def install_statements(server: EmbeddedServer) -> None:
    """Make pg_stat_statements readable in the maintenance database."""
    with connection.connect(server.url()) as admin:
        admin.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")


def _make_role(admin: psycopg.Connection, role: str, password: str) -> None:
    known = connection.fetch_value(
        admin, "SELECT true FROM pg_roles WHERE rolname = %(role)s", role=role
    )
    verb = sql.SQL("ALTER" if known else "CREATE")
    admin.execute(
        sql.SQL("{} ROLE {} LOGIN PASSWORD {} CONNECTION LIMIT 5").format(
            verb, sql.Identifier(role), sql.Literal(password)
        )
    )
    admin.execute(sql.SQL("GRANT pg_monitor TO {}").format(sql.Identifier(role)))


def _session(server: EmbeddedServer, application_name: str) -> psycopg.Connection:
    return connection.connect(
        server.url(DATABASE),
        application_name=application_name,
        statement_timeout_ms=_WAIT_MS,
        lock_timeout_ms=_WAIT_MS,
    )


def _wait(session: psycopg.Connection) -> None:
    session.execute("UPDATE pgbench_branches SET bbalance = bbalance WHERE bid = 1")
