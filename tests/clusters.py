"""PostgreSQL for the tests: clusters that die with the test run, and databases in them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql

from tasks.cluster_settings import free_port
from tasks.private_cluster import PrivateCluster
from tasks.programs import Installation
from tasks.scratch import scratch_folder, sweep

SUPERUSER = "ops"
PASSWORD = "a secret / of the: tests@"
TEMPLATE = "onevault_template"


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder that another user can pass through, unlike pytest's tmp_path, and a short one.

    Whatever a killed test run left there is removed first.
    """
    parent = Path(f"/tmp/ov-tests-{os.geteuid()}")  # noqa: S108 - it must be ours, or it is refused
    sweep(parent)
    with scratch_folder(parent) as folder:
        yield folder


@dataclass(frozen=True, slots=True)
class Server:
    """A running cluster with a superuser ``ops``, on a unix socket and on TCP."""

    cluster: PrivateCluster
    user: str = SUPERUSER
    password: str = field(default=PASSWORD, repr=False)
    host: str = "127.0.0.1"

    @property
    def port(self) -> int:
        return self.cluster.port

    @property
    def major(self) -> int:
        return self.cluster.installation.major

    def conninfo(self, database: str = "postgres") -> str:
        """For the unix socket, without a password."""
        return self.cluster.conninfo(database)

    def url(self, database: str = "postgres") -> str:
        """For TCP, with the password."""
        login = f"{self.user}:{quote(self.password, safe='')}"
        return f"postgresql://{login}@{self.host}:{self.port}/{quote(database, safe='')}"

    def connect(self, database: str = "postgres", **options: Any) -> psycopg.Connection:
        return psycopg.connect(self.conninfo(database), autocommit=True, **options)


@dataclass(frozen=True, slots=True)
class Database:
    """A database of one test."""

    server: Server
    name: str

    @property
    def conninfo(self) -> str:
        return self.server.conninfo(self.name)

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    def connect(self, **options: Any) -> psycopg.Connection:
        return self.server.connect(self.name, **options)


def make_cluster(directory: Path, installation: Installation, data: Path) -> PrivateCluster:
    """Make a cluster from a copy of an empty one, which takes a tenth of initdb's time."""
    cluster = PrivateCluster(directory, installation, superuser=SUPERUSER)
    cluster.directory.mkdir()
    shutil.copytree(data, cluster.data, symlinks=True)
    cluster.adopt()
    return cluster


@contextmanager
def running_server(installation: Installation, data: Path, **settings: str) -> Iterator[Server]:
    """Run a copy of an empty cluster so that it can be backed up; it is gone after the block."""
    with short_folder() as folder:
        cluster = make_cluster(folder / "cluster", installation, data)
        chosen = {
            "listen_addresses": "127.0.0.1",
            "port": str(free_port()),
            "wal_level": "replica",
            "max_wal_senders": "8",
            "full_page_writes": "on",
        }
        try:
            with cluster.running(chosen | settings):
                yield Server(cluster)
        finally:
            cluster.remove()


def make_database(server: Server, name: str, template: str = TEMPLATE) -> Database:
    """Copy the template."""
    statement = sql.SQL("create database {} template {}")
    with server.connect() as connection:
        connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
    return Database(server, name)


def drop_database(database: Database) -> None:
    statement = sql.SQL("drop database if exists {} with (force)")
    with database.server.connect() as connection:
        connection.execute(statement.format(sql.Identifier(database.name)))
