"""Families that failed or were refused: remembered, and asked for again only when it is worth it."""

from dataclasses import dataclass

from tasks.metrics.models import AVAILABILITY, Family, FamilyState

ASK_AGAIN_SECONDS = 3600.0
_FIRST_PAUSE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a family did not answer, and from when on it is asked again."""

    state: FamilyState
    message: str
    again_at: float
    times: int = 1


class Memory:
    """What one database would not answer. Times are those of time.monotonic().

    is_cautious tells that a deadline cut a batch off: the next time each family is asked alone, to find the slow one.
    """

    def __init__(self) -> None:
        self.is_cautious = False
        self._failures: dict[str, Failure] = {}

    def recall(self, family: Family, now: float) -> Failure | None:
        """Return the failure that spares us the asking, or None when it is time to ask."""
        failure = self._failures.get(family.name)
        return failure if failure is not None and now < failure.again_at else None

    def is_on_trial(self, family: Family) -> bool:
        """Tell whether it failed the last time: then it is asked alone, so that it spoils no batch."""
        return family.name in self._failures

    def failed(self, family: Family, state: FamilyState, message: str, now: float) -> None:
        """Remember a failure; the pauses of a degraded family double up to an hour, and availability has none."""
        if family.name == AVAILABILITY:
            return
        before = self._failures.get(family.name)
        times = before.times + 1 if before and before.state is state else 1
        self._failures[family.name] = Failure(
            state, message, now + pause_seconds(family, state, times), times
        )

    def answered(self, family: Family) -> None:
        """Forget that it ever failed."""
        self._failures.pop(family.name, None)

    def reconnected(self) -> None:
        """Forget refusals: rights, extensions or the server itself may be others now."""
        self._failures = {
            name: each
            for name, each in self._failures.items()
            if each.state is not FamilyState.REFUSED
        }


def pause_seconds(family: Family, state: FamilyState, times: int) -> float:
    """Return how long to leave a family alone after it failed so many times in a row."""
    if state is FamilyState.REFUSED:
        return ASK_AGAIN_SECONDS
    first = max(_FIRST_PAUSE_SECONDS, family.tier.seconds)
    return min(ASK_AGAIN_SECONDS, first * 2.0 ** min(times - 1, 10))
