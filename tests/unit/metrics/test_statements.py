from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.metrics.models import FamilyAnswer, FamilyState, Observation, StatementSnapshot
from tasks.metrics.statements import TOP, StatementDeltas

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ZERO = dict.fromkeys(
    [
        "calls",
        "total_exec_ms",
        "rows",
        "shared_blks_hit",
        "shared_blks_read",
        "shared_blks_dirtied",
        "temp_blks_read",
        "temp_blks_written",
        "wal_bytes",
    ],
    0.0,
)


def _row(
    query_id: int, began: float | str = 100, start: str = "s", **numbers: float
) -> Observation:
    labels = {"dbid": "5", "userid": "10", "queryid": str(query_id), "toplevel": "true"}
    names = {"database_name": "shop", "role_name": "ann"}
    return Observation({**labels, **names}, {**ZERO, **numbers}, epoch=f"{start}|{began}")


def _answer(at: float, *rows: Observation, clock: datetime | None = None) -> FamilyAnswer:
    read_at = clock or NOON + timedelta(seconds=at)
    return FamilyAnswer("statements", FamilyState.OK, read_at, at, observations=rows)


def test_the_first_answer_has_no_growth():
    assert StatementDeltas(None).grow(_answer(0, _row(1, calls=9))) == ()


def test_a_statement_grows_by_what_was_added():
    deltas = StatementDeltas(None)
    deltas.grow(_answer(0, _row(1, calls=9, total_exec_ms=1.5, wal_bytes=10)))
    (sample,) = deltas.grow(_answer(60, _row(1, calls=12, total_exec_ms=4, wal_bytes=25)))
    assert (sample.calls, sample.total_exec_ms, sample.wal_bytes) == (3, 2.5, 15)
    assert (sample.query_id, sample.interval_seconds) == (1, 60)
    assert (sample.database_name, sample.role_name, sample.toplevel) == ("shop", "ann", True)


def test_a_statement_that_did_nothing_has_no_row():
    deltas = StatementDeltas(None)
    deltas.grow(_answer(0, _row(1, calls=9)))
    assert deltas.grow(_answer(60, _row(1, calls=9))) == ()


def test_a_failed_answer_changes_nothing():
    deltas = StatementDeltas(None)
    deltas.grow(_answer(0, _row(1, calls=9)))
    assert deltas.grow(replace(_answer(30), state=FamilyState.DEGRADED)) == ()
    (sample,) = deltas.grow(_answer(60, _row(1, calls=10)))
    assert (sample.calls, sample.interval_seconds) == (1, 60)


def test_a_new_statement_counts_whole_where_all_share_one_reset():
    deltas = StatementDeltas(None)
    deltas.grow(_answer(0, _row(1, calls=9)))
    (sample,) = deltas.grow(_answer(60, _row(1, calls=9), _row(2, calls=4)))
    assert (sample.query_id, sample.calls) == (2, 4)


def test_a_new_statement_counts_whole_when_it_began_after_all_we_knew():
    deltas = StatementDeltas(None)
    deltas.grow(_answer(0, _row(1, 100, calls=9), _row(2, 200, calls=9)))
    rows = [_row(1, 100, calls=9), _row(2, 200, calls=9), _row(3, 201, calls=7)]
    (sample,) = deltas.grow(_answer(60, *rows))
    assert (sample.query_id, sample.calls) == (3, 7)


def test_a_statement_that_only_became_visible_is_left_out_once():
    deltas = StatementDeltas(None)
    deltas.grow(_answer(0, _row(1, 100, calls=9), _row(2, 200, calls=9)))
    assert deltas.grow(_answer(60, _row(1, 100, calls=9), _row(3, 150, calls=10_000))) == ()
    (sample,) = deltas.grow(_answer(120, _row(3, 150, calls=10_001)))
    assert sample.calls == 1


def test_a_statement_that_was_evicted_and_came_back_counts_from_zero_by_its_own_beginning():
    deltas = StatementDeltas(None)
    deltas.grow(_answer(0, _row(1, 100, calls=900), _row(2, 110)))
    (sample,) = deltas.grow(_answer(60, _row(1, 120, calls=4), _row(2, 110)))
    assert sample.calls == 4


def test_a_statement_that_came_back_larger_counts_what_is_in_it_and_no_more():
    deltas = StatementDeltas(None)
    deltas.grow(_answer(0, _row(1, 100, calls=3), _row(2, 110)))
    (sample,) = deltas.grow(_answer(60, _row(1, 120, calls=4), _row(2, 110)))
    assert sample.calls == 4


def test_a_statement_that_fell_without_a_beginning_of_its_own_is_left_out():
    deltas = StatementDeltas(None)
    deltas.grow(_answer(0, _row(1, calls=900), _row(2, calls=1)))
    (sample,) = deltas.grow(_answer(60, _row(1, calls=4), _row(2, calls=2)))
    assert sample.query_id == 2


def test_a_reset_of_all_counts_from_zero():
    deltas = StatementDeltas(None)
    deltas.grow(_answer(0, _row(1, 100, calls=900)))
    (sample,) = deltas.grow(_answer(60, _row(1, 160, calls=4)))
    assert sample.calls == 4


def test_a_restart_of_the_server_has_no_growth():
    deltas = StatementDeltas(None)
    deltas.grow(_answer(0, _row(1, calls=9)))
    assert deltas.grow(_answer(60, _row(1, start="t", calls=12))) == ()


def test_a_clock_that_was_set_does_not_matter_within_a_process():
    deltas = StatementDeltas(None)
    deltas.grow(_answer(0, _row(1, calls=9)))
    (sample,) = deltas.grow(_answer(60, _row(1, calls=12), clock=NOON - timedelta(days=3)))
    assert sample.interval_seconds == 60


def test_a_restarted_collector_goes_on_from_the_snapshot():
    deltas = StatementDeltas(None)
    deltas.grow(_answer(1_000_000, _row(1, calls=9), clock=NOON))
    gone_on = StatementDeltas(deltas.snapshot())
    later = NOON + timedelta(seconds=90)
    (sample,) = gone_on.grow(_answer(3, _row(1, calls=12), clock=later))
    assert (sample.calls, sample.interval_seconds) == (3, 90)


def test_a_snapshot_from_the_future_gives_no_growth():
    deltas = StatementDeltas(None)
    deltas.grow(_answer(0, _row(1, calls=9)))
    gone_on = StatementDeltas(deltas.snapshot())
    assert gone_on.grow(_answer(3, _row(1, calls=12), clock=NOON)) == ()


def test_before_the_first_answer_there_is_no_snapshot():
    assert StatementDeltas(None).snapshot() is None


def test_a_snapshot_of_nothing_can_be_read():
    deltas = StatementDeltas(None)
    deltas.grow(_answer(0))
    assert StatementDeltas(deltas.snapshot()).snapshot() is not None


@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_a_damaged_snapshot_is_none(cut: int):
    deltas = StatementDeltas(None)
    deltas.grow(_answer(0, _row(1, calls=9)))
    whole = deltas.snapshot()
    assert whole is not None
    damaged = StatementDeltas(replace(whole, data=whole.data[:cut]))
    assert damaged.grow(_answer(60, _row(1, calls=12))) == ()
    assert [s.calls for s in damaged.grow(_answer(120, _row(1, calls=13)))] == [1]


@given(st.binary(max_size=200))
def test_a_snapshot_of_any_bytes_is_none(data: bytes):
    deltas = StatementDeltas(StatementSnapshot(NOON, "s", data))
    assert deltas.grow(_answer(60, _row(1, calls=12))) == ()


def test_all_others_are_one_row_and_the_totals_stay_true():
    deltas = StatementDeltas(None)
    deltas.grow(_answer(0, *[_row(i) for i in range(1, 151)]))
    grown = deltas.grow(
        _answer(60, *[_row(i, calls=2, total_exec_ms=i, rows=1) for i in range(1, 151)])
    )
    *top, others = grown
    assert [each.query_id for each in top] == list(range(150, 150 - TOP, -1))
    assert (others.query_id, others.database_name, others.role_name) == (0, "", "")
    assert others.calls == 100
    assert sum(each.total_exec_ms for each in grown) == sum(range(1, 151))
    # The mean is that of the totals, not the mean of the means.
    assert sum(s.total_exec_ms for s in grown) / sum(s.calls for s in grown) == 75.5 / 2


def test_statements_of_dropped_roles_are_joined():
    nobody = [
        replace(_row(1, calls=calls), labels={**_row(1).labels, "userid": user, "role_name": ""})
        for user, calls in (("7", 2), ("8", 3))
    ]
    deltas = StatementDeltas(None)
    deltas.grow(_answer(0, _row(9)))
    (sample,) = deltas.grow(_answer(60, _row(9), *nobody))
    assert (sample.role_name, sample.calls) == ("", 5)


@given(
    st.lists(
        st.dictionaries(st.integers(1, 130), st.integers(0, 100), max_size=130),
        min_size=2,
        max_size=5,
    )
)
def test_growths_are_never_negative_and_never_more_than_the_server_did(steps):
    """Steps add calls; what is not in a step is evicted and begins at zero when it comes back."""
    deltas, done, grown = StatementDeltas(None), 0, 0
    calls: dict[int, int] = {}
    for at, step in enumerate(steps):
        calls = {query: calls.get(query, 0) + more for query, more in step.items()}
        done += sum(step.values()) if at else 0
        samples = deltas.grow(_answer(at, *[_row(q, calls=c) for q, c in calls.items()]))
        assert all(sample.calls >= 0 for sample in samples)
        grown += sum(sample.calls for sample in samples)
    assert grown <= done


def test_the_interval_since_a_snapshot_is_set_right_by_what_the_clocks_differ():
    before = StatementDeltas(None)
    before.grow(_answer(0, _row(1, calls=9)))
    after = StatementDeltas(before.snapshot())
    (sample,) = after.grow(_answer(60, _row(1, calls=12)), 30)
    assert sample.interval_seconds == 90
    (sample,) = after.grow(_answer(120, _row(1, calls=13)), 30)
    assert sample.interval_seconds == 60


def test_only_what_changed_is_worth_a_snapshot():
    deltas, told = StatementDeltas(None), []
    for at, row in enumerate(
        [_row(1, calls=9), _row(1, calls=9), _row(1, calls=10), _row(1, calls=10), _row(1, calls=2)]
    ):
        deltas.grow(_answer(at, row))
        told.append(deltas.has_changed)
    deltas.grow(_answer(5, _row(1, calls=2, start="restarted")))
    assert [*told, deltas.has_changed] == [True, False, True, False, True, True]


def test_after_a_restart_an_equal_snapshot_is_not_written_again():
    before = StatementDeltas(None)
    before.grow(_answer(0, _row(1, calls=9)))
    after = StatementDeltas(before.snapshot())
    after.grow(_answer(60, _row(1, calls=9)))
    assert not after.has_changed
