from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.metrics.deltas import Deltas, key_of
from tasks.metrics.models import (
    Derived,
    Direction,
    Family,
    FamilyAnswer,
    FamilyState,
    Kind,
    Level,
    Metric,
    Observation,
    Sample,
    Source,
    Tier,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def _metric(name: str, kind: Kind) -> Metric:
    return Metric(name, kind, "count", Direction.NEUTRAL, name)


FAMILY = Family(
    name="databases",
    description="What databases did.",
    source=Source.POSTGRES,
    level=Level.INSTANCE,
    tier=Tier.MINUTE,
    timeout_ms=1000,
    metrics={
        "sessions": _metric("sessions", Kind.GAUGE),
        "hits": _metric("hits", Kind.COUNTER),
        "reads": _metric("reads", Kind.COUNTER),
    },
    labels=("name",),
    epoch="reset",
    derived={
        "hit_percent": Derived(
            _metric("hit_percent", Kind.GAUGE), ("hits",), ("hits", "reads"), scale=100
        )
    },
)


@dataclass(frozen=True)
class _Families:
    families: Mapping[str, Family]


CATALOG = _Families({"databases": FAMILY})


def _answer(at: float, *rows: Observation, clock: datetime | None = None, **other) -> FamilyAnswer:
    read_at = clock or NOON + timedelta(seconds=at)
    return FamilyAnswer("databases", FamilyState.OK, read_at, at, observations=rows, **other)


def _row(name: str = "shop", epoch: str = "e", **numbers: float) -> Observation:
    return Observation({"name": name}, numbers, epoch=epoch)


def _read(deltas: Deltas, at: float, *rows: Observation, **other) -> list[Sample]:
    return list(deltas.samples([_answer(at, *rows, **other)], CATALOG))


def test_the_first_reading_has_gauges_and_no_growth():
    (sample,) = _read(Deltas(None), 0, _row(sessions=3, hits=10, reads=1))
    assert sample.values == {"sessions": 3}
    assert sample.raw == {"hits": 10, "reads": 1}
    assert sample.interval_seconds is None


def test_the_second_reading_has_the_growth_the_interval_and_the_ratio():
    deltas = Deltas()
    _read(deltas, 0, _row(hits=10, reads=10))
    (sample,) = _read(deltas, 60, _row(sessions=1, hits=40, reads=20))
    assert sample.values == {"sessions": 1, "hits": 30, "reads": 10, "hit_percent": 75}
    assert sample.interval_seconds == 60


def test_a_clock_that_was_set_does_not_change_the_interval_within_a_process():
    deltas = Deltas()
    _read(deltas, 0, _row(hits=10))
    (sample,) = _read(deltas, 60, _row(hits=40), clock=NOON - timedelta(days=1))
    assert (sample.interval_seconds, sample.values["hits"]) == (60, 30)


def test_a_ratio_is_absent_while_nothing_happened():
    deltas = Deltas()
    _read(deltas, 0, _row(hits=10, reads=10))
    (sample,) = _read(deltas, 60, _row(hits=10, reads=10))
    assert sample.values == {"hits": 0, "reads": 0}


def test_a_ratio_is_absent_when_one_of_its_counters_is_unknown():
    deltas = Deltas()
    _read(deltas, 0, _row(hits=10))
    (sample,) = _read(deltas, 60, _row(hits=20, reads=5))
    assert sample.values == {"hits": 10}


def test_one_counter_that_fell_spoils_the_interval_of_its_series_only():
    deltas = Deltas()
    _read(deltas, 0, _row(hits=10, reads=10), _row("other", hits=1))
    fell, other = _read(deltas, 60, _row(hits=40, reads=9), _row("other", hits=3))
    assert (fell.values, fell.interval_seconds) == ({}, None)
    assert other.values == {"hits": 2}
    (after,) = _read(deltas, 120, _row(hits=50, reads=9))
    assert after.values["hits"] == 10


def test_another_epoch_has_no_growth_even_when_the_counter_is_larger():
    deltas = Deltas()
    _read(deltas, 0, _row(hits=10))
    (sample,) = _read(deltas, 60, _row(hits=40, epoch="f"))
    assert (sample.values, sample.interval_seconds) == ({}, None)


def test_a_restarted_collector_goes_on_from_the_stored_sample_by_the_wall_clock():
    stored = Sample("databases", {"name": "shop"}, NOON, {}, raw={"hits": 10}, epoch="e")
    deltas = Deltas({key_of("databases", {"name": "shop"}): stored})
    (sample,) = _read(deltas, 5, _row(hits=40), clock=NOON + timedelta(hours=2))
    assert (sample.values, sample.interval_seconds) == ({"hits": 30}, 7200)
    (then,) = _read(deltas, 15, _row(hits=41), clock=NOON)
    assert (then.values, then.interval_seconds) == ({"hits": 1}, 10)


@pytest.mark.parametrize("seconds", [0, -1, -86400])
def test_a_wall_clock_that_did_not_go_forward_gives_no_growth(seconds: float):
    stored = Sample("databases", {"name": "shop"}, NOON, {}, raw={"hits": 10}, epoch="e")
    deltas = Deltas({key_of("databases", {"name": "shop"}): stored})
    (sample,) = _read(deltas, 5, _row(hits=40), clock=NOON + timedelta(seconds=seconds))
    assert (sample.values, sample.interval_seconds) == ({}, None)


def test_an_answer_without_counters_leaves_the_last_ones_as_they_were():
    deltas = Deltas()
    _read(deltas, 0, _row(hits=10))
    down = replace(_answer(30, _row(sessions=0)), state=FamilyState.UNAVAILABLE)
    deltas.samples([down], CATALOG)
    (sample,) = _read(deltas, 60, _row(hits=40))
    assert (sample.values, sample.interval_seconds) == ({"hits": 30}, 60)


def test_a_series_missing_for_a_while_goes_on_with_its_whole_interval():
    deltas = Deltas()
    _read(deltas, 0, _row(hits=10))
    for at in (60, 120):
        _read(deltas, at, _row("other", hits=1))
    (sample,) = _read(deltas, 180, _row(hits=40))
    assert (sample.values, sample.interval_seconds) == ({"hits": 30}, 180)


def test_series_that_vanished_are_forgotten():
    deltas = Deltas()
    for at in range(500):
        _read(deltas, at, _row(f"table {at}", hits=at))
    assert deltas.held < 10


def test_series_of_a_database_that_nobody_asks_for_are_forgotten():
    in_databases = replace(FAMILY, level=Level.DATABASE)
    catalog = _Families({"databases": in_databases})
    deltas = Deltas()
    for day in range(40):
        at = day * 86400.0
        deltas.samples([_answer(at, _row(hits=1), database=f"d{day}")], catalog)
    assert deltas.held < 10


def test_an_answer_of_a_database_does_not_age_the_series_of_another():
    catalog = _Families({"databases": replace(FAMILY, level=Level.DATABASE)})
    deltas = Deltas()
    deltas.samples([_answer(0, _row("a", hits=10), database="a")], catalog)
    for at in range(1, 50):
        deltas.samples([_answer(at, _row("b", hits=1), database="b")], catalog)
    (sample,) = deltas.samples([_answer(60, _row("a", hits=40), database="a")], catalog)
    assert sample.values == {"hits": 30}


_COUNTERS = st.lists(
    st.tuples(
        st.sampled_from(["e", "f"]),
        st.integers(0, 10**15),
        st.integers(0, 100),
        st.floats(-1000, 1000),
    ),
    min_size=1,
    max_size=30,
)


@given(_COUNTERS)
def test_growth_is_never_negative_and_never_spans_an_epoch_or_a_fall(readings):
    deltas, before = Deltas(), None
    for at, (epoch, hits, reads, skew) in enumerate(readings):
        clock = NOON + timedelta(seconds=skew)
        (sample,) = _read(deltas, at, _row(epoch=epoch, hits=hits, reads=reads), clock=clock)
        assert all(value >= 0 for value in sample.values.values())
        expected = (
            before is not None and before[0] == epoch and hits >= before[1] and reads >= before[2]
        )
        assert (sample.interval_seconds is not None) is expected
        assert ("hits" in sample.values) is expected
        before = (epoch, hits, reads)


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=30), st.integers(1, 20))
def test_the_growths_between_resets_sum_to_the_last_less_the_first(steps, restarted_at):
    deltas, total, grown = Deltas(), 0, 0.0
    samples: list[Sample] = []
    for at, step in enumerate(steps):
        if at == restarted_at:
            deltas = Deltas({key_of(s.family, s.labels): s for s in samples})
        total += step
        samples = _read(deltas, at, _row(hits=total))
        grown += samples[0].values.get("hits", 0)
    assert grown == total - steps[0]


def _clock(at: datetime, ahead_seconds: float) -> Observation:
    return Observation({}, {"up": 1, "clock_epoch_seconds": at.timestamp() + ahead_seconds})


def _taken_over(stored_ahead: float | None, read_ahead: float | None) -> float | None:
    """Return the interval over a minute, by wall clocks that the server's is ahead of by so much, where it is known."""
    hits = Sample("databases", {"name": "shop"}, NOON, {}, raw={"hits": 10}, epoch="e")
    known = {key_of("databases", {"name": "shop"}): hits}
    if stored_ahead is not None:
        values = _clock(NOON, stored_ahead).numbers
        known[key_of("availability", {})] = Sample("availability", {}, NOON, values)
    deltas = Deltas(known)
    if read_ahead is not None:
        at = NOON + timedelta(minutes=1)
        seen = (_clock(at, read_ahead),)
        deltas.note_clock([FamilyAnswer("availability", FamilyState.OK, at, 60, observations=seen)])
    (sample,) = _read(deltas, 60, _row(hits=16))
    return sample.interval_seconds


def test_the_servers_clock_tells_the_interval_across_two_hosts():
    assert _taken_over(0, 0) == 60
    assert _taken_over(7, 7) == 60
    assert _taken_over(0, 30) == 90
    assert _taken_over(30, 0) == 30
    assert _taken_over(90, 0) is None


def test_without_the_servers_clock_the_wall_clock_tells_the_interval():
    assert _taken_over(None, 30) == 60
    assert _taken_over(30, None) == 60


def test_within_a_process_the_servers_clock_does_not_matter():
    deltas = Deltas(
        {
            key_of("availability", {}): Sample(
                "availability", {}, NOON, {"up": 1, "clock_epoch_seconds": 0}
            )
        }
    )
    _read(deltas, 0, _row(hits=1))
    at = NOON + timedelta(minutes=1)
    deltas.note_clock(
        [FamilyAnswer("availability", FamilyState.OK, at, 60, observations=(_clock(at, 500),))]
    )
    (sample,) = _read(deltas, 60, _row(hits=2))
    assert sample.interval_seconds == 60
