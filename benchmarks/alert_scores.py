"""Scoring: which alerts a fault explains, which faults no alert spoke of, and how long it took."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

import psycopg

from benchmarks.fault_schedule import Event
from tasks.alerts.models import Severity

SLACK_SECONDS = 90.0
"""How long after the end of a fault an alert is still its: a reading every minute, and its evaluation."""
_Z = 1.959964

_EPISODES: LiteralString = """
SELECT
    alert.server_name, alert.rule_name, alert.labels, alert.triggered_timestamp, alert.resolved_timestamp, alert.summary,
    array_agg(transition.urgency_level), bool_or(transition.notify_reason IS NOT NULL)
FROM monitoring.alert_instance_s AS alert
JOIN monitoring.alert_transition AS transition USING (alert_instance_hk)
WHERE alert.load_end_date IS NULL
GROUP BY alert.alert_instance_hk, alert.server_name, alert.rule_name, alert.labels, alert.triggered_timestamp,
    alert.resolved_timestamp, alert.summary
ORDER BY alert.triggered_timestamp
"""


@dataclass(frozen=True)
class Episode:
    """An alert from its first firing to its end, with the worst it came to."""

    server: str
    rule: str
    labels: dict[str, str]
    began_at: datetime
    ended_at: datetime | None
    summary: str
    severity: Severity
    was_told: bool


@dataclass(frozen=True)
class Caught:
    """A fault, and the first alert that had to speak of it; None when none did."""

    event: Event
    episode: Episode | None

    @property
    def delay_seconds(self) -> float | None:
        """Return the seconds from the beginning of the fault to the first firing."""
        if self.episode is None:
            return None
        return (self.episode.began_at - self.event.begun_at).total_seconds()

    @property
    def own_seconds(self) -> float | None:
        """Return the delay without what the rule itself waits for, its threshold of a time and its `for`."""
        if (delay := self.delay_seconds) is None or self.event.fault is None:
            return None
        return max(0.0, delay - self.event.fault.patience_seconds)


@dataclass(frozen=True)
class Scores:
    """What one run came to."""

    true: tuple[Episode, ...]
    false: tuple[tuple[Episode, tuple[Event, ...]], ...]
    low: tuple[Episode, ...]
    low_unexplained: tuple[Episode, ...]
    caught: tuple[Caught, ...]

    @property
    def scored(self) -> int:
        """Return how many alerts of MEDIUM or worse there were."""
        return len(self.true) + len(self.false)

    @property
    def false_share(self) -> tuple[float, float, float]:
        """Return the share of false alerts and its Wilson interval of 95 %."""
        low, high = wilson(len(self.false), self.scored)
        return len(self.false) / max(1, self.scored), low, high

    @property
    def missed(self) -> list[Caught]:
        """Return the faults that no alert spoke of."""
        return [each for each in self.caught if each.episode is None]


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Return Wilson's score interval of 95 % for a share."""
    if trials == 0:
        return 0.0, 1.0
    share, z2 = hits / trials, _Z * _Z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = share * (1 - share) / trials + z2 / (4 * trials * trials)
    half = _Z * math.sqrt(spread) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def percentile(numbers: Sequence[float], share: float) -> float:
    """Return a percentile by rank; NaN of nothing."""
    if not numbers:
        return math.nan
    return sorted(numbers)[max(0, math.ceil(share * len(numbers)) - 1)]


def episodes(conn: psycopg.Connection) -> list[Episode]:
    """Read every alert that there was."""
    found = []
    for row in conn.execute(_EPISODES).fetchall():
        server, rule, labels, began_at, ended_at, summary, severities, was_told = row
        worst = max((Severity(each) for each in severities), key=lambda each: each.rank)
        found.append(
            Episode(server, rule, labels, began_at, ended_at, summary, worst, bool(was_told))
        )
    return found


def score(found: Sequence[Episode], events: Sequence[Event]) -> Scores:
    """Hold alerts and faults against each other, each alert once and each fault once.

    A fault that could not be caused is left out.
    """
    causes = [event for event in events if event.fault and not event.trouble]
    grave = [each for each in found if each.severity is not Severity.LOW]
    low = [each for each in found if each.severity is Severity.LOW]
    explained = {id(each) for each in found if any(_explains(event, each) for event in causes)}
    return Scores(
        true=tuple(each for each in grave if id(each) in explained),
        false=tuple((each, _around(each, events)) for each in grave if id(each) not in explained),
        low=tuple(low),
        low_unexplained=tuple(each for each in low if id(each) not in explained),
        caught=tuple(Caught(event, _first(event, found, causes)) for event in causes),
    )


def _explains(event: Event, episode: Episode) -> bool:
    fault = event.fault
    if fault is None or not event.is_near(episode.began_at, SLACK_SECONDS):
        return False
    family = {event.server, f"{event.server}-standby"}
    return episode.server in family and episode.rule in fault.rules | fault.also


def _first(event: Event, found: Iterable[Episode], causes: Iterable[Event]) -> Episode | None:
    """Find the first alert that had to come of a fault; one after its kind came again belongs to that one."""
    fault = event.fault
    assert fault is not None  # noqa: S101
    server = f"{event.server}-standby" if fault.on_standby else event.server
    again = [e.begun_at for e in causes if (e.server, e.name) == (event.server, event.name)]
    next_at = min((at for at in again if at > event.begun_at), default=None)
    fitting = [
        each
        for each in found
        if each.server == server
        and each.rule in fault.rules
        and event.is_near(each.began_at, SLACK_SECONDS)
        and (next_at is None or each.began_at < next_at)
    ]
    return min(fitting, key=lambda each: each.began_at, default=None)


def _around(episode: Episode, events: Iterable[Event]) -> tuple[Event, ...]:
    server = episode.server.removesuffix("-standby")
    return tuple(
        event
        for event in events
        if event.server == server
        and event.is_near(episode.began_at, 2 * SLACK_SECONDS if event.fault else 0.0)
    )
