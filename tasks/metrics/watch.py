"""One server under watch: its session, and what is remembered between two collections."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import monotonic, perf_counter

import psycopg

from tasks.errors import OneVaultError
from tasks.metrics import pgbouncer
from tasks.metrics.catalog import Catalog
from tasks.metrics.deltas import Deltas, SeriesKey
from tasks.metrics.host import HostWatch
from tasks.metrics.models import (
    AVAILABILITY,
    Batch,
    Family,
    FamilyAnswer,
    FamilyState,
    Observation,
    Sample,
    ServerFacts,
    Source,
    StatementSample,
    StatementSnapshot,
    Target,
    Tier,
)
from tasks.metrics.ports import Collected, Session
from tasks.metrics.statement_texts import ASK_EVERY_SECONDS, StatementTexts
from tasks.metrics.statements import StatementDeltas

STATEMENTS = "statements"
"""The family whose rows become statement samples."""

_HOST_SECONDS = 5.0
_TEXT_SECONDS = 10.0

OpenSession = Callable[[Target, Catalog], Session]
Known = tuple[Mapping[SeriesKey, Sample], StatementSnapshot | None]

log = logging.getLogger("onevault.collector")


@dataclass(frozen=True, slots=True)
class _Nothing:
    """A round that the session did not end."""

    answers: tuple[FamilyAnswer, ...]
    facts: ServerFacts | None = None
    databases: tuple[str, ...] | None = None


class Watch:
    """Collects from one server; one call at a time."""

    def __init__(
        self,
        target: Target,
        catalog: Catalog,
        open_session: OpenSession,
        *,
        deadline_seconds: float = 75.0,
        texts_seconds: float = ASK_EVERY_SECONDS,
    ) -> None:
        self.target = target
        self._catalog = catalog
        self._open_session = open_session
        self._deadline_seconds = deadline_seconds
        self._session = open_session(target, catalog)
        self._host = HostWatch(lambda: self.target.conninfo(None))
        self._host_reading: asyncio.Future[tuple[FamilyAnswer, ...]] | None = None
        self._deltas = Deltas(None)
        self._statements = StatementDeltas(None)
        self._texts = StatementTexts(texts_seconds)
        self._epoch = datetime.now(UTC).isoformat()
        self._states: dict[str, FamilyState] = {}
        self._renewed = False
        self._lost_rows = 0.0

    def go_on_from(self, known: Known) -> None:
        """Reckon the next growth of the counters from what another collector read last."""
        self._deltas, self._statements = Deltas(known[0]), StatementDeltas(known[1])

    def renew(self, target: Target) -> None:
        """Use other connection settings from the next collection on."""
        self.target, self._renewed = target, True

    async def collect(
        self,
        tiers: Collection[Tier],
        own: Mapping[str, float] | None = None,
        *,
        elsewhere: Collection[Tier] | None = None,
    ) -> Batch:
        """Ask the server, its host and its pooler for what is due; never raises for their faults.

        own holds numbers of the collector for the server's `collection` family; elsewhere are the tiers for host and
        pooler when they differ from the server's.
        """
        collected_at, begun = datetime.now(UTC), perf_counter()
        if self._renewed:
            await self._reopen()
        self._note_loss((own or {}).get("lost_rows", 0.0))
        others = tiers if elsewhere is None else elsewhere
        collected, pooler = await asyncio.gather(self._ask(tiers), self._ask_pooler(others))
        answered = sorted(collected.answers, key=lambda answer: answer.family != AVAILABILITY)
        host = await self._ask_host(others, is_up=is_up(answered))
        self._deltas.note_clock(answered)
        statements, snapshot = self._grow(answered)
        texts = await self._texts_of(statements)
        every = (*answered, *host, *pooler)
        numbers = {**(own or {}), "duration_ms": 1000 * (perf_counter() - begun)}
        every += self._own_answer(every, numbers)
        counted = [answer for answer in every if answer.family != STATEMENTS]
        return Batch(
            server=self.target.name,
            collected_at=collected_at,
            # The rows have become samples: what waits for the vault need not hold them twice.
            answers=tuple(replace(answer, observations=()) for answer in every),
            samples=self._deltas.samples(counted, self._catalog),
            statements=statements,
            facts=collected.facts,
            snapshot=snapshot,
            databases=collected.databases,
            absent=self._absent(),
            texts=texts,
        )

    async def close(self) -> None:
        """Close the connections; faults of that are of no interest."""
        try:
            async with asyncio.timeout(_TEXT_SECONDS):
                await self._session.close()
        except (OneVaultError, psycopg.Error, OSError, TimeoutError) as error:
            log.debug("closing the session with %s failed: %s", self.target.name, error)

    async def _reopen(self) -> None:
        await self.close()
        self._session, self._renewed = self._open_session(self.target, self._catalog), False
        self._host.forget()

    async def _ask(self, tiers: Collection[Tier]) -> Collected:
        try:
            async with asyncio.timeout(self._deadline_seconds):
                return await self._session.collect(tiers)
        except TimeoutError:
            words = f"The collection did not end within {self._deadline_seconds:g} s and was given up: look for what the server waits for."
        except Exception as error:  # one server's oddity must not end the watch
            log.exception("collecting from %s failed", self.target.name)
            words = f"The collector failed ({type(error).__name__}): see its log."
            self._renewed = True
            # It says nothing about the server: no reading of it, neither up nor down.
            return _Nothing((replace(_away(words), observations=()),))
        self._renewed = True
        return _Nothing((_away(words),))

    async def _ask_pooler(self, tiers: Collection[Tier]) -> tuple[FamilyAnswer, ...]:
        families = self._due(Source.PGBOUNCER, tiers)
        if self.target.pgbouncer is None or not families:
            return ()
        try:
            return await pgbouncer.scrape(self.target.pgbouncer(), families)
        except OneVaultError as error:  # the settings themselves cannot be had
            return tuple(_failed(family, str(error)) for family in families)
        except Exception as error:  # an odd pooler must not take the server's own samples along
            log.exception("reading the pooler of %s failed", self.target.name)
            words = f"The collector failed ({type(error).__name__}): see its log."
            return tuple(_failed(family, words) for family in families)

    async def _ask_host(self, tiers: Collection[Tier], *, is_up: bool) -> tuple[FamilyAnswer, ...]:
        """Read the host in a thread: a network file system that hangs must not stop anything else."""
        families = self._due(Source.HOST, tiers)
        if not families:
            return ()
        if self._host_reading is None:
            reading = asyncio.to_thread(self._host.answers, families, is_up=is_up)
            self._host_reading = asyncio.ensure_future(reading)
        done, _ = await asyncio.wait({self._host_reading}, timeout=_HOST_SECONDS)
        if not done:
            words = f"The host did not answer within {_HOST_SECONDS:g} s: a file system may hang."
            return tuple(_failed(family, words) for family in families)
        finished, self._host_reading = self._host_reading, None
        if (error := finished.exception()) is not None:
            log.error("reading the host of %s failed", self.target.name, exc_info=error)
            words = f"The collector failed ({type(error).__name__}): see its log."
            return tuple(_failed(family, words) for family in families)
        return finished.result()

    def _absent(self) -> frozenset[str]:
        """Return the families that nobody answers for."""
        if self.target.pgbouncer is not None:
            return frozenset()
        return frozenset(family.name for family in self._due(Source.PGBOUNCER, Tier))

    def _due(self, source: Source, tiers: Iterable[Tier]) -> tuple[Family, ...]:
        known, tiers = self._catalog.families.values(), frozenset(tiers)
        return tuple(each for each in known if each.source is source and each.tier in tiers)

    def _own_answer(
        self, every: Sequence[FamilyAnswer], numbers: Mapping[str, float]
    ) -> tuple[FamilyAnswer, ...]:
        family = next(
            (f for f in self._catalog.families.values() if f.source is Source.COLLECTOR), None
        )
        if family is None:
            return ()
        # A round asks for some families only: of the others the state they had the last time counts.
        self._states |= {answer.family: answer.state for answer in sorted(every, key=_severity)}
        absent = self._absent()
        states = [state for name, state in self._states.items() if name not in absent]
        known = {
            **numbers,
            "families_degraded": states.count(FamilyState.DEGRADED),
            "families_refused": states.count(FamilyState.REFUSED),
        }
        seen = {name: float(known[name]) for name in family.metrics if name in known}
        answer = FamilyAnswer(
            family=family.name,
            state=FamilyState.OK,
            read_at=datetime.now(UTC),
            monotonic=monotonic(),
            observations=(Observation(labels={}, numbers=seen, epoch=self._epoch),),
        )
        return (answer,)

    def _grow(
        self, answers: Sequence[FamilyAnswer]
    ) -> tuple[tuple[StatementSample, ...], StatementSnapshot | None]:
        asked = [a for a in answers if a.family == STATEMENTS and a.state is FamilyState.OK]
        if not asked:
            return (), None
        grown = self._statements.grow(asked[0], self._deltas.shift_seconds)
        return grown, self._statements.snapshot() if self._statements.has_changed else None

    async def _texts_of(self, grown: Sequence[StatementSample]) -> dict[int, str]:
        """Return the texts of statements that are seen for the first time."""
        ids = {each.query_id for each in grown}
        wanted = self._texts.want(ids, monotonic()) if ids else frozenset()
        if not wanted:
            return {}
        self._texts.asked(monotonic())
        try:
            async with asyncio.timeout(_TEXT_SECONDS):
                found = await self._session.statement_texts(wanted)
        except (OneVaultError, psycopg.Error, TimeoutError) as error:
            log.debug("the statement texts of %s were not read: %s", self.target.name, error)
            return {}
        self._texts.told(wanted, found.keys(), monotonic())
        return found

    def _note_loss(self, lost_rows: float) -> None:
        """Ask for statement texts again when rows were lost: they may have been among them."""
        if lost_rows != self._lost_rows:
            self._texts.forget()
        self._lost_rows = lost_rows


def is_up(answers: Sequence[FamilyAnswer]) -> bool:
    """Tell whether the server answered."""
    return any(a.family == AVAILABILITY and a.state is FamilyState.OK for a in answers)


def why_down(answers: Sequence[FamilyAnswer]) -> str:
    """Return the sentence of a server that did not answer."""
    return next((a.message for a in answers if a.family == AVAILABILITY), "it did not answer")


def _severity(answer: FamilyAnswer) -> int:
    """Order a family's answers of several databases so that the worst comes last."""
    return {FamilyState.REFUSED: 1, FamilyState.DEGRADED: 2}.get(answer.state, 0)


def _away(words: str) -> FamilyAnswer:
    return FamilyAnswer(
        family=AVAILABILITY,
        state=FamilyState.UNAVAILABLE,
        read_at=datetime.now(UTC),
        monotonic=monotonic(),
        message=words,
        observations=(Observation(labels={}, numbers={"up": 0.0}),),
    )


def _failed(family: Family, words: str) -> FamilyAnswer:
    return FamilyAnswer(
        family=family.name,
        state=FamilyState.DEGRADED,
        read_at=datetime.now(UTC),
        monotonic=monotonic(),
        message=words,
    )
