"""Inhibition: while one alert is open, others that follow from it are not told."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from pydantic import Field

from tasks.alerts.models import Alert, Strict


class Inhibition(Strict):
    """A source rule that keeps target rules quiet where the named things are equal: server, or a label."""

    source: str
    targets: tuple[str, ...] = Field(min_length=1)
    equal: tuple[str, ...] = ("server",)

    def holds(self, source: Alert, target: Alert) -> bool:
        """Tell whether this open alert keeps that one quiet; none does so to itself."""
        return (
            source.fingerprint != target.fingerprint
            and fnmatchcase(source.rule, self.source)
            and not fnmatchcase(target.rule, self.source)
            and any(fnmatchcase(target.rule, pattern) for pattern in self.targets)
            and all(_value(source, name) == _value(target, name) for name in self.equal)
        )


def inhibitor(
    inhibitions: Iterable[Inhibition], target: Alert, open_alerts: Iterable[Alert]
) -> Alert | None:
    """Return an open alert that keeps this one quiet, if there is one."""
    sources = list(open_alerts)
    found = (
        source
        for inhibition in inhibitions
        for source in sources
        if inhibition.holds(source, target)
    )
    return next(found, None)


def _value(alert: Alert, name: str) -> str | None:
    return alert.server if name == "server" else alert.labels.get(name)
