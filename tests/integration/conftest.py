"""Real PostgreSQL: one cluster for each version and worker, one database for each test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex

import psycopg
import pytest

from tasks import vault as vaults
from tasks.private_cluster import PrivateCluster
from tasks.programs import Installation
from tasks.schema import migrator
from tests.clusters import (
    PASSWORD,
    SUPERUSER,
    TEMPLATE,
    Database,
    Server,
    drop_database,
    make_database,
    running_server,
    short_folder,
)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder that PostgreSQL's user can enter."""
    with short_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def empty_data(installation: Installation) -> Iterator[Path]:
    """The data folder of a cluster in which nothing has happened yet, to be copied."""
    with short_folder() as folder:
        cluster = PrivateCluster(folder, installation, superuser=SUPERUSER)
        cluster.create(password=PASSWORD)
        yield cluster.data


@pytest.fixture(scope="session")
def pg_cluster(installation: Installation, empty_data: Path) -> Iterator[Server]:
    """The cluster that tests share: leave no roles or settings behind in it."""
    with running_server(installation, empty_data) as server:
        with server.connect() as connection:
            connection.execute("create database onevault_template template template0")
        yield server


@pytest.fixture
def database(pg_cluster: Server) -> Iterator[Database]:
    """A fresh, empty database."""
    made = make_database(pg_cluster, f"test_{token_hex(4)}", TEMPLATE)
    yield made
    drop_database(made)


@pytest.fixture
def other_cluster(installation: Installation, empty_data: Path) -> Iterator[Callable[..., Server]]:
    """Make clusters of one's own, to be backed up, crashed or configured: settings by keyword."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(
            running_server(installation, empty_data, **settings)
        )


@pytest.fixture(scope="session")
def vault_template(pg_cluster: Server) -> Database:
    """A database with the vault's schema, which nobody stays connected to."""
    made = make_database(pg_cluster, "onevault_vault_template")
    migrator.migrate(made.conninfo)
    return made


@pytest.fixture
def migrated(vault_template: Database) -> Iterator[Database]:
    """A database with the vault's schema."""
    made = make_database(vault_template.server, f"vault_{token_hex(4)}", vault_template.name)
    yield made
    drop_database(made)


@pytest.fixture
def vault(migrated: Database) -> Iterator[psycopg.Connection]:
    """A connection to it, as the product makes it."""
    with vaults.connect(migrated.conninfo) as conn:
        yield conn
