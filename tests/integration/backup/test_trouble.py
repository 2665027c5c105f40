"""What goes wrong while a backup is taken: a sentence that says what to do, and nothing left behind."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tasks import vault
from tasks.backup import retrying
from tasks.backup import store as catalog
from tasks.backup.models import BackupKind, Outcome
from tasks.errors import Refused, Unavailable
from tasks.processes import ProgramFailed, TimedOut
from tasks.programs import Installation
from tasks.streaming import feed
from tests.backups import (
    BackupMaker,
    InThread,
    entries,
    maker_of,
    programs_of,
    sessions,
    until,
)
from tests.clusters import Server, make_database, running_server

KINDS = pytest.mark.parametrize("kind", list(BackupKind), ids=lambda kind: kind.value)
WAITING = "select count(*) from pg_locks l join pg_stat_activity a using (pid) where not l.granted and a.application_name ~ %s"


def waiting(server: Server, application: str = "") -> int:
    with server.connect() as connection:
        row = connection.execute(WAITING, [application]).fetchone()
    return row[0] if row else 0


@pytest.fixture
def database(source: Server) -> Iterator[str]:
    """A small database that may be locked."""
    made = make_database(source, f"small_{os.urandom(4).hex()}")
    with made.connect() as connection:
        connection.execute("create table kept as select i from generate_series(1, 100) i")
        connection.execute("create table locked as select i from generate_series(1, 100) i")
    yield made.name
    with source.connect() as connection:
        connection.execute(f'drop database "{made.name}" with (force)'.encode())


def check_nothing_is_left(maker: BackupMaker, server: Server) -> None:
    assert maker.leftovers() == []
    assert programs_of(server.port) == []
    until(lambda: not sessions(server, "onevault|pg_dump|pg_basebackup"), 10)


def test_a_table_dropped_during_the_dump_is_a_reason_to_try_again(
    source: Server, maker: BackupMaker, database: str, vault_url: str
):
    with source.connect(database) as other:
        other.execute("begin")
        other.execute("drop table locked")
        run = InThread(lambda: maker.take_journaled(vault_url, BackupKind.LOGICAL, database))
        until(lambda: waiting(source, "onevault") and programs_of(source.port))
        other.execute("commit")
    error = run.error(20)
    assert retrying.may_pass(error)
    assert "locked" in str(error) or "relation" in str(error)
    entry = maker.newest(vault_url)
    assert (entry.backup_status.value, entry.stored_bytes) == ("FAILED", None)
    assert entry.error_message == str(error)
    check_nothing_is_left(maker, source)
    again = maker.take(BackupKind.LOGICAL, database)
    assert len(again.open().inventory().databases[0].tables) == 1


def test_a_locked_table_is_named_when_the_wait_is_over(
    source: Server, maker: BackupMaker, database: str, vault_url: str
):
    with source.connect(database) as other:
        other.execute("begin")
        other.execute("lock table locked")
        started = monotonic()
        with pytest.raises(Unavailable) as caught:
            maker.take_journaled(vault_url, BackupKind.LOGICAL, database, lock_wait_seconds=1)
        assert monotonic() - started < 15
    sentence = str(caught.value)
    assert "pg_dump waited 1 s for a lock on " in sentence
    assert "public." in sentence
    assert sentence.endswith(
        "see who holds it (pg_locks, pg_blocking_pids), or raise lock_wait_seconds"
    )
    assert retrying.may_pass(caught.value)
    check_nothing_is_left(maker, source)


def test_a_time_limit_ends_a_dump_that_waits(
    source: Server, maker: BackupMaker, database: str, vault_url: str
):
    with source.connect(database) as other:
        other.execute("begin")
        other.execute("lock table locked")
        started = monotonic()
        with pytest.raises(TimedOut, match=r"pg_dump did not finish within 1 s and was stopped"):
            maker.take_journaled(vault_url, BackupKind.LOGICAL, database, timeout_seconds=1)
        assert monotonic() - started < 15
        check_nothing_is_left(maker, source)
        assert waiting(source) == 0


def test_a_time_limit_ends_a_base_backup_that_hangs(
    installation: Installation,
    empty_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    vault_url: str,
):
    with (
        running_server(installation, empty_data) as server,
        maker_of(server) as maker,
        gate(monkeypatch) as blocked,
    ):
        # More than the buffers between the server and us hold, and nothing that zstd can shrink: else it is all sent
        # before the walsender is stopped.
        with server.connect() as connection:
            connection.execute(
                "create table fat as select (select string_agg(sha256((i * 100 + j)::text::bytea), '')"
                " from generate_series(1, 60) as j) as bytes from generate_series(1, 32000) as i"
            )
        run = InThread(
            lambda: maker.take_journaled(vault_url, BackupKind.PHYSICAL, timeout_seconds=2)
        )
        until(blocked.reached)
        walsender = walsender_of(server)
        os.kill(walsender, signal.SIGSTOP)
        try:
            blocked.release()
            error = run.error(15)
        finally:
            os.kill(walsender, signal.SIGCONT)
        assert isinstance(error, TimedOut)
        assert "did not finish within 2 s" in str(error)
        check_nothing_is_left(maker, server)


def walsender_of(server: Server) -> int:
    with server.connect() as connection:
        row = connection.execute("select pid from pg_stat_replication").fetchone()
    assert row is not None
    pid: int = row[0]
    return pid


class Gate:
    """Stops whoever writes to a store until it is released."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._released = threading.Event()

    def pass_through(self) -> None:
        self._reached.set()
        assert self._released.wait(60)

    def reached(self) -> bool:
        return self._reached.is_set()

    def release(self) -> None:
        self._released.set()


@contextmanager
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Hold up the store's first part: a slow disk."""
    from blocks.storage import local  # noqa: PLC0415
    from tasks.backup import pipeline  # noqa: PLC0415

    made, write = Gate(), local._FileWriter.write

    def slowly(self: Any, data: Any) -> None:
        made.pass_through()
        write(self, data)

    monkeypatch.setattr(local._FileWriter, "write", slowly)
    # The gate must come before the end of the data.
    monkeypatch.setattr(pipeline, "PART_BYTES", 64 * 1024)
    try:
        yield made
    finally:
        made.release()


@KINDS
def test_a_server_that_is_killed_meanwhile_is_unavailable(
    installation: Installation,
    empty_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    vault_url: str,
    kind: BackupKind,
):
    with running_server(installation, empty_data) as server, maker_of(server) as maker:
        with server.connect() as connection:
            # More than fits into the pipes between the server and the store.
            connection.execute(
                "create table noise as select sha512((i || 'x')::bytea) from generate_series(1, 200000) i"
            )
        with gate(monkeypatch) as blocked:
            run = InThread(lambda: maker.take_journaled(vault_url, kind))
            until(blocked.reached)
            server.cluster.stop("immediate")
            blocked.release()
            error = run.error(30)
        assert retrying.may_pass(error), error
        assert len(str(error).splitlines()) == 1
        assert maker.leftovers() == []
        assert maker.newest(vault_url).backup_status.value == "FAILED"
        assert programs_of(server.port) == []


@KINDS
def test_a_role_without_rights_hears_of_all_that_is_missing(
    source: Server, maker: BackupMaker, kind: BackupKind, database: str
):
    with role(source, "weak", "login password 'weak'") as url:
        weak = BackupMaker(source, maker.folder, url(database))
        with source.connect(database) as connection:
            connection.execute("create schema closed; create table closed.t ()")
            connection.execute("select lo_from_bytea(0, 'x')")
        with pytest.raises(Refused) as caught:
            weak.check(kind, database if kind is BackupKind.LOGICAL else None)
        sentence = str(caught.value)
        assert sentence.startswith("test cannot be backed up: ")
        assert 'GRANT pg_read_all_data TO "weak"' in sentence
        if kind is BackupKind.PHYSICAL:
            assert 'ALTER ROLE "weak" REPLICATION' in sentence
        else:
            assert '"weak" may not read closed.t, kept, locked: ' in sentence
            assert '"weak" may not read 1 large objects' in sentence
            assert 'ALTER ROLE "weak" SET lo_compat_privileges = on' in sentence
        assert not retrying.may_pass(caught.value)
        assert weak.leftovers() == []


def test_a_role_that_may_read_is_enough(source: Server, maker: BackupMaker, database: str):
    with role(source, "reader", "login password 'weak'") as url:
        with source.connect(database) as connection:
            connection.execute("grant pg_read_all_data to reader")
            connection.execute("alter role reader set lo_compat_privileges = on")
            connection.execute("select lo_from_bytea(0, 'x')")
        reader = BackupMaker(source, maker.folder, url(database))
        backup = reader.take(BackupKind.LOGICAL, database)
        with reader.rehearsed(backup) as copy:
            assert copy.restored.rung.outcome is Outcome.PASS, copy.restored.rung
            assert copy.compare()[0].outcome is Outcome.PASS


def test_row_security_that_would_hide_rows_is_refused(
    source: Server, maker: BackupMaker, database: str
):
    with role(source, "blind", "login password 'weak'") as url:
        with source.connect(database) as connection:
            connection.execute("grant pg_read_all_data to blind")
            connection.execute("alter table kept enable row level security")
        blind = BackupMaker(source, maker.folder, url(database))
        with pytest.raises(Refused, match=r'row security hides rows of .*kept from "blind"') as hit:
            blind.take(BackupKind.LOGICAL, database)
        assert 'ALTER ROLE "blind" BYPASSRLS' in str(hit.value)
        with source.connect(database) as connection:
            connection.execute("alter role blind bypassrls")
        backup = blind.take(BackupKind.LOGICAL, database)
        assert backup.open().inventory().databases[0].rows == 200


@contextmanager
def role(server: Server, name: str, options: str) -> Iterator[Callable[[str], str]]:
    """Make a role for the time of a block; gives its URL for a database."""
    with server.connect() as connection:
        connection.execute(f"create role {name} {options}".encode())
    try:
        yield lambda db: f"postgresql://{name}:weak@{server.host}:{server.port}/{db}"
    finally:
        with server.connect() as connection:
            connection.execute(f"drop role {name}".encode())


def test_tools_that_are_too_old_are_named(
    source: Server, maker: BackupMaker, monkeypatch: pytest.MonkeyPatch, installation: Installation
):
    from dataclasses import replace  # noqa: PLC0415

    from tasks import programs  # noqa: PLC0415

    old = replace(installation, major=14, version="14.1", has_server=False)
    monkeypatch.setattr(programs, "discover", lambda: [old])
    with pytest.raises(Refused) as caught:
        maker.check(BackupKind.LOGICAL)
    assert "the newest client tools here are 14" in str(caught.value)
    assert f"install postgresql-client-{source.major}" in str(caught.value)
    with pytest.raises(Refused, match=f"install postgresql-{source.major}, or set ONEVAULT_PG_BIN"):
        maker.check(BackupKind.LOGICAL, verify=True)


def test_a_refused_backup_leaves_the_vault_alone(
    source: Server, maker: BackupMaker, vault_url: str
):
    before = len(entries(vault_url))
    with pytest.raises(Refused, match='database "absent" does not exist'):
        maker.take_journaled(vault_url, BackupKind.LOGICAL, "absent")
    assert len(entries(vault_url)) == before
    with vault.connect(vault_url) as conn:
        assert catalog.find(conn, "20260101T000000Z-logical-00000000") is None
    assert maker.leftovers() == []


def test_a_program_that_is_killed_is_an_error_even_when_its_exit_code_does_not_matter():
    """A pg_restore that the kernel kills says nothing: that must not pass for success."""
    suicide = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    with pytest.raises(ProgramFailed, match="killed by signal 9"):
        feed(suicide, [b"data"], timeout_seconds=20, check=False)
    assert (
        feed([sys.executable, "-c", "raise SystemExit(1)"], [], timeout_seconds=20, check=False)
        == []
    )
