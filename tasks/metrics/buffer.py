"""What was collected and is not in the vault yet: bounded, the oldest goes first, and loss is counted."""

import threading
from collections import Counter, deque
from collections.abc import Iterable, Sequence

from tasks.metrics.models import Batch

LIMIT_ROWS = 100_000
"""How many rows wait at most: a fleet of 20 servers for some minutes, in about 100 MB."""


class BatchBuffer:
    """A queue of batches, bounded by their rows; any thread may use it.

    What does not fit pushes the oldest out. The newest batch is kept even when it alone is larger than the bound,
    or a large server would never be stored.
    """

    def __init__(self, limit_rows: int = LIMIT_ROWS) -> None:
        self._limit_rows = limit_rows
        self._lock = threading.Lock()
        self._batches: deque[Batch] = deque()
        self._rows = 0
        self._lost: Counter[str] = Counter()
        self._unreported = 0

    @property
    def rows(self) -> int:
        """Return how many rows wait."""
        with self._lock:
            return self._rows

    @property
    def lost_rows(self) -> int:
        """Return how many rows were lost since the start."""
        with self._lock:
            return self._lost.total()

    def lost_of(self, server: str) -> int:
        """Return how many rows of one server were lost since the start."""
        with self._lock:
            return self._lost[server]

    def take_lost(self) -> int:
        """Return how many rows were lost since this was asked for the last time."""
        with self._lock:
            lost, self._unreported = self._unreported, 0
            return lost

    def add(self, batch: Batch) -> None:
        """Append a batch."""
        with self._lock:
            self._batches.append(batch)
            self._rows += batch.size
            self._shrink()

    def take(self, rows: int) -> list[Batch]:
        """Remove and return the oldest batches up to so many rows; at least one when there is any."""
        taken: list[Batch] = []
        room = rows
        with self._lock:
            while self._batches and (not taken or self._batches[0].size <= room):
                taken.append(self._batches.popleft())
                room -= taken[-1].size
            self._rows -= _size(taken)
        return taken

    def put_back(self, batches: Sequence[Batch]) -> None:
        """Return taken batches to the front, as far as there is still room for them."""
        with self._lock:
            self._batches.extendleft(reversed(batches))
            self._rows += _size(batches)
            self._shrink()

    def drop(self, batch: Batch) -> None:
        """Count a taken batch as lost."""
        self.lose(batch.server, batch.size)

    def lose(self, server: str, rows: int) -> None:
        """Count rows of a taken batch as lost."""
        with self._lock:
            self._count(server, rows)

    def _shrink(self) -> None:
        while self._rows > self._limit_rows and len(self._batches) > 1:
            oldest = self._batches.popleft()
            self._rows -= oldest.size
            self._count(oldest.server, oldest.size)

    def _count(self, server: str, rows: int) -> None:
        self._lost[server] += rows
        self._unreported += rows


def _size(batches: Iterable[Batch]) -> int:
    return sum(batch.size for batch in batches)
