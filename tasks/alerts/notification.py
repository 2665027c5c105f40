"""Whether people are to hear of an alert now, and if not, why not."""

from dataclasses import replace
from datetime import datetime, timedelta

from tasks.alerts.models import AlertStatus, Memory, Notify, Severity

# What is not urgent is not repeated within a day of suppression windows.
_REPEAT_AFTER_WINDOWS = {
    Severity.LOW: 24,
    Severity.MEDIUM: 24,
    Severity.HIGH: 1,
    Severity.CRITICAL: 1,
}

Decision = tuple[Notify | None, str | None]


def decide(
    memory: Memory, status: AlertStatus, now: datetime, window: timedelta, quiet: str | None
) -> Decision:
    """Return the reason to tell people, or the reason not to.

    The memory is that after the change. A worse severity and a re-fire break through the suppression window; silences,
    inhibition and maintenance windows (quiet) hold back until they end. Whoever was told that it began is told that it
    ended, quiet or not: nobody may be left with an alert that is over.
    """
    if status is AlertStatus.RESOLVED:
        return _resolved(memory)
    if quiet:
        return None, quiet
    if memory.held is None:
        return None, "it is not firing"
    if memory.is_flapping and memory.notified_flapping:
        return None, "it is flapping, and that was told once"
    return _firing(memory, memory.held, status, now, window)


def told(memory: Memory, reason: Notify, now: datetime) -> Memory:
    """Return the memory after people were told."""
    if reason is Notify.RESOLVED:
        return replace(memory, notified_at=now, notified_episode=False, notified_flapping=False)
    return replace(
        memory,
        notified_at=now,
        notified_severity=memory.held,
        notified_episode=True,
        notified_flapping=memory.is_flapping,
    )


def _resolved(memory: Memory) -> Decision:
    if not memory.notified_episode:
        return None, "nobody was told that it began"
    return Notify.RESOLVED, None


def _firing(
    memory: Memory, severity: Severity, status: AlertStatus, now: datetime, window: timedelta
) -> Decision:
    last = memory.notified_at
    if not memory.notified_episode or last is None:
        again = last is not None and now - last < window
        return (Notify.REFIRE if again else Notify.FIRST), None
    before = memory.notified_severity
    if before is None or severity.rank > before.rank:
        return Notify.WORSE, None
    if memory.is_flapping:
        return Notify.REFIRE, None
    if status is AlertStatus.ACKNOWLEDGED:
        return None, "someone has acknowledged it"
    return _repeated(last, severity, now, window)


def _repeated(last: datetime, severity: Severity, now: datetime, window: timedelta) -> Decision:
    if not window:
        return None, "people were told, and without a suppression window nothing is repeated"
    until = last + window * _REPEAT_AFTER_WINDOWS[severity]
    if now >= until:
        return Notify.REPEAT, None
    return None, f"people were told; the suppression window ends at {until:%Y-%m-%d %H:%M} UTC"
