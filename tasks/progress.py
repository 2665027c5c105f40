"""How far long work has come: bytes, rate, time left; told to whoever listens, a few times a second."""

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

Listener = Callable[["Reading"], None]

listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)
"""Who wants to see progress in this context, for example the command line."""

_INTERVAL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Reading:
    """Where a stage stands."""

    stage: str
    done_bytes: int
    total_bytes: int | None
    elapsed_seconds: float
    finished: bool = False

    @property
    def bytes_per_second(self) -> float:
        """Return the mean rate so far."""
        return self.done_bytes / self.elapsed_seconds if self.elapsed_seconds > 0 else 0.0

    @property
    def percent(self) -> float | None:
        """Return how much is done, 0-100; None when the total is not known. A total is the server's estimate."""
        if not self.total_bytes:
            return None
        return min(100.0 if self.finished else 99.0, 100.0 * self.done_bytes / self.total_bytes)

    @property
    def seconds_left(self) -> float | None:
        """Return the time left at the mean rate."""
        if not self.total_bytes or not self.bytes_per_second:
            return None
        return max(0.0, self.total_bytes - self.done_bytes) / self.bytes_per_second


class Progress:
    """The progress of one stage; tells its listeners at most four times a second."""

    def __init__(self, stage: str, *listeners: Listener, total_bytes: int | None = None) -> None:
        self._stage = stage
        self._listeners = listeners
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._started = time.monotonic()
        self._told = 0.0

    def expect(self, total_bytes: int | None) -> None:
        """Set the expected bytes."""
        self._total_bytes = total_bytes

    def advance(self, done_bytes: int) -> None:
        """Tell how many bytes are done in all."""
        self._done_bytes = done_bytes
        now = time.monotonic()
        if now - self._told >= _INTERVAL_SECONDS:
            self._told = now
            self._tell(finished=False)

    def add(self, size: int) -> None:
        """Tell that so many more bytes are done."""
        self.advance(self._done_bytes + size)

    def finish(self) -> None:
        """Tell that the stage is over."""
        self._tell(finished=True)

    def _tell(self, *, finished: bool) -> None:
        reading = Reading(
            self._stage,
            self._done_bytes,
            self._total_bytes,
            time.monotonic() - self._started,
            finished,
        )
        for tell in self._listeners:
            tell(reading)
