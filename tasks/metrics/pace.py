"""How fast the collector does what it does, in seconds."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from tasks.metrics.models import Tier
from tasks.metrics.schedule import standard_seconds
from tasks.metrics.statement_texts import ASK_EVERY_SECONDS


@dataclass(frozen=True, slots=True)
class Pace:
    """Intervals and bounds.

    seconds gives each tier's interval; targets_seconds how often the list of servers is read again; deadline_seconds
    bounds one collection when the session's own deadline does not, and one that took slow_seconds puts the server into
    the lane of the slow ones; texts_seconds is how often a server is asked for texts of statements at most.
    """

    seconds: Callable[[Tier], float] = standard_seconds
    targets_seconds: float = 30.0
    write_seconds: float = 0.5
    backoff_seconds: float = 15.0
    beat_seconds: float = 5.0
    stop_seconds: float = 10.0
    deadline_seconds: float = 75.0
    slow_seconds: float = 3.0
    texts_seconds: float = ASK_EVERY_SECONDS


async def happened(event: asyncio.Event, within_seconds: float) -> bool:
    """Wait for an event; tell whether it came within that time."""
    try:
        async with asyncio.timeout(max(0.0, within_seconds)):
            await event.wait()
    except TimeoutError:
        return False
    return True
