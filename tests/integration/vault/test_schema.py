"""What the tables themselves hold, whoever writes to them."""

from secrets import token_hex

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tasks import datavault
from tasks import vault as vaults
from tests.clusters import drop_database, make_database

STATE = {
    "backup_type": "LOGICAL",
    "backup_scope": "DATABASE",
    "backup_method": "PG_DUMP",
    "backup_status": "PENDING",
    "backup_start_time": "2026-03-01T02:00:00Z",
    "server_name": "shop",
    "system_identifier": "7",
    "server_version": "17.10",
    "store_name": "local",
    "store_location": "/backup",
    "backup_location": "shop/1",
    "expiration_date": "2033-03-01",
    "host": "worker-1",
}
DONE = {
    "backup_end_time": "2026-03-01T03:00:00Z",
    "manifest_sha256": "ab" * 32,
    "encryption_enabled": False,
}
SCHEDULE = {
    "schedule_name": "nightly",
    "backup_type": "LOGICAL",
    "schedule_expression": "0 2 * * *",
}
RECOVERY = {"recovery_type": "FULL_RESTORE", "recovery_start_time": "2026-03-01T02:00:00Z"}
APPROVED = {"approved_by": "ann", "approval_date": "2026-03-01T01:00:00Z"}


@pytest.fixture(scope="module")
def shared_vault(vault_template):
    made = make_database(vault_template.server, f"vault_{token_hex(4)}", vault_template.name)
    yield made
    drop_database(made)


@pytest.fixture
def vault(shared_vault):
    """A transaction that is rolled back, in a vault that these tests share."""
    with vaults.connect(shared_vault.conninfo) as conn, conn.transaction(force_rollback=True):
        yield conn


def backup(conn: psycopg.Connection, **changes: object) -> None:
    key = datavault.insert_hub(
        conn, "backup_mgmt.backup_execution_h", "backup", "20260301T020000Z-logical-00000001"
    )
    datavault.append_version(
        conn, "backup_mgmt.backup_execution_s", "backup_hk", key, {**STATE, **changes}
    )


def schedule(conn: psycopg.Connection, **changes: object) -> None:
    key = datavault.insert_hub(conn, "backup_mgmt.backup_schedule_h", "schedule", "nightly")
    datavault.append_version(
        conn, "backup_mgmt.backup_schedule_s", "schedule_hk", key, {**SCHEDULE, **changes}
    )


def recovery(conn: psycopg.Connection, **changes: object) -> None:
    key = datavault.insert_hub(
        conn,
        "backup_mgmt.recovery_operation_h",
        "recovery",
        "20260301T020000Z-full_restore-00000001",
    )
    datavault.append_version(
        conn, "backup_mgmt.recovery_operation_s", "recovery_hk", key, {**RECOVERY, **changes}
    )


@pytest.mark.parametrize(
    "kind", ["FULL", "INCREMENTAL", "DIFFERENTIAL", "PITR", "LOGICAL", "PHYSICAL", "WAL_ARCHIVE"]
)
def test_every_kind_of_backup_has_a_place(vault, kind):
    backup(vault, backup_type=kind)
    schedule(vault, backup_type=kind)


@pytest.mark.parametrize(
    "changes",
    [
        {"backup_status": "RUNNING"},
        {"backup_status": "COMPLETED", **DONE},
        {"backup_status": "PARTIAL", **DONE},
        {"backup_status": "FAILED", "error_message": "The disk is full."},
        {"backup_status": "CANCELLED"},
        {"backup_status": "EXPIRED"},
        {
            "backup_status": "VERIFIED",
            "verification_status": "VERIFIED",
            "verified_at": "2026-03-01T04:00:00Z",
            "restore_test_passed": True,
            **DONE,
        },
        {"compression_ratio": -12.5},
        {"backup_size_bytes": 2**62, "compressed_size_bytes": 2**62},
        {"backup_duration_seconds": 999_999_999},
    ],
    ids=str,
)
def test_every_state_we_use_has_a_place(vault, changes):
    backup(vault, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"backup_status": "DONE"},
        {"backup_type": "logical"},
        {"storage_type": "TAPE"},
        {"offsite_copy_state": "MAYBE"},
        {"backup_status": "FAILED"},
        {"backup_status": "COMPLETED"},
        {"backup_status": "COMPLETED", **DONE, "manifest_sha256": None},
        {
            "backup_status": "VERIFIED",
            "verification_status": "VERIFIED",
            "verified_at": "2026-03-01T04:00:00Z",
            **DONE,
        },
        {"encryption_enabled": True, "cipher": "age"},
        {"manifest_sha256": "AB" * 32},
        {"backup_end_time": "2026-02-01T00:00:00Z"},
        {"compression_ratio": 100.01},
        {"backup_size_bytes": -1},
        {"backup_priority": 11},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(vault, changes):
    with pytest.raises(psycopg.errors.CheckViolation):
        backup(vault, **changes)


@pytest.mark.parametrize(("start", "end"), [("22:00", "04:00"), ("02:00", "05:00"), (None, None)])
def test_a_window_may_cross_midnight(vault, start, end):
    schedule(vault, execution_window_start=start, execution_window_end=end)


@pytest.mark.parametrize(("start", "end"), [("22:00", None), ("02:00", "02:00")])
def test_a_window_has_two_ends(vault, start, end):
    with pytest.raises(psycopg.errors.CheckViolation):
        schedule(vault, execution_window_start=start, execution_window_end=end)


@pytest.mark.parametrize("status", ["APPROVED", "RUNNING", "COMPLETED"])
def test_a_recovery_runs_only_when_approved(vault, status):
    recovery(vault)
    with pytest.raises(psycopg.errors.CheckViolation, match="runs_only_when_approved"):
        recovery(vault, recovery_status=status)
    recovery(vault, recovery_status=status, **APPROVED)


@pytest.mark.parametrize(
    ("outcome", "rungs", "fits"),
    [
        ("PASS", {"reread_outcome": "PASS"}, True),
        ("FAIL", {"reread_outcome": "PASS", "restore_outcome": "FAIL"}, True),
        ("PASS", {"reread_outcome": "PASS", "restore_outcome": "PARTIAL"}, False),
        ("PASS", {}, False),
    ],
)
def test_a_verification_is_as_good_as_its_worst_rung(vault, outcome, rungs, fits):
    backup(vault)
    statement = (
        "INSERT INTO backup_mgmt.backup_verification "
        "(backup_hk, tenant_hk, started_at, finished_at, outcome, reread_outcome, restore_outcome, details) "
        "SELECT backup_hk, tenant_hk, now(), now(), %s, %s, %s, %s FROM backup_mgmt.backup_execution_h"
    )
    values = (
        outcome,
        rungs.get("reread_outcome", "NOT_RUN"),
        rungs.get("restore_outcome", "NOT_RUN"),
        Jsonb({}),
    )
    if fits:
        vault.execute(statement, values)
        return
    with pytest.raises(psycopg.errors.CheckViolation, match="outcome_is_the_worst_rung"):
        vault.execute(statement, values)


def test_every_satellite_hashes_itself_and_holds_one_open_version(vault):
    rows = vault.execute(
        "SELECT c.relname, "
        "  EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = c.oid AND t.tgname = 'set_hash_diff'), "
        "  EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisunique "
        "    AND pg_get_expr(i.indpred, c.oid) = '(load_end_date IS NULL)') "
        "FROM pg_class AS c WHERE c.relkind = 'r' AND c.relname LIKE '%%\\_s' "
        "AND c.relnamespace::regnamespace::text = ANY(%s)",
        [["auth", "audit", "backup_mgmt"]],
    ).fetchall()
    assert len(rows) == 5
    assert {row[1:] for row in rows} == {(True, True)}


def test_every_table_is_kept_apart_by_tenant_and_every_view_asks_for_its_reader(vault):
    rows = vault.execute(
        "SELECT relname, relkind, relrowsecurity, reloptions FROM pg_class WHERE relkind IN ('r', 'v') "
        "AND relnamespace::regnamespace::text = ANY(%s)",
        [["auth", "audit", "backup_mgmt"]],
    ).fetchall()
    assert [name for name, kind, secured, _ in rows if kind == "r" and not secured] == []
    assert [
        name
        for name, kind, _, options in rows
        if kind == "v" and options != ["security_invoker=true"]
    ] == []
    assert {kind for _, kind, _, _ in rows} == {"r", "v"}


def test_no_tenant_is_ever_null(vault):
    nullable = vault.execute(
        "SELECT table_schema, table_name FROM information_schema.columns AS c JOIN information_schema.tables AS t "
        "USING (table_schema, table_name) WHERE column_name = 'tenant_hk' AND is_nullable = 'YES' "
        "AND table_type = 'BASE TABLE'"
    ).fetchall()
    assert nullable == []


def test_the_system_tenant_exists(vault):
    row = vault.execute(
        "SELECT tenant_bk, tenant_status FROM auth.tenant_h JOIN auth.tenant_definition_s USING (tenant_hk) "
        "WHERE tenant_hk = util.get_system_operations_tenant_hk()"
    ).fetchone()
    assert row == ("SYSTEM_OPERATIONS", "ACTIVE")


def test_the_keys_need_no_extension_and_no_search_path(vault):
    vault.execute("SET search_path = pg_catalog")
    assert vault.execute("SELECT util.hash_binary('x') = sha256('x')").fetchone() == (True,)
    assert vault.execute(
        "SELECT count(*) FROM pg_extension WHERE extname <> 'plpgsql'"
    ).fetchone() == (0,)


def test_the_catalog_finds_the_newest_without_reading_all(vault):
    """The promise of the catalog: the newest fifty of many, by index."""
    vault.execute(
        "INSERT INTO backup_mgmt.backup_execution_h (backup_hk, backup_bk) "
        "SELECT util.hash_binary(id), id FROM (SELECT to_char(timestamp '2020-01-01' + n * interval '1 hour', "
        "'YYYYMMDD\"T\"HH24MISS\"Z-logical-\"') || lpad(to_hex(n), 8, '0') AS id FROM generate_series(1, 5000) AS n) AS ids"
    )
    vault.execute(
        "INSERT INTO backup_mgmt.backup_execution_s (backup_hk, backup_type, backup_scope, backup_method, "
        "backup_start_time, server_name, system_identifier, server_version, store_name, store_location, "
        "backup_location, expiration_date, host) "
        "SELECT backup_hk, 'LOGICAL', 'DATABASE', 'PG_DUMP', to_timestamp(left(backup_bk, 15), 'YYYYMMDD\"T\"HH24MISS'), "
        "'shop', '7', '17', 'local', '/b', 'x', '2033-01-01', 'h' FROM backup_mgmt.backup_execution_h"
    )
    vault.execute("ANALYZE backup_mgmt.backup_execution_h, backup_mgmt.backup_execution_s")
    lines = vault.execute(
        "EXPLAIN SELECT * FROM backup_mgmt.backup_catalog ORDER BY started_at DESC LIMIT 50"
    ).fetchall()
    plan = "\n".join(line for (line,) in lines)
    assert "idx_backup_execution_s_start_time" in plan
    assert "Seq Scan on backup_execution" not in plan
