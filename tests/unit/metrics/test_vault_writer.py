import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from tasks.errors import Unavailable
from tasks.metrics.buffer import BatchBuffer
from tasks.metrics.models import AVAILABILITY, Batch, FamilyAnswer, FamilyState
from tasks.metrics.pace import Pace
from tasks.metrics.vault_writer import VaultWriter


class Vault:
    """Is away the first time, and takes everything from then on."""

    def __init__(self) -> None:
        self.tries = 0
        self.written: list[Batch] = []

    def write(self, batches: Sequence[Batch]) -> Mapping[str, int]:
        self.tries += 1
        if self.tries == 1:
            message = "The vault is away."
            raise Unavailable(message)
        self.written += batches
        return {batch.server: 1 for batch in batches if batch.server == "odd"}

    def latest(self, server: str) -> None:
        return None

    def beat(self, servers: int, buffered_rows: int, lost_rows: int) -> None:
        return


def batch(server: str, age_seconds: float) -> Batch:
    at = datetime.now(UTC) - timedelta(seconds=age_seconds)
    answer = FamilyAnswer(AVAILABILITY, FamilyState.OK, at, 0.0)
    return Batch(server, at, (answer,), ())


def test_after_the_vault_was_away_nobody_is_told_of_readings_that_are_long_past():
    vault, buffer, told = Vault(), BatchBuffer(), list[tuple[frozenset[str], int]]()
    for age in (300, 200, 100):
        buffer.add(batch("shop", age))
        buffer.add(batch("gone", age))
    buffer.add(batch("shop", 0))

    def note(servers: frozenset[str]) -> None:
        told.append((servers, len(vault.written)))

    async def run() -> None:
        writer = VaultWriter(vault, buffer, note, Pace(write_seconds=0.01, backoff_seconds=0.02))
        stop = asyncio.Event()
        writing = asyncio.create_task(writer.run(stop))
        while len(vault.written) < 7:
            await asyncio.sleep(0.01)
        stop.set()
        await writing
        await writer.finish()

    asyncio.run(run())
    assert told == [(frozenset({"shop"}), 7)]


def test_rows_that_the_vault_would_never_take_are_lost_and_counted():
    vault, buffer = Vault(), BatchBuffer()
    for server in ("shop", "odd", "odd"):
        buffer.add(batch(server, 0))

    async def run() -> None:
        writer = VaultWriter(vault, buffer, None, Pace())
        await writer.finish()  # the vault is away
        writer = VaultWriter(vault, buffer, None, Pace())
        await writer.finish()

    asyncio.run(run())
    assert len(vault.written) == 3
    assert (buffer.rows, buffer.lost_of("shop"), buffer.lost_of("odd")) == (0, 0, 1)
