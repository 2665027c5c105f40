"""Every query of the catalogue runs on every version as the least-privilege role, and tells the truth."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from tasks import processes
from tasks.cluster_settings import free_port
from tasks.folders import make_folder
from tasks.metrics import catalog
from tasks.metrics.models import Family, Runs, Source
from tasks.private_cluster import PrivateCluster
from tasks.programs import Installation
from tests.backups import until
from tests.clusters import PASSWORD, SUPERUSER, Server, running_server, short_folder
from tests.markdown import ROOT

ROLE = "onevault_monitor"
ROLE_SCRIPT = (ROOT / "deployments/roles/monitoring.sql").read_text()
SHOP = 'Läden "Süd" 100%'
SCHEMA = 'the "Schéma"'
TABLE = 'Bestellungen "neu"'
S = '"the ""Schéma"""'
T = S + '."Bestellungen ""neu"""'
W = S + ".work"
EXTENSION = "pg_stat_statements"
EXTENSION_SCHEMA = 'ext "ünsions"'

FAMILIES = [f for f in catalog.load().families.values() if f.source is Source.POSTGRES]
NUMERIC = {"int2", "int4", "int8", "float4", "float8"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Watched:
    """A server with a shop on it, and the login of the monitor."""

    server: Server
    has_statements: bool

    @contextmanager
    def monitor(self, database: str = SHOP) -> Iterator[psycopg.Connection]:
        login = make_conninfo(
            self.server.url(database), user=ROLE, password="choose one", application_name="monitor"
        )
        with psycopg.connect(login, autocommit=True) as conn:
            yield conn

    def query(self, family: Family) -> sql.Composed:
        text = family.statement(self.server.major)
        if text is None:
            pytest.skip(f"PostgreSQL {self.server.major} has no {family.name}")
        if family.needs_extension and not self.has_statements:
            pytest.skip(f"{EXTENSION} does not come with these programs")
        if family.needs_extension is None:
            return sql.Composed([sql.SQL(text.replace("{", "{{").replace("}", "}}")).format()])
        return sql.SQL(text).format(pg_stat_statements=sql.Identifier(EXTENSION_SCHEMA))

    def rows(self, name: str, database: str = SHOP) -> list[Row]:
        query = self.query(catalog.load().families[name])
        with self.monitor(database) as conn:
            return conn.cursor(row_factory=dict_row).execute(query).fetchall()

    def row(self, name: str, **labels: str) -> Row:
        found = [row for row in self.rows(name) if labels.items() <= row.items()]
        assert len(found) == 1, found
        return found[0]

    @contextmanager
    def session(self, *statements: str, database: str = SHOP) -> Iterator[psycopg.Connection]:
        """A client that has said this and stays; after the block no trace of it is left."""
        with closing(self.server.connect(database, application_name="app")) as conn:
            pid = conn.info.backend_pid
            try:
                for statement in statements:
                    conn.execute(statement.encode())
                yield conn
            finally:
                self._end(pid)

    def _end(self, pid: int) -> None:
        gone = "select pg_terminate_backend(pid, 10000) from pg_stat_activity where pid = %s"
        with self.server.connect() as admin:
            admin.execute(gone, [pid])

    def admin(self, *statements: str, database: str = SHOP) -> None:
        with self.session(*statements, database=database):
            pass


@pytest.fixture(scope="module")
def watched(installation: Installation, empty_data: Path) -> Iterator[Watched]:
    settings = {
        "max_prepared_transactions": "5",
        "archive_mode": "on",
        "archive_command": "false",
        "track_io_timing": "on",
    }
    with ExitStack() as stack:
        try:
            server = stack.enter_context(
                running_server(
                    installation, empty_data, **settings, shared_preload_libraries=EXTENSION
                )
            )
        except Exception:  # the library is missing, and the server does not start
            server = stack.enter_context(running_server(installation, empty_data, **settings))
        yield _furnish(server)


def _furnish(server: Server) -> Watched:
    made = Watched(server, _make_shop(server))
    made.admin(
        f"create schema {S}",
        f"set search_path = {S}",
        f"create table {T} (id int primary key, note text)",
        "insert into " + T + " select i, 'note ' || i from generate_series(1, 2000) i",  # noqa: S608
        "update " + T + " set note = 'changed'",  # noqa: S608
        f"create table {W} as select i as id, 'note' as note from generate_series(1, 10) i",  # noqa: S608
        "create table empty (id int, note text unique)",
        "select pg_stat_force_next_flush()",
        f"analyze {T}",
        "set enable_seqscan = off",
        "select * from " + T + " where id = 7",  # noqa: S608
        "select pg_stat_force_next_flush()",
        "select 1",
    )
    return made


def _make_shop(server: Server) -> bool:
    with server.connect() as admin:
        admin.execute(ROLE_SCRIPT.encode())
        admin.execute(f"alter role {ROLE} password 'choose one'".encode())
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(SHOP)))
    with server.connect(SHOP) as admin:
        admin.execute(sql.SQL("create schema {}").format(sql.Identifier(EXTENSION_SCHEMA)))
        try:
            create = "create extension pg_stat_statements schema {}"
            admin.execute(sql.SQL(create).format(sql.Identifier(EXTENSION_SCHEMA)))
            usage = f"grant usage on schema {{}} to {ROLE}"
            admin.execute(sql.SQL(usage).format(sql.Identifier(EXTENSION_SCHEMA)))
        except psycopg.Error:
            return False
        loaded = admin.execute("show shared_preload_libraries").fetchone()
    return loaded == (EXTENSION,)


# Each entry


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_query_gives_just_its_columns_in_their_types(watched: Watched, family: Family):
    with watched.monitor() as monitor:
        cursor = monitor.execute(watched.query(family))
        columns = cursor.description or []
        types = {column.name: _type(monitor, column.type_code) for column in columns}
        rows = cursor.fetchall()
    assert len(types) == len(columns), "a column comes twice"
    assert {name for name, kind in types.items() if kind in NUMERIC} == set(family.metrics)
    words = {*family.labels, *family.texts, *([family.epoch] if family.epoch else [])}
    assert {name for name, kind in types.items() if kind == "text"} == words
    assert len(types) == len(words) + len(family.metrics)
    places = [i for i, column in enumerate(columns) if column.name in words]
    assert all(row[place] is not None for row in rows for place in places)


def _type(conn: psycopg.Connection, oid: int) -> str:
    found = conn.adapters.types.get(oid)
    return found.name if found else str(oid)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_object_is_told_twice_and_counters_do_not_fall(watched: Watched, family: Family):
    first, second = watched.rows(family.name), watched.rows(family.name)
    for rows in (first, second):
        named = [tuple(row[label] for label in family.labels) for row in rows]
        assert len(named) == len(set(named))
        assert family.labels or len(rows) == 1
    before = {tuple(row[label] for label in family.labels): row for row in first}
    for row in second:
        old = before.get(tuple(row[label] for label in family.labels), row)
        for name in family.counters:
            assert (row[name] or 0) >= (old[name] or 0) >= 0
        if family.epoch:
            assert row[family.epoch] == old[family.epoch]


BUT_NOT_HERE = {"locks", "progress", "replication", "slots", "sequences", "waits", "io"}


def test_every_family_has_something_to_say(watched: Watched):
    silent = {
        family.name
        for family in FAMILIES
        if family.runs is not Runs.ON_STANDBY
        and (not family.needs_extension or watched.has_statements)
        and family.statement(watched.server.major)
        and not watched.rows(family.name)
    }
    assert silent <= BUT_NOT_HERE


def test_an_uncommitted_alter_table_stops_no_query(watched: Watched):
    alter = f"alter table {T} add column more int"
    assert "empty" in {row["table_name"] for row in watched.rows("table_sizes")}
    with watched.session("begin", alter):
        families = [
            family
            for family in FAMILIES
            if family.statement(watched.server.major)
            and (not family.needs_extension or watched.has_statements)
        ]
        # The role's lock_timeout would make a query that waits fail.
        answers = {family.name: watched.rows(family.name) for family in families}
    assert TABLE in {row["table_name"] for row in answers["tables"]}
    exact = {row["table_name"] for row in answers["table_sizes"]}
    assert "empty" in exact
    assert TABLE not in exact


@pytest.mark.parametrize("locked", ["reindex index empty_note_key", "truncate empty"])
def test_what_is_locked_exclusively_is_left_out_of_the_exact_sizes(watched: Watched, locked: str):
    with watched.session(f"set search_path = {S}", "begin", locked):
        assert "empty" not in {row["table_name"] for row in watched.rows("table_sizes")}
    assert "empty" in {row["table_name"] for row in watched.rows("table_sizes")}


def test_a_login_without_pg_monitor_is_refused_or_blind(watched: Watched):
    """The families that say they need a right do need it."""
    login = make_conninfo(watched.server.url(), user="nobody", password="none")
    watched.admin("create role nobody login password 'none'")
    try:
        with psycopg.connect(login, autocommit=True) as conn:
            for name in ("wal", "archiver", "control"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    conn.execute(watched.query(catalog.load().families[name]))
    finally:
        watched.admin("drop role nobody")


# Sessions and locks


def test_sessions_are_counted_by_state(watched: Watched):
    with ExitStack() as stack:
        stack.enter_context(watched.session("begin", "select 1"))
        failed = stack.enter_context(watched.session("begin"))
        with pytest.raises(psycopg.errors.DivisionByZero):
            failed.execute("select 1/0")
        stack.enter_context(watched.session("select 1"))
        row = watched.row("connections")
        by_database = watched.row("connections_by_database", database_name=SHOP)
        long = watched.row("sessions_long")
    assert (row["idle_in_transaction"], row["idle_in_transaction_aborted"]) == (2, 1)
    assert row["total"] >= 3
    assert row["idle"] >= 1
    assert by_database["idle_in_transaction"] == 2
    assert by_database["connection_limit"] is None
    # Ours counts as one that is in use.
    usable = row["max_connections"] - row["reserved"]
    assert row["used_percent"] == pytest.approx(100 * (row["total"] + 1) / usable, abs=0.01)
    assert row["available"] == usable - row["total"] - 1
    assert (long["idle_in_transaction"], long["transactions_over_5_minutes"]) == (2, 0)
    assert long["application_name"] == "app"


def test_the_longest_transaction_is_shown_without_its_literals(watched: Watched):
    secret = (
        r"select 'Müller', E'it\'s Meier', 'O''Neil', 123456789, $$Schulze$$, 'Schmidt' as t1_2"
    )
    with watched.session("begin", secret) as session:
        row = watched.row("sessions_long")
        pid = session.info.backend_pid
    assert row["pid"] == str(pid)
    assert row["state"] == "idle in transaction"
    assert row["query"] == "select '?', E'?', '?', ?, $?$"
    assert row["longest_idle_in_transaction"].startswith(f"pid {pid}, ops on {SHOP} (app): select ")
    assert row["longest_transaction_seconds"] >= row["longest_idle_in_transaction_seconds"] >= 0


@pytest.mark.parametrize(
    "statement",
    [
        """select 'a' as "it's", 'Meier' as "o'clock", 'Meier'""",
        "select 1 -- don't\n, 'Meier'",
        "select /* don't ** 'Meier' **/ 'Meier' /* can't */, 'Meier'",
        r"select 'C:\', 'Meier', 'x'",
        "select date'2020-01-01', 'Meier'",
        "select $t1$Meier$t1$, 'x'",
        "select '/* ', 'Meier', ' */ Meier', '-- ', 'Meier'",
    ],
)
def test_no_way_to_quote_shows_a_literal(watched: Watched, statement: str):
    with watched.session("begin", statement):
        row = watched.row("sessions_long")
    assert row["query"]
    assert not re.search("Meier|2020", f"{row['query']} {row['longest_idle_in_transaction']}")


def test_what_was_found_in_the_buffers_is_counted_as_what_was_read(watched: Watched):
    if watched.server.major < 16:
        pytest.skip("PostgreSQL 15 has no pg_stat_io")
    found = [row for row in watched.rows("io") if row["hits"]]
    assert found
    assert all(row["hit_bytes"] == 8192 * row["hits"] for row in found)


def test_without_a_transaction_the_longest_is_zero(watched: Watched):
    row = watched.row("sessions_long")
    assert row["longest_transaction_seconds"] == 0
    assert (row["pid"], row["query"], row["longest_query"]) == ("", "", "")


def test_a_blocked_chain_shows_its_root(watched: Watched):
    change = f"update {W} set note = 'Diagnose' where id = "  # noqa: S608
    with ExitStack() as stack:
        middle = stack.enter_context(watched.session("begin", change + "2"))
        last = stack.enter_context(watched.session())
        root = stack.enter_context(watched.session("begin", change + "1"))
        middle.pgconn.send_query((change + "1").encode())
        last.pgconn.send_query((change + "2").encode())
        row = until(lambda: _blocked(watched, 2))
        waits = {each["wait_event_type"]: each["sessions"] for each in watched.rows("waits")}
        locks = sum(each["waiting"] for each in watched.rows("locks"))
        victims = {str(middle.info.backend_pid), str(last.info.backend_pid)}
        root_pid = str(root.info.backend_pid)
    assert row["root_pid"] == root_pid
    assert row["root_state"] == "idle in transaction"
    assert (row["roots"], row["worst_root_victims"]) == (1, 2)
    assert (row["root_user"], row["root_application"], row["root_database"]) == ("ops", "app", SHOP)
    assert "Diagnose" not in row["root_query"]
    assert row["root_query"].endswith("set note = '?' where id = ?")
    assert set(row["chain"].partition(" blocks ")[2].split(", ")) == victims
    assert 0 < row["longest_wait_seconds"] <= row["total_wait_seconds"]
    assert waits["Lock"] == 2
    assert locks == 2


def _blocked(watched: Watched, count: int) -> Row | None:
    row = watched.row("locks_waiting")
    ready = row["waiting"] == row["worst_root_victims"] == count and row["longest_wait_seconds"] > 0
    return row if ready else None


def test_waits_that_are_meant_are_counted_and_not_timed(watched: Watched):
    with ExitStack() as stack:
        stack.enter_context(watched.session("select pg_advisory_lock(7)"))
        stack.enter_context(watched.session("begin", f"lock {W} in row exclusive mode"))
        asking = stack.enter_context(watched.session())
        asking.pgconn.send_query(b"select pg_advisory_lock(7)")
        until(lambda: watched.row("locks_waiting")["waiting"] == 1)
        row = watched.row("locks_waiting")
        assert (row["waiting"], row["roots"], row["longest_wait_seconds"]) == (1, 1, 0)
        building = stack.enter_context(watched.session())
        building.pgconn.send_query(f"create index concurrently meant on {W} (note)".encode())
        until(lambda: watched.row("locks_waiting")["waiting"] == 2)
        row = watched.row("locks_waiting")
    watched.admin(f"drop index if exists {S}.meant")
    assert (row["longest_wait_seconds"], row["total_wait_seconds"]) == (0, 0)


def test_nobody_waits(watched: Watched):
    row = watched.row("locks_waiting")
    assert (row["waiting"], row["roots"], row["longest_wait_seconds"]) == (0, 0, 0)
    assert (row["worst_root_transaction_seconds"], row["chain"], row["root_pid"]) == (0, "", "")


def test_a_prepared_transaction_holds_the_horizon_and_blocks(watched: Watched):
    watched.admin(
        "begin", f"lock table {W}", "select txid_current()", "prepare transaction 'Zwei ''Phasen'"
    )
    try:
        for _ in range(3):
            watched.admin("select txid_current()")
        horizon = watched.row("xmin_horizon", kind="prepared_transaction")
        prepared = watched.row("prepared_transactions")
        with watched.session() as waiter:
            waiter.pgconn.send_query(f"select count(*) from {W}".encode())  # noqa: S608
            blocked = until(lambda: _blocked(watched, 1))
            watched.admin("rollback prepared 'Zwei ''Phasen'")
    finally:
        with watched.server.connect(SHOP) as admin:
            for (gid,) in admin.execute("select gid from pg_prepared_xacts").fetchall():
                admin.execute(sql.SQL("rollback prepared {}").format(sql.Literal(gid)))
    assert horizon["age_transactions"] >= 3
    assert horizon["holders"] == 1
    assert horizon["holder"].startswith("Zwei 'Phasen, prepared by ops in ")
    assert (prepared["total"], prepared["oldest"]) == (1, horizon["holder"])
    assert prepared["oldest_seconds"] > 0
    assert (blocked["root_pid"], blocked["root_state"]) == ("0", "prepared transaction")


def test_an_old_snapshot_holds_the_horizon(watched: Watched):
    with watched.session("begin isolation level repeatable read", "select 1") as holder:
        for _ in range(3):
            watched.admin("select txid_current()")
        row = watched.row("xmin_horizon", kind="backend")
        pid = holder.info.backend_pid
    assert row["age_transactions"] >= 3
    assert row["holder"].startswith(f"pid {pid}, ops on {SHOP} (app), idle in transaction")


# WAL


def test_a_failing_archive_command_shows(watched: Watched):
    watched.admin("select txid_current()", "select pg_switch_wal()")
    row = until(lambda: _failed(watched))
    assert row["archiving_on"] == 1
    assert row["ready_files"] >= 1
    assert row["archived_count"] == 0
    assert row["seconds_since_last_archived"] is None
    assert row["seconds_since_last_failed"] >= 0
    assert (row["archive_mode"], row["archiving"]) == ("on", "archive_command")
    assert len(row["last_failed_wal"]) == 24


def _failed(watched: Watched) -> Row | None:
    row = watched.row("archiver")
    return row if row["is_failing"] and row["failed_count"] > 0 and row["ready_files"] else None


def test_a_slot_that_nobody_reads_keeps_wal(watched: Watched):
    watched.admin(
        "select pg_create_physical_replication_slot('left_behind', true)",
        "select pg_create_physical_replication_slot('never_used')",
    )
    try:
        watched.admin("select txid_current()", "select pg_switch_wal()", "checkpoint")
        row = watched.row("slots", slot_name="left_behind")
        unused = watched.row("slots", slot_name="never_used")
    finally:
        watched.admin("select pg_drop_replication_slot(slot_name) from pg_replication_slots")
    assert row["active"] == 0
    assert row["retained_bytes"] > 0
    assert unused["retained_bytes"] is None
    assert (row["slot_type"], row["wal_status"], row["is_lost"]) == ("physical", "reserved", 0)
    assert row["safe_wal_size_bytes"] is None
    major = watched.server.major
    assert (row["is_conflicting"] is None) is (major < 16)
    assert (row["inactive_seconds"] is None) is (major < 17)


def test_the_wal_position_grows_by_what_is_written(watched: Watched):
    before = watched.row("wal")
    watched.admin("select pg_logical_emit_message(false, 'test', repeat('x', 100000))")
    after = until(lambda: _grown(watched, before["lsn_bytes"] + 100_000))
    assert after["files"] >= 1
    assert after["size_bytes"] >= after["files"] * 16 * 1024 * 1024


def _grown(watched: Watched, lsn: int) -> Row | None:
    row = watched.row("wal")
    return row if row["lsn_bytes"] >= lsn else None


# Objects


def test_tables_and_indexes_are_told_by_their_real_names(watched: Watched):
    labels = {"schema_name": SCHEMA, "table_name": TABLE}
    table = watched.row("tables", **labels)
    assert (table["tup_inserted"], table["tup_updated"]) == (2000, 2000)
    assert table["live_tuples"] == 2000
    assert table["dead_tuples"] == 2000
    assert table["dead_percent"] == 50
    assert table["idx_scans"] >= 1
    assert table["size_bytes"] > 0
    assert table["seconds_since_vacuum"] is None
    assert table["seconds_since_analyze"] >= 0
    exact = watched.row("table_sizes", **labels)
    assert exact["total_bytes"] == exact["table_bytes"] + exact["indexes_bytes"]
    assert exact["table_bytes"] >= table["size_bytes"]
    index = watched.row("indexes", **labels, index_name=f"{TABLE}_pkey")
    assert (index["is_valid"], index["is_unique"]) == (1, 1)
    assert index["scans"] >= 1
    assert (index["seconds_since_last_scan"] is None) is (watched.server.major < 16)
    empty = watched.row("tables", schema_name=SCHEMA, table_name="empty")
    assert empty["dead_percent"] is None


def test_an_index_that_could_not_be_built_is_invalid(watched: Watched):
    table = f"{S}.twice"
    watched.admin(f"create table {table} as select 1 as id from generate_series(1, 2)")  # noqa: S608
    try:
        with pytest.raises(psycopg.errors.UniqueViolation):
            watched.admin(f'create unique index concurrently "Bad" on {table} (id)')
        row = watched.row("invalid_indexes")
    finally:
        watched.admin(f"drop table {table}")
    assert (row["total"], row["names"]) == (1, S + '."Bad"')


def test_sequences_near_their_end(watched: Watched):
    small, owned = S + '."S""é"', S + ".wide"
    watched.admin(
        f"create sequence {small} as smallint",
        f"select setval('{small}', 30000)",
        f"create table {S}.narrow (id int)",
        f"create sequence {owned} owned by {S}.narrow.id",
        f"select setval('{owned}', 2000000000)",
        f"create sequence {S}.young",
        f"select nextval('{S}.young')",
        f"create sequence {S}.falling as smallint increment -1",
        f"select setval('{S}.falling', -32000)",
        f"create sequence {S}.round as smallint cycle",
        f"select setval('{S}.round', 32000)",
    )
    try:
        blind = watched.rows("sequences"), watched.row("sequences_summary")
        watched.admin(f"grant select on all sequences in schema {S} to {ROLE}")
        found = {row["sequence_name"]: row for row in watched.rows("sequences")}
        summary = watched.row("sequences_summary")
        with watched.session("begin", f"alter sequence {owned} increment 2"):
            meanwhile = {row["sequence_name"] for row in watched.rows("sequences")}
    finally:
        watched.admin(
            f"drop sequence {small}, {S}.young, {S}.falling, {S}.round",
            f"drop table {S}.narrow",
        )
    assert blind[0] == []
    assert (blind[1]["total"], blind[1]["unreadable"]) == (4, 4)
    assert (summary["total"], summary["unreadable"]) == (4, 0)
    assert set(found) == {'S"é', "wide", "falling"}
    assert found['S"é']["used_percent"] == pytest.approx(91.56, abs=0.005)
    assert found['S"é']["remaining"] == 32767 - 30000
    assert found["wide"]["column_name"] == "narrow.id"
    assert found["wide"]["used_percent"] == pytest.approx(93.13, abs=0.01)
    assert found["falling"]["used_percent"] == pytest.approx(97.66, abs=0.01)
    assert meanwhile == {'S"é', "falling"}


def test_freeze_ages_are_those_of_the_server(watched: Watched):
    row = watched.row("freeze", database_name=SHOP)
    assert 0 < row["xid_age"] < 200_000
    assert row["autovacuum_percent"] >= 100 * row["xid_age"] / 200_000_000
    assert row["wraparound_percent"] < row["autovacuum_percent"]
    tables = watched.rows("freeze_tables")
    assert len(tables) == 20
    assert (
        max(each["xid_age"] for each in tables)
        <= watched.row("freeze", database_name=SHOP)["xid_age"]
    )


def test_database_counters_grow(watched: Watched):
    before = watched.row("databases", database_name=SHOP)
    watched.admin("begin", "select 1", "rollback", "select pg_stat_force_next_flush()", "select 1")
    after = until(lambda: _counted(watched, before["xact_rollback"] + 1, before["sessions"] + 1))
    assert after["xact_commit"] > before["xact_commit"]
    assert after["blks_hit"] > 0
    assert after["blk_read_ms"] is not None
    assert {row["database_name"] for row in watched.rows("databases")} >= {SHOP, "postgres"}
    assert watched.row("database_sizes", database_name=SHOP)["size_bytes"] > 1_000_000


def _counted(watched: Watched, rollbacks: int, sessions: int) -> Row | None:
    row = watched.row("databases", database_name=SHOP)
    return row if row["xact_rollback"] >= rollbacks and row["sessions"] >= sessions else None


def test_settings_that_wait_for_a_restart_are_named(watched: Watched):
    watched.admin("alter system set max_connections = 77", "select pg_reload_conf()")
    try:
        row = until(lambda: _pending(watched))
    finally:
        watched.admin("alter system reset max_connections", "select pg_reload_conf()")
    assert row["pending_restart"] == len(row["pending_restart_names"].split(", "))
    assert (row["fsync_on"], row["autovacuum_on"]) == (0, 0)


def _pending(watched: Watched) -> Row | None:
    row = watched.row("settings")
    return row if "max_connections" in row["pending_restart_names"].split(", ") else None


def test_statements_are_counted_without_their_text(watched: Watched):
    if not watched.has_statements:
        pytest.skip(f"{EXTENSION} does not come with these programs")
    before = _statements(watched)
    watched.admin(*["select count(*) from pg_class where relname = 'x'"] * 3)
    after = _statements(watched)
    grown = {
        key: row["calls"] - before.get(key, {"calls": 0})["calls"] for key, row in after.items()
    }
    assert 3 in grown.values()
    row = after[next(key for key, growth in grown.items() if growth == 3)]
    assert (row["database_name"], row["role_name"], row["toplevel"]) == (SHOP, "ops", "true")
    assert row["total_exec_ms"] > 0
    assert row["stats_since"]
    info = watched.row("statements_info")
    assert info["max_statements"] >= 100
    assert info["extension_version"]


def _statements(watched: Watched) -> dict[tuple[str, ...], Row]:
    names = catalog.load().families["statements"].labels
    return {tuple(row[name] for name in names): row for row in watched.rows("statements")}


def test_an_extension_that_was_not_updated_still_answers(watched: Watched):
    """After an upgrade of the server it may lack columns: 1.8 knows neither toplevel nor stats_since."""
    family = catalog.load().families["statements"]
    text = family.statement(watched.server.major) or ""
    stale = (
        "create schema old",
        "create table old.pg_stat_statements_info as select now() as stats_reset, 0 as dealloc",
        (
            "create function old.pg_stat_statements(boolean) returns table (dbid oid, userid oid, queryid bigint, calls bigint, "
            "total_exec_time float8, rows bigint, shared_blks_hit bigint, shared_blks_read bigint, shared_blks_dirtied bigint, "
            "temp_blks_read bigint, temp_blks_written bigint, wal_bytes numeric) language sql as "
            "$$ select 1::oid, 10::oid, 42::bigint, 5::bigint, 1.5::float8, 1::bigint, 1::bigint, 1::bigint, 1::bigint, 1::bigint, "
            "1::bigint, 7::numeric $$"
        ),
    )
    watched.admin(*stale)
    try:
        with watched.session() as conn:
            query = sql.SQL(text).format(pg_stat_statements=sql.Identifier("old"))
            row = conn.cursor(row_factory=dict_row).execute(query).fetchone()
    finally:
        watched.admin("drop schema old cascade")
    assert row is not None
    assert (row["queryid"], row["toplevel"], row["calls"], row["wal_bytes"]) == ("42", "true", 5, 7)
    assert row["stats_since"]


def test_progress_of_a_build_that_waits_is_shown(watched: Watched):
    with (
        watched.session("begin", f"insert into {W} values (-1, '')") as writer,  # noqa: S608
        watched.session() as builder,
    ):
        builder.pgconn.send_query(f"create index concurrently building on {W} (note)".encode())
        builder_pid = str(builder.info.backend_pid)
        row = until(lambda: next(iter(watched.rows("progress")), None))
        invalid = watched.row("invalid_indexes")
        writer.execute("rollback")
        until(lambda: not watched.rows("progress"))
    watched.admin(f"drop index {S}.building")
    assert row["command"] == "CREATE INDEX CONCURRENTLY"
    assert (row["database_name"], row["relation"]) == (SHOP, f"{SCHEMA}.work")
    assert (row["running"], row["pid"]) == (1, builder_pid)
    assert row["running_seconds"] >= 0
    assert invalid["total"] == 0


def test_the_answer_of_a_server_that_lives(watched: Watched):
    row = watched.row("availability")
    assert (row["up"], row["in_recovery"]) == (1, 0)
    assert row["uptime_seconds"] > 0
    assert row["version"].startswith(str(watched.server.major))
    assert row["postmaster_started_at"].endswith("Z")
    control = watched.row("control")
    assert control["timeline"] == 1
    assert control["data_directory"] == str(watched.server.cluster.data)


def test_every_variant_belongs_to_a_version_that_is_supported():
    assert {variant.since for family in FAMILIES for variant in family.variants} <= {15, 16, 17, 18}


# A standby


@pytest.fixture(scope="module")
def standby(watched: Watched) -> Iterator[Watched]:
    conninfo = make_conninfo(watched.server.url(), application_name="the standby")
    with _running_standby(watched, conninfo) as made:
        yield made


@contextmanager
def _running_standby(watched: Watched, conninfo: str, **changes: str) -> Iterator[Watched]:
    primary = watched.server
    with short_folder() as folder:
        cluster = PrivateCluster(
            folder / "standby", primary.cluster.installation, superuser=SUPERUSER
        )
        _base_backup(primary, cluster)
        cluster.adopt()
        settings = {
            "hot_standby": "on",
            "listen_addresses": "127.0.0.1",
            "port": str(free_port()),
            "wal_level": "replica",
            "max_wal_senders": "8",
            "max_prepared_transactions": "5",
            "shared_preload_libraries": EXTENSION if watched.has_statements else "",
            "primary_conninfo": conninfo,
            **changes,
        }
        with cluster.running(settings):
            yield Watched(Server(cluster), watched.has_statements)


def _base_backup(primary: Server, cluster: PrivateCluster) -> None:
    make_folder(cluster.directory, 0o711)
    login = {"PGHOST": primary.host, "PGPORT": str(primary.port), "PGUSER": SUPERUSER}
    argv: list[str | Path] = [
        cluster.installation.program("pg_basebackup"),
        *("-R", "--checkpoint=fast", "-D"),
        cluster.data,
    ]
    processes.run(argv, env=login | {"PGPASSWORD": PASSWORD}, timeout_seconds=60)


def test_a_standby_answers_whatever_is_asked_of_it(standby: Watched):
    silent = set()
    for family in FAMILIES:
        is_there = family.statement(standby.server.major) is not None
        if not is_there or (family.needs_extension and not standby.has_statements):
            continue
        if not standby.rows(family.name) and family.runs is not Runs.ON_PRIMARY:
            silent.add(family.name)
    assert silent <= BUT_NOT_HERE
    assert standby.row("availability")["in_recovery"] == 1
    # archive_mode = on archives only on a primary.
    assert standby.row("archiver")["archiving_on"] == 0


def test_a_standby_without_a_primary_has_no_receiver_to_be_up(watched: Watched):
    with _running_standby(watched, "") as alone:
        row = alone.row("standby")
    assert (row["receiver_up"], row["receiver_status"]) == (None, "no receiver")


def test_nobody_reads_from_a_standbys_copy_of_a_slot(installation: Installation, empty_data: Path):
    if installation.major < 17:
        pytest.skip(f"PostgreSQL {installation.major} copies no slots")
    with running_server(installation, empty_data, wal_level="logical") as server:
        primary = Watched(server, has_statements=False)
        primary.admin(
            "select pg_create_physical_replication_slot('wal', true)",
            "select pg_create_logical_replication_slot('changes', 'pgoutput', false, false, true)",
            database="postgres",
        )
        conninfo = make_conninfo(server.url(), dbname="postgres")
        copying = {"hot_standby_feedback": "on", "primary_slot_name": "wal", "wal_level": "logical"}
        with _running_standby(primary, conninfo, **copying) as standby:
            copied = until(lambda: _copied_slots(primary, standby))
            here = _slots(primary)
    assert copied == {"changes": None}
    assert here["changes"] == 0


def _copied_slots(primary: Watched, standby: Watched) -> dict[str, int | None]:
    """Move the slot on, without which it is not copied, and let the standby copy it as soon as it can."""
    with primary.server.connect() as admin:
        admin.execute("select pg_log_standby_snapshot()")
        admin.execute("select pg_replication_slot_advance('changes', pg_current_wal_lsn())")
    with suppress(psycopg.Error), standby.server.connect() as admin:
        admin.execute("select pg_sync_replication_slots()")
    return _slots(standby)


def _slots(watched: Watched) -> dict[str, int | None]:
    query = watched.query(catalog.load().families["slots"])
    with watched.server.connect() as admin:
        rows = admin.cursor(row_factory=dict_row).execute(query).fetchall()
    return {row["slot_name"]: row["active"] for row in rows}


def test_replication_is_seen_from_both_ends(watched: Watched, standby: Watched):
    watched.admin("create table late (i int)")
    until(lambda: standby.row("standby")["receiver_up"])
    until(lambda: standby.row("standby")["seconds_since_last_replay"] is not None)
    with standby.session("select pg_wal_replay_pause()"):
        until(lambda: standby.row("standby")["is_replay_paused"])
        try:
            watched.admin("insert into late select generate_series(1, 1000)")
            behind = until(lambda: _behind(standby))
            seen = until(lambda: _seen_behind(watched))
        finally:
            standby.admin("select pg_wal_replay_resume()")
    caught_up = until(lambda: _caught_up(watched))
    here = until(lambda: _replayed(standby))
    watched.admin("drop table late")
    assert behind["received_bytes"] - behind["replayed_bytes"] == behind["replay_lag_bytes"]
    assert (behind["receiver_status"], behind["receiver_up"]) == ("streaming", 1)
    assert behind["sender"] == f"{watched.server.host}:{watched.server.port}"
    assert behind["replay_lag_seconds"] > 0
    assert (seen["client"], seen["connections"]) == ("127.0.0.1", 1)
    assert (seen["state"], seen["is_streaming"], seen["user_name"]) == ("streaming", 1, SUPERUSER)
    assert caught_up["replay_lag_seconds"] == 0
    assert here["replay_lag_seconds"] == 0
    assert here["seconds_since_last_replay"] >= 0


def _behind(standby: Watched) -> Row | None:
    row = standby.row("standby")
    return row if row["replay_lag_bytes"] > 0 else None


def _replayed(standby: Watched) -> Row | None:
    row = standby.row("standby")
    return row if row["replay_lag_bytes"] == 0 and row["replay_lag_seconds"] == 0 else None


def _seen_behind(watched: Watched) -> Row | None:
    row = watched.row("replication", application_name="the standby")
    return row if (row["replay_lag_bytes"] or 0) > 0 else None


def _caught_up(watched: Watched) -> Row | None:
    row = watched.row("replication", application_name="the standby")
    return row if row["replay_lag_bytes"] == 0 else None
