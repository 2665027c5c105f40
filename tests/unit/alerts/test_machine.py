from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.alerts.conditions import Stand, stand
from tasks.alerts.flapping import FlapControl
from tasks.alerts.machine import pending_since, recall, step
from tasks.alerts.models import Alert, AlertStatus, Memory, Reading, Severity
from tests.unit.alerts.making import CONTROL, at, rule

GAP = timedelta(seconds=45)
RULE = rule(clear_for="20s")
QUICK = rule(levels=[{"severity": "HIGH", "threshold": 80, "clear": 75}])
VALUES = st.one_of(
    st.none(), st.floats(0, 100), st.sampled_from([74.0, 75.0, 77.0, 80.0, 81.0, 96.0])
)


def run(
    *values: float | None, of=RULE, every: float = 10.0, control: FlapControl = CONTROL
) -> list[Memory]:
    memory, seen = Memory(of.name, "shop", {}), []
    for number, value in enumerate(values):
        memory = step(of, memory, Reading(at(number * every), value), GAP, control)
        seen.append(memory)
    return seen


def held(memories: list[Memory]) -> list[Severity | None]:
    return [memory.held for memory in memories]


def test_it_fires_when_the_condition_has_lasted():
    assert held(run(*[85.0] * 7)) == [None] * 6 + [Severity.HIGH]


def test_one_reading_never_shows_that_something_lasted():
    memory = run(85.0)[-1]
    for _ in range(100):
        memory = step(RULE, memory, Reading(at(0), 85.0), GAP, CONTROL)
    assert memory.held is None
    assert pending_since(memory) == at(0)


def test_a_reading_below_starts_the_count_again():
    assert held(run(*[85.0] * 6, 79.0, *[85.0] * 6))[-1] is None


def test_a_worse_level_is_reached_by_its_own_time():
    memories = run(*[85.0] * 7, 96.0, 96.0, 96.0)
    assert held(memories)[-3:] == [Severity.HIGH, Severity.HIGH, Severity.CRITICAL]


def test_the_worse_level_may_come_first():
    assert held(run(96.0, 96.0, 96.0))[-1] is Severity.CRITICAL


def test_severity_falls_only_when_its_level_is_clear():
    memories = run(*[96.0] * 7, 92.0, 92.0, 92.0, 89.0, 89.0, 89.0)
    assert held(memories)[6:12] == [Severity.CRITICAL] * 6
    assert memories[-1].held is Severity.HIGH


def test_it_ends_when_it_was_clear_for_long_enough():
    memories = run(*[85.0] * 7, 74.0, 74.0, 74.0)
    assert held(memories)[-3:] == [Severity.HIGH, Severity.HIGH, None]


def test_the_band_keeps_an_alert_and_starts_none():
    assert held(run(*[85.0] * 7, *[77.0] * 50))[-1] is Severity.HIGH
    assert set(held(run(*[77.0] * 50))) == {None}


def test_a_break_in_clearing_starts_that_count_again():
    assert held(run(*[85.0] * 7, 74.0, 74.0, 77.0, 74.0, 74.0))[-1] is Severity.HIGH


def test_what_is_unknown_neither_fires_nor_clears():
    assert held(run(*[85.0] * 7, *[None] * 100))[-1] is Severity.HIGH
    assert set(held(run(*[None] * 10))) == {None}


def test_nobody_knows_what_was_in_a_gap():
    memory = run(85.0, 85.0)[-1]
    memory = step(RULE, memory, Reading(at(3600), 85.0), GAP, CONTROL)
    assert memory.held is None
    assert pending_since(memory) == at(3600)


@pytest.mark.parametrize("every", [60, 300, 660])
def test_two_readings_far_apart_show_that_it_lasted(every):
    seen = run(96.0, 96.0, 10.0, 10.0, of=RULE, every=every)
    assert held(seen) == [None, Severity.CRITICAL, Severity.CRITICAL, None]


def test_two_readings_too_far_apart_show_nothing():
    assert set(held(run(*[96.0] * 5, every=661))) == {None}
    firing = run(96.0, 96.0, 96.0)[-1]
    for seconds in (100, 761, 1422):
        firing = step(RULE, firing, Reading(at(seconds), 10.0), GAP, CONTROL)
    assert firing.held is Severity.CRITICAL


def test_what_is_unknown_between_two_readings_does_not_start_the_count_again():
    assert held(run(96.0, None, 96.0, every=300)) == [None, None, Severity.CRITICAL]


def test_readings_a_little_less_than_ten_seconds_apart_are_enough():
    assert held(run(96.0, 96.0, 96.0, every=9.999))[-1] is Severity.CRITICAL
    assert held(run(96.0, 96.0, 96.0, every=9.7))[-1] is None


def test_a_gap_while_it_fires_changes_nothing():
    memory = run(*[85.0] * 7)[-1]
    assert step(RULE, memory, Reading(at(3600), 85.0), GAP, CONTROL).held is Severity.HIGH


def test_an_older_reading_is_passed_over():
    memory = run(*[85.0] * 7)[-1]
    assert step(RULE, memory, Reading(at(0), 10.0), GAP, CONTROL) == memory


def test_a_clock_that_was_set_back_does_not_keep_an_alert_from_ending():
    memory = run(*[85.0] * 7)[-1]
    for seconds in (-3600, -3590, -3580):
        memory = step(RULE, memory, Reading(at(seconds), 10.0), GAP, CONTROL)
    assert memory.held is None
    assert memory.flips == (at(-3580),)


def test_what_was_counting_when_the_clock_was_set_back_starts_again():
    memory = run(85.0, 85.0)[-1]
    memory = step(RULE, memory, Reading(at(-3600), 85.0), GAP, CONTROL)
    assert pending_since(memory) == at(-3600)
    for seconds in range(-3590, -3530, 10):
        memory = step(RULE, memory, Reading(at(seconds), 85.0), GAP, CONTROL)
    assert memory.held is Severity.HIGH


def test_lower_may_be_worse():
    lower = rule(operator="<", levels=[{"severity": "LOW", "threshold": 90, "clear": 95}])
    assert held(run(89.0, 93.0, 96.0, of=lower)) == [Severity.LOW, Severity.LOW, None]


def test_where_the_rule_does_not_apply_it_clears():
    memory = run(*[85.0] * 7)[-1]
    for seconds in (70, 80, 90):
        memory = step(RULE, memory, Reading(at(seconds), 99.0, applies=False), GAP, CONTROL)
    assert memory.held is None


def test_a_level_that_was_taken_out_ends():
    memory = run(*[96.0] * 7)[-1]
    milder = rule(levels=[{"severity": "HIGH", "threshold": 80}])
    assert step(milder, memory, Reading(at(80), 96.0), GAP, CONTROL).held is Severity.HIGH


# Flapping


def test_what_comes_and_goes_stays_one_alert_until_it_is_stable():
    control = FlapControl(changes_per_hour=4, stable_for=timedelta(seconds=60))
    memories = run(*[90.0, 10.0] * 4, *[10.0] * 8, of=QUICK, control=control)
    assert held(memories)[:3] == [Severity.HIGH, None, Severity.HIGH]
    assert held(memories)[3:13] == [Severity.HIGH] * 10
    assert [memory.is_flapping for memory in memories].index(True) == 3
    assert memories[-1].held is None
    assert not memories[-1].is_flapping


def test_a_few_changes_are_no_flapping():
    assert not any(memory.is_flapping for memory in run(90.0, 10.0, 90.0, 10.0, of=QUICK))


# Going on from the tables


def alert(severity: Severity, **changes: Any) -> Alert:
    given = Alert(
        b"1",
        "f",
        RULE.name,
        "shop",
        {},
        "CAPACITY",
        AlertStatus.OPEN,
        severity,
        at(0),
        at(0),
        "text",
    )
    return replace(given, **changes)


def test_without_a_memory_an_open_alert_goes_on():
    known = recall(None, alert(Severity.HIGH, last_notified_at=at(5)), RULE, "shop")
    assert (known.held, known.worst) == (Severity.HIGH, Severity.HIGH)
    assert (known.notified_at, known.notified_episode) == (at(5), True)
    assert step(RULE, known, Reading(at(10), 77.0), GAP, CONTROL).held is Severity.HIGH


def test_without_an_alert_nothing_is_held_whatever_is_remembered():
    memory = run(*[85.0] * 7)[-1]
    known = recall(memory, None, RULE, "shop")
    assert (known.held, known.worst, known.notified_episode) == (None, None, False)


def test_a_memory_that_agrees_is_taken_as_it_is():
    memory = run(*[85.0] * 7)[-1]
    assert recall(memory, alert(Severity.HIGH), RULE, "shop") is memory


# Properties


@given(st.lists(VALUES, max_size=80))
def test_the_same_readings_again_change_nothing(values):
    memory = Memory(RULE.name, "shop", {})
    for number, value in enumerate(values):
        reading = Reading(at(number * 10), value)
        once = step(RULE, memory, reading, GAP, CONTROL)
        assert step(RULE, once, reading, GAP, CONTROL) == once
        memory = once


@given(st.lists(VALUES, max_size=80))
def test_a_replay_gives_the_same(values):
    assert run(*values) == run(*values)


@given(st.lists(VALUES, min_size=1, max_size=80))
def test_it_never_changes_on_what_is_unknown(values):
    memories = [Memory(RULE.name, "shop", {}), *run(*values)]
    for number, value in enumerate(values):
        if value is None:
            assert replace(memories[number + 1], levels={}) == replace(memories[number], levels={})
            assert memories[number + 1].held == memories[number].held


@given(st.lists(st.floats(75.1, 80.0), min_size=1, max_size=60), st.booleans())
def test_inside_the_band_nothing_flips(values, begun):
    before = [85.0] * 7 if begun else [10.0] * 7
    seen = held(run(*before, *values))[7:]
    assert set(seen) == {Severity.HIGH if begun else None}


@given(
    st.lists(st.tuples(st.sampled_from([1, 10, 19, 60, 300, 660, 661, 4000]), VALUES), max_size=40)
)
def test_an_alert_begins_only_when_readings_show_that_it_lasted(steps):
    memory, now = Memory(RULE.name, "shop", {}), 0.0
    run_since: float | None = None
    last: float | None = None
    for gap, value in steps:
        now += gap
        before, memory = memory, step(RULE, memory, Reading(at(now), value), GAP, CONTROL)
        if value is None:
            continue
        if last is None or now - last > 660:
            run_since = None
        run_since = None if value <= 80 else now if run_since is None else run_since
        last = now
        if memory.held and not before.held and not memory.is_flapping:
            assert run_since is not None
            assert now - run_since >= 20


@given(st.lists(VALUES, max_size=80))
def test_an_alert_ends_only_after_it_was_clear_for_long_enough(values):
    memories = [Memory(RULE.name, "shop", {}), *run(*values)]
    for number in range(len(values)):
        if memories[number].held and not memories[number + 1].held:
            recent = [value for value in values[: number + 1] if value is not None][-1]
            was_active = [
                level for level in RULE.levels if memories[number].levels[level.severity].active
            ]
            for level in was_active:
                assert stand(RULE, level, Reading(at(0), recent)) is Stand.CLEARS
            assert not memories[number + 1].is_flapping


@given(st.lists(VALUES, max_size=80))
def test_an_alert_begins_only_on_a_value_that_holds(values):
    memories = [Memory(RULE.name, "shop", {}), *run(*values)]
    for number, value in enumerate(values):
        if memories[number + 1].held and not memories[number].held:
            assert value is not None
            assert value > 80


@pytest.mark.parametrize(
    ("operator", "value", "expected"),
    [
        (">", 80.0, Stand.BAND),
        (">", 80.1, Stand.HOLDS),
        (">", 75.0, Stand.CLEARS),
        (">=", 80.0, Stand.HOLDS),
        (">=", 75.0, Stand.BAND),
    ],
)
def test_thresholds_are_exact(operator, value, expected):
    levels = [{"severity": "LOW", "threshold": 80, "clear": 75}]
    one = rule(operator=operator, levels=levels)
    assert stand(one, one.levels[0], Reading(at(0), value)) is expected
