"""How healthy a metric is: its status against the thresholds of its rule; what is unknown is never normal."""

from tasks.alerts.models import Health, Memory, Reading, Rule, Series, Severity, show_duration
from tasks.metrics.models import Family, HealthStatus


def health_of(
    rule: Rule, family: Family, memory: Memory | None, series: Series, reading: Reading
) -> Health:
    """Return the health of one object's metric, as severe as the level that is active."""
    name = rule.metric_name
    metric = family.metrics[name] if name in family.metrics else family.derived[name].metric
    unit = f"{metric.unit} in {show_duration(rule.over)}" if rule.over else metric.unit
    unit = f"{metric.unit} per second" if rule.per_second else unit
    critical = rule.level(Severity.CRITICAL)
    milder = [level for level in rule.levels if level is not critical]
    warning = min(milder, key=lambda level: level.severity.rank) if milder else None
    return Health(
        server=series.server,
        metric=rule.metric,
        labels=series.labels,
        category=rule.category.value,
        unit=unit,
        direction=metric.direction.value,
        status=_status(memory, reading),
        value=reading.value,
        warning=warning.threshold if warning else None,
        critical=critical.threshold if critical else None,
        measured_at=reading.at,
        applies=reading.applies,
    )


def _status(memory: Memory | None, reading: Reading) -> HealthStatus:
    if reading.value is None:
        return HealthStatus.UNKNOWN
    return memory.held.health if memory and memory.held else HealthStatus.NORMAL
