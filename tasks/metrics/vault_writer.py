"""The one thread that talks to the vault: it writes what was collected, and keeps it while the vault is away."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from tasks.errors import OneVaultError
from tasks.metrics.buffer import BatchBuffer
from tasks.metrics.models import Batch
from tasks.metrics.pace import Pace, happened
from tasks.metrics.ports import VaultPort
from tasks.metrics.watch import Known

_ROWS_AT_ONCE = 5_000
_LATEST_SECONDS = 10.0
_FRESH = timedelta(seconds=30)

T = TypeVar("T")

log = logging.getLogger("onevault.collector")


class VaultWriter:
    """Drains a buffer into the vault; every call of the vault runs in one thread."""

    def __init__(
        self,
        vault: VaultPort,
        buffer: BatchBuffer,
        on_written: Callable[[frozenset[str]], None] | None,
        pace: Pace,
    ) -> None:
        self._vault = vault
        self._buffer = buffer
        self._on_written = on_written
        self._pace = pace
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vault")
        self._is_away = False
        self._blamed: set[str] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Write until stopped; while the vault is away, wait longer and longer, up to Pace.backoff_seconds."""
        pause = self._pace.write_seconds
        while not await happened(stop, pause):
            drained = await self._call(self._drain)
            longer = min(2 * pause, self._pace.backoff_seconds)
            pause = self._pace.write_seconds if drained else longer

    async def beat(self, stop: asyncio.Event, servers: Callable[[], int]) -> None:
        """Show that the collector lives, until stopped."""
        while not await happened(stop, self._pace.beat_seconds):
            await self._call(lambda: self._beat(servers()))

    async def latest(self, server: str) -> Known | None:
        """Return what the vault knows of a server; None when it is new, or the vault is away."""
        try:
            async with asyncio.timeout(_LATEST_SECONDS):
                return await self._call(lambda: self._latest(server))
        except TimeoutError:
            log.warning(
                "the vault did not say in time what it knows of %s: the first interval of its counters is left out",
                server,
            )
            return None

    async def finish(self) -> None:
        """Write what is left, within Pace.stop_seconds, and end the thread."""
        try:
            async with asyncio.timeout(self._pace.stop_seconds):
                await self._call(self._drain)
        except TimeoutError:
            log.warning("the vault did not take what was left in time")
        if self._buffer.rows:
            log.warning("%d rows were not written at the end", self._buffer.rows)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _call(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _beat(self, servers: int) -> None:
        try:
            self._vault.beat(servers, self._buffer.rows, self._buffer.lost_rows)
        except OneVaultError as error:
            log.debug("the heartbeat was not written: %s", error)
        except Exception as error:  # the collector outlives its heartbeat
            self._blame("heartbeat", error)

    def _latest(self, server: str) -> Known | None:
        try:
            return self._vault.latest(server)
        except OneVaultError as error:
            self._note_away(error)
            log.debug("the first interval of the counters of %s is left out", server)
        except Exception as error:  # a sample that cannot be read is no reason not to watch
            self._blame("reading of what is known", error)
        return None

    def _drain(self) -> bool:
        """Write all that waits; say whether that worked."""
        # After a fault a single batch shows whether the vault is back: a large lot may be what it cannot take.
        singly = 1 if self._is_away else 0
        while batches := self._buffer.take(1 if singly else _ROWS_AT_ONCE):
            singly = max(0, singly - 1)
            try:
                refused = self._vault.write(batches)
            except OneVaultError as error:
                self._buffer.put_back(batches)
                self._note_away(error)
                return False
            except Exception as error:  # a batch is at fault, and only that one is dropped
                singly = self._set_apart(batches, error)
                continue
            for server, rows in refused.items():
                self._buffer.lose(server, rows)
            self._note_back()
            self._tell(_fresh(batches, datetime.now(UTC)))
        return True

    def _set_apart(self, batches: Sequence[Batch], error: Exception) -> int:
        """Drop a batch that failed alone, keep several; return how many are to be written one by one."""
        if len(batches) == 1:
            self._buffer.drop(batches[0])
            self._blame("batch", error)
            return 0
        self._buffer.put_back(batches)
        return len(batches)

    def _tell(self, servers: frozenset[str]) -> None:
        if self._on_written is None or not servers:
            return
        try:
            self._on_written(servers)
        except Exception as error:  # what follows the writing must not stop it
            self._blame("evaluation", error)

    def _blame(self, what: str, error: Exception) -> None:
        """Log an exception, once for each kind of it."""
        kind = f"{what}: {type(error).__name__}"
        if kind not in self._blamed:
            self._blamed.add(kind)
            words = "a %s failed; more of this kind are not logged"
            log.error(words, what, exc_info=error)

    def _note_away(self, error: OneVaultError) -> None:
        if not self._is_away:
            log.warning("the vault takes no samples now, they are kept: %s", error)
        self._is_away = True

    def _note_back(self) -> None:
        if self._is_away:
            log.info("the vault takes samples again; %d rows wait", self._buffer.rows)
        self._is_away = False


def _fresh(batches: Sequence[Batch], now: datetime) -> frozenset[str]:
    """Return the servers of which these readings are the newest: behind those that have waited, newer ones wait.

    Whoever judged a server by the first of them would take it for silent, or for as it was before the vault went away.
    """
    return frozenset(batch.server for batch in batches if now - _newest(batch) < _FRESH)


def _newest(batch: Batch) -> datetime:
    return max((answer.read_at for answer in batch.answers), default=batch.collected_at)
