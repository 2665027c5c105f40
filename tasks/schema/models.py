"""The nouns of the vault's schema: migrations as shipped, and as the vault remembers them."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from hashlib import sha256


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file of SQL."""

    number: int
    name: str
    sql: bytes

    @property
    def checksum(self) -> str:
        """Return the SHA-256 of the SQL in hex."""
        return sha256(self.sql).hexdigest()

    def __str__(self) -> str:
        return f"{self.number:04d}_{self.name}"


@dataclass(frozen=True, slots=True)
class Applied:
    """One row of util.schema_migration."""

    number: int
    name: str
    checksum: str
    applied_at: datetime
    applied_by: str
    duration_ms: int

    def __str__(self) -> str:
        return f"{self.number:04d}_{self.name}"


class State(StrEnum):
    """How a migration stands between the code and the vault."""

    APPLIED = "applied"
    PENDING = "pending"
    CHANGED = "changed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Standing:
    """One migration's state: CHANGED was edited after it was applied, UNKNOWN belongs to newer code."""

    number: int
    name: str
    state: State
    applied: Applied | None = None
