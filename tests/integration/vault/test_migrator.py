import shutil
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import token_hex

import psycopg
import pytest
from psycopg import sql

from tasks.errors import Refused, Unavailable
from tasks.schema import migrator, plan
from tasks.schema.models import Applied, Migration, State

NAMES = [
    "0001_util_and_auth",
    "0002_audit",
    "0003_backup_mgmt",
    "0004_monitoring",
    "0005_alerts",
]


def names(applied: Iterable[Applied | Migration]) -> list[str]:
    return [str(item) for item in applied]


def copy(folder: Path, count: int) -> Path:
    """The first migrations, as an older release had them."""
    for path in sorted(plan.MIGRATIONS.glob("*.sql"))[:count]:
        shutil.copy(path, folder)
    return folder


def tables(conn: psycopg.Connection) -> set[str]:
    return {
        row[0]
        for row in conn.execute(
            "SELECT relname FROM pg_class WHERE relnamespace::regnamespace::text = 'demo'"
        )
    }


@pytest.fixture
def demo(tmp_path):
    """Two small migrations of another product's."""
    (tmp_path / "0001_one.sql").write_text("CREATE SCHEMA demo; CREATE TABLE demo.one ();")
    (tmp_path / "0002_two.sql").write_text("CREATE TABLE demo.two ();")
    return tmp_path


def test_an_empty_database_gets_all_and_a_second_run_nothing(database):
    assert names(migrator.pending(database.conninfo)) == NAMES
    assert names(migrator.migrate(database.conninfo)) == NAMES
    assert migrator.migrate(database.conninfo) == []
    assert migrator.pending(database.conninfo) == []
    assert {item.state for item in migrator.status(database.conninfo)} == {State.APPLIED}


def test_looking_changes_nothing(database):
    migrator.pending(database.conninfo)
    states = migrator.status(database.conninfo)
    assert {item.state for item in states} == {State.PENDING}
    with database.connect() as conn:
        assert conn.execute("SELECT to_regnamespace('util')").fetchone() == (None,)


def test_the_log_says_who_and_when(database):
    (first, *_) = migrator.migrate(database.conninfo)
    assert (first.number, first.applied_by) == (1, "ops")
    assert first.applied_at.tzinfo is not None
    assert first.checksum == plan.read_migrations()[0].checksum
    assert first.duration_ms >= 0


def test_a_connection_may_be_given_and_stays_as_it_was(database):
    with database.connect() as conn:
        conn.execute("SET lock_timeout = '7s'")
        assert names(migrator.migrate(conn)) == NAMES
        assert conn.execute("SHOW lock_timeout").fetchone() == ("7s",)
        assert conn.execute("SHOW search_path").fetchone() == ('"$user", public',)
        conn.autocommit = False
        with pytest.raises(ValueError, match="autocommit"):
            migrator.migrate(conn)


def test_an_older_vault_is_upgraded_and_keeps_its_rows(database, tmp_path):
    assert names(migrator.migrate(database.conninfo, directory=copy(tmp_path, 1))) == NAMES[:1]
    with database.connect() as conn:
        conn.execute(
            "INSERT INTO auth.tenant_h (tenant_hk, tenant_bk) VALUES (util.hash_binary('ACME'), 'ACME')"
        )
        assert names(migrator.migrate(database.conninfo)) == NAMES[1:]
        assert conn.execute("SELECT count(*) FROM auth.tenant_h").fetchone() == (2,)


def test_two_migrators_at_once_apply_each_migration_once(database):
    start = threading.Barrier(3)

    def run() -> list[str]:
        start.wait(timeout=10)
        return names(migrator.migrate(database.conninfo))

    with ThreadPoolExecutor(3) as pool:
        results = [future.result() for future in [pool.submit(run) for _ in range(3)]]
    assert sorted(name for result in results for name in result) == NAMES


def test_a_migrator_waits_for_its_turn_longer_than_for_a_lock(database, demo, monkeypatch):
    monkeypatch.setattr(migrator, "LOCK_TIMEOUT_MS", 50)
    with database.connect() as other, ThreadPoolExecutor(1) as pool:
        other.execute("SELECT pg_advisory_lock(hashtextextended('onevault:schema_migration', 0))")
        waiting = pool.submit(migrator.migrate, database.conninfo, directory=demo)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.5)
        other.execute("SELECT pg_advisory_unlock_all()")
        assert len(waiting.result(timeout=30)) == 2


def test_what_another_migrator_did_meanwhile_is_seen_whatever_the_default_isolation(database, demo):
    with database.connect() as conn:
        conn.execute("SET default_transaction_isolation = 'serializable'")
        assert len(migrator.migrate(conn, directory=demo)) == 2


def test_a_busy_table_makes_it_give_up_and_nothing_is_kept(database, demo, monkeypatch):
    monkeypatch.setattr(migrator, "LOCK_TIMEOUT_MS", 100)
    migrator.migrate(database.conninfo, directory=demo)
    (demo / "0003_three.sql").write_text(
        "CREATE TABLE demo.three (); ALTER TABLE demo.one ADD COLUMN late text;"
    )
    with database.connect() as conn:
        with conn.transaction():
            conn.execute("LOCK TABLE demo.one IN ACCESS SHARE MODE")
            with pytest.raises(Unavailable, match=r"0003_three.*lock timeout"):
                migrator.migrate(database.conninfo, directory=demo)
        assert tables(conn) == {"one", "two"}
        assert names(migrator.migrate(database.conninfo, directory=demo)) == ["0003_three"]


def test_a_failed_migration_is_undone_and_the_ones_before_stay(database, demo):
    (demo / "0002_two.sql").write_text("CREATE TABLE demo.two (); SELECT 1/0;")
    with pytest.raises(Refused, match="0002_two failed and was undone: division by zero"):
        migrator.migrate(database.conninfo, directory=demo)
    with database.connect() as conn:
        assert tables(conn) == {"one"}
    assert [item.state for item in migrator.status(database.conninfo, directory=demo)] == [
        State.APPLIED,
        State.PENDING,
    ]


def test_a_tampered_migration_is_refused_and_nothing_runs(database, demo):
    migrator.migrate(database.conninfo, directory=demo)
    (demo / "0001_one.sql").write_text("CREATE SCHEMA demo; CREATE TABLE demo.uno ();")
    (demo / "0003_three.sql").write_text("CREATE TABLE demo.three ();")
    for act in (migrator.migrate, migrator.pending):
        with pytest.raises(Refused, match="0001_one was changed after it was applied"):
            act(database.conninfo, directory=demo)
    with database.connect() as conn:
        assert tables(conn) == {"one", "two"}
    states = [item.state for item in migrator.status(database.conninfo, directory=demo)]
    assert states == [State.CHANGED, State.APPLIED, State.PENDING]


def test_a_newer_vault_is_refused(database, demo):
    migrator.migrate(database.conninfo, directory=demo)
    (demo / "0002_two.sql").unlink()
    with pytest.raises(Refused, match="newer than this program: it has 0002_two"):
        migrator.migrate(database.conninfo, directory=demo)


def test_a_database_of_something_else_is_left_alone(database):
    with database.connect() as conn:
        conn.execute("CREATE SCHEMA auth")
        with pytest.raises(Refused, match="Give the vault a database of its own"):
            migrator.migrate(database.conninfo)
        assert conn.execute("SELECT to_regnamespace('util')").fetchone() == (None,)


@pytest.fixture
def guest(database):
    """The name of a role without rights."""
    role = f"guest_{token_hex(4)}"
    with database.connect() as conn:
        conn.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
        yield role
        conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.mark.parametrize("migrated_before", [False, True])
def test_a_role_without_rights_is_told_so(database, guest, migrated_before):
    if migrated_before:
        migrator.migrate(database.conninfo)
    with database.connect() as conn:
        conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(guest)))
        with pytest.raises(Refused, match="permission denied"):
            migrator.migrate(conn)


def test_a_read_only_vault_is_told_so(database):
    with (
        psycopg.connect(
            database.conninfo, autocommit=True, options="-c default_transaction_read_only=on"
        ) as conn,
        pytest.raises(Refused, match="read-only"),
    ):
        migrator.migrate(conn)
