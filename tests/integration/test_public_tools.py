"""A backup is restored with public tools: by the very commands of the document that promises it."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pyrage  # type: ignore[import-untyped]
import pytest
import zstandard

from blocks.keyring import LocalKeyring
from tasks import processes
from tasks.accounts import Account
from tasks.backup.models import BackupKind
from tasks.backup.restore import OpenBackup
from tasks.cluster_settings import free_port
from tasks.folders import give_tree, make_folder
from tasks.processes import ProgramFailed
from tasks.programs import Installation
from tests.backups import Backup, BackupMaker
from tests.clusters import PASSWORD, SUPERUSER, Server, running_server, short_folder
from tests.markdown import ROOT, blocks

PAGE = ROOT / "docs" / "how-to" / "restore-without-onevault.md"
PROGRAMS = ("age", "age-keygen", "zstd", "tar", "sha256sum", "openssl", "perl")
DATABASE = 'the "shop"'
SECONDS = 120

_missing = [program for program in PROGRAMS if shutil.which(program) is None]
pytestmark = pytest.mark.skipif(
    bool(_missing) and not os.environ.get("CI"),
    reason=f"not installed: {', '.join(_missing)} (Debian: apt install age zstd openssl perl)",
)


@dataclass(frozen=True)
class Source:
    """A server with something of everything, one backup of each kind, and the offline key that opens them."""

    server: Server
    backups: Mapping[BackupKind, Backup]
    recovery_key: Path


@dataclass(frozen=True)
class Desk:
    """A folder of the person who restores: a backup and a key, no OneVault."""

    folder: Path
    account: Account | None
    variables: Mapping[str, str]

    def follow(self, *marks: str) -> str:
        """Run the page's blocks with these marks, in the page's order, as one script; return what it said."""
        script = "".join(block.text for block in blocks(PAGE) if block.mark in marks)
        assert script
        return processes.run(
            ["sh", "-euc", script],
            env=self.variables,
            account=self.account,
            timeout_seconds=SECONDS,
        ).text


@pytest.fixture(scope="module")
def source(
    installation: Installation, empty_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Source]:
    folder = tmp_path_factory.mktemp("public-tools")
    recovery_key = folder / "recovery.agekey"
    processes.run(["age-keygen", "-o", recovery_key], timeout_seconds=SECONDS)
    recipient = processes.run(["age-keygen", "-y", recovery_key], timeout_seconds=SECONDS).text
    with running_server(installation, empty_data) as server, short_folder() as place:
        _load(server, make_folder(place / "space", 0o700, server.cluster.account))
        maker = BackupMaker(server, folder)
        maker.keyring = LocalKeyring(
            directory=maker.keyring.directory, recovery_recipients=[recipient]
        )
        made = {
            BackupKind.LOGICAL: maker.take(BackupKind.LOGICAL, DATABASE),
            BackupKind.PHYSICAL: maker.take(BackupKind.PHYSICAL),
        }
        yield Source(server, made, recovery_key)


def _load(server: Server, space: Path) -> None:
    with server.connect() as admin:
        admin.execute(f"create tablespace \"far away\" location '{space}'")
        admin.execute("create role clerk login connection limit 7")
        admin.execute(f'create database "{DATABASE.replace(chr(34), chr(34) * 2)}" owner clerk')
    with server.connect(DATABASE) as shop:
        shop.execute('create table item (id bigint primary key, "a name" text)')
        shop.execute("insert into item select i, 'item ' || i from generate_series(1, 3000) i")
        shop.execute('create table distant (id int, data bytea) tablespace "far away"')
        shop.execute(
            "insert into distant select i, sha256(i::text::bytea) from generate_series(1, 2000) i"
        )
        shop.execute('create index on distant (id) tablespace "far away"')
        shop.execute("select lo_from_bytea(0, 'a large object')")
        shop.execute("alter table item owner to clerk")


def facts(connection: "psycopg.Connection[Any]") -> dict[str, object]:
    """Count what a restored copy must hold; the sums stand for the content."""
    queries = {
        "items": "select count(*), sum(id), md5(string_agg(\"a name\", ',' order by id)) from item",
        "distant": "select count(*), md5(string_agg(data, '' order by id)) from distant",
        "large objects": "select count(*), min(convert_from(lo_get(oid), 'UTF8')) from pg_largeobject_metadata",
        "clerk": "select rolcanlogin, rolconnlimit from pg_roles where rolname = 'clerk'",
        "owner": "select tableowner from pg_tables where tablename = 'item'",
    }
    return {name: connection.execute(query).fetchone() for name, query in queries.items()}


@pytest.fixture(params=["local key", "offline key"])
def key(request: pytest.FixtureRequest, source: Source) -> Path:
    if request.param == "offline key":
        return source.recovery_key
    keyring = source.backups[BackupKind.LOGICAL].keyring
    return keyring.directory / f"{keyring.active_key_id}.agekey"


@pytest.fixture
def desks(source: Source) -> Iterator["Desks"]:
    with short_folder() as folder:
        yield Desks(source, folder)


@dataclass
class Desks:
    source: Source
    place: Path

    def make(self, kind: BackupKind, key: Path, **variables: str) -> Desk:
        """Lay out copies of a backup and of a key for the user who will run PostgreSQL."""
        cluster = self.source.server.cluster
        backup = self.source.backups[kind]
        folder = make_folder(self.place / "desk", 0o700)
        shutil.copytree(backup.folder, folder / "backup")
        shutil.copy(key, folder / "key")
        public = backup.keyring.directory / f"{backup.keyring.active_key_id}.ed25519.pub"
        shutil.copy(public, folder / "public")
        give_tree(folder, cluster.account)
        path = f"{cluster.installation.bin_dir}{os.pathsep}{os.environ['PATH']}"
        own = {
            "PATH": path,
            "BACKUP": str(folder / "backup"),
            "KEY": str(folder / "key"),
            "WORK": str(folder / "work"),
            "PUBLIC": str(folder / "public"),
        }
        return Desk(folder, cluster.account, own | variables)


def test_every_block_of_the_page_is_run_or_left_to_the_reader():
    marks = {block.mark for block in blocks(PAGE) if block.kind == "sh"}
    assert marks == {"yours", "run: always", "run: signature", "run: logical", "run: physical"}
    assert all(block.kind == "sh" for block in blocks(PAGE))


def test_the_variables_of_the_page_are_those_of_the_test():
    yours = "".join(block.text for block in blocks(PAGE) if block.mark == "yours")
    names = ("BACKUP", "KEY", "WORK", "PUBLIC", "DATA", "TABLESPACES", "PORT", "PGHOST", "PGPORT")
    assert all(f"{name}=" in yours for name in names)


def test_a_logical_backup_is_restored_by_the_page(
    source: Source, key: Path, desks: Desks, installation: Installation, empty_data: Path
):
    with running_server(installation, empty_data) as target:
        login = {
            "PGHOST": target.host,
            "PGPORT": str(target.port),
            "PGUSER": SUPERUSER,
            "PGPASSWORD": PASSWORD,
        }
        desk = desks.make(BackupKind.LOGICAL, key, **login)
        said = desk.follow("run: always", "run: signature", "run: logical")
        assert said.count(": OK") == len(source.backups[BackupKind.LOGICAL].manifest.objects)
        assert "Signature Verified Successfully" in said
        with source.server.connect(DATABASE) as original, target.connect(DATABASE) as copy:
            assert facts(copy) == facts(original)


def test_a_physical_backup_is_restored_by_the_page(source: Source, key: Path, desks: Desks):
    port = str(free_port())
    place = make_folder(desks.place / "pg", 0o700, source.server.cluster.account)
    variables = {"DATA": f"{place}/data", "TABLESPACES": f"{place}/spaces", "PORT": port}
    desk = desks.make(BackupKind.PHYSICAL, key, **variables)
    with _stopped_after(desk):
        said = desk.follow("run: always", "run: signature", "run: physical")
        assert "backup successfully verified" in said
        assert "Signature Verified Successfully" in said
        login = f"host=localhost port={port} user={SUPERUSER}"
        with (
            source.server.connect(DATABASE) as original,
            psycopg.connect(login, dbname=DATABASE, password=PASSWORD) as copy,
        ):
            assert facts(copy) == facts(original)
            where = (
                "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'far away'"
            )
            assert str(copy.execute(where).fetchone()).count(f"{place}/spaces/") == 1


@contextmanager
def _stopped_after(desk: Desk) -> Iterator[None]:
    try:
        yield
    finally:
        stop = 'pg_ctl --pgdata="$DATA" --mode=immediate stop'
        processes.run(
            ["sh", "-euc", stop],
            env=desk.variables,
            account=desk.account,
            timeout_seconds=SECONDS,
            check=False,
        )


@pytest.mark.parametrize("kind", list(BackupKind))
def test_the_page_stops_at_a_damaged_payload(source: Source, desks: Desks, kind: BackupKind):
    desk = desks.make(kind, source.recovery_key)
    payload = min((desk.folder / "backup").glob("*.age.payload"))
    data = bytearray(payload.read_bytes())
    data[len(data) // 2] ^= 1
    payload.write_bytes(data)
    with pytest.raises(ProgramFailed):
        desk.follow("run: always")


@pytest.mark.parametrize("kind", list(BackupKind))
def test_the_page_finds_a_forgery_that_has_right_checksums(
    source: Source, desks: Desks, kind: BackupKind
):
    desk = desks.make(kind, source.recovery_key)
    folder = desk.folder / "backup"
    payload = min(folder.glob("*.age.payload"))
    payload.write_bytes(payload.read_bytes() + b"more")
    sums = processes.run(
        ["sh", "-euc", f"cd '{folder}' && sha256sum *.age.payload"], timeout_seconds=SECONDS
    )
    (folder / "SHA256SUMS").write_bytes(sums.stdout)
    desk.follow("run: always")
    with pytest.raises(ProgramFailed):
        desk.follow("run: always", "run: signature")


def test_a_stranger_key_opens_nothing(source: Source, desks: Desks):
    stranger = desks.place / "stranger"
    processes.run(["age-keygen", "-o", stranger], timeout_seconds=SECONDS)
    desk = desks.make(BackupKind.PHYSICAL, stranger, DATA=str(desks.place / "desk" / "data"))
    with pytest.raises(ProgramFailed, match="no identity matched"):
        desk.follow("run: always", "run: physical")


@pytest.mark.parametrize("kind", list(BackupKind))
def test_an_independent_reader_finds_the_same_content(source: Source, kind: BackupKind, key: Path):
    backup = source.backups[kind]
    identity = key.read_text().splitlines()[-1]
    opened = OpenBackup.open(backup.store, backup.keyring, backup.prefix)
    for item in backup.manifest.objects:
        sealed = b"".join(
            (backup.folder / f"{item.name}.age.{part}").read_bytes()
            for part in ("header", "payload")
        )
        compressed = pyrage.decrypt(sealed, [pyrage.x25519.Identity.from_str(identity)])
        plain = zstandard.ZstdDecompressor().decompressobj().decompress(compressed)
        assert plain == b"".join(opened.content(item)) != b""
