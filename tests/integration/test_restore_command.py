"""onevault restore, as it is typed: what it makes, what it refuses to touch, and what a recovery key alone can do."""

import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql

from blocks import x25519
from blocks.keyring import LocalKeyring
from deployments import cli
from tasks import processes
from tasks.accounts import unprivileged_account
from tasks.backup.models import BackupKind
from tasks.cluster_settings import free_port
from tasks.programs import Installation
from tests.backups import Backup, maker_of
from tests.clusters import PASSWORD, SUPERUSER, Server, running_server, short_folder

SHOP = 'the "shop"'
RECOVERY = x25519.generate()
ROWS = 500
SECONDS = 120


@dataclass(frozen=True)
class Source:
    """Backups of a server that has a role, a tablespace and a shop."""

    server: Server
    backups: Mapping[BackupKind, Backup]


@dataclass(frozen=True)
class Desk:
    """The person who restores: a store, keys, and a server of another installation."""

    source: Source
    target: Server

    def restore(
        self, kind: BackupKind, to: str, *options: str, keyring: Path | None = None
    ) -> Result:
        """Type the command."""
        backup = self.source.backups[kind]
        folders = [str(backup.store.directory), str(keyring or backup.keyring.directory)]
        given = ["--to", to, "--store", folders[0], "--keyring", folders[1], *options]
        return CliRunner().invoke(cli.cli, ["restore", backup.manifest.backup_id, *given])

    def restore_shop(self, *options: str, keyring: Path | None = None) -> Result:
        """Restore the shop into the target."""
        return self.restore(BackupKind.LOGICAL, self.url, *options, keyring=keyring)

    @property
    def url(self) -> str:
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.target.port}"

    def databases(self) -> set[str]:
        with self.target.connect() as connection:
            return {row[0] for row in connection.execute("select datname from pg_database")}

    def rows(self, database: str = SHOP) -> int:
        with self.target.connect(database) as connection:
            row = connection.execute("select count(*) from item").fetchone()
        return int(row[0]) if row else 0

    def make(self, database: str) -> None:
        with self.target.connect() as connection:
            made = sql.SQL("create database {} template template0")
            connection.execute(made.format(sql.Identifier(database)))

    def clear(self) -> None:
        with self.target.connect() as connection:
            for name in self.databases() - {"postgres", "template0", "template1"}:
                connection.execute(
                    sql.SQL("drop database {} with (force)").format(sql.Identifier(name))
                )
            connection.execute("drop tablespace if exists far")
            connection.execute("drop role if exists clerk, auditor")


@pytest.fixture(scope="module")
def source(installation: Installation, empty_data: Path) -> Iterator[Source]:
    with running_server(installation, empty_data) as server, maker_of(server) as maker:
        recipient = x25519.recipient_of(RECOVERY)
        directory = maker.keyring.directory
        maker.keyring = LocalKeyring(directory=directory, recovery_recipients=[recipient])
        place = maker.folder / "far"
        place.mkdir()
        if account := unprivileged_account():
            shutil.chown(place, account.uid, account.gid)
        _load(server, place)
        yield Source(
            server,
            {
                BackupKind.LOGICAL: maker.take(BackupKind.LOGICAL, SHOP),
                BackupKind.PHYSICAL: maker.take(BackupKind.PHYSICAL),
            },
        )


def _load(server: Server, place: Path) -> None:
    with server.connect() as admin:
        admin.execute("create role clerk login password 'from the source' connection limit 7")
        admin.execute("alter role clerk set search_path to 'a; b', 'c''d'")
        admin.execute("create role auditor")
        admin.execute("grant auditor to clerk")
        admin.execute(f"create tablespace far location '{place}'")
        admin.execute('create database "the ""shop""" owner clerk')
    with server.connect(SHOP) as shop:
        shop.execute("create table item (id bigint primary key, name text)")
        rows = "insert into item select i, 'item ' || i from generate_series(1, %s::int) i"
        shop.execute(rows, [ROWS])
        shop.execute("alter table item owner to clerk")


@pytest.fixture(scope="module")
def target(installation: Installation, empty_data: Path) -> Iterator[Server]:
    with running_server(installation, empty_data) as server:
        yield server


@pytest.fixture
def desk(source: Source, target: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    # Nothing here may ask Prefect: it is lost together with the vault.
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    made = Desk(source, target)
    yield made
    made.clear()


@pytest.fixture
def recovery_keys(tmp_path: Path) -> Path:
    """A keyring that holds the offline recovery key and nothing else."""
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    file = keys / "recovery.agekey"
    file.touch(mode=0o600)
    file.write_text(f"# offline\n{x25519.identity_text(RECOVERY)}\n")
    return keys


def _clerk(server: Server) -> tuple[object, ...] | None:
    query = "select rolpassword, rolconnlimit from pg_authid where rolname = 'clerk'"
    with server.connect() as connection:
        return connection.execute(query).fetchone()


# A logical backup.


def test_a_database_comes_back_with_its_owner_once(desk: Desk):
    with desk.target.connect() as connection:
        connection.execute("create role clerk")
    done = desk.restore_shop()
    assert (done.exit_code, done.stderr) == (0, "")
    assert f'is restored as database "{SHOP}" on 127.0.0.1' in done.stdout
    assert desk.rows() == ROWS
    again = desk.restore_shop()
    assert (again.exit_code, again.stdout) == (1, "")
    assert f'database "{SHOP}" exists on 127.0.0.1: a restore never overwrites' in again.stderr
    assert "not whole" not in again.stderr
    assert desk.rows() == ROWS


def test_globals_are_made_where_they_lack(desk: Desk, source: Source, target: Server):
    # The tablespace's folder is in use by the source on this very machine: it can only be there already.
    with target.connect() as connection, short_folder() as place:
        if account := unprivileged_account():
            shutil.chown(place, account.uid, account.gid)
        connection.execute(f"create tablespace far location '{place}'")
        done = desk.restore_shop("--globals")
        assert done.exit_code == 0, done.stderr
        assert f"1 roles ({SUPERUSER}) and 1 tablespaces (far) were there already" in done.stdout
        assert _clerk(target) == _clerk(source.server)
        member = "select pg_has_role('clerk', 'auditor', 'member')"
        assert connection.execute(member).fetchone() == (True,)
        assert desk.rows() == ROWS
        desk.clear()


def test_globals_leave_roles_as_they_are(desk: Desk, target: Server):
    with target.connect() as connection:
        connection.execute("create role clerk login password 'its own' connection limit 3")
    before = _clerk(target)
    done = desk.restore_shop("--globals")
    # Everything but the tablespace, whose folder is the source's: PostgreSQL refuses it.
    assert done.exit_code == 1
    assert "could not make the roles and tablespaces" in done.stderr
    assert SHOP not in desk.databases()
    assert _clerk(target) == before
    with target.connect() as connection:
        config = "select rolconfig from pg_roles where rolname = 'clerk'"
        assert connection.execute(config).fetchone() == (None,)
        assert connection.execute("select 1 from pg_roles where rolname = 'auditor'").fetchone()


def test_a_missing_owner_stops_the_restore_and_the_remains_are_named(desk: Desk):
    done = desk.restore_shop()
    assert done.exit_code == 1
    assert 'role "clerk" does not exist' in done.stderr
    assert "--globals makes the roles" in done.stderr
    assert SHOP in desk.databases()
    assert f'Database "{SHOP}" on 127.0.0.1 is not whole' in done.stderr


@pytest.mark.parametrize("name", ["copy", "host=elsewhere", "postgresql://x", 'a "b" \\ c'])
def test_another_database_must_exist_and_be_empty(desk: Desk, name: str):
    with desk.target.connect() as connection:
        connection.execute("create role clerk")
    missing = desk.restore_shop("--as-database", name)
    assert missing.exit_code == 1
    assert f'there is no database "{name}"' in missing.stderr
    desk.make(name)
    done = desk.restore_shop("--as-database", name)
    assert done.exit_code == 0, done.stderr
    assert desk.rows(name) == ROWS
    assert SHOP not in desk.databases()
    again = desk.restore_shop("--as-database", name)
    assert again.exit_code == 1
    assert "is not empty (1 objects): a restore never adds" in again.stderr
    assert desk.rows(name) == ROWS


@pytest.mark.parametrize(
    "statement",
    [
        "create view v as select 1",
        "create schema s",
        "create type mood as enum ('good')",
        "create function f() returns int language sql as 'select 1'",
        "select lo_create(0)",
    ],
)
def test_a_database_with_anything_in_it_is_not_empty(desk: Desk, statement: str):
    desk.make("used")
    with desk.target.connect("used") as connection:
        connection.execute(statement)
    done = desk.restore_shop("--as-database", "used")
    assert done.exit_code == 1
    assert "is not empty (1 objects)" in done.stderr


def test_what_the_person_may_not_do_is_no_damage(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    with desk.target.connect() as connection:
        connection.execute("create role clerk login password 'its own'")
    monkeypatch.setenv("PGPASSWORD", "its own")
    place = f"postgresql://clerk@127.0.0.1:{desk.target.port}"
    done = desk.restore(BackupKind.LOGICAL, place)
    assert done.exit_code == 1
    assert "permission denied to create database" in done.stderr
    assert "not whole" not in done.stderr
    monkeypatch.setenv("PGPASSWORD", "wrong")
    done = desk.restore(BackupKind.LOGICAL, place)
    assert done.exit_code == 1
    assert "password authentication failed" in done.stderr


def test_damaged_bytes_are_damage_and_the_remains_are_named(desk: Desk, source: Source):
    with desk.target.connect() as connection:
        connection.execute("create role clerk")
    payload = next(source.backups[BackupKind.LOGICAL].folder.glob("dump*.payload"))
    whole = payload.read_bytes()
    payload.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        done = desk.restore_shop()
    finally:
        payload.write_bytes(whole)
    assert done.exit_code == 4
    assert ("is not whole: do not use it" in done.stderr) == (SHOP in desk.databases())


def test_a_silent_server_is_worth_another_try(desk: Desk):
    done = desk.restore(BackupKind.LOGICAL, f"postgresql://ops@127.0.0.1:{free_port()}")
    assert done.exit_code == 3
    assert "then try again" in done.stderr


@pytest.mark.parametrize(
    "place",
    [
        "postgresql://ops:hunter2@localhost/postgres",
        "postgresql://ops@localhost/postgres?password=hunter2",
        "postgresql://ops@localhost/postgres?sslpassword=hunter2",
        "postgresql://ops:hunter2@local@host/x?=",
        "/some/folder",
    ],
)
def test_a_place_that_is_no_server_or_shows_a_password_is_refused(desk: Desk, place: str):
    done = desk.restore(BackupKind.LOGICAL, place)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("onevault: ")
    assert "hunter2" not in done.stderr


# A physical backup.


def _start(line: str, data: Path) -> str:
    """Do what the command says, under a free port; return the server's URL."""
    argv = shlex.split(line.removeprefix("Start it: "))
    account = unprivileged_account()
    if account:
        assert argv[:3] == ["sudo", "-u", account.name]
        argv = argv[3:]
    port = free_port()
    argv = [word.replace("5433", str(port)) for word in argv]
    argv[-1:] = ["-w", "-l", str(data / "log"), "start"]
    processes.run(argv, account=account, timeout_seconds=SECONDS)
    return f"postgresql://{SUPERUSER}@127.0.0.1:{port}"


def test_a_whole_server_starts_with_the_command_that_is_shown(
    desk: Desk, source: Source, short_path: Path
):
    data = short_path / "restored here"
    done = desk.restore(BackupKind.PHYSICAL, str(data))
    assert (done.exit_code, done.stderr) == (0, "")
    line = done.stdout.splitlines()[-1]
    url = _start(line, data)
    try:
        with psycopg.connect(url, dbname=SHOP) as connection:
            assert connection.execute("select count(*) from item").fetchone() == (ROWS,)
            assert connection.execute("show archive_mode").fetchone() == ("off",)
    finally:
        program = source.server.cluster.installation.program("pg_ctl")
        stop: list[str | Path] = [program, "-D", data, "-m", "fast", "-w", "stop"]
        processes.run(stop, account=unprivileged_account(), timeout_seconds=SECONDS)
    again = desk.restore(BackupKind.PHYSICAL, str(data))
    assert again.exit_code == 1
    assert f"{data} is not empty" in again.stderr


def test_a_directory_that_is_taken_or_options_of_databases_are_refused(desk: Desk, tmp_path: Path):
    (tmp_path / "file").touch()
    spaces = tmp_path / "data.tablespaces"
    spaces.mkdir()
    (spaces / "something").touch()
    for place, sentence in {
        "file": "is not a directory",
        "data": "data.tablespaces is not empty",
    }.items():
        done = desk.restore(BackupKind.PHYSICAL, str(tmp_path / place))
        assert done.exit_code == 1
        assert sentence in done.stderr
    for options in (["--as-database", "x"], ["--globals"]):
        done = desk.restore(BackupKind.PHYSICAL, str(tmp_path / "new"), *options)
        assert done.exit_code == 1
        assert not (tmp_path / "new").exists()


def test_a_half_extracted_directory_is_named(desk: Desk, source: Source, short_path: Path):
    folder = source.backups[BackupKind.PHYSICAL].folder
    payload = max(folder.glob("*.payload"), key=lambda path: path.stat().st_size)
    whole = payload.read_bytes()
    payload.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        done = desk.restore(BackupKind.PHYSICAL, str(short_path / "data"))
    finally:
        payload.write_bytes(whole)
    assert done.exit_code == 4
    assert f"{short_path / 'data'} is not whole: do not start it" in done.stderr


# The keys.


def _into(desk: Desk, kind: BackupKind, place: Path) -> str:
    if kind is BackupKind.PHYSICAL:
        return str(place / "data")
    with desk.target.connect() as connection:
        connection.execute("create role clerk")
    return desk.url


@pytest.mark.parametrize("kind", list(BackupKind))
def test_a_recovery_key_alone_restores_and_says_what_it_could_not_check(
    desk: Desk, kind: BackupKind, recovery_keys: Path, short_path: Path
):
    to = _into(desk, kind, short_path)
    refused = desk.restore(kind, to, keyring=recovery_keys)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "--accept-unsigned" in refused.stderr
    assert SHOP not in desk.databases()
    assert not (short_path / "data").exists()
    done = desk.restore(kind, to, "--accept-unsigned", keyring=recovery_keys)
    assert done.exit_code == 0, done.stderr
    signer = desk.source.backups[kind].keyring.active_key_id
    assert f"WARNING: the signature by key {signer} was NOT checked" in done.stdout
    if kind is BackupKind.LOGICAL:
        assert desk.rows() == ROWS
    else:
        assert (short_path / "data" / "PG_VERSION").exists()


def test_with_the_public_signing_key_nothing_is_left_unchecked(
    desk: Desk, recovery_keys: Path, short_path: Path
):
    keyring = desk.source.backups[BackupKind.PHYSICAL].keyring
    public = f"{keyring.active_key_id}.ed25519.pub"
    shutil.copy(keyring.directory / public, recovery_keys)
    for number, options in enumerate(([], ["--accept-unsigned"])):
        place = str(short_path / f"data{number}")
        done = desk.restore(BackupKind.PHYSICAL, place, *options, keyring=recovery_keys)
        assert done.exit_code == 0, done.stderr
        assert "WARNING" not in done.stdout


def _forge_value(envelope: dict[str, dict[str, object]]) -> None:
    envelope["signature"]["value"] = "00" * 64


def _forge_body(envelope: dict[str, dict[str, object]]) -> None:
    envelope["manifest"]["stored_bytes"] = 1


@pytest.mark.parametrize("forge", [_forge_value, _forge_body])
def test_a_wrong_signature_is_never_accepted(
    desk: Desk, forge: Callable[[dict[str, dict[str, object]]], None], tmp_path: Path
):
    file = desk.source.backups[BackupKind.PHYSICAL].folder / "manifest.json"
    whole = file.read_bytes()
    envelope = json.loads(whole)
    forge(envelope)
    form = json.dumps(envelope, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    file.write_bytes(form.encode())
    try:
        done = desk.restore(BackupKind.PHYSICAL, str(tmp_path / "data"), "--accept-unsigned")
    finally:
        file.write_bytes(whole)
    assert done.exit_code == 1
    assert "is wrong: what it signs was changed" in done.stderr
    assert not (tmp_path / "data").exists()
