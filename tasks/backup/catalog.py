"""What the vault is told of a backup, and what it tells."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from uuid import UUID, uuid4

from tasks import audit
from tasks.backup.lifecycle import BackupStatus, VerificationStatus
from tasks.backup.models import BackupKind, Outcome, worst
from tasks.datavault import SYSTEM_TENANT_HK


@dataclass(frozen=True, slots=True)
class BackupIntent:
    """A backup about to be taken: of what, to where, for how long, by whom. Times are aware."""

    backup_id: str
    kind: BackupKind
    started_at: datetime
    server_name: str
    system_identifier: str
    server_version: str
    database_name: str | None
    store_name: str
    store_location: str
    backup_location: str
    host: str
    storage_type: str = "LOCAL"
    retention_days: int = 2555
    retention_policy: str = "STANDARD_7_YEAR"
    cold_storage_after_days: int | None = 90
    verification_required: bool = True
    tool_version: str | None = None
    prefect_flow_run_id: UUID | None = None
    retry_count: int = 0
    initiated_by: str = field(default_factory=audit.default_actor)
    tenant_hk: bytes = SYSTEM_TENANT_HK


@dataclass(frozen=True, slots=True)
class BackupFacts:
    """A backup that was taken, as it was done: bytes, codec, cipher, key, place and point."""

    finished_at: datetime
    source_bytes: int | None
    stored_bytes: int
    codec: str | None
    compression_level: int | None
    encryption_enabled: bool
    cipher: str | None
    encryption_key_id: str | None
    part_size_bytes: int | None
    manifest_sha256: str
    tool_version: str | None = None
    snapshot_id: str | None = None
    timeline: int | None = None
    start_lsn: str | None = None
    stop_lsn: str | None = None
    offsite_copy_state: str = "NOT_CONFIGURED"
    details: Mapping[str, object] = field(default_factory=dict)

    @property
    def saved_percent(self) -> Decimal | None:
        """Return how much smaller the stored bytes are, in percent; None when the source was not counted."""
        if not self.source_bytes:
            return None
        return round(100 * (1 - Decimal(self.stored_bytes) / self.source_bytes), 2)


@dataclass(frozen=True, slots=True)
class VerificationRecord:
    """One run of the verification ladder, rung by rung. Details are plain JSON values."""

    backup_id: str
    started_at: datetime
    finished_at: datetime
    upload: Outcome = Outcome.NOT_RUN
    reread: Outcome = Outcome.NOT_RUN
    restore: Outcome = Outcome.NOT_RUN
    comparison: Outcome = Outcome.NOT_RUN
    structure: Outcome = Outcome.NOT_RUN
    restore_seconds: float | None = None
    reread_bytes_per_second: float | None = None
    details: Mapping[str, object] = field(default_factory=dict)
    failure: str | None = None
    verification_id: UUID = field(default_factory=uuid4)

    @property
    def outcome(self) -> Outcome:
        """Return the worst rung that ran."""
        return worst((self.upload, self.reread, self.restore, self.comparison, self.structure))


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One backup as the catalog shows it: its state now and its last verification."""

    backup_id: str
    tenant_hk: bytes
    server_name: str
    database_name: str | None
    system_identifier: str
    server_version: str
    backup_type: str
    backup_status: BackupStatus
    verification_status: VerificationStatus
    started_at: datetime
    finished_at: datetime | None
    duration_seconds: Decimal | None
    source_bytes: int | None
    stored_bytes: int | None
    saved_percent: Decimal | None
    codec: str | None
    encryption_key_id: str | None
    storage_type: str
    store_name: str
    store_location: str
    backup_location: str
    offsite_copy_state: str
    manifest_sha256: str | None
    checksum_verified: bool | None
    restore_test_passed: bool | None
    integrity_check_passed: bool | None
    verified_at: datetime | None
    restore_seconds: float | None
    last_verification_outcome: Outcome | None
    last_verification_at: datetime | None
    expiration_date: date
    error_code: str | None
    error_message: str | None
    host: str
    prefect_flow_run_id: UUID | None

    def __post_init__(self) -> None:
        # The driver hands over text; the enums know no other values, as the CHECKs of the table.
        object.__setattr__(self, "backup_status", BackupStatus(self.backup_status))
        object.__setattr__(
            self, "verification_status", VerificationStatus(self.verification_status)
        )
        if self.last_verification_outcome is not None:
            object.__setattr__(
                self, "last_verification_outcome", Outcome(self.last_verification_outcome)
            )
