"""When tiers are due."""

from collections import Counter
from itertools import pairwise

import pytest

from tasks.metrics.models import Tier
from tasks.metrics.schedule import Schedule

ALL = frozenset(Tier)
SERVERS = [f"server-{n}" for n in range(200)]


def walk(schedule: Schedule, until: float) -> list[tuple[float, frozenset[Tier]]]:
    """Serve a schedule as the collector does, in no time, until a moment of the clock."""
    now, rounds = schedule.started_at, []
    while (now := now + schedule.delay(now)) < until:
        if due := schedule.due(now):
            schedule.take(due, now)
            rounds.append((now, due))
        else:
            now += 1e-6  # a rounding error in front of the slot
    return rounds


def test_everything_is_due_at_the_first_slot_and_not_before():
    schedule = Schedule("db1", 1000.0)
    delay = schedule.delay(1000.0)
    assert 0 < delay <= 10
    assert schedule.due(1000.0) == frozenset()
    assert schedule.due(1000.0 + delay + 1e-6) == ALL


@pytest.mark.parametrize("server", SERVERS[:20])
def test_each_tier_keeps_its_interval_and_longer_ones_fall_on_slots_of_shorter_ones(server: str):
    rounds = walk(Schedule(server, 5.0), 2 * 3600 + 5.0)
    counts = Counter(tier for _, due in rounds for tier in due)
    # The first slot serves all tiers, wherever in their interval it lies.
    assert counts[Tier.LIGHT] in range(719, 722)
    assert counts[Tier.MINUTE] in range(120, 123)
    assert counts[Tier.FIVE_MINUTES] in range(24, 27)
    assert counts[Tier.HOURLY] in {2, 3}
    assert all(Tier.LIGHT in due for _, due in rounds)
    assert all(Tier.MINUTE in due for _, due in rounds if Tier.FIVE_MINUTES in due)
    gaps = [b[0] - a[0] for a, b in pairwise(rounds)]
    assert max(gaps) == pytest.approx(10, abs=1e-3)
    assert min(gaps) == pytest.approx(10, abs=1e-3)


def test_a_missed_slot_is_not_made_up_for():
    schedule = Schedule("db1", 0.0)
    first = schedule.delay(0.0) + 0.001
    schedule.take(schedule.due(first), first)
    late = first + 125.0
    due = schedule.due(late)
    assert due >= {Tier.LIGHT, Tier.MINUTE}
    assert schedule.delay(late) == 0
    schedule.take(due, late)
    assert schedule.due(late) == frozenset()
    assert 0 < schedule.delay(late) <= 10


def test_a_fleet_is_spread_over_the_interval():
    starts = [Schedule(server, 0.0).delay(0.0) for server in SERVERS]
    by_second = Counter(int(start) for start in starts)
    assert len(by_second) == 10
    assert max(by_second.values()) < len(SERVERS) / 4


def test_the_slots_of_a_server_survive_a_restart():
    before = [at for at, _ in walk(Schedule("db1", 0.0), 100)]
    after = [at for at, _ in walk(Schedule("db1", 33.0), 100)]
    assert after == pytest.approx(before[-len(after) :], abs=1e-3)


def test_intervals_can_be_chosen():
    rounds = walk(Schedule("db1", 0.0, lambda _: 0.5), 10.0)
    assert len(rounds) in {19, 20}
    assert all(due == ALL for _, due in rounds)
