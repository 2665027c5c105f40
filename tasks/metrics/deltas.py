"""How much counters grew since they were last read, so that no rate is ever invented."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from typing import Protocol

from tasks.metrics.models import (
    AVAILABILITY,
    Derived,
    Family,
    FamilyAnswer,
    FamilyState,
    Level,
    Observation,
    Sample,
)

SeriesKey = tuple[str, tuple[tuple[str, str], ...]]
"""A family and its labels, sorted by name: what a series is known by."""

_CLOCK = "clock_epoch_seconds"
_MISSED_ANSWERS = 5
_FORGOTTEN_AFTER = timedelta(days=7)


class Families(Protocol):
    """Whatever knows the families by name."""

    @property
    def families(self) -> Mapping[str, Family]:
        """Return the families by name."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """Counters as they stood; monotonic is None for a reading of another process."""

    raw: Mapping[str, float]
    epoch: str
    read_at: datetime
    monotonic: float | None
    answer: int


class _Group:
    """The series that one answer brings: a family's, in one database."""

    def __init__(self) -> None:
        self.answers = 0
        self.answered_at: datetime | None = None
        self.readings: dict[SeriesKey, _Reading] = {}

    def forget(self) -> None:
        """Drop the series that several answers in a row did not have."""
        oldest = self.answers - _MISSED_ANSWERS
        gone = [key for key, reading in self.readings.items() if reading.answer < oldest]
        for key in gone:
            del self.readings[key]


class Deltas:
    """Turns answers into samples, holding each counter's last reading.

    Intervals are measured by the monotonic clock when both readings are of this process. From a stored sample to this
    one it is the wall clock, which may be that of two hosts: where the server's own clock was read with both, what the
    hosts' clocks differ by is set right by it. There is no growth on the first reading, in an interval that is not positive, in
    another epoch, or when any counter of the series fell: then none of its counters is in the sample.
    """

    def __init__(self, previous: Mapping[SeriesKey, Sample] | None = None) -> None:
        self._stored = {key: _stored(sample) for key, sample in (previous or {}).items()}
        self._groups: dict[tuple[str, str], _Group] = {}
        stored = (previous or {}).get((AVAILABILITY, ()))
        self._stored_behind = _behind(stored.values, stored.sampled_at) if stored else None
        self._behind: float | None = None

    @property
    def shift_seconds(self) -> float:
        """Return what to add to an interval from a stored reading to one of this process by the wall clock."""
        if self._behind is None or self._stored_behind is None:
            return 0.0
        return self._behind - self._stored_behind

    def note_clock(self, answers: Iterable[FamilyAnswer]) -> None:
        """Compare this process's clock with the server's, as availability tells it."""
        for answer in answers:
            if answer.family == AVAILABILITY and answer.observations:
                found = _behind(answer.observations[0].numbers, answer.read_at)
                self._behind = self._behind if found is None else found

    def samples(self, answers: Iterable[FamilyAnswer], catalog: Families) -> tuple[Sample, ...]:
        """Return one sample for each observation, in their order."""
        answers = tuple(answers)
        self.note_clock(answers)
        made = [
            self._of_answer(answer, catalog.families[answer.family])
            for answer in answers
            if answer.family in catalog.families
        ]
        self._forget(max((sample.sampled_at for sample in chain(*made)), default=None))
        return tuple(chain(*made))

    @property
    def held(self) -> int:
        """Return how many series are remembered."""
        return len(self._stored) + sum(len(group.readings) for group in self._groups.values())

    def _of_answer(self, answer: FamilyAnswer, family: Family) -> list[Sample]:
        scope = answer.database if family.level is Level.DATABASE else ""
        group = self._groups.setdefault((family.name, scope), _Group())
        if answer.state is FamilyState.OK:
            group.answers += 1
            group.answered_at = answer.read_at
        counters = family.counters
        made = [self._sample(group, answer, family, each, counters) for each in answer.observations]
        group.forget()
        return made

    def _sample(
        self,
        group: _Group,
        answer: FamilyAnswer,
        family: Family,
        seen: Observation,
        counters: Collection[str],
    ) -> Sample:
        key = key_of(family.name, seen.labels)
        raw = {name: value for name, value in seen.numbers.items() if name in counters}
        values = {name: value for name, value in seen.numbers.items() if name not in counters}
        before = group.readings.get(key) or self._stored.pop(key, None)
        now = _Reading(raw, seen.epoch, answer.read_at, answer.monotonic, group.answers)
        interval = _interval(before, now, self.shift_seconds) if raw else None
        growth = _growth(before, now) if before and interval else None
        if growth is not None:
            values |= growth | _ratios(family.derived, growth)
        if raw:
            group.readings[key] = now
        return Sample(
            family=family.name,
            labels=seen.labels,
            sampled_at=answer.read_at,
            values=values,
            interval_seconds=interval if growth is not None else None,
            raw=raw,
            epoch=seen.epoch,
            texts=seen.texts,
        )

    def _forget(self, now: datetime | None) -> None:
        """Drop what nobody asked for in days: a dropped database, a family that was taken out."""
        if now is None:
            return
        horizon = now - _FORGOTTEN_AFTER
        self._stored = {k: v for k, v in self._stored.items() if v.read_at > horizon}
        old = [
            key
            for key, group in self._groups.items()
            if group.answered_at is not None and group.answered_at < horizon
        ]
        for key in old:
            del self._groups[key]


def key_of(family: str, labels: Mapping[str, str]) -> SeriesKey:
    """Return what a series is known by."""
    return family, tuple(sorted(labels.items()))


def _stored(sample: Sample) -> _Reading:
    return _Reading(sample.raw, sample.epoch, sample.sampled_at, None, 0)


def _behind(values: Mapping[str, float], at: datetime) -> float | None:
    """Return by how many seconds a clock that shows `at` is behind the server's, or None when that is unknown."""
    clock = values.get(_CLOCK)
    return None if clock is None else clock - at.timestamp()


def _interval(before: _Reading | None, now: _Reading, shift_seconds: float) -> float | None:
    """Return the seconds between two readings, or None when the clock does not tell."""
    if before is None or now.monotonic is None:
        return None
    if before.monotonic is not None:
        seconds = now.monotonic - before.monotonic
    else:
        seconds = (now.read_at - before.read_at).total_seconds() + shift_seconds
    return seconds if seconds > 0 else None


def _growth(before: _Reading, now: _Reading) -> dict[str, float] | None:
    """Return how much each counter grew, or None when they began anew in between."""
    if before.epoch != now.epoch:
        return None
    growth = {
        name: value - before.raw[name] for name, value in now.raw.items() if name in before.raw
    }
    if not growth or min(growth.values()) < 0:
        return None
    return growth


def _ratios(derived: Mapping[str, Derived], growth: Mapping[str, float]) -> dict[str, float]:
    ratios = {name: _ratio(each, growth) for name, each in derived.items()}
    return {name: value for name, value in ratios.items() if value is not None}


def _ratio(derived: Derived, growth: Mapping[str, float]) -> float | None:
    """Return scale * sum(numerator) / sum(denominator), or None where a counter is unknown or nothing happened."""
    if not growth.keys() >= {*derived.numerator, *derived.denominator}:
        return None
    below = sum(growth[name] for name in derived.denominator)
    return (
        derived.scale * sum(growth[name] for name in derived.numerator) / below if below else None
    )
