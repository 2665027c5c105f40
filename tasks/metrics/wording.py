"""How numbers and ages are written for people."""

from collections.abc import Mapping

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_KILO = 1024.0
PER_SECOND = " per second"
"""How the unit of a rate ends."""


def ago(seconds: float | None) -> str:
    """Write an age: 4 s, 12 min, 3.5 h, 2.1 d."""
    if seconds is None:
        return "never"
    for unit, size in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{max(seconds, 0):.0f} s"


def amount(value: float | None, unit: str) -> str:
    """Write a number: bytes, seconds and percent with a unit that reads well, what is counted without one."""
    if value is None:
        return "unknown"
    if unit.endswith(PER_SECOND):
        return f"{amount(value, unit.removesuffix(PER_SECOND))}/s"
    if unit == "bytes":
        return _bytes(value)
    if unit == "seconds":
        return ago(value) if value >= 1 else f"{1000 * value:.3g} ms"
    if unit == "milliseconds":
        return amount(value / 1000, "seconds")
    return f"{value:,.1f} %" if unit in {"percent", "%"} else _number(value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else f"{value:,.6g}"


def _bytes(value: float) -> str:
    size = value
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < _KILO:
            return f"{size:.3g} {unit}"
        size /= _KILO
    return f"{size:,.3g} TB"


def named(labels: Mapping[str, str]) -> str:
    """Write an object's labels on one line, of a single one the value alone; empty for the server itself."""
    if len(labels) == 1:
        return next(iter(labels.values()))
    return ", ".join(f"{name} {value}" for name, value in sorted(labels.items()))
