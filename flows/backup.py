"""Backups that prove themselves: taken, read back, restored, compared, written down."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, cast

from prefect import flow
from prefect.states import Completed, Failed

from tasks import windows
from tasks.backup import rehearsal
from tasks.backup import tasks as work
from tasks.backup.comparison import TableRow
from tasks.backup.models import BackupKind, Outcome, Proof, Rung, not_run
from tasks.backup.options import BackupOptions
from tasks.backup.restore import OpenBackup
from tasks.errors import Damaged, OneVaultError

Kind = Literal["logical", "physical"]


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What a run came to."""

    backup_id: str
    outcome: Outcome
    sentence: str
    stored_bytes: int
    restore_seconds: float | None
    rungs: dict[str, Rung]


@flow(name="backup-and-verify", flow_run_name="{kind} backup of {server}", persist_result=False)
def backup_and_verify(
    server: str = "default",
    kind: Kind = "logical",
    database: str | None = None,
    options: BackupOptions = BackupOptions(),  # noqa: B008 - frozen
) -> BackupReport | None:
    """Back up a server (physical) or one of its databases (logical), and prove that the copy restores.

    Raises what went wrong, as one sentence; outside its window the run ends as Skipped.
    """
    window = windows.parse(options.window)
    if not window.is_open(now := datetime.now(UTC)):
        return cast("None", _skipped(window, now))
    try:
        site = work.open_site(server, _bounded(options, window, now))
        ready = work.check_preconditions(site, BackupKind(kind), database)
        with work.server_to_itself(site, ready):
            made = work.take_backup(site, ready, BackupKind(kind))
            backup = work.open_backup(site.store, site.keyring, made.backup_id)
            return _finished(_prove(backup, site.rehearsal, restore=options.verify))
    except OneVaultError as error:
        return _failed(error)


@flow(name="verify-backup", flow_run_name="verify {backup_id}", persist_result=False)
def verify_backup(
    backup_id: str,
    restore: bool = True,
    options: BackupOptions = BackupOptions(),  # noqa: B008 - frozen
) -> BackupReport:
    """Prove a stored backup once more: re-read it and, unless told otherwise, restore and compare it."""
    try:
        backup, plan = work.open_stored(backup_id, options)
        return _finished(_prove(backup, plan, restore=restore))
    except OneVaultError as error:
        return _failed(error)


def _prove(backup: OpenBackup, plan: rehearsal.Rehearsal, *, restore: bool) -> BackupReport:
    started_at = datetime.now(UTC)
    verification_id = work.announce_proof(backup)
    reread, size = work.reread_backup(backup)
    restored = comparison = structure = not_run("not asked for")
    seconds: float | None = None
    rows: list[TableRow] = []
    if restore and reread.outcome is Outcome.PASS:
        with rehearsal.scratch_cluster(backup, plan) as cluster:
            copy = work.restore_into_scratch(backup, cluster, plan)
            restored, seconds = copy.rung, copy.seconds
            comparison = structure = not_run("the restore failed")
            if copy.server:
                comparison, rows = work.compare_with_source(backup, copy.server, plan)
                structure = work.check_structure(backup, copy.server, plan)
    proof = Proof(
        backup.manifest.backup_id,
        started_at,
        datetime.now(UTC),
        reread,
        restored,
        comparison,
        structure,
        seconds,
        size,
        verification_id,
    )
    sentence = work.record_proof(backup, proof, rows)
    if proof.outcome is Outcome.FAIL:
        raise Damaged(sentence)
    return BackupReport(
        proof.backup_id, proof.outcome, sentence, backup.manifest.stored_bytes, seconds, proof.rungs
    )


def _finished(report: BackupReport) -> BackupReport:
    return cast("BackupReport", Completed(message=report.sentence, data=report))


def _failed(error: OneVaultError) -> BackupReport:
    # A returned state becomes the run's: callers in Python get the exception, people the sentence without a traceback.
    return cast("BackupReport", Failed(message=str(error), data=error))


def _bounded(
    options: BackupOptions, window: windows.MaintenanceWindow, now: datetime
) -> BackupOptions:
    """Return the options with every time limit inside what is left of the window."""
    left = window.seconds_left(now)
    return options.model_copy(
        update={"timeout_seconds": min(options.timeout_seconds, left or options.timeout_seconds)}
    )


def _skipped(window: windows.MaintenanceWindow, now: datetime) -> object:
    opens_at = window.next_opening(now)
    message = f"The window {window} is closed; it opens at {opens_at:%Y-%m-%d %H:%M %Z}. Nothing was done."
    return Completed(name="Skipped", message=message)
