"""A real PgBouncer for the tests, in front of a cluster of theirs."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tasks import processes
from tasks.accounts import unprivileged_account
from tasks.cluster_settings import free_port
from tasks.spawning import DEFAULT_PATH
from tests.backups import until
from tests.clusters import PASSWORD, SUPERUSER, Server

STATS_USER = "watcher"
STATS_PASSWORD = "stats 'only'"


@dataclass(frozen=True, slots=True)
class Pooler:
    """A running PgBouncer on the loopback address, with pools of two server connections."""

    port: int

    @property
    def console(self) -> str:
        """The console's connection string for a user who may only look."""
        return psycopg.conninfo.make_conninfo(
            host="127.0.0.1",
            port=self.port,
            dbname="pgbouncer",
            user=STATS_USER,
            password=STATS_PASSWORD,
        )

    def client(self, database: str) -> psycopg.Connection:
        """Connect through the pooler, as the superuser."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            dbname=database,
            user=SUPERUSER,
            password=PASSWORD,
            autocommit=True,
            prepare_threshold=None,
        )


def program() -> str:
    """Find PgBouncer, which Debian keeps where only administrators look; skip the test without it."""
    path = os.pathsep.join([os.environ.get("PATH", DEFAULT_PATH), "/usr/sbin", "/usr/local/sbin"])
    if found := shutil.which("pgbouncer", path=path):
        return found
    pytest.skip("pgbouncer is not installed (Debian: apt install pgbouncer)")


@contextmanager
def pooler(server: Server, folder: Path, *databases: str) -> Iterator[Pooler]:
    """Run PgBouncer in front of these databases; the folder is one that PostgreSQL's user can enter."""
    account, port = unprivileged_account(), free_port()
    target = f"host=127.0.0.1 port={server.port} user={SUPERUSER} password='{PASSWORD}'"
    lines = "".join(f"{name} = {target} dbname={name}\n" for name in databases)
    users = folder / "users.txt"
    users.write_text(f'"{SUPERUSER}" "{PASSWORD}"\n"{STATS_USER}" "{STATS_PASSWORD}"\n')
    ini = folder / "pgbouncer.ini"
    ini.write_text(
        f"[databases]\n{lines}[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        f"unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {users}\nlogfile = {folder}/log\n"
        f"stats_users = {STATS_USER}\npool_mode = transaction\ndefault_pool_size = 2\n"
        "max_client_conn = 50\nquery_wait_timeout = 60\n"
    )
    for path in (folder, users, ini):
        if account:
            os.chown(path, account.uid, account.gid)
    with processes.running([program(), "--quiet", ini], account=account) as process:
        made = Pooler(port)
        until(lambda: _answers(made) or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield made


def _answers(pooler: Pooler) -> bool:
    try:
        with psycopg.connect(
            pooler.console, autocommit=True, cursor_factory=psycopg.ClientCursor
        ) as connection:
            connection.execute("SHOW VERSION")
    except psycopg.OperationalError:
        return False
    return True
