"""A vault of one test, for the metrics: a copy of a database that was brought to the version of the code."""

from collections.abc import Iterator
from secrets import token_hex

import psycopg
import pytest

from tasks import vault as vaults
from tasks.schema import migrator
from tests.clusters import Database, Server, drop_database, make_database


@pytest.fixture(scope="session")
def metrics_vault_template(pg_cluster: Server) -> Database:
    """A database with the vault's schema, which nobody stays connected to."""
    made = make_database(pg_cluster, "onevault_metrics_vault_template")
    migrator.migrate(made.conninfo)
    return made


@pytest.fixture
def migrated(metrics_vault_template: Database) -> Iterator[Database]:
    """A database with the vault's schema."""
    template = metrics_vault_template
    made = make_database(template.server, f"vault_{token_hex(4)}", template.name)
    yield made
    drop_database(made)


@pytest.fixture
def vault(migrated: Database) -> Iterator[psycopg.Connection]:
    """A connection to it, as the product makes it."""
    with vaults.connect(migrated.conninfo) as conn:
        yield conn
