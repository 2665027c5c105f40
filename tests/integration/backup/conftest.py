"""Backups without Prefect: a source of one's own, so that its roles and its writes disturb nobody."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.programs import Installation
from tests.backups import BackupMaker, load_awkward, make_vault, maker_of
from tests.clusters import TEMPLATE, Server, running_server


@pytest.fixture(scope="session")
def source(installation: Installation, empty_data: Path) -> Iterator[Server]:
    """A server with databases of many kinds; tests that change it put it back."""
    with running_server(installation, empty_data) as server:
        with server.connect() as connection:
            connection.execute(f"create database {TEMPLATE} template template0")
        load_awkward(server)
        yield server


@pytest.fixture(scope="session")
def vault_url(pg_cluster: Server) -> str:
    """A vault on another server than the source."""
    return make_vault(pg_cluster, "backup_tests_vault")


@pytest.fixture
def maker(source: Server) -> Iterator[BackupMaker]:
    """Backups of the source into a fresh store."""
    with maker_of(source) as made:
        yield made
