"""The servers of the alert benchmark: small, private, under load, each with a standby, a pooler or a small disk."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tasks import processes
from tasks.cluster_settings import free_port
from tasks.errors import OneVaultError, Refused
from tasks.folders import make_folder
from tasks.metrics.models import Target
from tasks.private_cluster import PrivateCluster
from tasks.programs import Installation

DATABASE = "shop"
SUPERUSER = "postgres"
WATCHER = "onevault_metrics"
APPLICATION = "app"
REPLICATOR = "replicator"
PASSWORD = "of a benchmark"  # noqa: S105 - the servers are thrown away
MAX_CONNECTIONS = 100
RESERVED = 3
_SEGMENT_MB = 1
_DISK_MB = 64
_POOL_SIZE = 2
_AWAY_SECONDS = 120.0
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": str(MAX_CONNECTIONS),
    "superuser_reserved_connections": str(RESERVED),
    "max_prepared_transactions": "5",
    "max_wal_senders": "8",
    "max_replication_slots": "8",
    "max_slot_wal_keep_size": "32MB",
    "wal_level": "replica",
    "wal_keep_size": "16MB",
    "min_wal_size": "8MB",
    "max_wal_size": "256MB",
    "checkpoint_timeout": "5min",
    "shared_buffers": "32MB",
    "full_page_writes": "on",
    # On, as rules look at it; what lies on these servers need not outlive the machine.
    "fsync": "on",
    "synchronous_commit": "off",
    "autovacuum": "on",
    "autovacuum_naptime": "20s",
    "track_io_timing": "on",
    "shared_preload_libraries": "pg_stat_statements",
}


@dataclass
class Shop:
    """A server of the fleet, with what belongs to it. `stopping` tells its helpers that the benchmark ends."""

    name: str
    cluster: PrivateCluster
    settings: dict[str, str]
    stopping: threading.Event = field(default_factory=threading.Event)
    standby: PrivateCluster | None = None
    standby_settings: dict[str, str] = field(default_factory=dict)
    disk: Path | None = None
    pooler_port: int | None = None

    @property
    def standby_name(self) -> str:
        """Return the name under which the standby is watched."""
        return f"{self.name}-standby"

    @property
    def failing(self) -> Path:
        """Return the file that makes the archive command fail while it is there."""
        return self.cluster.directory / "archive-fails"

    @property
    def hanging(self) -> Path:
        """Return the file that makes the archive command hang while it is there."""
        return self.cluster.directory / "archive-hangs"

    def admin(self, database: str = DATABASE) -> psycopg.Connection[Any]:
        """Open an autocommit session as superuser, waiting for a server that is away."""
        deadline = monotonic() + _AWAY_SECONDS
        while True:
            try:
                return psycopg.connect(
                    self.cluster.conninfo(database), autocommit=True, connect_timeout=10
                )
            except psycopg.OperationalError:
                if monotonic() > deadline or self.stopping.wait(0.5):
                    raise

    def session(self, application_name: str = "shop") -> psycopg.Connection[Any]:
        """Open an autocommit session as the application."""
        conninfo = self._over_tcp(APPLICATION, self.cluster.port, DATABASE)
        named = make_conninfo(conninfo, application_name=application_name, connect_timeout=10)
        return psycopg.connect(named, autocommit=True)

    def pooled(self) -> psycopg.Connection[Any]:
        """Open an autocommit session as the application through the pooler."""
        if self.pooler_port is None:
            message = f"{self.name} has no pooler."
            raise Refused(message)
        conninfo = self._over_tcp(APPLICATION, self.pooler_port, DATABASE)
        return psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)

    def start(self) -> None:
        """Start the server, again."""
        self.cluster.start(self.settings)

    def targets(self) -> Iterator[Target]:
        """List what of it is to be watched."""
        console = self._over_tcp(APPLICATION, self.pooler_port or 0, "pgbouncer")
        yield Target(
            self.name,
            lambda database: self._over_tcp(WATCHER, self.cluster.port, database or "postgres"),
            (lambda: console) if self.pooler_port else None,
        )
        if (standby := self.standby) is not None:
            port = standby.port
            yield Target(
                self.standby_name, lambda name: self._over_tcp(WATCHER, port, name or "postgres")
            )

    @staticmethod
    def _over_tcp(user: str, port: int, database: str) -> str:
        return make_conninfo(
            host="127.0.0.1", port=port, user=user, password=PASSWORD, dbname=database
        )


@contextmanager
def shop(
    folder: Path, name: str, installation: Installation, extras: frozenset[str]
) -> Iterator[Shop]:
    """Run one server with these extras of `standby`, `pooler` and `disk`, under pgbench's load."""
    cluster = PrivateCluster(folder / name, installation, superuser=SUPERUSER)
    cluster.create(arguments=[f"--wal-segsize={_SEGMENT_MB}"])
    settings = {**_SETTINGS, "port": str(free_port())}
    made = Shop(name, cluster, settings)
    words = f"while test -e {made.hanging}; do sleep 1; done; test ! -e {made.failing}"
    settings |= {"archive_mode": "on", "archive_command": words}
    if "standby" in extras:
        settings["wal_keep_size"] = "512MB"
    with ExitStack() as stack:
        stack.callback(cluster.stop, "immediate")
        made.start()
        _furnish(made)
        if "disk" in extras:
            made.disk = stack.enter_context(_small_disk(made, folder / f"{name}-disk"))
        if "standby" in extras:
            stack.enter_context(_standby(made, folder / f"{name}-standby"))
        if "pooler" in extras:
            made.pooler_port = stack.enter_context(_pooler(made, folder / f"{name}-pooler"))
        thread = threading.Thread(target=_load, args=[made], name=f"load of {name}")
        thread.start()
        # The load must end before the server does, and everything else may go in any order.
        stack.callback(thread.join)
        stack.callback(made.stopping.set)
        yield made


def _furnish(made: Shop) -> None:
    with made.admin("postgres") as admin:
        admin.execute("CREATE EXTENSION pg_stat_statements")
        for role, rights in (
            (WATCHER, "LOGIN CONNECTION LIMIT 5"),
            (APPLICATION, "LOGIN"),
            (REPLICATOR, "LOGIN REPLICATION"),
        ):
            words = sql.SQL("CREATE ROLE {} {} PASSWORD {}")
            admin.execute(
                words.format(sql.Identifier(role), sql.SQL(rights), sql.Literal(PASSWORD))
            )
        admin.execute("GRANT pg_monitor TO onevault_metrics")
        admin.execute("CREATE DATABASE shop OWNER app")
    with made.admin() as admin:
        admin.execute("SET ROLE app")
        admin.execute("CREATE TABLE stock (id int PRIMARY KEY, pieces int NOT NULL)")
        admin.execute("INSERT INTO stock SELECT i, 100 FROM generate_series(1, 1000) AS i")
        admin.execute(
            "CREATE TABLE wares AS SELECT i AS id, md5(i::text) AS name FROM generate_series(1, 100000) AS i"
        )
        admin.execute("CREATE TABLE numbers (id int)")
    tool = made.cluster.installation.program("pgbench")
    processes.run([tool, "--initialize", "--quiet"], timeout_seconds=120, env=environment(made))


def environment(made: Shop) -> dict[str, str]:
    """Return how PostgreSQL's programs reach the server as its superuser."""
    return {
        "PGHOST": str(made.cluster.socket_dir),
        "PGPORT": str(made.cluster.port),
        "PGUSER": SUPERUSER,
        "PGDATABASE": DATABASE,
    }


def _load(made: Shop) -> None:
    """Run pgbench until the end, again after each time the server was away."""
    tool = made.cluster.installation.program("pgbench")
    argv: list[str | Path] = [tool, "--client=2", "--rate=15", "--no-vacuum", "--time=3600"]
    while not made.stopping.is_set():
        with processes.running(argv, env=environment(made)) as process:
            while process.poll() is None and not made.stopping.wait(0.5):
                pass
        made.stopping.wait(1)


@contextmanager
def _small_disk(made: Shop, place: Path) -> Iterator[Path | None]:
    """Give the server a tablespace on a small file system in memory; None without the right to mount one."""
    if os.geteuid() != 0:
        yield None
        return
    make_folder(place, 0o711)
    try:
        argv: list[str | Path] = [
            "mount",
            "-t",
            "tmpfs",
            "-o",
            f"size={_DISK_MB}m,mode=0711",
            "tmpfs",
            place,
        ]
        processes.run(argv, timeout_seconds=10)
    except OneVaultError:
        yield None
        return
    try:
        space = make_folder(place / "space", 0o700, made.cluster.account)
        words = sql.SQL("CREATE TABLESPACE small LOCATION {}").format(sql.Literal(str(space)))
        with made.admin() as admin:
            admin.execute(words)
        yield place
    finally:
        # Its server may still have files open there: the mount goes when the last is closed.
        processes.run(["umount", "--lazy", place], timeout_seconds=10, check=False)


@contextmanager
def _standby(made: Shop, place: Path) -> Iterator[None]:
    cluster = PrivateCluster(place, made.cluster.installation, superuser=SUPERUSER)
    make_folder(place, 0o711)
    tool = made.cluster.installation.program("pg_basebackup")
    argv: list[str | Path] = [
        tool,
        "--pgdata",
        cluster.data,
        "--checkpoint=fast",
        "--wal-method=stream",
    ]
    processes.run(argv, timeout_seconds=120, env=environment(made))
    (cluster.data / "standby.signal").touch()
    cluster.adopt()
    primary = make_conninfo(
        host="127.0.0.1",
        port=made.cluster.port,
        user=REPLICATOR,
        password=PASSWORD,
        application_name=made.standby_name,
    )
    made.standby_settings = {
        **made.settings,
        "port": str(free_port()),
        "hot_standby": "on",
        "primary_conninfo": primary,
        "archive_mode": "off",
        "wal_retrieve_retry_interval": "1s",
    }
    try:
        cluster.start(made.standby_settings)
        made.standby = cluster
        yield
    finally:
        cluster.stop("immediate")


@contextmanager
def _pooler(made: Shop, place: Path) -> Iterator[int | None]:
    """Run PgBouncer before the server; None where it is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    port, account = free_port(), made.cluster.account
    make_folder(place, 0o711)
    users, ini = place / "users.txt", place / "pgbouncer.ini"
    users.write_text(f'"{APPLICATION}" "{PASSWORD}"\n')
    ini.write_text(
        f"[databases]\n{DATABASE} = host=127.0.0.1 port={made.cluster.port} dbname={DATABASE}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = scram-sha-256\nauth_file = {users}\nstats_users = {APPLICATION}\n"
        f"pool_mode = transaction\ndefault_pool_size = {_POOL_SIZE}\nmax_client_conn = 200\n"
    )
    for each in (place, users, ini):
        if account:
            os.chown(each, account.uid, account.gid)
    try:
        process = processes.start(
            ["pgbouncer", "--quiet", ini], env={"PATH": path}, account=account
        )
    except Refused:
        yield None
        return
    try:
        yield port
    finally:
        processes.stop_group(process)
