"""How the nouns of the catalog become columns of the vault."""

from dataclasses import fields
from datetime import timedelta

from psycopg.types.json import Jsonb

from tasks.backup import lifecycle
from tasks.backup.catalog import BackupFacts, BackupIntent, VerificationRecord
from tasks.backup.lifecycle import BackupStatus, VerificationStatus
from tasks.backup.models import BackupKind, Outcome

_METHOD = {
    BackupKind.LOGICAL: ("PG_DUMP", "DATABASE"),
    BackupKind.PHYSICAL: ("PG_BASEBACKUP", "SYSTEM"),
}
_OF_INTENT = (
    "server_name",
    "system_identifier",
    "server_version",
    "database_name",
    "storage_type",
    "store_name",
    "store_location",
    "backup_location",
    "retention_policy",
    "verification_required",
    "initiated_by",
    "host",
    "tool_version",
    "prefect_flow_run_id",
    "retry_count",
)
_OF_FACTS = (
    "codec",
    "compression_level",
    "encryption_enabled",
    "cipher",
    "encryption_key_id",
    "part_size_bytes",
    "manifest_sha256",
    "snapshot_id",
    "timeline",
    "start_lsn",
    "stop_lsn",
    "offsite_copy_state",
)


def intent_columns(intent: BackupIntent) -> dict[str, object]:
    """Return the first version of a backup: PENDING."""
    method, scope = _METHOD[intent.kind]
    retention = timedelta(days=intent.retention_days)
    cold = intent.cold_storage_after_days
    checked = (
        VerificationStatus.PENDING if intent.verification_required else VerificationStatus.SKIPPED
    )
    return {
        **{name: getattr(intent, name) for name in _OF_INTENT},
        "backup_type": intent.kind.value.upper(),
        "backup_method": method,
        "backup_scope": scope,
        "backup_status": BackupStatus.PENDING.value,
        "verification_status": checked.value,
        "backup_start_time": intent.started_at,
        "retention_period": retention,
        "expiration_date": (intent.started_at + retention).date(),
        "archive_to_cold_storage_after": None if cold is None else timedelta(days=cold),
    }


def facts_columns(facts: BackupFacts) -> dict[str, object]:
    """Return what a completed backup adds: what was done."""
    columns: dict[str, object] = {
        **{name: getattr(facts, name) for name in _OF_FACTS},
        "backup_end_time": facts.finished_at,
        "backup_size_bytes": facts.source_bytes,
        "compressed_size_bytes": facts.stored_bytes,
        "compression_ratio": facts.saved_percent,
        "additional_metadata": dict(facts.details) or None,
    }
    # The intent may have named the tool already.
    return (
        columns if facts.tool_version is None else {**columns, "tool_version": facts.tool_version}
    )


def verification_row(record: VerificationRecord) -> dict[str, object]:
    """Return one row of backup_verification."""
    row = {item.name: getattr(record, item.name) for item in fields(record)}
    return {**row, "outcome": record.outcome.value, "details": Jsonb(dict(record.details))}


def verification_columns(record: VerificationRecord, new: BackupStatus) -> dict[str, object]:
    """Return the columns that change: a rung that did not run leaves what was known of it."""
    found = {
        "checksum_verified": lifecycle.passed(record.reread),
        "restore_test_passed": lifecycle.passed(record.restore),
        "integrity_check_passed": lifecycle.passed(record.comparison, record.structure),
        "restore_seconds": record.restore_seconds,
        # When it was last proven to restore; the last look at it stands in backup_verification.
        "verified_at": record.finished_at if _proves(record) else None,
    }
    return {
        **{name: value for name, value in found.items() if value is not None},
        **_error_columns(record, new),
        "backup_status": new.value,
        "verification_status": lifecycle.verification_status(new, record.outcome).value,
        "verification_details": dict(record.details) or None,
    }


def _proves(record: VerificationRecord) -> bool:
    return record.outcome is Outcome.PASS and record.restore is Outcome.PASS


def _error_columns(record: VerificationRecord, new: BackupStatus) -> dict[str, object]:
    if record.outcome is not Outcome.PASS:
        sentence = record.failure or "The verification did not pass."
        return {"error_code": f"VERIFICATION_{record.outcome}", "error_message": sentence}
    good = new in {BackupStatus.COMPLETED, BackupStatus.VERIFIED}
    return {"error_code": None, "error_message": None} if good else {}
