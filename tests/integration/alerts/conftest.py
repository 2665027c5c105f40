"""A vault of one test, for alerts, with a server in it whose readings a test writes by hand."""

from collections.abc import Iterator
from secrets import token_hex

import psycopg
import pytest

from tasks import vault as vaults
from tasks.schema import migrator
from tests.clusters import Database, Server, drop_database, make_database
from tests.integration.alerts.readings import Readings


@pytest.fixture(scope="session")
def alerts_vault_template(pg_cluster: Server) -> Database:
    """A database with the vault's schema, which nobody stays connected to."""
    made = make_database(pg_cluster, "onevault_alerts_vault_template")
    migrator.migrate(made.conninfo)
    return made


@pytest.fixture
def migrated(alerts_vault_template: Database) -> Iterator[Database]:
    """A database with the vault's schema."""
    template = alerts_vault_template
    made = make_database(template.server, f"vault_{token_hex(4)}", template.name)
    yield made
    drop_database(made)


@pytest.fixture
def vault(migrated: Database) -> Iterator[psycopg.Connection]:
    """A connection to it, as the product makes it."""
    with vaults.connect(migrated.conninfo) as conn:
        yield conn


@pytest.fixture
def readings(vault: psycopg.Connection) -> Readings:
    """A hand that writes readings."""
    return Readings(vault)
