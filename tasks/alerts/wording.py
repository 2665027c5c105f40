"""The sentence of an alert: a rule's template filled with plain values, in units that people read."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from string import Formatter

from tasks.alerts.models import Level as RuleLevel
from tasks.alerts.models import Reading, Rule, Series
from tasks.errors import Refused
from tasks.metrics.models import Family, Level

_ALWAYS = frozenset({"value", "threshold", "server"})
_SPECS = frozenset({"", "bytes", "seconds", "percent", "number"})
_BYTES = ("B", "kB", "MB", "GB", "TB", "PB")
_KILO = 1024.0
_SPANS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
_TIMES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def sentence(rule: Rule, level: RuleLevel, series: Series, reading: Reading) -> str:
    """Return the summary; what is not known is written as a question mark."""
    numbers = {"value": reading.value, "threshold": level.threshold}
    words = {**series.texts, **series.labels, "server": series.server, "over": span(rule.over)}
    return "".join(_filled(rule.summary, numbers, words))


def _filled(
    template: str, numbers: Mapping[str, float | None], words: Mapping[str, str]
) -> Iterator[str]:
    for text, name, spec, _ in Formatter().parse(template):
        yield text
        if name is None:
            continue
        number = numbers.get(name)
        yield shown(number, spec or "") if number is not None else words.get(name) or "?"


def span(over: timedelta | None) -> str:
    """Write a time as it stands behind "the last": 10 minutes, day."""
    seconds = int(over.total_seconds()) if over else 0
    for length, unit in _SPANS:
        count, rest = divmod(seconds, length)
        if count and not rest:
            return unit if count == 1 else f"{count} {unit}s"
    return ""


def shown(number: float, unit: str) -> str:
    """Write a number in a unit of the templates: bytes, seconds, percent, or plain."""
    if unit == "bytes":
        return _bytes(number)
    if unit == "seconds":
        return _seconds(number)
    if unit == "percent":
        return f"{number:.1f} %"
    return f"{number:,.0f}" if number == int(number) else f"{number:,.2f}"


def bad_fields(template: str) -> list[str]:
    """Return the places of a template that are no plain field: attributes, indexes, conversions, formats."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError:
        return [template]
    return [
        name
        for _, name, spec, conversion in parsed
        if name is not None
        and (not name.isidentifier() or conversion or (spec or "") not in _SPECS)
    ]


def check(rule: Rule, family: Family) -> None:
    """Refuse a rule whose sentence or labels the family cannot fill."""
    known = {*_ALWAYS, *family.labels, *family.texts}
    if family.level is Level.DATABASE:
        known.add("database")
    if rule.over:
        known.add("over")
    named = {name for _, name, _, _ in Formatter().parse(rule.summary) if name is not None}
    unknown = sorted((named | set(rule.where)) - known)
    if unknown:
        message = (
            f"The rule {rule.name} uses {', '.join(unknown)}, which {family.name} does not have; "
            f"it has {', '.join(sorted(known))}."
        )
        raise Refused(message)


def _bytes(number: float) -> str:
    size, unit = float(number), 0
    while abs(size) >= _KILO and unit < len(_BYTES) - 1:
        size, unit = size / _KILO, unit + 1
    return f"{size:.0f} B" if unit == 0 else f"{size:.1f} {_BYTES[unit]}"


def _seconds(number: float) -> str:
    for length, unit in _TIMES:
        if abs(number) >= 2 * length:
            return f"{number / length:.0f} {unit}"
    return f"{number:.0f} s"
