"""The demo's database: awkward on purpose, plus pgbench's tables of a size that takes seconds."""

from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from tasks import connection, processes, vault
from tasks.embedded import EmbeddedServer
from tasks.errors import Refused
from tasks.programs import discover

DATABASE = "demo_shop"
_AWKWARD = Path(__file__).with_name("awkward.sql")
_LOAD_SECONDS = 600.0


def load(server: EmbeddedServer, scale: int) -> str:
    """Make the demo's database unless it is there, and say how large it is."""
    if vault.ensure_database(server.url(), DATABASE):
        _run(
            server,
            "psql",
            ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--file={_AWKWARD}"],
        )
        _run(
            server, "pgbench", ["--initialize", "--init-steps=dtGvp", f"--scale={scale}", "--quiet"]
        )
    with connection.connect(server.url(DATABASE)) as opened:
        size = connection.fetch_value(
            opened, "SELECT pg_size_pretty(pg_database_size(current_database()))"
        )
        tables = connection.fetch_value(opened, "SELECT count(*) FROM pg_stat_user_tables")
    return f"{DATABASE}: {size}, {tables} tables"


def environment(server: EmbeddedServer) -> dict[str, str]:
    """Return the variables that lead a client program to the demo's database."""
    parts = conninfo_to_dict(server.url(DATABASE))
    return {
        "PGHOST": str(parts["host"]),
        "PGPORT": str(parts["port"]),
        "PGUSER": str(parts["user"]),
        "PGDATABASE": DATABASE,
        # The environment of a child is as private as our own; the file is not needed for a server of ours.
        "PGPASSWORD": str(parts["password"]),
        "PGCLIENTENCODING": "UTF8",
    }


def _run(server: EmbeddedServer, program: str, arguments: list[str]) -> None:
    processes.run(
        [tool(server.major, program), *arguments],
        env=environment(server),
        timeout_seconds=_LOAD_SECONDS,
    )


def tool(major: int, program: str) -> Path:
    """Find a client program of this major version; Refused without one."""
    for installation in discover():
        path = installation.bin_dir / program
        if installation.major == major and path.exists():
            return path
    message = f"{program} of PostgreSQL {major} was not found: run `onevault doctor`"
    raise Refused(message)
