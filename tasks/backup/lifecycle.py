"""The life of a backup in the vault: which state may follow which, and what a verification makes of it."""

from enum import StrEnum

from tasks.backup.models import Outcome, worst
from tasks.errors import Refused


class BackupStatus(StrEnum):
    """What a backup is now."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    VERIFIED = "VERIFIED"
    PARTIAL = "PARTIAL"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"


class VerificationStatus(StrEnum):
    """What the last verification said of a backup."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    VERIFIED = "VERIFIED"
    PARTIAL = "PARTIAL"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


_NEXT = {
    BackupStatus.PENDING: {BackupStatus.RUNNING, BackupStatus.FAILED, BackupStatus.CANCELLED},
    BackupStatus.RUNNING: {BackupStatus.COMPLETED, BackupStatus.FAILED, BackupStatus.CANCELLED},
    BackupStatus.COMPLETED: {
        BackupStatus.VERIFIED,
        BackupStatus.PARTIAL,
        BackupStatus.FAILED,
        BackupStatus.EXPIRED,
    },
    BackupStatus.PARTIAL: {BackupStatus.VERIFIED, BackupStatus.FAILED, BackupStatus.EXPIRED},
    BackupStatus.VERIFIED: {BackupStatus.PARTIAL, BackupStatus.FAILED, BackupStatus.EXPIRED},
    # A copy that failed may be mended from another store; only a verification brings it back.
    BackupStatus.FAILED: {BackupStatus.VERIFIED, BackupStatus.PARTIAL, BackupStatus.EXPIRED},
    BackupStatus.CANCELLED: set[BackupStatus](),
    BackupStatus.EXPIRED: set[BackupStatus](),
}
_VERIFIABLE = {
    BackupStatus.COMPLETED,
    BackupStatus.VERIFIED,
    BackupStatus.PARTIAL,
    BackupStatus.FAILED,
}


def may_follow(current: BackupStatus, new: BackupStatus) -> bool:
    """Return whether a backup may go from one state to another."""
    return new in _NEXT[current]


def check(backup_id: str, current: BackupStatus, new: BackupStatus) -> None:
    """Refuse a step that the life of a backup does not have."""
    if may_follow(current, new):
        return
    allowed = ", ".join(sorted(_NEXT[current])) or "nothing"
    message = f"Backup {backup_id} is {current} and cannot become {new}: only {allowed} may follow."
    raise Refused(message)


def check_unfinished(backup_id: str, current: BackupStatus) -> None:
    """Refuse to stop a backup that has ended: what is stored and committed fails only by verification."""
    if current not in {BackupStatus.PENDING, BackupStatus.RUNNING}:
        message = f"Backup {backup_id} is {current}: it has ended, so it can neither fail nor be cancelled."
        raise Refused(message)


def check_verifiable(backup_id: str, current: BackupStatus, *, committed: bool) -> None:
    """Refuse to verify what was never completely stored, or is no longer there."""
    if current in _VERIFIABLE and committed:
        return
    message = (
        f"Backup {backup_id} is {current} and has nothing to verify: choose one that was completed."
    )
    raise Refused(message)


def after_verification(current: BackupStatus, outcome: Outcome, restore: Outcome) -> BackupStatus:
    """Return the state after a verification; VERIFIED takes a restore, a re-read alone keeps the state."""
    if outcome is Outcome.FAIL:
        return BackupStatus.FAILED
    if outcome is Outcome.PARTIAL:
        return BackupStatus.PARTIAL
    return BackupStatus.VERIFIED if restore is Outcome.PASS else current


def verification_status(new: BackupStatus, outcome: Outcome) -> VerificationStatus:
    """Return what is said of the verification itself; passing without a restore is PARTIAL."""
    if outcome is Outcome.PASS and new is BackupStatus.VERIFIED:
        return VerificationStatus.VERIFIED
    return VerificationStatus.FAILED if outcome is Outcome.FAIL else VerificationStatus.PARTIAL


def passed(*outcomes: Outcome) -> bool | None:
    """Return whether all that ran passed, or None when nothing ran."""
    ran = worst(outcomes)
    return None if ran is Outcome.NOT_RUN else ran is Outcome.PASS
