"""Flap control: a condition that keeps coming and going stays one open alert until it is stable."""

from dataclasses import replace
from datetime import datetime, timedelta

from pydantic import Field

from tasks.alerts.models import Duration, Memory, Strict

_HOUR = timedelta(hours=1)


class FlapControl(Strict):
    """How many changes in an hour are flapping, and how long it must be stable to end."""

    changes_per_hour: int = Field(default=6, ge=3)
    stable_for: Duration = timedelta(minutes=15)


def watch(memory: Memory, was_on: bool, at: datetime, control: FlapControl) -> Memory:
    """Note a change of the condition, and say whether it flaps now."""
    is_on = memory.worst is not None
    # A clock that went back has left flips in the future.
    flips = tuple(flip for flip in memory.flips if timedelta(0) <= at - flip < _HOUR)
    if is_on != was_on:
        flips = (*flips, at)
    is_stable = not flips or at - flips[-1] >= control.stable_for
    is_flapping = not is_stable and (memory.is_flapping or len(flips) >= control.changes_per_hour)
    # It was stable: what came before does not count again.
    if memory.is_flapping and not is_flapping:
        flips = ()
    return replace(memory, flips=flips, is_flapping=is_flapping)
