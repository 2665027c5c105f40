"""A looked-after server as the collector sees it: its families asked over one connection that stays and a few that go."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from time import monotonic

import psycopg
from psycopg import sql

from tasks.connection import translate
from tasks.errors import OneVaultError, Refused, Unavailable
from tasks.metrics.batch import STATEMENTS
from tasks.metrics.databases import Databases
from tasks.metrics.deltas import Families
from tasks.metrics.fitness import is_role
from tasks.metrics.link import LATE, Answers, Link, Lost, nothing
from tasks.metrics.masking import mask_literals
from tasks.metrics.models import (
    AVAILABILITY,
    Family,
    FamilyAnswer,
    FamilyState,
    Level,
    Observation,
    ServerFacts,
    Source,
    Target,
    Tier,
)
from tasks.metrics.remembering import Memory
from tasks.redaction import redact

_LONGEST_COLLECTION_SECONDS = 30.0
_GRACE_SECONDS = 1.0
_TEXTS_SECONDS = 15.0
_STATEMENTS_EXTENSION = "pg_stat_statements"


@dataclass(frozen=True, slots=True)
class Collected:
    """What one collection brought; facts only when the server answered, databases only when they were listed."""

    answers: tuple[FamilyAnswer, ...]
    facts: ServerFacts | None = None
    databases: tuple[str, ...] | None = None


class ServerSession:
    """Asks one server for its families, one collection at a time.

    It holds one connection to the maintenance database and, while it reads the others, at most database_connections
    more, fewer when the login's CONNECTION LIMIT asks for it: it never uses more than the limit - 1, and at least 1. A collection ends
    after deadline_seconds (without one: after the longest of its tiers, and half a minute at most: the light tier waits for it), and up to two more in
    which the server is asked to let go.
    """

    def __init__(
        self,
        target: Target,
        catalog: Families,
        *,
        database_connections: int = 2,
        deadline_seconds: float | None = None,
    ) -> None:
        families = [f for f in catalog.families.values() if f.source is Source.POSTGRES]
        self._target = target
        self._families = [family for family in families if family.level is Level.INSTANCE]
        self._rights = frozenset(f.needs_right for f in families if is_role(f.needs_right))
        self._database_connections = database_connections
        self._deadline_seconds = deadline_seconds
        self._maintenance = Link(target, None, Memory(), self._rights)
        in_databases = [family for family in families if family.level is Level.DATABASE]
        self._databases = Databases(in_databases, self._link_to)
        self._lock = asyncio.Lock()
        self._availability = catalog.families.get(AVAILABILITY)

    async def collect(self, tiers: Collection[Tier]) -> Collected:
        """Ask for every family of these tiers; what is wrong with the server stands in the answers.

        A server that does not answer gives one answer, availability with up = 0, and the others grow old. A family
        that is known to be refused, degraded or not applicable is answered without asking. duration_ms is of a
        family asked alone its own, and of a batch the whole batch's, on its first family; read_at is the moment when
        the batch was sent. Raises Unavailable while another collection of this session runs, and nothing else.
        """
        if self._lock.locked():
            message = f"A collection of {self._target.name} is still running: wait for its end."
            raise Unavailable(message)
        async with self._lock:
            return await self._collect(tiers)

    async def statement_texts(self, ids: Collection[int]) -> dict[int, str]:
        """Return the texts of statements by query id, without their literals and comments.

        They are those that are known and may be seen, cut at 10,000 characters. Raises Unavailable, or Refused where pg_stat_statements is not installed.
        """
        if self._lock.locked():
            message = f"A collection of {self._target.name} is still running: wait for its end."
            raise Unavailable(message)
        doing = f"read the texts of statements on {self._target.name}"
        async with self._lock:
            try:
                async with asyncio.timeout(_TEXTS_SECONDS):
                    return await self._statement_texts(ids)
            except TimeoutError:
                message = f"Could not {doing}: it took more than {_TEXTS_SECONDS:g} s."
                raise Unavailable(message) from None
            except psycopg.Error as error:
                raise translate(error, doing) or Refused(f"Could not {doing}.") from None

    async def close(self) -> None:
        """Close every connection; a collection after that opens them anew."""
        await self._databases.close()
        await self._maintenance.close()

    async def _collect(self, tiers: Collection[Tier]) -> Collected:
        seconds = self._deadline_seconds or _default_deadline(tiers)
        found: list[FamilyAnswer] = []
        self._databases.known = None
        for link in self._links:
            link.is_late = False
        work = asyncio.create_task(self._gather(tiers, monotonic() + seconds, found))
        try:
            await asyncio.wait({work}, timeout=seconds)
            if not work.done():
                await asyncio.gather(*(link.cancel() for link in self._links))
                await asyncio.wait({work}, timeout=_GRACE_SECONDS)
        finally:
            await self._stop(work)
        if not work.cancelled() and (error := work.exception()) is not None:
            raise error
        return self._completed(found)

    async def _stop(self, work: "asyncio.Task[None]") -> None:
        """End the work whatever holds it: a silent server's socket is shut, a connecting one is left."""
        if not work.done():
            for link in self._links:
                link.is_late = True
                link.cut()
            await asyncio.wait({work}, timeout=_GRACE_SECONDS / 2)
        if not work.done():
            work.cancel()
            await asyncio.wait({work})
        if not work.cancelled():
            work.exception()

    def _completed(self, found: list[FamilyAnswer]) -> Collected:
        """Say that the server is down when that is all there is to say."""
        if not found and self._availability is not None and self._maintenance.is_late:
            found.append(_down(self._availability, self._late()))
        facts = self._maintenance.facts if _is_up(found) else None
        return Collected(tuple(found), facts, self._databases.known)

    def _late(self) -> Unavailable:
        return Unavailable(f"{self._target.name} did not answer: {LATE}.")

    async def _gather(
        self, tiers: Collection[Tier], until: float, found: list[FamilyAnswer]
    ) -> None:
        due = [family for family in self._families if family.tier in tiers]
        answers: Answers = {}
        try:
            try:
                await self._maintenance.ask(due, answers)
            finally:
                found.extend(answers.values())
            if self._maintenance.is_late:
                raise self._late()
            if self._databases.has_due(tiers):
                await self._go_round(tiers, until, found)
        except OneVaultError as error:
            self._give_up(due, error, found)

    def _give_up(self, due: list[Family], error: OneVaultError, found: list[FamilyAnswer]) -> None:
        """Answer for what was cut off, and when nothing came at all only for the server itself."""
        given = {answer.family for answer in found}
        if AVAILABILITY not in given and self._availability is not None:
            found.insert(0, _down(self._availability, error))
        if isinstance(error, Lost) or self._maintenance.is_late:
            missing = [f for f in due if f.name not in given and f.name != AVAILABILITY]
            found += [nothing(family, FamilyState.UNAVAILABLE, str(error)) for family in missing]

    async def _go_round(
        self, tiers: Collection[Tier], until: float, found: list[FamilyAnswer]
    ) -> None:
        maintenance = self._maintenance
        try:
            names = await self._databases.order(maintenance, tiers)
        except psycopg.Error as error:
            raise _lost(error) from None
        own = maintenance.database
        await self._databases.visit_own(maintenance, found)
        others, slots = [name for name in names if name != own], self._slots()
        if others and not slots:
            await maintenance.close()
        await self._databases.go_round(others, slots or 1, until, found)

    def _slots(self) -> int:
        """Return how many connections there may be beside the one to the maintenance database."""
        limit = self._maintenance.knowledge.connection_limit
        if limit < 0:
            return self._database_connections
        return max(0, min(self._database_connections, limit - 2))

    def _link_to(self, database: str, memory: Memory) -> Link:
        return Link(self._target, database, memory, self._rights)

    @property
    def _links(self) -> tuple[Link, ...]:
        return (self._maintenance, *self._databases.links)

    async def _statement_texts(self, ids: Collection[int]) -> dict[int, str]:
        link = self._maintenance
        if not link.is_open:
            await link.open()
        schema = link.knowledge.extensions.get(_STATEMENTS_EXTENSION)
        if schema is None:
            message = f"{_STATEMENTS_EXTENSION} is not installed on {self._target.name}."
            raise Refused(message)
        major = link.connection.info.server_version // 10_000
        query = STATEMENTS.compose("statement_texts", major, schema=sql.Identifier(schema))
        cursor = await link.connection.execute(query, {"query_ids": list(ids)})
        # Masked first: what redaction leaves out might have held one of two quotation marks.
        return {query_id: redact(mask_literals(text)) for query_id, text in await cursor.fetchall()}


def _default_deadline(tiers: Collection[Tier]) -> float:
    longest = max((tier.seconds for tier in tiers), default=Tier.LIGHT.seconds)
    return min(_LONGEST_COLLECTION_SECONDS, longest)


def _down(availability: Family, error: OneVaultError) -> FamilyAnswer:
    state = FamilyState.REFUSED if isinstance(error, Refused) else FamilyState.UNAVAILABLE
    empty = nothing(availability, state, redact(str(error)))
    return FamilyAnswer(
        family=empty.family,
        state=state,
        read_at=empty.read_at,
        monotonic=empty.monotonic,
        message=empty.message,
        observations=(Observation({}, {"up": 0.0}),),
    )


def _is_up(found: Collection[FamilyAnswer]) -> bool:
    down = (FamilyState.REFUSED, FamilyState.UNAVAILABLE)
    return not any(each.family == AVAILABILITY and each.state in down for each in found)


def _lost(error: psycopg.Error) -> Lost:
    words = redact(str(error).strip().partition("\n")[0])
    return Lost(f"The connection was lost: {words}.")
