"""The nouns of monitoring: families of metrics, what a server answered, and the samples made of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import LiteralString

AVAILABILITY = "availability"
"""The family that tells whether a server answers; it is written even when it does not."""


class Kind(StrEnum):
    """How a number behaves: it goes up and down, or it only grows until it is reset."""

    GAUGE = "gauge"
    COUNTER = "counter"


class Direction(StrEnum):
    """Which way is worse."""

    HIGHER_IS_WORSE = "higher_is_worse"
    LOWER_IS_WORSE = "lower_is_worse"
    NEUTRAL = "neutral"


class Level(StrEnum):
    """Whether a family is read once for the whole server or in each of its databases."""

    INSTANCE = "instance"
    DATABASE = "database"


class Source(StrEnum):
    """Who answers: PostgreSQL, the operating system of its host, PgBouncer's console, or the collector itself."""

    POSTGRES = "postgres"
    HOST = "host"
    PGBOUNCER = "pgbouncer"
    COLLECTOR = "collector"


class Runs(StrEnum):
    """On which servers a family makes sense."""

    ANYWHERE = "anywhere"
    ON_PRIMARY = "on_primary"
    ON_STANDBY = "on_standby"


class Tier(StrEnum):
    """How often a family is read."""

    LIGHT = "light"
    MINUTE = "minute"
    FIVE_MINUTES = "five_minutes"
    HOURLY = "hourly"

    @property
    def seconds(self) -> int:
        """Return the interval."""
        return {"light": 10, "minute": 60, "five_minutes": 300, "hourly": 3600}[self.value]


class FamilyState(StrEnum):
    """What came of asking for a family the last time.

    DEGRADED: it failed (a lock, a time limit) and is asked for less often. REFUSED: a right or an extension is
    missing; asked for again after an hour or a reconnection. NOT_APPLICABLE: it makes no sense there, as a standby's
    replay on a primary, or the host's disks from another host: unknown, and no fault.
    """

    OK = "OK"
    DEGRADED = "DEGRADED"
    REFUSED = "REFUSED"
    UNAVAILABLE = "UNAVAILABLE"
    NOT_APPLICABLE = "NOT_APPLICABLE"


class HealthStatus(StrEnum):
    """How a health metric stands against its thresholds; UNKNOWN is never NORMAL."""

    NORMAL = "NORMAL"
    WARNING = "WARNING"
    CRITICAL = "CRITICAL"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a family."""

    name: str
    kind: Kind
    unit: str
    direction: Direction
    description: str


@dataclass(frozen=True, slots=True)
class Derived:
    """A ratio of the growths of a family's counters: scale * sum(numerator) / sum(denominator).

    It is absent while the denominator did not grow. Its metric is a gauge and has a full name like any other.
    """

    metric: Metric
    numerator: tuple[str, ...]
    denominator: tuple[str, ...]
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Variant:
    """A family's query for servers of this major version and newer."""

    since: int
    text: LiteralString


@dataclass(frozen=True, slots=True)
class Family:
    """Metrics that one query answers together.

    labels are the columns that name an object (all of them as text), texts are columns kept for people to read,
    epoch names the column (as text) whose change means that the counters began anew. A metric's full name, as rules
    and people write it, is `family.metric`.
    """

    name: str
    description: str
    source: Source
    level: Level
    tier: Tier
    timeout_ms: int
    metrics: Mapping[str, Metric]
    variants: tuple[Variant, ...] = field(default=(), repr=False)
    labels: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    epoch: str | None = None
    runs: Runs = Runs.ANYWHERE
    needs_right: str | None = None
    needs_extension: str | None = None
    derived: Mapping[str, Derived] = field(default_factory=dict)

    def statement(self, server_major: int) -> LiteralString | None:
        """Return the query for a server of this major version, or None when it has no such thing yet."""
        reached = [variant for variant in self.variants if variant.since <= server_major]
        return max(reached, key=lambda variant: variant.since).text if reached else None

    @property
    def counters(self) -> frozenset[str]:
        """Return the names of the metrics that only grow."""
        return frozenset(m.name for m in self.metrics.values() if m.kind is Kind.COUNTER)

    @property
    def stale_after_seconds(self) -> float:
        """Return the age from which a reading of this family says nothing about now."""
        return 3.0 * self.tier.seconds + 15


@dataclass(frozen=True, slots=True)
class Observation:
    """One row of a family's answer; a number that the server gave as NULL is absent."""

    labels: Mapping[str, str]
    numbers: Mapping[str, float]
    texts: Mapping[str, str] = field(default_factory=dict)
    epoch: str = ""


@dataclass(frozen=True, slots=True)
class FamilyAnswer:
    """What came of asking one server (one database of it) for one family.

    read_at is aware and UTC; monotonic is the collector's time.monotonic() at the same moment, for intervals that no
    change of the clock can falsify.
    """

    family: str
    state: FamilyState
    read_at: datetime
    monotonic: float
    database: str = ""
    message: str = ""
    duration_ms: float = 0.0
    observations: tuple[Observation, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """What is kept of one observation.

    values holds gauges as they were read, and of counters their growth over interval_seconds; without an interval
    (the first reading, a reset, a restart) no counter is in it, so that no rate is ever invented. raw holds the
    counters as they stood, from which the next growth is reckoned.
    """

    family: str
    labels: Mapping[str, str]
    sampled_at: datetime
    values: Mapping[str, float]
    interval_seconds: float | None = None
    raw: Mapping[str, float] = field(default_factory=dict)
    epoch: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StatementSample:
    """How much one statement grew over an interval, by pg_stat_statements."""

    database_name: str
    role_name: str
    query_id: int
    toplevel: bool
    sampled_at: datetime
    interval_seconds: float
    calls: int
    total_exec_ms: float
    rows: int
    shared_blks_hit: int
    shared_blks_read: int
    shared_blks_dirtied: int
    temp_blks_read: int
    temp_blks_written: int
    wal_bytes: int


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server said of itself when the collector connected."""

    name: str
    host: str
    port: int
    database: str
    server_version: str
    server_major: int
    system_identifier: str
    is_in_recovery: bool
    postmaster_started_at: datetime
    tenant: str = "SYSTEM_OPERATIONS"


@dataclass(frozen=True, slots=True)
class Target:
    """A server to be watched. conninfo gives the connection string for a database (None: the maintenance database).

    Connection strings hold passwords: they are made when needed and neither kept, shown nor logged.
    """

    name: str
    conninfo: Callable[[str | None], str] = field(repr=False)
    pgbouncer: Callable[[], str] | None = field(default=None, repr=False)
    tenant: str = "SYSTEM_OPERATIONS"


@dataclass(frozen=True, slots=True)
class StatementSnapshot:
    """The counters of pg_stat_statements as they stood, compressed, to go on from after a restart."""

    taken_at: datetime
    epoch: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything one collection of one server brought, to be written in one transaction.

    databases are all those it has now, None when they were not listed this time; absent are the families that nobody
    answers for any more, as those of a pooler that is no longer configured: the vault calls what it still knows of
    others, and of these, not applicable. texts are those of statements, by query id.
    """

    server: str
    collected_at: datetime
    answers: tuple[FamilyAnswer, ...]
    samples: tuple[Sample, ...]
    statements: tuple[StatementSample, ...] = ()
    facts: ServerFacts | None = None
    snapshot: StatementSnapshot | None = None
    databases: tuple[str, ...] | None = None
    absent: frozenset[str] = frozenset()
    texts: Mapping[int, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Return how many rows this is in the buffer."""
        return len(self.samples) + len(self.statements) + len(self.answers)
