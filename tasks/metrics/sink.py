"""The vault as a collector writes to it: one connection, made again when it is lost, and the lead that goes with it."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import RLock

import psycopg

from tasks.errors import Refused, Unavailable
from tasks.metrics import store
from tasks.metrics.models import Batch, Sample, StatementSnapshot
from tasks.metrics.ports import SeriesKey
from tasks.metrics.store import Heartbeat, SeriesCache

log = logging.getLogger("onevault.collector")

FLEET = "fleet"
"""The name under which one collector of a vault leads."""


class VaultSink:
    """Writes batches to the vault while it holds the lead of its name; threads take turns.

    on_superseded is called when the lead was lost with a connection and another collector has it now.
    """

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection],
        identity: Heartbeat,
        on_superseded: Callable[[], None],
    ) -> None:
        self._connect = connect
        self._identity = identity
        self._on_superseded = on_superseded
        self._conn: psycopg.Connection | None = None
        self._cache = SeriesCache()
        self._turn = RLock()
        self._noted: dict[str, str] = {}
        self._is_closed = False

    def lead(self) -> bool:
        """Take the lead unless another collector has it; Unavailable while the vault does not answer."""
        with self._turn:
            if self._conn is None:
                conn = self._connect()
                if not store.try_lead(conn, self._identity.name):
                    conn.close()
                    return False
                self._conn = conn
            return True

    def write(self, batches: Sequence[Batch]) -> Mapping[str, int]:
        """Write batches, each in a transaction of its own; writing one again changes nothing.

        Returns how many rows of which servers were dropped. What cannot belong to the vault, as of an unknown tenant, is dropped and logged, so that other servers' samples
        do not wait for it. A vault that takes nothing at all, as one that became read-only, is Unavailable: everything
        is kept for when it is the primary again, or another one is found.
        """
        refused = Counter[str]()
        for batch in batches:
            with self._vault() as conn:
                refused[batch.server] += self._write(conn, batch)
        return +refused

    def _write(self, conn: psycopg.Connection, batch: Batch) -> int:
        try:
            written = store.write(conn, batch, self._cache)
        except Refused as error:
            if isinstance(error.__cause__, psycopg.Error):
                raise Unavailable(str(error)) from error
            self._note(batch.server, str(error))
            return batch.size
        if written.refused:
            self._note(
                batch.server,
                f"{written.refused} rows are dated too far from the vault's clock: set the collector's clock",
            )
        else:
            self._noted.pop(batch.server, None)
        return written.refused

    def _note(self, server: str, fault: str) -> None:
        if self._noted.get(server) != fault:
            log.error("not stored of %s: %s", server, fault)
        self._noted[server] = fault

    def latest(
        self, server: str
    ) -> tuple[Mapping[SeriesKey, Sample], StatementSnapshot | None] | None:
        """Return what is known of a server, to go on from."""
        with self._vault() as conn:
            return store.latest(conn, server)

    def beat(self, servers: int, buffered_rows: int, lost_rows: int) -> None:
        """Show that the collector lives."""
        beat = replace(
            self._identity, servers=servers, buffered_rows=buffered_rows, lost_rows=lost_rows
        )
        with self._vault() as conn:
            store.beat(conn, beat)

    def close(self) -> None:
        """Give the lead and the connection back for good: whoever still writes in another thread is told so."""
        with self._turn:
            self._is_closed = True
            self._hang_up()

    def _hang_up(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    @contextmanager
    def _vault(self) -> Iterator[psycopg.Connection]:
        with self._turn:
            if self._is_closed:
                message = f"The lead of {self._identity.name} was given back: nothing is written any more."
                raise Refused(message)
            if not self.lead() or self._conn is None:
                self._on_superseded()
                name = self._identity.name
                message = f"Another collector leads as {name} now: this one stops writing."
                raise Refused(message)
            try:
                yield self._conn
            except Unavailable:
                # The lead went with the session, or will: whoever comes first takes it.
                self._hang_up()
                raise
