"""Whoever asks a server: the bare floor and we ourselves; each counts its CPU time and that of the server for it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from time import process_time
from typing import Protocol

import psycopg

from benchmarks.metrics_server import WatchedServer
from tasks.metrics.deltas import Deltas
from tasks.metrics.models import Family, FamilyState, Level, Source, Target, Tier
from tasks.metrics.session import Collected, ServerSession
from tasks.metrics.statements import StatementDeltas

STATEMENTS = "statements"
ALL_TIERS = frozenset(Tier)
_EXPORTER_COVERAGE = frozenset(
    {
        *("availability", "connections", "connections_by_database", "sessions_long", "locks"),
        *("databases", "standby_conflicts", "replication", "slots", "archiver", "checkpointer"),
        *("bgwriter", "database_sizes", "statements", "tables"),
    }
)
_EXPECTED = (FamilyState.OK, FamilyState.NOT_APPLICABLE)


class Probe(Protocol):
    """One who asks the server.

    share is how often it runs in a round, every in each how-manieth round it does.
    """

    name: str
    share: int
    every: int

    async def run(self) -> int:
        """Ask once and return how many numbers came back."""

    def client_seconds(self) -> float:
        """Return the CPU seconds used so far by the process that asks."""

    def server_seconds(self) -> float:
        """Return the CPU seconds used so far by the server for it."""

    async def close(self) -> None:
        """Let go of the server."""


@dataclass(frozen=True)
class Chosen:
    """Some families of a catalogue."""

    families: Mapping[str, Family]


def instance_families(catalog: "Chosen") -> Chosen:
    """Choose what is asked once for the whole server."""
    return Chosen({n: f for n, f in _asked(catalog).items() if f.level is Level.INSTANCE})


def exporter_families(catalog: "Chosen") -> Chosen:
    """Choose what postgres_exporter reads too, as near as the two can be brought together."""
    return Chosen({n: f for n, f in _asked(catalog).items() if n in _EXPORTER_COVERAGE})


def _asked(catalog: "Chosen") -> dict[str, Family]:
    return {n: f for n, f in catalog.families.items() if f.source is Source.POSTGRES}


@dataclass
class Floor:
    """SELECT 1 over a connection that stays, which is the least there can be."""

    server: WatchedServer
    login: str
    name: str = "floor: SELECT 1"
    share: int = 5
    every: int = 1
    _conn: psycopg.AsyncConnection | None = None
    _seconds: float = 0.0

    async def run(self) -> int:
        """Ask once."""
        if self._conn is None:
            conninfo = self.server.conninfo(self.login)
            self._conn = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
        begun = process_time()
        await (await self._conn.execute("SELECT 1")).fetchone()
        self._seconds += process_time() - begun
        return 1

    def client_seconds(self) -> float:
        """Return our CPU seconds."""
        return self._seconds

    def server_seconds(self) -> float:
        """Return the backend's CPU seconds."""
        return self.server.backends_seconds(self.login)

    async def close(self) -> None:
        """Close the connection."""
        if self._conn is not None:
            await self._conn.close()


@dataclass
class Reader:
    """What the collector does with one server, all but storing: collect, and make samples of the answers."""

    target: Target
    catalog: Chosen
    faults: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.session = ServerSession(self.target, self.catalog)
        self._deltas = Deltas(None)
        self._statements = StatementDeltas(None)

    async def read(self, tiers: Collection[Tier]) -> int:
        """Collect once and return how many numbers were read."""
        collected = await self.session.collect(tiers)
        plain = [answer for answer in collected.answers if answer.family != STATEMENTS]
        self._deltas.samples(plain, self.catalog)
        for answer in collected.answers:
            if answer.family == STATEMENTS:
                self._statements.grow(answer)
        return self._checked(collected)

    def _checked(self, collected: Collected) -> int:
        self.faults |= {
            f"{a.family}: {a.message}" for a in collected.answers if a.state not in _EXPECTED
        }
        return sum(len(o.numbers) for a in collected.answers for o in a.observations)


@dataclass
class Ours:
    """Our collection of some families over connections that stay."""

    name: str
    server: WatchedServer
    login: str
    catalog: Chosen
    tiers: Collection[Tier]
    share: int = 1
    every: int = 1
    _seconds: float = 0.0

    def __post_init__(self) -> None:
        self.reader = Reader(self.server.target(self.login), self.catalog)

    async def run(self) -> int:
        """Collect once."""
        begun = process_time()
        numbers = await self.reader.read(self.tiers)
        self._seconds += process_time() - begun
        return numbers

    def client_seconds(self) -> float:
        """Return our CPU seconds."""
        return self._seconds

    def server_seconds(self) -> float:
        """Return the CPU seconds of our backends."""
        return self.server.backends_seconds(self.login)

    async def close(self) -> None:
        """Close the connections."""
        await self.reader.session.close()
