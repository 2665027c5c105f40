"""The nouns of alerts: rules and their levels, what was read, what is remembered, and what came of it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tasks.metrics.models import Family, HealthStatus

_DURATION = re.compile(r"(\d+)(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Severity(StrEnum):
    """How bad it is."""

    LOW = "LOW"
    MEDIUM = "MEDIUM"
    HIGH = "HIGH"
    CRITICAL = "CRITICAL"

    @property
    def rank(self) -> int:
        """Return 0 for LOW to 3 for CRITICAL: the names do not sort by themselves."""
        return list(Severity).index(self)

    @property
    def health(self) -> HealthStatus:
        """Return the health status of a metric at this level."""
        return HealthStatus.CRITICAL if self is Severity.CRITICAL else HealthStatus.WARNING


class Category(StrEnum):
    """What kind of trouble a rule looks for."""

    PERFORMANCE = "PERFORMANCE"
    AVAILABILITY = "AVAILABILITY"
    SECURITY = "SECURITY"
    CAPACITY = "CAPACITY"
    COMPLIANCE = "COMPLIANCE"
    BACKUP = "BACKUP"
    MONITORING = "MONITORING"


class AlertStatus(StrEnum):
    """Where an alert stands. A pending one is not an alert yet: it lives in monitoring.rule_state alone."""

    OPEN = "OPEN"
    ACKNOWLEDGED = "ACKNOWLEDGED"
    ESCALATED = "ESCALATED"
    SUPPRESSED = "SUPPRESSED"
    RESOLVED = "RESOLVED"


class Notify(StrEnum):
    """Why a person is to hear of an alert now."""

    FIRST = "first"
    WORSE = "worse"
    REFIRE = "refire"
    REPEAT = "repeat"
    RESOLVED = "resolved"


def parse_duration(text: object) -> timedelta:
    """Read 30s, 5m, 2h, 1d or 1h30m; ValueError for anything else."""
    if isinstance(text, timedelta):
        return text
    parts = _DURATION.findall(str(text))
    if not parts or "".join(number + unit for number, unit in parts) != str(text):
        message = f"{text!r} is not a duration: write it like 30s, 5m, 2h or 1d"
        raise ValueError(message)
    return timedelta(seconds=sum(int(number) * _SECONDS[unit] for number, unit in parts))


def show_duration(duration: timedelta) -> str:
    """Write a duration as a rule does: 30s, 5m, 1h30m."""
    left, shown = int(duration.total_seconds()), ""
    for unit in ("d", "h", "m", "s"):
        count, left = divmod(left, _SECONDS[unit])
        shown += f"{count}{unit}" if count else ""
    return shown or "0s"


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
Operator = Literal[">", ">=", "<", "<=", "=", "!="]
NONE = timedelta(0)


class Strict(BaseModel):
    """A model of a file that people write: unknown words are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Level(Strict):
    """From which threshold on, for how long, a condition is how bad; it ends at the clear threshold."""

    severity: Severity
    threshold: float
    clear: float | None = None
    lasting: Duration = Field(default=NONE, alias="for")

    @property
    def clear_threshold(self) -> float:
        """Return where the level ends: the threshold itself unless the rule says otherwise."""
        return self.threshold if self.clear is None else self.clear


class Guard(Strict):
    """Another metric of the same family that must stand so for the rule to make sense."""

    metric: str
    operator: Operator
    threshold: float
    per_second: bool = False


class Rule(Strict):
    """A condition on a metric, how bad it is from when on, and what to do about it.

    over is for counters: the rule looks at all that it grew by in that time up to the newest sample. gone is what a
    resolved alert says when its object has vanished.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,99}$")
    description: str = Field(min_length=10)
    category: Category
    metric: str = Field(pattern=r"^[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*$")
    per_second: bool = False
    over: Duration | None = None
    operator: Operator
    levels: tuple[Level, ...] = Field(min_length=1)
    clear_for: Duration = NONE
    runbook: str | None = None
    next_step: str = Field(min_length=10)
    summary: str = Field(min_length=10)
    where: Mapping[str, str] = Field(default_factory=dict)
    when: tuple[Guard, ...] = ()
    suppression: Duration | None = None
    gone: str = "the object is gone"
    health: bool = True
    enabled: bool = True

    @property
    def family(self) -> str:
        """Return the family of the metric."""
        return self.metric.partition(".")[0]

    @property
    def metric_name(self) -> str:
        """Return the metric's name within its family."""
        return self.metric.partition(".")[2]

    def level(self, severity: Severity) -> Level | None:
        """Return the level of that severity, if the rule has one."""
        return next((level for level in self.levels if level.severity is severity), None)


@dataclass(frozen=True, slots=True)
class Watched:
    """A server that is looked after, and whose it is."""

    name: str
    tenant_hk: bytes
    tenant: str


@dataclass(frozen=True, slots=True)
class Growth:
    """By how much a counter grew in some time, and how many seconds of it were watched."""

    value: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Series:
    """The newest sample of one object; grown is the growth of its counters by metric, over the times that rules name."""

    series_id: int | None
    server: str
    family: str
    labels: Mapping[str, str]
    sampled_at: datetime
    values: Mapping[str, float]
    interval_seconds: float | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    grown: Mapping[tuple[str, timedelta], Growth] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FamilyStatus:
    """How asking for a family went the last time."""

    server: str
    family: str
    database: str
    state: str
    attempted_at: datetime
    collected_at: datetime | None


@dataclass(frozen=True, slots=True)
class Reading:
    """A number at a moment; None when it is unknown."""

    at: datetime
    value: float | None
    applies: bool = True


@dataclass(frozen=True, slots=True)
class LevelMemory:
    """Since when a level holds, whether it has held for long enough, and since when it is clear again."""

    since: datetime | None = None
    active: bool = False
    clear_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """What an evaluation must remember of one condition on one object.

    held is the severity of the open alert, None when there is none. flips are the moments at which the condition
    began or ended. notified_... say what people heard last, whichever episode that was.
    """

    rule: str
    server: str
    labels: Mapping[str, str]
    levels: Mapping[Severity, LevelMemory] = field(default_factory=dict)
    last_at: datetime | None = None
    held: Severity | None = None
    flips: tuple[datetime, ...] = ()
    is_flapping: bool = False
    notified_at: datetime | None = None
    notified_severity: Severity | None = None
    notified_episode: bool = False
    notified_flapping: bool = False

    @property
    def worst(self) -> Severity | None:
        """Return the worst level that has held for long enough and is not clear."""
        active = [severity for severity, level in self.levels.items() if level.active]
        return max(active, key=lambda severity: severity.rank) if active else None


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert as its open version says it."""

    alert_hk: bytes
    fingerprint: str
    rule: str
    server: str
    labels: Mapping[str, str]
    category: str
    status: AlertStatus
    severity: Severity
    started_at: datetime
    triggered_at: datetime
    summary: str
    trigger_value: float | None = None
    threshold: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    acknowledged_at: datetime | None = None
    acknowledged_by: str | None = None
    resolved_at: datetime | None = None
    resolution_notes: str | None = None
    suppression_reason: str | None = None
    is_flapping: bool = False
    false_positive: bool = False
    escalation_level: int = 0
    last_notified_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of an alert, or a notification of one that did not change; says what people are to hear, or why not."""

    alert: Alert
    from_status: AlertStatus | None
    happened_at: datetime
    value: float | None
    notify: Notify | None
    not_notified_because: str | None
    next_step: str = ""
    runbook: str | None = None
    tenant: str = "SYSTEM_OPERATIONS"


@dataclass(frozen=True, slots=True)
class Health:
    """How a metric stands against the thresholds of its rule."""

    server: str
    metric: str
    labels: Mapping[str, str]
    category: str
    unit: str
    direction: str
    status: HealthStatus
    value: float | None = None
    warning: float | None = None
    critical: float | None = None
    measured_at: datetime | None = None
    applies: bool = True

    @property
    def changes(self) -> tuple[HealthStatus, float | None, float | None]:
        """Return what makes a new version: the value alone does not."""
        return self.status, self.warning, self.critical

    def goes_on(self, known: tuple[HealthStatus, float | None, float | None] | None) -> bool:
        """Tell whether the open version stays: it says the same, or the rule does not apply now and nothing was wrong."""
        if known is None or self.applies:
            return known == self.changes
        return known[0] in {HealthStatus.NORMAL, HealthStatus.UNKNOWN}


@dataclass(frozen=True, slots=True)
class Silence:
    """A time in which alerts that match are not told to anybody."""

    silence_id: str
    matchers: Mapping[str, Any]
    starts_at: datetime
    ends_at: datetime
    created_by: str
    comment: str
    tenant_hk: bytes


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one evaluation came to. It is skipped when another one was at work."""

    evaluated_at: datetime
    transitions: tuple[Transition, ...] = ()
    servers: int = 0
    open_alerts: int = 0
    failures: tuple[str, ...] = ()
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """Everything that an evaluation decides on, as it stood in the vault."""

    servers: Mapping[str, Watched]
    series: Mapping[tuple[str, str], tuple[Series, ...]]
    statuses: Mapping[tuple[str, str], tuple[FamilyStatus, ...]]
    alerts: Mapping[str, Alert]
    memories: Mapping[str, Memory]
    silences: tuple[Silence, ...] = ()
    families: Mapping[str, Family] = field(default_factory=dict)


def fingerprint(rule: str, server: str, labels: Mapping[str, str]) -> str:
    """Return the lasting name of a condition on an object: SHA-256 over the rule, the server and its sorted labels."""
    text = json.dumps([rule, server, sorted(labels.items())], ensure_ascii=False)
    return sha256(text.encode()).hexdigest()
