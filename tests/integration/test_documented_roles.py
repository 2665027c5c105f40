"""The role that the documents tell people to make is enough for a backup, and nothing in it is too much."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.backup.models import BackupKind
from tasks.errors import OneVaultError
from tasks.programs import Installation
from tests.backups import BackupMaker
from tests.clusters import Server, running_server
from tests.markdown import ROOT, blocks

PAGES = (ROOT / "README.md", ROOT / "docs/how-to/back-up-a-server.md")
ROLE = "onevault_backup"
PASSWORD = "choose one"
DATABASE = "shop"


def statements(page: Path) -> list[str]:
    """Find what a page says about the role, in its order."""
    text = "\n".join(
        block.text for block in blocks(page) if block.kind == "sql" and ROLE in block.text
    )
    lines = (line.partition("--")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


@dataclass(frozen=True)
class Shop:
    """A server whose database has what a role without rights does not see."""

    server: Server
    folder: Path

    def prepare(self, wanted: list[str]) -> BackupMaker:
        """Make the role anew from these statements, and log in as it."""
        with self.server.connect() as admin:
            admin.execute(f"drop role if exists {ROLE}")
            for statement in wanted:
                admin.execute(statement.encode())
        server = self.server
        login = f"host={server.host} port={server.port} user={ROLE} password='{PASSWORD}' dbname={DATABASE}"
        return BackupMaker(server, self.folder, login)


@pytest.fixture(scope="module")
def server(installation: Installation, empty_data: Path) -> Iterator[Server]:
    with running_server(installation, empty_data) as running:
        with running.connect() as admin:
            admin.execute(f"create database {DATABASE}")
        with running.connect(DATABASE) as shop:
            shop.execute("create schema hidden")
            shop.execute(
                "create table hidden.secret as select i as id from generate_series(1, 50) i"
            )
            shop.execute("alter table hidden.secret enable row level security")
            shop.execute("create sequence hidden.number")
            shop.execute("select lo_from_bytea(0, 'a large object')")
        yield running


@pytest.fixture
def shop(server: Server, short_path: Path) -> Shop:
    return Shop(server, short_path)


@pytest.mark.parametrize("kind", list(BackupKind))
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_documented_role_takes_a_backup_that_equals_its_source(
    shop: Shop, page: Path, kind: BackupKind
):
    maker = shop.prepare(statements(page))
    backup = maker.take(kind, DATABASE if kind is BackupKind.LOGICAL else None)
    with maker.rehearsed(backup) as rehearsed:
        rung, rows = rehearsed.compare()
    assert rung.outcome == "PASS", rung
    assert [row.source_rows for row in rows if row.table == "hidden.secret"] == [50]


LOGICAL = {
    "GRANT": r"may not read .*GRANT pg_read_all_data TO",
    "BYPASSRLS": r"row security hides rows of hidden\.secret .*BYPASSRLS",
    "lo_compat_privileges": r"permission denied for large object|lo_compat_privileges",
}


@pytest.mark.parametrize("right", LOGICAL)
def test_without_one_of_the_rights_there_is_no_backup(shop: Shop, right: str):
    maker = shop.prepare([line for line in statements(PAGES[1]) if right not in line])
    with pytest.raises(OneVaultError, match=LOGICAL[right]):
        maker.take(BackupKind.LOGICAL, DATABASE)


def test_without_replication_there_is_no_physical_backup(shop: Shop):
    maker = shop.prepare([line for line in statements(PAGES[1]) if "REPLICATION" not in line])
    with pytest.raises(OneVaultError, match="REPLICATION"):
        maker.take(BackupKind.PHYSICAL)
