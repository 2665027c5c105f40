"""The watched server: a private PostgreSQL with tables, statements, a login for each who watches, and many clients."""

import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import LiteralString
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tasks import processes
from tasks.cluster_settings import free_port
from tasks.errors import Unavailable
from tasks.metrics.models import Target
from tasks.private_cluster import PrivateCluster
from tasks.programs import Installation

DATABASE = "postgres"
HOST = "127.0.0.1"
SUPERUSER = "postgres"
TABLES = 200
SCALE = 35
_POLL_SECONDS = 0.1
_CONNECT_SECONDS = 60.0
_HAS_SCHEDSTAT = Path("/proc/self/schedstat").exists()

_SETTINGS = {
    "listen_addresses": HOST,
    "max_connections": "600",
    "shared_preload_libraries": "pg_stat_statements",
    "track_io_timing": "on",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "autovacuum": "on",
    "wal_level": "replica",
    "max_wal_senders": "10",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "5min",
    "shared_buffers": "512MB",
}

# Each of them is a statement of its own to pg_stat_statements for each table.
_STATEMENTS: tuple[LiteralString, ...] = (
    "INSERT INTO {table} (id, note) SELECT i, 'note ' || i FROM generate_series(1, 50) AS i",
    "SELECT note FROM {table} WHERE id = 7",
    "SELECT count(*) FROM {table}",
    "UPDATE {table} SET amount = amount + 1 WHERE id < 5",
    "DELETE FROM {table} WHERE id = 50",
)


@dataclass(frozen=True)
class WatchedServer:
    """A running server. All logins have the role pg_monitor and one password, which is never shown."""

    cluster: PrivateCluster
    password: str = field(repr=False)

    @property
    def pid(self) -> int:
        """Return the postmaster's process id."""
        assert self.cluster.process is not None  # noqa: S101 - it runs as long as this is there
        return self.cluster.process.pid

    @property
    def port(self) -> int:
        """Return the TCP port on the loopback interface."""
        return self.cluster.port

    @property
    def environment(self) -> dict[str, str]:
        """Return the PG* variables of the superuser, over the unix socket."""
        return {
            "PGHOST": str(self.cluster.socket_dir),
            "PGPORT": str(self.port),
            "PGUSER": SUPERUSER,
            "PGDATABASE": DATABASE,
            "PGPASSFILE": os.devnull,
        }

    def conninfo(self, login: str, database: str | None = None) -> str:
        """Return how a login gets there: over TCP, with the password."""
        return make_conninfo(
            host=HOST,
            port=self.port,
            dbname=database or DATABASE,
            user=login,
            password=self.password,
        )

    def url(self, login: str) -> str:
        """Return the same as a URL."""
        return f"postgresql://{login}:{quote(self.password)}@{HOST}:{self.port}/{DATABASE}?sslmode=disable"

    def target(self, login: str, name: str | None = None) -> Target:
        """Return it as the collector knows a server."""
        return Target(name=name or login, conninfo=lambda database: self.conninfo(login, database))

    def admin(self) -> psycopg.Connection:
        """Connect as the superuser."""
        return psycopg.connect(self.cluster.conninfo(DATABASE), autocommit=True)

    def create_logins(self, names: Iterable[str]) -> None:
        """Make logins with the rights of pg_monitor."""
        statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE pg_monitor")
        with self.admin() as admin:
            for name in names:
                admin.execute(statement.format(sql.Identifier(name), sql.Literal(self.password)))

    def count_clients(self) -> int:
        """Return how many clients of pgbench are connected."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'"
        return self._number(query)

    def count_statements(self) -> int:
        """Return how many statements pg_stat_statements holds."""
        return self._number("SELECT count(*) FROM pg_stat_statements(false)")

    def backends_seconds(self, login: str) -> float:
        """Return the CPU seconds that the living backends of a login have used."""
        query = "SELECT pid FROM pg_stat_activity WHERE usename = %s"
        with self.admin() as admin:
            pids = [row[0] for row in admin.execute(query, [login]).fetchall()]
        return sum(cpu_seconds(pid) for pid in pids)

    def ended_seconds(self) -> float:
        """Return the CPU seconds of all backends that have ended, by ticks of the clock."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.children_user + times.children_system)

    def _number(self, query: LiteralString) -> int:
        with self.admin() as admin:
            found = admin.execute(query).fetchone()
        return int(found[0]) if found else 0


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process, exact to the nanosecond where the kernel tells; 0 when it is gone."""
    with suppress(psutil.NoSuchProcess, FileNotFoundError):
        if _HAS_SCHEDSTAT:
            return sum(map(_thread_seconds, Path(f"/proc/{pid}/task").iterdir()))
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def _thread_seconds(task: Path) -> float:
    with suppress(FileNotFoundError, ProcessLookupError):
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    return 0.0


@contextmanager
def watched_server(folder: Path, installation: Installation) -> Iterator[WatchedServer]:
    """Make, fill and run a server for the time of a block; it is removed afterwards."""
    cluster = PrivateCluster(folder, installation, superuser=SUPERUSER)
    cluster.create(durable=True, checksums=True)
    try:
        with cluster.running(_SETTINGS | {"port": str(free_port())}):
            made = WatchedServer(cluster, secrets.token_hex(16))
            _fill(made)
            yield made
    finally:
        cluster.remove()


def _fill(server: WatchedServer) -> None:
    run_pgbench(server, "--initialize", f"--scale={SCALE}", "--quiet")
    table: LiteralString = "CREATE TABLE {table} (id integer PRIMARY KEY, note text, amount integer NOT NULL DEFAULT 0)"
    with server.admin() as admin:
        admin.execute("CREATE EXTENSION pg_stat_statements")
        for number in range(TABLES):
            name = sql.Identifier(f"application_{number}")
            for statement in (table, *_STATEMENTS):
                admin.execute(sql.SQL(statement).format(table=name))
        admin.execute("VACUUM ANALYZE")
        admin.execute("CHECKPOINT")


def run_pgbench(server: WatchedServer, *arguments: str) -> str:
    """Run pgbench to its end and return what it said."""
    argv: list[str | Path] = [server.cluster.installation.program("pgbench"), *arguments]
    return processes.run(argv, env=server.environment, timeout_seconds=600).text


def start_pgbench(server: WatchedServer, output: Path, *arguments: str) -> processes.Process:
    """Start pgbench with its output in a file; whoever calls must end it."""
    argv: list[str | Path] = [server.cluster.installation.program("pgbench"), *arguments]
    with output.open("wb") as out:
        return processes.start(argv, env=server.environment, stdout=out, stderr=out)


@contextmanager
def clients(
    server: WatchedServer, number: int, output: Path, arguments: Sequence[str]
) -> Iterator[None]:
    """Have so many clients of pgbench at work for the time of a block, all of them connected at its beginning."""
    general = (
        f"--client={number}",
        "--jobs=2",
        "--no-vacuum",
        "--time=3600",
        "--protocol=prepared",
    )
    process = start_pgbench(server, output, *general, *arguments)
    try:
        _await_clients(server, process, number, output)
        yield
    finally:
        processes.stop_group(process)


def _await_clients(
    server: WatchedServer, process: processes.Process, number: int, output: Path
) -> None:
    until = time.monotonic() + _CONNECT_SECONDS
    while server.count_clients() < number:
        if process.poll() is not None or time.monotonic() > until:
            said = output.read_text(errors="replace").strip()[-500:]
            message = f"pgbench did not bring {number} clients: {said or 'it said nothing'}."
            raise Unavailable(message)
        threading.Event().wait(_POLL_SECONDS)
