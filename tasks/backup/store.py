"""The backup catalog in the vault. Every change of state is checked, and leaves an audit row in its transaction.

All functions need an autocommit connection, so that what they write stands when they return.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from datetime import UTC, datetime
from typing import LiteralString, cast
from uuid import NAMESPACE_URL, UUID, uuid5

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from tasks import audit, connection, datavault, queries
from tasks.audit import Phase, Result
from tasks.backup import lifecycle, rows
from tasks.backup.catalog import BackupFacts, BackupIntent, CatalogEntry, VerificationRecord
from tasks.backup.lifecycle import BackupStatus
from tasks.backup.models import Outcome
from tasks.errors import Refused

_HUB = "backup_mgmt.backup_execution_h"
_STATE = "backup_mgmt.backup_execution_s"
_KEY = "backup_hk"
_RESULT = {
    Outcome.PASS: Result.SUCCEEDED,
    Outcome.PARTIAL: Result.PARTIAL,
    Outcome.FAIL: Result.FAILED,
}
_COLUMNS = sql.SQL(", ").join(sql.Identifier(item.name) for item in fields(CatalogEntry))


def register_backup(conn: psycopg.Connection, intent: BackupIntent) -> bytes:
    """Write down a backup about to be taken (PENDING) and return its key; refused when the id is taken."""
    with connection.translating(f"register backup {intent.backup_id}"), conn.transaction():
        backup_hk = datavault.insert_hub(conn, _HUB, "backup", intent.backup_id, intent.tenant_hk)
        if datavault.open_version(conn, _STATE, _KEY, backup_hk) is not None:
            message = f"Backup {intent.backup_id} is registered already: start again, and it gets a new id."
            raise Refused(message)
        datavault.append_version(conn, _STATE, _KEY, backup_hk, rows.intent_columns(intent))
        details = {"to": "PENDING", "server": intent.server_name, "database": intent.database_name}
        _audit(conn, intent.backup_id, intent.tenant_hk, Result.INTENDED, details)
    return backup_hk


def mark_running(conn: psycopg.Connection, backup_id: str) -> None:
    """Say that the backup is being taken; refused when it is not PENDING."""
    _advance(conn, backup_id, BackupStatus.RUNNING, {}, Result.STARTED)


def mark_completed(conn: psycopg.Connection, backup_id: str, facts: BackupFacts) -> None:
    """Say that the backup's manifest is published, and what was done; refused when it is not RUNNING."""
    _advance(conn, backup_id, BackupStatus.COMPLETED, rows.facts_columns(facts), Result.SUCCEEDED)


def mark_failed(conn: psycopg.Connection, backup_id: str, error_code: str, sentence: str) -> bool:
    """Say that the backup failed, and why; False when that was known, refused when it was completed."""
    columns = {"error_code": error_code, "error_message": sentence}
    return _stop(conn, backup_id, BackupStatus.FAILED, columns, Result.FAILED)


def mark_cancelled(conn: psycopg.Connection, backup_id: str, sentence: str) -> bool:
    """Say that a person or a time limit stopped the backup; False when that was known."""
    columns = {"error_code": "CANCELLED", "error_message": sentence}
    return _stop(conn, backup_id, BackupStatus.CANCELLED, columns, Result.CANCELLED)


def announce_verification(conn: psycopg.Connection, backup_id: str, verification_id: UUID) -> None:
    """Leave the audit row before a verification; refused for a backup that was never completed or is gone.

    The backup's state is not touched: a verification that dies leaves no state that nobody ends.
    """
    with connection.translating(f"update backup {backup_id}"), conn.transaction():
        row = _locked(conn, backup_id)
        _check_verifiable(backup_id, row)
        event = _verification_event(conn, backup_id, verification_id)
        audit.record(conn, event, Phase.BEFORE, Result.STARTED)


def record_verification(conn: psycopg.Connection, record: VerificationRecord) -> BackupStatus:
    """Keep one run of the verification ladder and return the backup's state after it.

    VERIFIED takes a restore that passed; a re-read alone leaves the state as it was. Refused when
    nothing ran, or for a backup that was never completed or is gone.
    """
    if record.outcome is Outcome.NOT_RUN:
        message = (
            f"The verification of backup {record.backup_id} ran no check, so it proves nothing."
        )
        raise Refused(message)
    with (
        connection.translating(f"record the verification of backup {record.backup_id}"),
        conn.transaction(),
    ):
        row = _locked(conn, record.backup_id)
        current = _check_verifiable(record.backup_id, row)
        new = lifecycle.after_verification(current, record.outcome, record.restore)
        conn.execute(_sql(conn, "insert_verification"), rows.verification_row(record))
        changes = rows.verification_columns(record, new)
        datavault.append_version(conn, _STATE, _KEY, datavault.hash_key(record.backup_id), changes)
        event = _verification_event(conn, record.backup_id, record.verification_id)
        details = {"from": current.value, "to": new.value, "outcome": record.outcome.value}
        audit.record(conn, event, Phase.AFTER, _RESULT[record.outcome], details)
    return new


def interrupted(conn: psycopg.Connection, system_identifier: str) -> list[CatalogEntry]:
    """Return the backups of a server that were begun and not finished, oldest first.

    Whoever holds `server_lock` knows that none of them is running.
    """
    return _entries(conn, "interrupted", system_identifier=system_identifier)


def find(conn: psycopg.Connection, backup_id: str) -> CatalogEntry | None:
    """Return one backup, or None."""
    return next(iter(_entries(conn, "find", backup_id=backup_id)), None)


def catalog(
    conn: psycopg.Connection, server: str | None = None, limit: int = 50
) -> list[CatalogEntry]:
    """Return the newest backups first, of one server or of all."""
    return _entries(conn, "catalog", server=server, limit=limit)


def latest_verified(conn: psycopg.Connection, server: str | None = None) -> list[CatalogEntry]:
    """Return what to restore first: per database and kind the newest backup that was restored as a test."""
    return _entries(conn, "latest_verified", server=server)


@contextmanager
def server_lock(conn: psycopg.Connection, system_identifier: str) -> Iterator[None]:
    """Keep other backups of a server away while the block runs; refused when one is running.

    The lock is the session's: it ends with the connection, so a killed run leaves none. Direct connections only,
    no transaction pooler.
    """
    key = {"system_identifier": system_identifier}
    with connection.translating("take the backup lock"):
        taken = connection.fetch_value(conn, _sql(conn, "take_server"), **key)
    if not taken:
        raise Refused(_who_holds(conn, system_identifier))
    try:
        yield
    finally:
        with suppress(psycopg.Error):  # a lost session has lost its locks too
            conn.execute(_sql(conn, "leave_server"), key)


def _who_holds(conn: psycopg.Connection, system_identifier: str) -> str:
    begun = interrupted(conn, system_identifier)
    if not begun:
        return f"Another run has just begun on server {system_identifier}: wait until it ends, then try again."
    last = begun[-1]
    return (
        f"Another backup of server {last.server_name} is running ({last.backup_id}, since {last.started_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC): "
        "wait until it ends, or cancel it."
    )


def _stop(
    conn: psycopg.Connection,
    backup_id: str,
    new: BackupStatus,
    columns: Mapping[str, object],
    outcome: Result,
) -> bool:
    with connection.translating(f"update backup {backup_id}"), conn.transaction():
        current = _status(_locked(conn, backup_id))
        if current is new:
            return False
        lifecycle.check_unfinished(backup_id, current)
        _advance(conn, backup_id, new, columns, outcome)
    return True


def _advance(
    conn: psycopg.Connection,
    backup_id: str,
    new: BackupStatus,
    columns: Mapping[str, object],
    outcome: Result,
) -> None:
    with connection.translating(f"update backup {backup_id}"), conn.transaction():
        row = _locked(conn, backup_id)
        current = _status(row)
        lifecycle.check(backup_id, current, new)
        ended = columns.get("backup_end_time")
        changes = {**columns, "backup_status": new.value}
        if isinstance(ended, datetime):
            changes["backup_duration_seconds"] = (
                ended - cast(datetime, row["backup_start_time"])
            ).total_seconds()
        datavault.append_version(conn, _STATE, _KEY, datavault.hash_key(backup_id), changes)
        details = {"from": current.value, "to": new.value}
        if columns.get("error_message"):
            details["error"] = str(columns["error_message"])
        _audit(conn, backup_id, _tenant(conn, backup_id), outcome, details)


def _locked(conn: psycopg.Connection, backup_id: str) -> dict[str, object]:
    row = datavault.open_version(conn, _STATE, _KEY, datavault.hash_key(backup_id))
    if row is None:
        message = f"The vault knows no backup {backup_id}: look at `onevault backups`."
        raise Refused(message)
    return row


def _status(row: Mapping[str, object]) -> BackupStatus:
    return BackupStatus(str(row["backup_status"]))


def _check_verifiable(backup_id: str, row: Mapping[str, object]) -> BackupStatus:
    current = _status(row)
    lifecycle.check_verifiable(backup_id, current, committed=row["manifest_sha256"] is not None)
    return current


def _audit(
    conn: psycopg.Connection,
    backup_id: str,
    tenant_hk: bytes,
    outcome: Result,
    details: Mapping[str, object],
) -> None:
    phase = Phase.BEFORE if outcome in {Result.INTENDED, Result.STARTED} else Phase.AFTER
    # One operation from intent to end: its id follows from the backup's.
    operation_id = uuid5(NAMESPACE_URL, f"onevault:backup:{backup_id}")
    event = audit.Event("backup", backup_id, operation_id=operation_id, tenant_hk=tenant_hk)
    audit.record(conn, event, phase, outcome, details)


def _verification_event(
    conn: psycopg.Connection, backup_id: str, verification_id: UUID
) -> audit.Event:
    tenant_hk = _tenant(conn, backup_id)
    return audit.Event(
        "backup.verify", backup_id, operation_id=verification_id, tenant_hk=tenant_hk
    )


def _tenant(conn: psycopg.Connection, backup_id: str) -> bytes:
    return cast(bytes, connection.fetch_value(conn, _sql(conn, "tenant_of"), backup_id=backup_id))


def _entries(conn: psycopg.Connection, name: str, **values: object) -> list[CatalogEntry]:
    query = queries.load("tasks.backup").compose(
        name, connection.server_major(conn), columns=_COLUMNS
    )
    with (
        connection.translating("read the backup catalog"),
        conn.cursor(row_factory=class_row(CatalogEntry)) as cursor,
    ):
        return cursor.execute(query, values).fetchall()


def _sql(conn: psycopg.Connection, name: str) -> LiteralString:
    return queries.load("tasks.backup").get(name, connection.server_major(conn))
