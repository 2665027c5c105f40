"""A backup run from the vault's side: begun, committed or failed; and what a crash left behind is mended."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import psycopg

from tasks.backup import manifest as manifests
from tasks.backup import store as catalog
from tasks.backup.capture import Taken
from tasks.backup.catalog import BackupFacts, BackupIntent, CatalogEntry, VerificationRecord
from tasks.backup.models import PART_BYTES, Manifest, Proof, Rung, SourceServer
from tasks.backup.ports import KeyHolder, ObjectStore, SweptStore
from tasks.errors import OneVaultError

OpenStore = Callable[[str], ObjectStore]


@contextmanager
def begun(
    vault: Callable[[], "psycopg.Connection[Any]"], store: ObjectStore, intent: BackupIntent
) -> Iterator[None]:
    """Register a backup for the time of a block; when the block fails, nothing of it stays in the store."""
    with vault() as connection:
        catalog.register_backup(connection, intent)
        catalog.mark_running(connection, intent.backup_id)
    try:
        yield
    except BaseException as error:
        _undo(vault, store, intent, error)
        raise


def build_manifest(
    intent: BackupIntent, taken: Taken, server: SourceServer, keyring: KeyHolder, level: int
) -> Manifest:
    """Return the manifest of a backup that has just been stored."""
    sealed_for = keyring.wrap(bytes(16))
    return Manifest(
        backup_id=intent.backup_id,
        kind=intent.kind,
        started_at=intent.started_at,
        # The clock may have been set back meanwhile.
        completed_at=max(intent.started_at, datetime.now(UTC)),
        server=server,
        point=taken.point,
        tool=taken.tool,
        compression_level=level,
        compressed_by="server" if taken.compressed_by_server else "client",
        encryption_key_id=sealed_for.key_id,
        recipients=sealed_for.recipients,
        part_bytes=PART_BYTES,
        objects=taken.objects,
        onevault_version=_version(),
    )


def facts_of(manifest: Manifest, sealed: bytes) -> BackupFacts:
    """Return what the vault keeps of a committed backup."""
    point = manifest.point
    sizes = [item.source_bytes for item in manifest.objects]
    return BackupFacts(
        finished_at=manifest.completed_at,
        source_bytes=None if None in sizes else sum(size or 0 for size in sizes),
        stored_bytes=manifest.stored_bytes,
        codec=manifest.codec,
        compression_level=manifest.compression_level,
        encryption_enabled=True,
        cipher=manifest.cipher,
        encryption_key_id=manifest.encryption_key_id,
        part_size_bytes=manifest.part_bytes,
        manifest_sha256=hashlib.sha256(sealed).hexdigest(),
        tool_version=manifest.tool,
        snapshot_id=point.snapshot,
        timeline=point.timeline,
        start_lsn=point.start_lsn or point.lsn,
        stop_lsn=point.stop_lsn,
        details={"recipients": list(manifest.recipients), "compressed_by": manifest.compressed_by},
    )


def record_of(proof: Proof, failure: str | None) -> VerificationRecord:
    """Return what the vault keeps of a verification."""
    seconds = proof.reread.seconds
    return VerificationRecord(
        backup_id=proof.backup_id,
        started_at=proof.started_at,
        finished_at=proof.finished_at,
        reread=proof.reread.outcome,
        restore=proof.restore.outcome,
        comparison=proof.comparison.outcome,
        structure=proof.structure.outcome,
        restore_seconds=proof.restore_seconds,
        reread_bytes_per_second=proof.reread_bytes / seconds if seconds else None,
        details={name: _rung_details(rung) for name, rung in proof.rungs.items()},
        failure=failure,
        verification_id=proof.verification_id,
    )


def mend(
    connection: "psycopg.Connection[Any]",
    system_identifier: str,
    open_store: OpenStore,
    keyring: KeyHolder,
) -> list[str]:
    """Finish or clean up what dead runs of this server left, and say what was done.

    The caller holds the server's lock, so no run found here is alive. A backup whose manifest was published is
    complete; any other is removed from its store and FAILED. What cannot be mended now does not stop the next backup.
    """
    return [
        _mend_one(connection, entry, open_store, keyring)
        for entry in catalog.interrupted(connection, system_identifier)
    ]


def _mend_one(
    connection: "psycopg.Connection[Any]",
    entry: CatalogEntry,
    open_store: OpenStore,
    keyring: KeyHolder,
) -> str:
    try:
        return _mended(connection, entry, open_store(entry.store_name), keyring)
    except (OneVaultError, psycopg.Error) as error:
        return f"{entry.backup_id} was left by a dead run and could not be cleaned up yet: {error}"


def _mended(
    connection: "psycopg.Connection[Any]",
    entry: CatalogEntry,
    store: ObjectStore,
    keyring: KeyHolder,
) -> str:
    prefix = manifests.prefix_of(entry.system_identifier, entry.backup_id)
    if manifests.is_committed(store, prefix):
        manifest = manifests.load(store, prefix, keyring)
        sealed = store.get(f"{prefix}/{manifests.MANIFEST_NAME}")
        catalog.mark_completed(connection, entry.backup_id, facts_of(manifest, sealed))
        return f"{entry.backup_id} had been stored whole before its run died: it is COMPLETED"
    store.delete_prefix(f"{prefix}/")
    tidy(store)
    sentence = "the run died before the backup was complete; what it had stored was removed"
    catalog.mark_failed(connection, entry.backup_id, "INTERRUPTED", sentence)
    return f"{entry.backup_id}: {sentence}"


def tidy(store: ObjectStore) -> int:
    """Remove half-written files of dead writers from a store, and say how many there were."""
    return store.sweep_partials(0) if isinstance(store, SweptStore) else 0


def _undo(
    vault: Callable[[], "psycopg.Connection[Any]"],
    store: ObjectStore,
    intent: BackupIntent,
    error: BaseException,
) -> None:
    prefix = manifests.prefix_of(intent.system_identifier, intent.backup_id)
    # Whatever cannot be undone now is found and mended by the next run.
    with suppress(OneVaultError, psycopg.Error):
        if manifests.is_committed(store, prefix):
            return
        store.delete_prefix(f"{prefix}/")
        with vault() as connection:
            _mark(connection, intent.backup_id, error)


def _mark(connection: "psycopg.Connection[Any]", backup_id: str, error: BaseException) -> None:
    if isinstance(error, Exception):
        sentence = str(error) or type(error).__name__
        catalog.mark_failed(connection, backup_id, type(error).__name__.upper(), sentence)
    else:
        catalog.mark_cancelled(connection, backup_id, "the run was cancelled")


def _rung_details(rung: Rung) -> dict[str, object]:
    return {
        "outcome": rung.outcome.value,
        "summary": rung.summary,
        "seconds": round(rung.seconds, 3),
        "findings": list(rung.findings),
    }


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415 - slow to import, asked for once a run

    return version("onevault")
