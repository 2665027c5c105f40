"""What the collector asks of others: a vault to write to, and sessions with the servers."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from tasks.metrics.models import Batch, FamilyAnswer, Sample, ServerFacts, StatementSnapshot, Tier

SeriesKey = tuple[str, tuple[tuple[str, str], ...]]


class VaultPort(Protocol):
    """The vault, as the collector's one writer thread uses it; nobody else calls it.

    Every method raises Unavailable, or another OneVaultError, when the vault cannot do it now: what was to be written
    is kept and tried again. Any other exception means that the batch itself is at fault.
    """

    def write(self, batches: Sequence[Batch]) -> Mapping[str, int]:
        """Write batches, and return how many rows of which servers it would never take.

        One that was written already may come again after an error.
        """

    def latest(
        self, server: str
    ) -> tuple[Mapping[SeriesKey, Sample], StatementSnapshot | None] | None:
        """Return what is known of a server, to go on from; None when it is new."""

    def beat(self, servers: int, buffered_rows: int, lost_rows: int) -> None:
        """Show that the collector lives: how many servers it watches, rows that wait, and rows lost since its start."""


class Collected(Protocol):
    """What one round with a server brought."""

    @property
    def answers(self) -> tuple[FamilyAnswer, ...]:
        """Return the answers, availability first."""

    @property
    def facts(self) -> ServerFacts | None:
        """Return what the server said of itself; None while it does not answer."""

    @property
    def databases(self) -> tuple[str, ...] | None:
        """Return all databases that one can connect to; None when they were not listed."""


class Session(Protocol):
    """The connections to one server."""

    async def collect(self, tiers: Collection[Tier]) -> Collected:
        """Ask for the families of these tiers; never raises for a fault of the server."""

    async def statement_texts(self, ids: Collection[int]) -> dict[int, str]:
        """Return the texts of statements by query id, as far as they are known there."""

    async def close(self) -> None:
        """Close the connections."""
