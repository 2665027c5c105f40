"""One server under watch: its session, and what is remembered between two collections."""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
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
from tasks.metrics.statements import StatementDeltas

STATEMENTS = "statements"
"""The family whose rows become statement samples."""

_HOST_SECONDS = 5.0
_TEXT_SECONDS = 10.0
_KNOWN_TEXTS = 20_000

OpenSession = Callable[[Target, Catalog], Session]
Known = tuple[Mapping[SeriesKey, Sample], StatementSnapshot | None]

log = logging.getLogger("onevault.collector")


@dataclass(frozen=True, slots=True)
class _Nothing:
    """A round that the session did not end."""

    answers: tuple[FamilyAnswer, ...]
    facts: ServerFacts | None = None


class Watch:
    """Collects from one server; one call at a time."""

    def __init__(
        self,
        target: Target,
        catalog: Catalog,
        open_session: OpenSession,
        *,
        deadline_seconds: float = 75.0,
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
        self._texts: set[int] = set()
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
        statements, snapshot = await self._grow(answered)
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

    def _due(self, source: Source, tiers: Collection[Tier]) -> tuple[Family, ...]:
        known = self._catalog.families.values()
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
        states = list(self._states.values())
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

    async def _grow(
        self, answers: Sequence[FamilyAnswer]
    ) -> tuple[tuple[StatementSample, ...], StatementSnapshot | None]:
        asked = [a for a in answers if a.family == STATEMENTS and a.state is FamilyState.OK]
        if not asked:
            return (), None
        grown = self._statements.grow(asked[0])
        return await self._with_texts(grown), self._statements.snapshot()

    async def _with_texts(self, grown: Sequence[StatementSample]) -> tuple[StatementSample, ...]:
        """Add the texts of statements that are seen for the first time."""
        new = {each.query_id for each in grown} - self._texts - {0}
        found = await self._ask_texts(new) if new else {}
        if len(self._texts) + len(found) > _KNOWN_TEXTS:
            self._texts.clear()
        self._texts |= found.keys()
        return tuple(
            replace(each, query=found[each.query_id]) if each.query_id in found else each
            for each in grown
        )

    async def _ask_texts(self, new: Collection[int]) -> dict[int, str]:
        try:
            async with asyncio.timeout(_TEXT_SECONDS):
                return await self._session.statement_texts(new)
        except (OneVaultError, psycopg.Error, TimeoutError) as error:
            log.debug("the statement texts of %s were not read: %s", self.target.name, error)
            return {}

    def _note_loss(self, lost_rows: float) -> None:
        """Ask for statement texts again when rows were lost: they may have been among them."""
        if lost_rows != self._lost_rows:
            self._texts.clear()
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
