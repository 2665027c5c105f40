"""Servers and databases of every kind: odd names, nothing in them, tablespaces, a standby, one that is written to."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from tasks import processes
from tasks.backup import capture
from tasks.backup.inventory import Inventory
from tasks.backup.models import BackupKind, Outcome, Rung
from tasks.cluster_settings import free_port
from tasks.folders import make_folder
from tasks.private_cluster import PrivateCluster
from tasks.programs import Installation
from tests.backups import BackupMaker, Rehearsed, maker_of, until
from tests.clusters import PASSWORD, SUPERUSER, TEMPLATE, Server, running_server, short_folder

ODD = "a \"database\"\nwith = 'odd' $names\\ and %s"
ODD_SPACE = 'a "table\nspace"'
DATABASES = (ODD, "nothing", "objects", "spaced", "unlogged")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Where the source's tablespaces are."""
    with short_folder() as folder:
        yield folder / "spaces"


@pytest.fixture(scope="module")
def odd(installation: Installation, empty_data: Path, place: Path) -> Iterator[Server]:
    with running_server(installation, empty_data, max_prepared_transactions="4") as server:
        for number in (1, 2):
            make_folder(place, 0o711)
            make_folder(place / str(number), 0o700, server.cluster.account)
        with server.connect() as connection:
            for name in (TEMPLATE, *DATABASES):
                connection.execute(
                    sql.SQL("create database {} template template0").format(sql.Identifier(name))
                )
            for name, number in (("quick", 1), (ODD_SPACE, 2)):
                connection.execute(
                    sql.SQL("create tablespace {} location {}").format(
                        sql.Identifier(name), sql.Literal(str(place / str(number)))
                    )
                )
            connection.execute('create role "odd ""role""\n--" login')
        fill(server)
        yield server


def fill(server: Server) -> None:
    with server.connect(ODD) as connection:
        connection.execute('create schema "new\nline"')
        connection.execute(
            'create table "new\nline"."; drop table ""x""; --\n" ("a ""b""\n" int primary key, t text)'
        )
        connection.execute(
            'insert into "new\nline"."; drop table ""x""; --\n" select i, \'r\' || i from generate_series(1, 50) i'
        )
        connection.execute('alter schema "new\nline" owner to "odd ""role""\n--"')
        connection.execute('create sequence "new\nline"."seq ""q""\n"')
        connection.execute(
            """comment on schema "new\nline" is 'x\n\\restrict y\nERROR: no error'"""
        )
    with server.connect("objects") as connection:
        connection.execute(
            "select lo_from_bytea(0, sha512(i::text::bytea)) from generate_series(1, 20) i"
        )
    with server.connect("spaced") as connection:
        connection.execute("create table here as select i from generate_series(1, 100) i")
        connection.execute("create table there (i int primary key) tablespace quick")
        connection.execute("insert into there select i from generate_series(1, 1000) i")
        connection.execute('create index on here (i) tablespace "a ""table\nspace"""')
        connection.execute("begin; create table promised (i int); prepare transaction 'promise'")
    with server.connect("unlogged") as connection:
        connection.execute("create unlogged table fleeting (id int generated always as identity)")
        connection.execute("insert into fleeting select from generate_series(1, 30)")
        connection.execute("create unlogged sequence counter")
        connection.execute("select nextval('counter'), nextval('counter')")
        connection.execute("create table lasting as select 1 as one")


@pytest.fixture
def makers(odd: Server) -> Iterator[BackupMaker]:
    with maker_of(odd) as maker:
        yield maker


@contextmanager
def rehearsed(maker: BackupMaker, kind: BackupKind, database: str | None) -> Iterator[Rehearsed]:
    with maker.rehearsed(maker.take(kind, database)) as copy:
        assert copy.restored.rung.outcome is Outcome.PASS, copy.restored.rung
        yield copy


def compared(maker: BackupMaker, kind: BackupKind, database: str | None = None) -> Rung:
    with rehearsed(maker, kind, database) as copy:
        rung, _ = copy.compare()
        assert copy.structure().outcome is Outcome.PASS
        return rung


def everything_below(folder: Path) -> list[tuple[str, int, int]]:
    return sorted(
        (str(path), path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*")
    )


@pytest.mark.parametrize("database", DATABASES, ids=["odd names", *DATABASES[1:]])
def test_a_database_of_any_kind_comes_back(makers: BackupMaker, database: str, place: Path):
    before = everything_below(place)
    rung = compared(makers, BackupKind.LOGICAL, database)
    assert rung.outcome is Outcome.PASS, rung
    assert everything_below(place) == before


def test_large_objects_alone_are_counted(makers: BackupMaker):
    with rehearsed(makers, BackupKind.LOGICAL, "objects") as copy:
        assert copy.backup.inventory().databases[0].large_objects == 20
        with copy.connect() as connection:
            connection.execute("select lo_unlink(max(oid)) from pg_largeobject_metadata")
        rung, _ = copy.compare()
        assert rung.findings == ("objects: 20 large objects became 19",)


def test_a_whole_server_comes_back_without_touching_its_tablespaces(
    makers: BackupMaker, place: Path, odd: Server
):
    with rehearsed(makers, BackupKind.PHYSICAL, None) as copy:
        # The scratch server checkpoints, vacuums and writes: never there.
        before = everything_below(place)
        rung, rows = copy.compare()
        assert rung.outcome is Outcome.PASS, rung
        with copy.connect("spaced") as connection:
            connection.execute("create table written tablespace quick as select 1 as i")
            found = connection.execute("select gid from pg_prepared_xacts").fetchall()
            locations = connection.execute(
                "select pg_tablespace_location(oid) from pg_tablespace where spcname !~ '^pg_'"
            ).fetchall()
        assert found == [("promise",)]
        assert len(locations) == 2
        assert not [path for (path,) in locations if path.startswith(str(place))]
        assert copy.structure().outcome is Outcome.PASS
        assert everything_below(place) == before
    fleeting = next(row for row in rows if row.table == "public.fleeting")
    assert (fleeting.source_rows, fleeting.restored_rows) == (30, 0)
    assert fleeting.content == "emptied (UNLOGGED)"
    assert {row.database for row in rows} >= {ODD, "spaced", "unlogged"}
    assert len(copy.backup.manifest.objects) == 3 + 2


def test_a_standby_can_be_the_source(installation: Installation, empty_data: Path):
    with running_server(installation, empty_data) as primary, short_folder() as folder:
        with primary.connect() as connection:
            connection.execute("create table t as select i from generate_series(1, 500) i")
            connection.execute("create sequence s; select nextval('s')")
        cluster = PrivateCluster(folder / "standby", installation, superuser=SUPERUSER)
        base_backup(primary, cluster)
        cluster.adopt()
        settings = {
            "hot_standby": "on",
            "listen_addresses": "127.0.0.1",
            "port": str(free_port()),
            "wal_level": "replica",
            "max_wal_senders": "8",
            "full_page_writes": "on",
            "primary_conninfo": f"host=127.0.0.1 port={primary.port} user={SUPERUSER} password='{PASSWORD}'",
        }
        with cluster.running(settings), maker_of(Server(cluster)) as maker:
            with primary.connect() as connection:
                connection.execute("insert into t values (501)")
            with Server(cluster).connect() as connection:
                until(lambda: connection.execute("select i from t where i = 501").fetchone())
            for kind in BackupKind:
                backup = maker.take(kind)
                assert backup.manifest.server.in_recovery
                with maker.rehearsed(backup) as copy:
                    rung, rows = copy.compare()
                    assert rung.outcome is Outcome.PASS, (kind, copy.restored.rung, rung)
                    assert rows[0].restored_rows == 501
                    with copy.connect() as connection:
                        assert connection.execute("select pg_is_in_recovery()").fetchone() == (
                            False,
                        )


def base_backup(primary: Server, cluster: PrivateCluster) -> None:
    make_folder(cluster.directory, 0o711)
    program = cluster.installation.program("pg_basebackup")
    environment = {
        "PGHOST": primary.host,
        "PGPORT": str(primary.port),
        "PGUSER": SUPERUSER,
        "PGPASSWORD": PASSWORD,
    }
    argv: list[str | Path] = [program, "-R", "--checkpoint=fast", "-D", cluster.data]
    processes.run(argv, env=environment, timeout_seconds=60)


def test_a_server_that_is_written_to_is_proven_in_part(
    installation: Installation, empty_data: Path
):
    stop = threading.Event()
    with running_server(installation, empty_data) as server, maker_of(server) as maker:
        with server.connect() as connection:
            connection.execute("create table busy (i serial, t text)")
        writer = threading.Thread(target=write, args=(server, stop))
        writer.start()
        try:
            until(lambda: rows_of(server) > 20)
            backup = maker.take(BackupKind.PHYSICAL)
        finally:
            stop.set()
            writer.join()
        with maker.rehearsed(backup) as copy:
            rung, rows = copy.compare()
            assert rung.outcome is Outcome.PARTIAL, rung
            assert "the source was written to while the copy was made" in rung.summary
            assert any("table public.busy has" in found for found in rung.findings)
            assert rows[0].content == "DIFFERENT"
            assert 20 < (rows[0].restored_rows or 0) < rows[0].source_rows
            # A dump has one snapshot: writes beside it change nothing.
            assert copy.structure().outcome is Outcome.PASS


def test_a_long_transaction_that_ends_after_the_copy_is_no_damage(
    installation: Installation, empty_data: Path, monkeypatch: pytest.MonkeyPatch
):
    count = capture.take_inventory

    def end_then_count(*arguments: Any, **options: Any) -> Inventory:
        if not long.closed:
            long.commit()
            long.close()
        return count(*arguments, **options)

    monkeypatch.setattr(capture, "take_inventory", end_then_count)
    with running_server(installation, empty_data) as server, maker_of(server) as maker:
        with server.connect() as connection:
            connection.execute("create table slow (i int)")
        long = server.connect()
        long.autocommit = False
        long.execute("insert into slow values (1)")
        with server.connect() as connection:
            connection.execute("create table later ()")
        with maker.rehearsed(maker.take(BackupKind.PHYSICAL)) as copy:
            rung, _ = copy.compare()
    assert rung.findings == ("postgres: table public.slow has 0 rows instead of 1",)
    assert rung.outcome is Outcome.PARTIAL


def test_a_dump_of_a_server_that_is_written_to_is_proven_whole(
    installation: Installation, empty_data: Path
):
    stop = threading.Event()
    with running_server(installation, empty_data) as server, maker_of(server) as maker:
        with server.connect() as connection:
            connection.execute("create table busy (i serial, t text)")
        writer = threading.Thread(target=write, args=(server, stop))
        writer.start()
        try:
            until(lambda: rows_of(server) > 20)
            backup = maker.take(BackupKind.LOGICAL)
        finally:
            stop.set()
            writer.join()
        with maker.rehearsed(backup) as copy:
            rung, rows = copy.compare()
            assert rung.outcome is Outcome.PASS, rung
            assert 20 < rows[0].source_rows < rows_of(server)


def write(server: Server, stop: threading.Event) -> None:
    with server.connect() as connection:
        while not stop.wait(0.003):
            connection.execute("insert into busy (t) select 'x' from generate_series(1, 3)")


def rows_of(server: Server) -> int:
    with server.connect() as connection:
        row = connection.execute("select count(*) from busy").fetchone()
    return row[0] if row else 0
