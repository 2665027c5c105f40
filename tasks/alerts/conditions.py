"""Whether a level of a rule holds, is clear, lies in the band between, or is unknown."""

import operator
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import Enum
from fnmatch import fnmatchcase

from tasks.alerts.models import Guard, Level, Operator, Reading, Rule, Series

_COMPARE: Mapping[Operator, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    "!=": operator.ne,
}


class Stand(Enum):
    """How a value stands to a level."""

    HOLDS = "holds"
    BAND = "band"
    CLEARS = "clears"
    UNKNOWN = "unknown"


def stand(rule: Rule, level: Level, reading: Reading) -> Stand:
    """Compare a reading with a level: between the threshold and the clear threshold it lies in the band."""
    if not reading.applies:
        return Stand.CLEARS
    if reading.value is None:
        return Stand.UNKNOWN
    compare = _COMPARE[rule.operator]
    if compare(reading.value, level.threshold):
        return Stand.HOLDS
    return Stand.BAND if compare(reading.value, level.clear_threshold) else Stand.CLEARS


def is_clear(rule: Rule, reading: Reading) -> bool:
    """Tell whether no level holds, so that nothing begins."""
    return all(stand(rule, level, reading) is not Stand.HOLDS for level in rule.levels)


def is_ordered(op: Operator, better: float, worse: float) -> bool:
    """Tell whether a threshold is at least as far as another in the direction in which this operator looks."""
    if op in {"=", "!="}:
        return better == worse
    return worse >= better if op in {">", ">="} else worse <= better


def watches(rule: Rule, words: Mapping[str, str]) -> bool:
    """Tell whether the rule looks at the object with these labels and texts; a pattern that begins with ! excludes."""
    for name, pattern in rule.where.items():
        text = words.get(name, "")
        if fnmatchcase(text, pattern.removeprefix("!")) == pattern.startswith("!"):
            return False
    return True


def read(rule: Rule, series: Series, now: datetime, stale_after_seconds: float) -> Reading:
    """Take the rule's number out of a sample; a sample that is too old says nothing about now."""
    if (now - series.sampled_at).total_seconds() > stale_after_seconds:
        return Reading(series.sampled_at, None)
    value = _value(rule, series)
    guards = [_holds(series, guard) for guard in rule.when]
    if False in guards:
        return Reading(series.sampled_at, value, applies=False)
    return Reading(series.sampled_at, None if None in guards else value)


def _value(rule: Rule, series: Series) -> float | None:
    if rule.over is None:
        return number(series, rule.metric_name, per_second=rule.per_second)
    growth = series.grown.get((rule.metric_name, rule.over))
    if growth is None or not rule.per_second:
        return growth.value if growth else None
    return growth.value / growth.seconds if growth.seconds else None


def number(series: Series, name: str, *, per_second: bool) -> float | None:
    """Return a metric of a sample, or its growth a second; None when it is not known."""
    value = series.values.get(name)
    if value is None or not per_second:
        return value
    return value / series.interval_seconds if series.interval_seconds else None


def _holds(series: Series, guard: Guard) -> bool | None:
    value = number(series, guard.metric, per_second=guard.per_second)
    return None if value is None else _COMPARE[guard.operator](value, guard.threshold)
