"""The collector: watches a fleet of servers from one process and writes what it reads to the vault."""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tasks.metrics.buffer import BatchBuffer
from tasks.metrics.catalog import Catalog
from tasks.metrics.fleet import Fleet
from tasks.metrics.models import Batch, Target, Tier
from tasks.metrics.pace import Pace
from tasks.metrics.ports import Session, VaultPort
from tasks.metrics.session import ServerSession
from tasks.metrics.vault_writer import VaultWriter
from tasks.metrics.watch import Watch

CONNECT_SECONDS = 5
"""How long a server may take to accept a connection: one that is away must not fill its whole interval."""

log = logging.getLogger("onevault.collector")


def open_session(target: Target, catalog: Catalog) -> Session:
    """Make the session of a server; it connects when it is first used, and waits CONNECT_SECONDS for that at most."""
    return ServerSession(replace(target, conninfo=lambda name: _hasty(target, name)), catalog)


def _hasty(target: Target, database: str | None) -> str:
    conninfo = target.conninfo(database)
    try:
        asked = int(conninfo_to_dict(conninfo).get("connect_timeout") or 0)
        return make_conninfo(
            conninfo, connect_timeout=min(asked or CONNECT_SECONDS, CONNECT_SECONDS)
        )
    except (psycopg.ProgrammingError, ValueError):
        return conninfo  # connecting says in better words what is wrong with it


class Collector:
    """Watches the servers that `targets` lists, which is asked again every Pace.targets_seconds, in a thread.

    vault is used by one thread only, and on_written is called there with the names of the servers whose samples have
    just been written. While the vault is away, samples wait in the buffer; of those it cannot hold the oldest are lost
    and counted.
    """

    def __init__(  # noqa: PLR0913 - the last three are for tests and benchmarks
        self,
        targets: Callable[[], Sequence[Target]],
        catalog: Catalog,
        vault: VaultPort,
        *,
        concurrency: int = 32,
        on_written: Callable[[frozenset[str]], None] | None = None,
        pace: Pace | None = None,
        buffer: BatchBuffer | None = None,
        make_session: Callable[[Target, Catalog], Session] = open_session,
    ) -> None:
        self._targets = targets
        self._catalog = catalog
        self._pace = pace or Pace()
        self._concurrency = concurrency
        self._make_session = make_session
        self.buffer = buffer or BatchBuffer()
        self._writer = VaultWriter(vault, self.buffer, on_written, self._pace)
        self._could_list = True

    async def run(self, stop: asyncio.Event) -> None:
        """Collect until stopped; then what is in flight is finished and what waits is written, both within bounds.

        A collector runs once.
        """
        fleet = Fleet(
            self._watch,
            self.buffer.add,
            self._writer.latest,
            self._own,
            concurrency=self._concurrency,
            pace=self._pace,
        )
        written = asyncio.Event()
        writing = [
            asyncio.create_task(self._writer.run(written)),
            asyncio.create_task(self._writer.beat(written, lambda: len(fleet))),
        ]
        try:
            await self._follow_targets(fleet, stop)
        finally:
            await fleet.stop()
            written.set()
            await asyncio.wait(writing, timeout=self._pace.stop_seconds)
            await self._writer.finish()

    async def collect_once(self, target: Target, tiers: Collection[Tier]) -> Batch:
        """Collect once from one server, going on from what the vault knows of it; nothing is written."""
        watch = self._watch(target)
        try:
            if (known := await self._writer.latest(target.name)) is not None:
                watch.go_on_from(known)
            return await watch.collect(tiers, self._own(target.name))
        finally:
            await watch.close()

    def _watch(self, target: Target) -> Watch:
        return Watch(
            target,
            self._catalog,
            self._make_session,
            deadline_seconds=self._pace.deadline_seconds,
            texts_seconds=self._pace.texts_seconds,
        )

    def _own(self, server: str) -> Mapping[str, float]:
        return {
            "buffered_rows": self.buffer.rows,
            "lost_rows": self.buffer.lost_of(server),
        }

    async def _follow_targets(self, fleet: Fleet, stop: asyncio.Event) -> None:
        stopped = asyncio.create_task(stop.wait())
        try:
            while not stopped.done():
                # The list may hang with what it asks: the servers that are known are watched on, and a stop is heard.
                listing = asyncio.create_task(asyncio.to_thread(self._list))
                await asyncio.wait({listing, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if listing.done() and (targets := listing.result()) is not None:
                    fleet.set_targets(targets)
                await asyncio.wait({stopped}, timeout=self._pace.targets_seconds)
        finally:
            stopped.cancel()

    def _list(self) -> Sequence[Target] | None:
        try:
            targets = self._targets()
        except Exception as error:  # whoever keeps the list may be away; the servers are watched on
            if self._could_list:
                log.warning(
                    "the list of servers cannot be read, the known ones are watched on: %s", error
                )
            self._could_list = False
            return None
        self._could_list = True
        return targets
