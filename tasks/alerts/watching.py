"""Who watches the watchers: readings that stopped coming and rules that fail, as metrics that rules look at."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from tasks.alerts.models import FamilyStatus, Series
from tasks.metrics.models import (
    AVAILABILITY,
    Direction,
    Family,
    FamilyState,
    Kind,
    Level,
    Metric,
    Source,
    Tier,
)

FAMILY = "evaluation"
_ASKED = frozenset({FamilyState.OK, FamilyState.DEGRADED, FamilyState.UNAVAILABLE})


def _metric(name: str, unit: str, description: str) -> Metric:
    return Metric(name, Kind.GAUGE, unit, Direction.HIGHER_IS_WORSE, description)


_METRICS = (
    _metric("stale_families", "families", "Families of metrics whose newest reading is too old."),
    _metric("silent_seconds", "seconds", "Since when nothing at all has come from the collector."),
    _metric("failed_rules", "rules", "Rules that could not be evaluated."),
)
STATEMENT_MEANS = "statement_means"
_STATEMENTS = (
    _metric("slow", "statements", "Statements with a mean above 1 s in the last five minutes."),
    _metric("critical", "statements", "Statements with a mean above 5 s in the last five minutes."),
)
FAMILIES: Mapping[str, Family] = {
    STATEMENT_MEANS: Family(
        name=STATEMENT_MEANS,
        description="Statements that ran more than five times in five minutes, by their mean time.",
        source=Source.COLLECTOR,
        level=Level.INSTANCE,
        tier=Tier.MINUTE,
        timeout_ms=0,
        metrics={metric.name: metric for metric in _STATEMENTS},
        texts=("slowest",),
    ),
    FAMILY: Family(
        name=FAMILY,
        description="What the evaluation of rules knows of itself.",
        source=Source.COLLECTOR,
        level=Level.INSTANCE,
        tier=Tier.LIGHT,
        timeout_ms=0,
        metrics={metric.name: metric for metric in _METRICS},
        texts=("families", "rules"),
    ),
}


def statuses_of(
    server: str,
    statuses: Mapping[tuple[str, str], Sequence[FamilyStatus]],
    families: Iterable[str],
) -> list[FamilyStatus]:
    """Return the statuses of one server, of the families that are known; others' are not gone through."""
    return [status for family in families for status in statuses.get((server, family), ())]


def watch(
    server: str,
    statuses: Iterable[FamilyStatus],
    families: Mapping[str, Family],
    failed_rules: Iterable[str],
    now: datetime,
) -> Series:
    """Return how many families of a server are stale and how many rules failed on it, and which.

    Families that are refused or make no sense there are no fault.
    """
    listed, failed = list(statuses), sorted(set(failed_rules))
    stale = sorted({status.family for status in listed if _is_stale(status, families, now)})
    values: dict[str, float] = {"stale_families": len(stale), "failed_rules": len(failed)}
    heard = [status.attempted_at for status in listed if status.family == AVAILABILITY]
    if heard:
        values["silent_seconds"] = max(0.0, (now - max(heard)).total_seconds())
    texts = {"families": ", ".join(stale), "rules": ", ".join(failed)}
    return Series(None, server, FAMILY, {}, now, values, texts=texts)


def _is_stale(status: FamilyStatus, families: Mapping[str, Family], now: datetime) -> bool:
    family = families.get(status.family)
    if family is None or status.family == AVAILABILITY or status.state not in _ASKED:
        return False
    if status.collected_at is None:
        return status.state != FamilyState.OK
    return (now - status.collected_at).total_seconds() > family.stale_after_seconds
