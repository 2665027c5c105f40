"""A server's health as people read it: each metric's value now, against its limits, the worst first."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tasks.metrics.models import Direction, HealthStatus
from tasks.metrics.reading import HealthRow, SeriesRow
from tasks.metrics.wording import PER_SECOND, amount


@dataclass(frozen=True, slots=True)
class HealthLine:
    """A health metric and the newest sample of its object; its status is older than its value."""

    row: HealthRow
    series: SeriesRow | None

    @property
    def value(self) -> float | None:
        """Return the value now, of a rate per second; without a sample the one at the last change of status."""
        name = self.row.metric.partition(".")[2]
        if self.series is None:
            return self.row.value
        if self.row.unit.endswith(PER_SECOND):
            return self.series.per_second(name)
        return self.series.values.get(name)

    @property
    def shown(self) -> str:
        """Return the value with its unit."""
        return amount(self.value, self.row.unit)

    @property
    def limits(self) -> str:
        """Return the limits for warning and critical with their unit."""
        both = (self.row.threshold_warning, self.row.threshold_critical)
        return " / ".join("-" if each is None else amount(each, self.row.unit) for each in both)

    @property
    def stands(self) -> HealthStatus:
        """Return how the value stands to its limits at this moment, however long a rule wants it to last."""
        if self.value is None:
            return HealthStatus.UNKNOWN
        if self._is_past(self.row.threshold_critical):
            return HealthStatus.CRITICAL
        is_past = self._is_past(self.row.threshold_warning)
        return HealthStatus.WARNING if is_past else HealthStatus.NORMAL

    @property
    def badness(self) -> float:
        """Return a number that is greater the worse the value is; what is unknown is worst."""
        if self.value is None:
            return float("inf")
        return -self.value if self.row.direction == Direction.LOWER_IS_WORSE else self.value

    def _is_past(self, limit: float | None) -> bool:
        if limit is None or self.value is None or self.row.direction == Direction.NEUTRAL:
            return False
        if self.row.direction == Direction.LOWER_IS_WORSE:
            return self.value < limit
        return self.value > limit


def lines(health: Iterable[HealthRow], metrics: Iterable[SeriesRow]) -> list[HealthLine]:
    """Join health metrics with the newest samples of their objects, in the order of the first."""
    now = {(row.family, _key(row.labels)): row for row in metrics}
    return [
        HealthLine(row, now.get((row.metric.partition(".")[0], _key(row.labels)))) for row in health
    ]


def condensed(found: Sequence[HealthLine]) -> Iterator[tuple[HealthLine, int]]:
    """Give each line and how many others it stands for: of what is normal, one line a metric, the worst object's."""
    normal: dict[str, list[HealthLine]] = {}
    for line in found:
        if line.row.status is HealthStatus.NORMAL:
            normal.setdefault(line.row.metric, []).append(line)
        else:
            yield line, 0
    for same in normal.values():
        yield max(same, key=lambda line: line.badness), len(same) - 1


def _key(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))
