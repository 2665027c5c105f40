"""From readings to alerts: a level is pending until it has held for long enough, and ends only when it is clear.

Time is that of the readings: the same reading seen twice changes nothing, and one reading never shows that something
lasted. What is unknown changes nothing either.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from tasks.alerts import flapping
from tasks.alerts.conditions import Stand, stand
from tasks.alerts.flapping import FlapControl
from tasks.alerts.models import Alert, Level, LevelMemory, Memory, Reading, Rule, Severity

# Evaluators on several hosts may differ by less; what is older still comes of a clock that was set back.
_OLDER = timedelta(minutes=5)
# A server that only the five-minute flow collects has readings that lie so far apart, and a skipped turn between them.
_LONGEST = timedelta(minutes=11)
# Readings of a ten-second tier lie 9.999 s apart as well.
_SLACK = timedelta(seconds=0.5)


def step(
    rule: Rule, memory: Memory, reading: Reading, longest_gap: timedelta, control: FlapControl
) -> Memory:
    """Return what is remembered after a reading.

    What two readings at most eleven minutes (or longest_gap) apart both say has lasted between them; after a longer gap
    what was counting starts again. So it does when the clock went back by longest_gap and five minutes at least, or
    nothing would change until it has caught up.
    """
    memory = _of_rule(rule, memory)
    if reading.value is None and reading.applies:
        return memory
    since_last = reading.at - memory.last_at if memory.last_at is not None else None
    if since_last is not None and -max(longest_gap, _OLDER) <= since_last <= timedelta(0):
        return memory
    gap = since_last is not None and not timedelta(0) < since_last <= max(longest_gap, _LONGEST)
    was_on = memory.worst is not None
    levels = {
        level.severity: _level(rule, level, _restarted(memory.levels[level.severity], gap), reading)
        for level in rule.levels
    }
    stepped = replace(memory, levels=levels, last_at=reading.at)
    stepped = flapping.watch(stepped, was_on, reading.at, control)
    return replace(stepped, held=_held(stepped))


def recall(memory: Memory | None, alert: Alert | None, rule: Rule, server: str) -> Memory:
    """Return the memory to go on from: the tables of alerts are right when the two differ."""
    if memory is None:
        labels = alert.labels if alert else {}
        memory = Memory(rule.name, server, labels)
    held = alert.severity if alert else None
    if memory.held == held:
        return memory
    levels = {
        level.severity: LevelMemory(active=held is not None and level.severity.rank <= held.rank)
        for level in rule.levels
    }
    return _as_told(replace(memory, levels=levels, held=held), alert)


def pending_since(memory: Memory) -> datetime | None:
    """Return since when a level holds that has not held for long enough yet."""
    begun = [level.since for level in memory.levels.values() if level.since and not level.active]
    return min(begun) if begun else None


def _as_told(memory: Memory, alert: Alert | None) -> Memory:
    if alert is None or alert.last_notified_at is None:
        return replace(memory, notified_episode=False)
    return replace(
        memory,
        notified_at=alert.last_notified_at,
        notified_severity=alert.severity,
        notified_episode=True,
    )


def _of_rule(rule: Rule, memory: Memory) -> Memory:
    """Forget levels that the rule does not have any more, and begin those it has got."""
    levels = {
        level.severity: memory.levels.get(level.severity, LevelMemory()) for level in rule.levels
    }
    return replace(memory, levels=levels)


def _restarted(memory: LevelMemory, gap: bool) -> LevelMemory:
    if not gap:
        return memory
    return replace(memory, since=memory.since if memory.active else None, clear_since=None)


def _level(rule: Rule, level: Level, memory: LevelMemory, reading: Reading) -> LevelMemory:
    stands = stand(rule, level, reading)
    if memory.active:
        if stands is not Stand.CLEARS:
            return replace(memory, clear_since=None)
        clear_since = memory.clear_since or reading.at
        is_clear = reading.at - clear_since >= rule.clear_for - _SLACK
        return LevelMemory() if is_clear else replace(memory, clear_since=clear_since)
    if stands is not Stand.HOLDS:
        return LevelMemory()
    since = memory.since or reading.at
    return LevelMemory(since=since, active=reading.at - since >= level.lasting - _SLACK)


def _held(memory: Memory) -> Severity | None:
    if memory.worst is None and memory.is_flapping:
        return memory.held
    return memory.worst
