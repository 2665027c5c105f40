import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.rows import dict_row

from tasks import vault as vaults
from tasks.backup import store
from tasks.backup.catalog import BackupFacts, BackupIntent, CatalogEntry, VerificationRecord
from tasks.backup.lifecycle import BackupStatus, VerificationStatus
from tasks.backup.models import BackupKind, Outcome, backup_id_for
from tasks.errors import Refused, Unavailable

NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
PASS, FAIL, PARTIAL, NOT_RUN = Outcome.PASS, Outcome.FAIL, Outcome.PARTIAL, Outcome.NOT_RUN


def intent(number: int = 1, kind: BackupKind = BackupKind.LOGICAL, **changes: Any) -> BackupIntent:
    started = NOW + timedelta(minutes=number)
    made = BackupIntent(
        backup_id=backup_id_for(kind, started, f"{number:08x}"),
        kind=kind,
        started_at=started,
        server_name="shop",
        system_identifier="7000000000000000001",
        server_version="17.10",
        database_name="orders" if kind is BackupKind.LOGICAL else None,
        store_name="local",
        store_location="/backup",
        backup_location=f"shop/{number}",
        host="worker-1",
    )
    return replace(made, **changes)


def facts(of: BackupIntent, **changes: Any) -> BackupFacts:
    made = BackupFacts(
        finished_at=of.started_at + timedelta(seconds=90.5),
        source_bytes=4_000_000_000_000,
        stored_bytes=1_000_000_000_000,
        codec="zstd",
        compression_level=3,
        encryption_enabled=True,
        cipher="age-v1 ChaCha20-Poly1305",
        encryption_key_id="age1x",
        part_size_bytes=8 << 20,
        manifest_sha256="ab" * 32,
        timeline=1,
        start_lsn="0/16B3748",
    )
    return replace(made, **changes)


def record(of: BackupIntent, restore: Outcome = PASS, **changes: Any) -> VerificationRecord:
    made = VerificationRecord(
        backup_id=of.backup_id,
        started_at=NOW + timedelta(hours=1),
        finished_at=NOW + timedelta(hours=2),
        reread=PASS,
        restore=restore,
        restore_seconds=None if restore is NOT_RUN else 12.5,
    )
    return replace(made, **changes)


def completed(conn: psycopg.Connection, number: int = 1, **changes: Any) -> BackupIntent:
    made = intent(number, **changes)
    store.register_backup(conn, made)
    store.mark_running(conn, made.backup_id)
    store.mark_completed(conn, made.backup_id, facts(made))
    return made


def verified(conn: psycopg.Connection, number: int = 1, **changes: Any) -> BackupIntent:
    made = completed(conn, number, **changes)
    assert store.record_verification(conn, record(made)) is BackupStatus.VERIFIED
    return made


def entry(conn: psycopg.Connection, backup_id: str) -> CatalogEntry:
    found = store.find(conn, backup_id)
    assert found is not None
    return found


def trail(conn: psycopg.Connection, backup_id: str) -> list[tuple[Any, ...]]:
    return conn.execute(
        "SELECT event_type, phase, outcome, details ->> 'from', details ->> 'to' FROM audit.audit_detail_s "
        "WHERE subject = %s ORDER BY load_date",
        [backup_id],
    ).fetchall()


def states(conn: psycopg.Connection, of: BackupIntent) -> list[str]:
    return [
        row[0]
        for row in conn.execute(
            "SELECT backup_status FROM backup_mgmt.backup_execution_s JOIN backup_mgmt.backup_execution_h "
            "USING (backup_hk) WHERE backup_bk = %s ORDER BY backup_execution_s.load_date",
            [of.backup_id],
        )
    ]


def test_a_backup_goes_from_intent_to_proof(vault):
    made = intent()
    store.register_backup(vault, made)
    assert entry(vault, made.backup_id).backup_status is BackupStatus.PENDING
    store.mark_running(vault, made.backup_id)
    store.mark_completed(vault, made.backup_id, facts(made))
    check = record(made, comparison=PASS, structure=PASS, details={"restore": {"findings": []}})
    store.announce_verification(vault, made.backup_id, check.verification_id)
    assert entry(vault, made.backup_id).verification_status is VerificationStatus.PENDING
    assert store.record_verification(vault, check) is BackupStatus.VERIFIED

    shown = entry(vault, made.backup_id)
    assert (shown.backup_type, shown.database_name, shown.host) == ("LOGICAL", "orders", "worker-1")
    assert shown.backup_status is BackupStatus.VERIFIED
    assert shown.verification_status is VerificationStatus.VERIFIED
    assert (shown.source_bytes, shown.stored_bytes) == (4_000_000_000_000, 1_000_000_000_000)
    assert (shown.saved_percent, shown.duration_seconds) == (Decimal("75.00"), Decimal("90.5"))
    assert (shown.checksum_verified, shown.restore_test_passed, shown.integrity_check_passed) == (
        True,
        True,
        True,
    )
    assert (shown.restore_seconds, shown.last_verification_outcome) == (12.5, PASS)
    assert shown.verified_at == shown.last_verification_at == check.finished_at
    assert shown.expiration_date == date(2033, 2, 27)
    assert states(vault, made) == ["PENDING", "RUNNING", "COMPLETED", "VERIFIED"]


def test_every_step_leaves_its_audit_row(vault):
    made = completed(vault)
    check = record(made)
    store.announce_verification(vault, made.backup_id, check.verification_id)
    store.record_verification(vault, check)
    assert trail(vault, made.backup_id) == [
        ("backup", "BEFORE", "INTENDED", None, "PENDING"),
        ("backup", "BEFORE", "STARTED", "PENDING", "RUNNING"),
        ("backup", "AFTER", "SUCCEEDED", "RUNNING", "COMPLETED"),
        ("backup.verify", "BEFORE", "STARTED", None, None),
        ("backup.verify", "AFTER", "SUCCEEDED", "COMPLETED", "VERIFIED"),
    ]
    operations = vault.execute(
        "SELECT count(DISTINCT operation_id) FROM audit.audit_detail_s"
    ).fetchone()
    assert operations == (2,)


def test_what_was_done_is_kept_column_by_column(vault):
    made = verified(vault, prefect_flow_run_id=uuid4(), tool_version="pg_dump 17.10")
    with vault.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(
            "SELECT * FROM backup_mgmt.backup_execution_s WHERE load_end_date IS NULL"
        ).fetchone()
    expected = {
        "backup_method": "PG_DUMP",
        "backup_scope": "DATABASE",
        "codec": "zstd",
        "compression_level": 3,
        "encryption_enabled": True,
        "cipher": "age-v1 ChaCha20-Poly1305",
        "encryption_key_id": "age1x",
        "part_size_bytes": 8 << 20,
        "manifest_sha256": "ab" * 32,
        "timeline": 1,
        "start_lsn": "0/16B3748",
        "stop_lsn": None,
        "tool_version": "pg_dump 17.10",
        "prefect_flow_run_id": made.prefect_flow_run_id,
        "offsite_copy_state": "NOT_CONFIGURED",
        "archive_to_cold_storage_after": timedelta(days=90),
        "retention_period": timedelta(days=2555),
        "error_message": None,
    }
    assert {name: row[name] for name in expected} == expected


def test_a_registered_id_is_not_registered_again(vault):
    store.register_backup(vault, intent())
    with pytest.raises(Refused, match="is registered already"):
        store.register_backup(vault, intent())
    assert len(trail(vault, intent().backup_id)) == 1


def test_a_backup_id_of_another_form_is_refused_whole(vault):
    with pytest.raises(psycopg.errors.CheckViolation):
        store.register_backup(vault, intent(backup_id="FULL_20260301_020000"))
    assert vault.execute("SELECT count(*) FROM audit.audit_detail_s").fetchone() == (0,)


def test_a_failure_says_why_and_is_told_once(vault):
    made = intent()
    store.register_backup(vault, made)
    assert store.mark_failed(vault, made.backup_id, "DISK_FULL", "The store is full.") is True
    assert store.mark_failed(vault, made.backup_id, "OTHER", "Something else.") is False
    shown = entry(vault, made.backup_id)
    assert (shown.error_code, shown.error_message) == ("DISK_FULL", "The store is full.")
    assert trail(vault, made.backup_id)[-1][:3] == ("backup", "AFTER", "FAILED")


def test_a_cancelled_backup_stays_cancelled(vault):
    made = intent()
    store.register_backup(vault, made)
    store.mark_running(vault, made.backup_id)
    assert store.mark_cancelled(vault, made.backup_id, "Cancelled from the UI.") is True
    assert store.mark_cancelled(vault, made.backup_id, "Again.") is False
    with pytest.raises(Refused, match="is CANCELLED: it has ended"):
        store.mark_failed(vault, made.backup_id, "X", "late")
    with pytest.raises(Refused, match="cannot become COMPLETED"):
        store.mark_completed(vault, made.backup_id, facts(made))


@pytest.mark.parametrize(
    "mark", [store.mark_failed, lambda conn, key, _, why: store.mark_cancelled(conn, key, why)]
)
def test_what_is_committed_fails_only_by_verification(vault, mark):
    made = completed(vault)
    with pytest.raises(Refused, match="is COMPLETED: it has ended"):
        mark(vault, made.backup_id, "X", "a late handler")
    assert states(vault, made)[-1] == "COMPLETED"


def test_steps_out_of_order_are_refused_and_change_nothing(vault):
    made = intent()
    store.register_backup(vault, made)
    for step in (
        lambda: store.mark_completed(vault, made.backup_id, facts(made)),
        lambda: store.announce_verification(vault, made.backup_id, uuid4()),
        lambda: store.record_verification(vault, record(made)),
    ):
        with pytest.raises(Refused, match="is PENDING and"):
            step()
    assert states(vault, made) == ["PENDING"]
    assert len(trail(vault, made.backup_id)) == 1
    assert vault.execute("SELECT count(*) FROM backup_mgmt.backup_verification").fetchone() == (0,)


def test_an_unknown_backup_is_named(vault):
    with pytest.raises(
        Refused, match="The vault knows no backup 20260101T000000Z-logical-00000000"
    ):
        store.mark_running(vault, "20260101T000000Z-logical-00000000")
    assert store.find(vault, "20260101T000000Z-logical-00000000") is None


@pytest.mark.parametrize(
    ("rungs", "status", "said", "booleans"),
    [
        ({"restore": PASS}, "VERIFIED", "VERIFIED", (True, True, None)),
        ({"restore": NOT_RUN}, "COMPLETED", "PARTIAL", (True, None, None)),
        ({"restore": FAIL}, "FAILED", "FAILED", (True, False, None)),
        ({"restore": PASS, "comparison": FAIL}, "FAILED", "FAILED", (True, True, False)),
        ({"restore": PASS, "structure": PARTIAL}, "PARTIAL", "PARTIAL", (True, True, False)),
        ({"restore": NOT_RUN, "reread": FAIL}, "FAILED", "FAILED", (False, None, None)),
    ],
)
def test_a_verification_decides(vault, rungs, status, said, booleans):
    made = completed(vault)
    assert store.record_verification(vault, record(made, **rungs)) == status
    shown = entry(vault, made.backup_id)
    assert (shown.backup_status, shown.verification_status) == (status, said)
    assert (
        shown.checksum_verified,
        shown.restore_test_passed,
        shown.integrity_check_passed,
    ) == booleans
    assert (shown.error_message is None) is (status in {"VERIFIED", "COMPLETED"})


def test_a_reread_leaves_what_an_earlier_restore_proved(vault):
    made = verified(vault)
    again = record(made, restore=NOT_RUN, finished_at=NOW + timedelta(days=30))
    assert store.record_verification(vault, again) is BackupStatus.VERIFIED
    shown = entry(vault, made.backup_id)
    assert (shown.restore_test_passed, shown.restore_seconds) == (True, 12.5)
    assert shown.last_verification_at == NOW + timedelta(days=30)
    assert shown.verified_at == NOW + timedelta(hours=2)


def test_a_damaged_backup_may_be_mended_and_verified_again(vault):
    made = verified(vault)
    assert (
        store.record_verification(vault, record(made, reread=FAIL, failure="Part 3 differs."))
        == "FAILED"
    )
    assert entry(vault, made.backup_id).error_message == "Part 3 differs."
    assert store.record_verification(vault, record(made, restore=NOT_RUN)) == "FAILED"
    assert entry(vault, made.backup_id).error_message == "Part 3 differs."
    assert store.record_verification(vault, record(made)) == "VERIFIED"
    assert entry(vault, made.backup_id).error_message is None
    assert vault.execute("SELECT count(*) FROM backup_mgmt.backup_verification").fetchone() == (4,)


def test_a_verification_that_ran_nothing_proves_nothing(vault):
    made = completed(vault)
    with pytest.raises(Refused, match="ran no check"):
        store.record_verification(vault, record(made, reread=NOT_RUN, restore=NOT_RUN))


@pytest.mark.parametrize("act", ["DELETE FROM", "TRUNCATE"])
def test_verifications_are_never_taken_back(vault, act):
    verified(vault)
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
        vault.execute(f"{act} backup_mgmt.backup_verification")


def test_the_catalog_lists_the_newest_first(vault):
    made = [
        completed(vault, number, server_name=name)
        for number, name in enumerate(["shop", "bank", "shop"])
    ]
    ids = [item.backup_id for item in made]
    assert [item.backup_id for item in store.catalog(vault)] == ids[::-1]
    assert [item.backup_id for item in store.catalog(vault, server="shop")] == [ids[2], ids[0]]
    assert [item.backup_id for item in store.catalog(vault, limit=1)] == [ids[2]]


def test_the_latest_verified_backup_is_one_that_was_restored(vault):
    first = verified(vault, 1)
    verified(vault, 2)
    newest = verified(vault, 3)
    completed(vault, 4)
    damaged = verified(vault, 5)
    store.record_verification(vault, record(damaged, reread=FAIL))
    base = verified(vault, 6, kind=BackupKind.PHYSICAL)
    elsewhere = verified(vault, 7, server_name="bank", system_identifier="8")
    found = [item.backup_id for item in store.latest_verified(vault)]
    assert found == [elsewhere.backup_id, newest.backup_id, base.backup_id]
    assert [item.backup_id for item in store.latest_verified(vault, "bank")] == [
        elsewhere.backup_id
    ]
    assert first.backup_id not in found


def test_unfinished_backups_of_a_server_are_found(vault):
    waiting, running, other = intent(1), intent(2), intent(3, system_identifier="8")
    for made in (waiting, running, other):
        store.register_backup(vault, made)
    store.mark_running(vault, running.backup_id)
    completed(vault, 4)
    found = [item.backup_id for item in store.interrupted(vault, "7000000000000000001")]
    assert found == [waiting.backup_id, running.backup_id]


def test_one_backup_of_a_server_at_a_time(migrated, vault):
    with (
        store.server_lock(vault, "7000000000000000001"),
        vaults.connect(migrated.conninfo) as other,
    ):
        with (
            pytest.raises(Refused, match="Another run has just begun"),
            store.server_lock(other, "7000000000000000001"),
        ):
            pass
        made = intent()
        store.register_backup(vault, made)
        words = rf"Another backup of server shop is running \({made.backup_id}, since 2026-03-01 02:01:00 UTC\)"
        with pytest.raises(Refused, match=words), store.server_lock(other, "7000000000000000001"):
            pass
        with store.server_lock(other, "8"):
            pass
    with (
        vaults.connect(migrated.conninfo) as other,
        store.server_lock(other, "7000000000000000001"),
    ):
        pass


def test_a_killed_run_holds_no_lock(migrated, vault):
    with vaults.connect(migrated.conninfo) as killed, store.server_lock(killed, "7"):
        vault.execute("SELECT pg_terminate_backend(%s, 5000)", [killed.info.backend_pid])
        with store.server_lock(vault, "7"):
            pass


def test_a_lost_vault_is_unavailable(migrated, vault):
    with migrated.connect() as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [vault.info.backend_pid])
    with pytest.raises(Unavailable, match="Could not read the backup catalog"):
        store.catalog(vault)


def test_of_two_that_end_a_backup_at_once_one_is_told_no(migrated, vault):
    made = intent()
    store.register_backup(vault, made)
    store.mark_running(vault, made.backup_id)
    start = threading.Barrier(2)

    def end(how) -> str:
        with vaults.connect(migrated.conninfo) as conn:
            start.wait(timeout=10)
            try:
                how(conn)
            except Refused:
                return "refused"
            return "done"

    def complete(conn):
        store.mark_completed(conn, made.backup_id, facts(made))

    def cancel(conn):
        store.mark_cancelled(conn, made.backup_id, "Cancelled.")

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(end, [complete, cancel])) == ["done", "refused"]
    assert len(states(vault, made)) == 3
