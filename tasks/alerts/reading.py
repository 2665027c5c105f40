"""What people ask about alerts: which are open, what happened, and why a rule is or is not firing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import psycopg

from tasks.alerts import conditions, machine, quiet, store, watching, wording
from tasks.alerts.conditions import Stand
from tasks.alerts.models import (
    Alert,
    Level,
    LevelMemory,
    Memory,
    Reading,
    Rule,
    Series,
    View,
    fingerprint,
    show_duration,
)
from tasks.alerts.rules import RuleSet
from tasks.errors import Refused

_WEEK = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a rule is or is not firing on one object: one line for each of its levels."""

    rule: str
    labels: Mapping[str, str]
    value: float | None
    read_at: datetime
    alert: Alert | None
    lines: tuple[str, ...]
    not_told_because: str | None = None


def open_alerts(conn: psycopg.Connection, server: str | None = None) -> tuple[Alert, ...]:
    """Return the open alerts, the worst first, then the oldest."""
    found = store.open_alerts(conn, None if server is None else [server])
    return tuple(sorted(found, key=lambda alert: (-alert.severity.rank, alert.triggered_at)))


def history(
    conn: psycopg.Connection,
    now: datetime,
    *,
    server: str | None = None,
    span: timedelta = _WEEK,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """Return what happened to alerts, newest first."""
    return store.history(conn, server, now - span, limit)


def explain(
    conn: psycopg.Connection, rules: RuleSet, server: str, rule: str, now: datetime
) -> tuple[Explanation, ...]:
    """Say of every object that the rule looks at what its value is, and what each level waits for.

    Refused for a server or a rule that is not known there. Nothing is written.
    """
    found = store.view(conn, rules, now, [server])
    if server not in found.servers:
        message = f"No server named {server} has been collected: see `onevault status`."
        raise Refused(message)
    named = {each.name: each for each in rules.of(found.servers[server])}
    if rule not in named:
        message = (
            f"The rule {rule} is not in force on {server}: it is disabled there or does not exist."
        )
        raise Refused(message)
    return tuple(_explained(rules, found, named[rule], server, now))


def _explained(
    rules: RuleSet, found: View, rule: Rule, server: str, now: datetime
) -> Iterator[Explanation]:
    family = rules.families[rule.family]
    for series in _looked_at(rules, found, rule, server, now):
        if not conditions.watches(rule, {**series.texts, **series.labels}):
            continue
        key = fingerprint(rule.name, server, series.labels)
        alert = found.alerts.get(key)
        reading = conditions.read(rule, series, now, family.stale_after_seconds)
        memory = machine.recall(found.memories.get(key), alert, rule, server)
        others = list(found.alerts.values())
        yield Explanation(
            rule=rule.name,
            labels=series.labels,
            value=reading.value,
            read_at=reading.at,
            alert=alert,
            lines=tuple(_lines(rule, memory, reading, series, now)),
            not_told_because=quiet.why(rules, found, alert, others, now) if alert else None,
        )


def _looked_at(
    rules: RuleSet, found: View, rule: Rule, server: str, now: datetime
) -> Sequence[Series]:
    """Return what a rule looks at; which rules have failed only an evaluation knows."""
    if rule.family != watching.FAMILY:
        return found.series.get((server, rule.family), ())
    statuses = watching.statuses_of(server, found.statuses, rules.families)
    series = watching.watch(server, statuses, rules.families, (), now)
    known = {name: value for name, value in series.values.items() if name != "failed_rules"}
    return [replace(series, values=known)]


def _lines(
    rule: Rule, memory: Memory, reading: Reading, series: Series, now: datetime
) -> Iterator[str]:
    if not reading.applies:
        yield "another metric of the family says that the rule does not apply now"
    elif reading.value is None:
        age = (now - series.sampled_at).total_seconds()
        yield f"the value is unknown: the newest sample is {wording.shown(age, 'seconds')} old"
    for level in sorted(rule.levels, key=lambda level: level.severity.rank):
        yield f"{level.severity}: {_waits(rule, level, memory.levels.get(level.severity), reading)}"


def _waits(rule: Rule, level: Level, memory: LevelMemory | None, reading: Reading) -> str:
    memory = memory or LevelMemory()
    condition = f"{rule.operator} {level.threshold:g}"
    if memory.active:
        return f"firing, {_end(rule, level, memory)}"
    if memory.since:
        lasting = show_duration(level.lasting)
        return (
            f"{condition} since {memory.since:%H:%M:%S} UTC, fires when that has lasted {lasting}"
        )
    if conditions.stand(rule, level, reading) is Stand.UNKNOWN:
        return f"not firing; {condition} can neither be confirmed nor denied"
    return f"not firing; it needs {condition} for {show_duration(level.lasting)}"


def _end(rule: Rule, level: Level, memory: LevelMemory) -> str:
    ends = f"until it is no longer {rule.operator} {level.clear_threshold:g}"
    lasting = f" for {show_duration(rule.clear_for)}" if rule.clear_for else ""
    since = f"; clear since {memory.clear_since:%H:%M:%S} UTC" if memory.clear_since else ""
    return ends + lasting + since
