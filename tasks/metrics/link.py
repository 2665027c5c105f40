"""One connection to one database of a looked-after server, and what is known of it."""

import asyncio
import os
import socket
from collections.abc import Collection, Iterable, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic, perf_counter
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tasks.connection import connect_async
from tasks.errors import OneVaultError, Refused, Unavailable
from tasks.metrics import batch, fitness
from tasks.metrics.batch import STATEMENT_TIMEOUT_MS, STATEMENTS, Ask, Standing
from tasks.metrics.fitness import Knowledge
from tasks.metrics.models import (
    AVAILABILITY,
    Family,
    FamilyAnswer,
    FamilyState,
    Level,
    Runs,
    ServerFacts,
    Target,
)
from tasks.metrics.remembering import ASK_AGAIN_SECONDS, Memory

Answers = MutableMapping[str, FamilyAnswer]

APPLICATION_NAME = "onevault metrics"
LATE = "the collection's deadline passed before it answered"
_CANCEL_SECONDS = 0.5
_LEAVE_SECONDS = 1.0
_LOCK_TIMEOUT_MS = 500
_SETTINGS: dict[str, int | str] = {
    "client_encoding": "UTF8",
    "default_transaction_read_only": "on",
    "idle_in_transaction_session_timeout": 60_000,
    "idle_session_timeout": 7_200_000,
    "jit": "off",
    "search_path": "pg_catalog,pg_temp",
    # The place of a collector whose host or network went must be free again in minutes, and not after two hours.
    "tcp_keepalives_idle": 60,
    "tcp_keepalives_interval": 10,
    "tcp_keepalives_count": 6,
}


class Lost(Unavailable):
    """The connection went in the middle of a collection."""


class Link:
    """A connection to one database (None: the maintenance database), to be opened again when it was lost.

    database is its name and facts what the server said of itself most recently; is_late tells that the collection's
    time is over, so that nothing more is asked but availability. An open link stands in the way of DROP DATABASE
    without FORCE, as any session does.
    """

    def __init__(
        self, target: Target, database: str | None, memory: Memory, rights: Collection[str | None]
    ) -> None:
        self._target = target
        self._asked_for = database
        self._memory = memory
        self._wanted_rights = sorted(right for right in rights if right)
        self._conn: psycopg.AsyncConnection | None = None
        self._knowledge: Knowledge | None = None
        self._standing: Standing | None = None
        self.database = database or ""
        self.facts: ServerFacts | None = None
        self.is_late = False

    @property
    def is_open(self) -> bool:
        """Tell whether there is a connection, as far as we know."""
        return self._conn is not None and not self._conn.closed

    @property
    def connection(self) -> psycopg.AsyncConnection:
        """Return the connection; Lost without one."""
        if self._conn is None:
            message = "There is no connection to the server."
            raise Lost(message)
        return self._conn

    @property
    def knowledge(self) -> Knowledge:
        """Return what the server said on connecting; Lost before that."""
        if self._knowledge is None:
            message = "There was no connection to the server yet."
            raise Lost(message)
        return self._knowledge

    async def open(self) -> None:
        """Connect, with the connection string as it is now, and learn about the server.

        Raises Unavailable or Refused with a sentence without secrets.
        """
        await self.close()
        self._conn = await connect_async(
            self._target.conninfo(self._asked_for),
            application_name=APPLICATION_NAME,
            statement_timeout_ms=STATEMENT_TIMEOUT_MS,
            lock_timeout_ms=_LOCK_TIMEOUT_MS,
            settings=_SETTINGS,
        )
        try:
            await self._learn()
        except psycopg.Error as error:
            await self.close()
            raise _not_learned(self._target.name, error) from None
        self._memory.reconnected()

    async def close(self) -> None:
        """Close the connection, if there is one, and see the session end, so that its place is free for another."""
        if self._conn is None:
            return
        other_end = self._other_end()
        await self._conn.close()
        if other_end is not None:
            with other_end, suppress(OSError, TimeoutError):
                async with asyncio.timeout(_LEAVE_SECONDS):
                    while await asyncio.get_running_loop().sock_recv(other_end, 1024):
                        pass

    def _other_end(self) -> socket.socket | None:
        """Return a second handle of the connection's socket, or None when it is closed."""
        if not self.is_open:
            return None
        with suppress(OSError, psycopg.Error):
            other = socket.socket(fileno=os.dup(self.connection.fileno()))
            other.setblocking(False)
            return other
        return None

    async def cancel(self) -> None:
        """Ask the server to end what it does for us; it may not hear."""
        self.is_late = True
        if self.is_open:
            with suppress(psycopg.Error):
                await self.connection.cancel_safe(timeout=_CANCEL_SECONDS)

    def cut(self) -> None:
        """Shut the socket, so that whoever waits for the server is told at once that it went."""
        other_end = self._other_end()
        if other_end is not None:
            with other_end, suppress(OSError):
                other_end.shutdown(socket.SHUT_RDWR)

    async def ask(self, families: Iterable[Family], answers: Answers) -> None:
        """Connect if need be, and put each family's answer into answers; those that the deadline cut off stay out.

        A connection that went, as one may have while it lay idle, is opened again, once. Raises Unavailable or Refused
        when that fails too, and Lost when the deadline is over.
        """
        wanted = list(families)
        if not self.is_open:
            await self.open()
        try:
            await self._ask_connected(wanted, answers)
        except Lost:
            if self.is_late:
                raise
            await self.open()
            await self._ask_connected(wanted, answers)

    async def _ask_connected(self, families: Iterable[Family], answers: Answers) -> None:
        try:
            await self._ask([family for family in families if family.name not in answers], answers)
        except psycopg.Error as error:
            await self.close()
            message = f"The connection was lost: {batch.words_of(error)}."
            raise Lost(message) from None

    async def _ask(self, families: list[Family], answers: Answers) -> None:
        if monotonic() - self.knowledge.learned_at > ASK_AGAIN_SECONDS:
            await self._learn()
        asks = self._asks(families, answers)
        together = [
            a
            for a in asks
            if not self._memory.is_cautious and not self._memory.is_on_trial(a.family)
        ]
        alone = [ask for ask in asks if ask not in together]
        self._memory.is_cautious = False
        if not asks:
            await self._look()
        if together and not await self._ask_together(together, answers):
            await self._reset()
            alone = self._asks([ask.family for ask in [*together, *alone]], answers)
        for ask in alone:
            if self.is_late and ask.family.name != AVAILABILITY:
                continue
            await self._ask_alone(ask, answers)

    async def _ask_together(self, asks: list[Ask], answers: Answers) -> bool:
        """Ask in one batch; on a failure tell so, with nothing answered."""
        try:
            await self._send(asks, answers, prepare=None)
        except psycopg.Error as error:
            self._memory.is_cautious = self.is_late
            if batch.is_lost(self.connection, error):
                raise
            return False
        return True

    async def _ask_alone(self, ask: Ask, answers: Answers) -> None:
        try:
            await self._send([ask], answers, prepare=False)
        except psycopg.Error as error:
            is_lost = batch.is_lost(self.connection, error)
            # What hung until the deadline is to blame; but a server that hangs is not available.
            if not is_lost or (self.is_late and ask.family.name != AVAILABILITY):
                self._failed(ask.family, error, answers)
            if is_lost:
                raise

    async def _send(self, asks: list[Ask], answers: Answers, *, prepare: bool | None) -> None:
        read_at, begun, clock = datetime.now(UTC), monotonic(), perf_counter()
        standing, rows = await batch.send(self.connection, asks, prepare=prepare)
        duration_ms = (perf_counter() - clock) * 1000
        before = self._standing
        self._stands(standing)
        for ask, found in zip(asks, rows, strict=True):
            self._memory.answered(ask.family)
            if _was_misplaced(ask.family, before, standing):
                continue
            answers[ask.family.name] = FamilyAnswer(
                family=ask.family.name,
                state=FamilyState.OK,
                read_at=read_at,
                monotonic=begun,
                database=self._scope(ask.family),
                duration_ms=duration_ms,
                observations=batch.observations(ask.family, found, standing, self.database),
            )
            duration_ms = 0.0

    def _failed(self, family: Family, error: psycopg.Error, answers: Answers) -> None:
        state = FamilyState.DEGRADED if self.is_late else batch.state_of(error)
        words = LATE if self.is_late else batch.words_of(error)
        where = f'database "{self.database}" of {self._target.name}'
        message = f"Could not read {family.name} in {where}: {words}."
        self._memory.failed(family, state, message, monotonic())
        answers[family.name] = self._without(family, state, message)

    def _asks(self, families: Iterable[Family], answers: Answers) -> list[Ask]:
        """Answer what is known without asking, and return what must be asked, availability first."""
        asks = []
        for family in families:
            known = self._known(family)
            if known is not None:
                answers[family.name] = known
            else:
                asks.append(self._ask_of(family))
        return sorted(asks, key=lambda ask: (ask.family.name != AVAILABILITY, ask.timeout_ms))

    def _ask_of(self, family: Family) -> Ask:
        # Whatever has no statement for this server was answered as not applicable before.
        query = family.statement(self.connection.info.server_version // 10_000) or ""
        schema = self.knowledge.extensions.get(family.needs_extension or "")
        return Ask(family, batch.compose(family, query, schema), family.timeout_ms)

    def _known(self, family: Family) -> FamilyAnswer | None:
        """Return the answer that can be given without asking."""
        major = self.connection.info.server_version // 10_000
        is_standby = self._standing is not None and self._standing.is_in_recovery
        if unfit := fitness.unfit(family, major, is_standby=is_standby):
            return self._without(family, FamilyState.NOT_APPLICABLE, unfit)
        if lacking := fitness.missing(family, self.knowledge, self._target.name, self.database):
            return self._without(family, FamilyState.REFUSED, lacking)
        failure = self._memory.recall(family, monotonic())
        return self._without(family, failure.state, failure.message) if failure else None

    def _without(self, family: Family, state: FamilyState, message: str) -> FamilyAnswer:
        return nothing(family, state, message, self._scope(family))

    def _scope(self, family: Family) -> str:
        return self.database if family.level is Level.DATABASE else ""

    async def _learn(self) -> None:
        conn = self.connection
        query = STATEMENTS.get("knowledge", conn.info.server_version // 10_000)
        async with conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(query, {"rights": self._wanted_rights})
            row: dict[str, Any] = await cursor.fetchone() or {}
        self._knowledge = Knowledge(
            login=row["login"],
            connection_limit=row["connection_limit"],
            system_identifier=row["system_identifier"],
            extensions=row["extensions"],
            rights=frozenset(row["rights"]),
            learned_at=monotonic(),
        )
        self.database = conn.info.dbname
        self._standing = None
        await self._look()

    async def _reset(self) -> None:
        """Drop the prepared plans, one of which may have spoiled the batch, and look at the server anew."""
        await self.connection.execute(STATEMENTS.get("forget_plans", 0))
        await self._look()

    async def _look(self) -> None:
        standing, _ = await batch.send(self.connection, [])
        self._stands(standing)

    def _stands(self, standing: Standing) -> None:
        if standing != self._standing and self._knowledge is not None:
            self.facts = _facts(self._target, self.connection.info, self._knowledge, standing)
        self._standing = standing


def nothing(family: Family, state: FamilyState, message: str, database: str = "") -> FamilyAnswer:
    """Return an answer without observations, of now."""
    return FamilyAnswer(family.name, state, datetime.now(UTC), monotonic(), database, message)


def _facts(
    target: Target, info: psycopg.ConnectionInfo, knowledge: Knowledge, standing: Standing
) -> ServerFacts:
    return ServerFacts(
        name=target.name,
        host=info.host,
        port=info.port,
        database=info.dbname,
        server_version=info.parameter_status("server_version") or str(info.server_version),
        server_major=info.server_version // 10_000,
        system_identifier=knowledge.system_identifier,
        is_in_recovery=standing.is_in_recovery,
        postmaster_started_at=standing.postmaster_started_at.astimezone(UTC),
        tenant=target.tenant,
    )


def _was_misplaced(family: Family, before: Standing | None, now: Standing) -> bool:
    """Tell whether the server was promoted or demoted since we chose what to ask."""
    changed = before is not None and before.is_in_recovery != now.is_in_recovery
    return changed and family.runs is not Runs.ANYWHERE


def _not_learned(server: str, error: psycopg.Error) -> OneVaultError:
    sentence = f"Could not look at {server} after connecting: {batch.words_of(error)}"
    if batch.state_of(error) is FamilyState.REFUSED:
        return Refused(f"{sentence}. Check what the login may do.")
    return Unavailable(f"{sentence}. Try again.")
