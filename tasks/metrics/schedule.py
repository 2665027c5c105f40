"""When a server's tiers are due: aligned among themselves, and spread over the fleet."""

import math
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from tasks.metrics.models import Tier


def standard_seconds(tier: Tier) -> float:
    """Return a tier's interval."""
    return float(tier.seconds)


@dataclass(slots=True)
class Schedule:
    """The slots of one server on a monotonic clock.

    Each server has an offset of its own by its name, the same for all of its tiers: where the longer interval is a
    multiple of the shorter one, its slots coincide with slots of that one, so that one collection serves both. A slot
    that was missed is not made up for.
    """

    server: str
    started_at: float
    seconds: Callable[[Tier], float] = standard_seconds
    _taken: dict[Tier, int] = field(default_factory=dict, init=False)

    def due(self, now: float) -> frozenset[Tier]:
        """Return the tiers whose present slot has not been taken; all of them from the first slot on."""
        if now < self._first_at():
            return frozenset()
        return frozenset(t for t in Tier if self._slot(t, now) > self._taken.get(t, -(2**62)))

    def take(self, tiers: Collection[Tier], now: float) -> None:
        """Note that these tiers are collected in their present slot."""
        self._taken.update({tier: self._slot(tier, now) for tier in tiers})

    def delay(self, now: float) -> float:
        """Return the seconds until a tier is due; 0 when one is."""
        if now < self._first_at():
            return self._first_at() - now
        return 0.0 if self.due(now) else min(self._next_at(t, now) for t in Tier) - now

    def _offset(self) -> float:
        share = zlib.crc32(self.server.encode()) / 2**32
        return share * max(self.seconds(tier) for tier in Tier)

    def _slot(self, tier: Tier, now: float) -> int:
        return math.floor((now - self._offset()) / self.seconds(tier))

    def _next_at(self, tier: Tier, now: float) -> float:
        return self._offset() + (self._slot(tier, now) + 1) * self.seconds(tier)

    def _first_at(self) -> float:
        return self._next_at(Tier.LIGHT, self.started_at)
