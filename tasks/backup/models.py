"""The nouns of a backup: what was stored, what it was taken from, what was proven of it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, Field

MANIFEST_FORMAT = "onevault-backup/1"
PART_BYTES = 8 * 1024 * 1024
"""Every stored part but the last has this size; a part is the unit of checking and of upload."""

BACKUP_ID = re.compile(r"\d{8}T\d{6}Z-(logical|physical)-[0-9a-f]{8}")


class BackupKind(StrEnum):
    """How a backup is taken: one database as a dump, or the whole server as a base backup."""

    LOGICAL = "logical"
    PHYSICAL = "physical"


class Outcome(StrEnum):
    """What a rung of verification said."""

    PASS = "PASS"  # noqa: S105 - not a password
    FAIL = "FAIL"
    PARTIAL = "PARTIAL"
    NOT_RUN = "NOT_RUN"


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the worst of what was run: FAIL, PARTIAL, PASS, and NOT_RUN only when nothing was."""
    found = set(outcomes)
    order = (Outcome.FAIL, Outcome.PARTIAL, Outcome.PASS)
    return next((outcome for outcome in order if outcome in found), Outcome.NOT_RUN)


class Record(BaseModel):
    """A value that is written to JSON and read back strictly."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StoredPart(Record):
    """A part of a stored object."""

    size_bytes: int
    sha256: str


class StoredObject(Record):
    """One encrypted object of a backup: an age payload whose header is kept apart."""

    name: str
    role: Literal["dump", "globals", "base", "tablespace", "backup_manifest", "inventory"]
    size_bytes: int
    sha256: str
    parts: tuple[StoredPart, ...]
    source_bytes: int | None = Field(
        description="Bytes before compression; null when the server compressed."
    )
    age_header: str
    tablespace_oid: int | None = None
    tablespace_path: str | None = None


class SourceServer(Record):
    """The server a backup was taken from, as it called itself."""

    name: str
    system_identifier: str
    version: str
    version_num: int
    database: str | None
    superuser: str = Field(
        description="The role that initdb made; a restored copy has the same one."
    )
    data_checksums: bool
    in_recovery: bool

    @property
    def major(self) -> int:
        """Return the major version."""
        return self.version_num // 10000


class RecoveryPoint(Record):
    """The instant a backup shows: a snapshot (logical) or a stretch of WAL (physical)."""

    snapshot: str | None = None
    lsn: str | None = None
    start_lsn: str | None = None
    stop_lsn: str | None = None
    timeline: int | None = None


class Manifest(Record):
    """The commit record of a backup: written last, once, and never changed."""

    format: Literal["onevault-backup/1"] = "onevault-backup/1"
    backup_id: str
    kind: BackupKind
    started_at: datetime
    completed_at: datetime
    server: SourceServer
    point: RecoveryPoint
    tool: str
    codec: Literal["zstd"] = "zstd"
    compression_level: int
    compressed_by: Literal["client", "server"]
    cipher: Literal["age-v1 ChaCha20-Poly1305"] = "age-v1 ChaCha20-Poly1305"
    encryption_key_id: str
    recipients: tuple[str, ...]
    part_bytes: int
    objects: tuple[StoredObject, ...]
    onevault_version: str

    def object(self, role: str) -> StoredObject:
        """Return the one object of a role."""
        return next(item for item in self.objects if item.role == role)

    @property
    def stored_bytes(self) -> int:
        """Return the bytes of all objects as they lie in the store."""
        return sum(item.size_bytes for item in self.objects)


@dataclass(frozen=True, slots=True)
class Rung:
    """One rung of the verification ladder: what was looked at, what it said, how long it took."""

    outcome: Outcome
    summary: str
    seconds: float = 0.0
    findings: tuple[str, ...] = ()


def not_run(why: str) -> Rung:
    """Return the rung of a check that was not made, with the reason."""
    return Rung(Outcome.NOT_RUN, why)


@dataclass(frozen=True, slots=True)
class Proof:
    """What one verification showed of one backup."""

    backup_id: str
    started_at: datetime
    finished_at: datetime
    reread: Rung
    restore: Rung
    comparison: Rung
    structure: Rung
    restore_seconds: float | None
    reread_bytes: int
    verification_id: UUID = field(default_factory=uuid4)

    @property
    def rungs(self) -> dict[str, Rung]:
        """Return the rungs by name, in the order they are climbed."""
        return {
            "re-read": self.reread,
            "restore": self.restore,
            "comparison": self.comparison,
            "structure": self.structure,
        }

    @property
    def outcome(self) -> Outcome:
        """Return the worst of what was run; NOT_RUN only when nothing was."""
        return worst(rung.outcome for rung in self.rungs.values())


def backup_id_for(kind: BackupKind, now: datetime, suffix: str) -> str:
    """Return a backup id that sorts by time; `suffix` is 8 hex digits that keep two apart."""
    return f"{now:%Y%m%dT%H%M%SZ}-{kind.value}-{suffix}"
