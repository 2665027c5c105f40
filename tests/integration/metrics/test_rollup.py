"""Hours and days made of samples, again when samples came late, and the worst statements of each hour."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import Connection

from tasks import vault as vaults
from tasks.metrics import performance, rollup, store
from tasks.metrics.models import Sample, StatementSample
from tasks.metrics.performance import Rating
from tasks.metrics.store import SeriesCache
from tests.integration.metrics.samples import batch, sample, statement

CLOCK = datetime.now(UTC)
HOUR = CLOCK.replace(minute=0, second=0, microsecond=0) - timedelta(hours=30)
"""An hour that is over, of a day of which later hours are over too."""
NOW = HOUR + timedelta(hours=1, minutes=6)


def write(conn: Connection, *samples: Sample, server: str = "shop-1") -> None:
    store.write(conn, batch(*samples, server=server), SeriesCache())


def at(minutes: float, value: float = 1.0, **changes: Any) -> Sample:
    values = {"commits": 60.0 * value, "backends": value}
    return sample(sampled_at=HOUR + timedelta(minutes=minutes), values=values, **changes)


def hourly(conn: Connection) -> list[Any]:
    return conn.execute(
        "SELECT bucket_at, samples, covered_seconds, stats FROM monitoring.metric_hourly ORDER BY bucket_at, series_id"
    ).fetchall()


def daily(conn: Connection) -> list[Any]:
    return conn.execute(
        "SELECT bucket_at, samples, covered_seconds, stats FROM monitoring.metric_daily ORDER BY bucket_at"
    ).fetchall()


def test_an_hour_is_made_of_its_samples(vault):
    write(vault, at(-1, 50), at(0, 1), at(30, 5), at(59, 3), at(60, 50))
    assert rollup.roll_up(vault, NOW).is_complete
    assert hourly(vault)[1] == (
        HOUR,
        3,
        180,
        {
            "commits": {"n": 3, "sum": 540, "min": 60, "max": 300},
            "backends": {"n": 3, "sum": 9, "min": 1, "max": 5},
        },
    )


def test_a_metric_that_was_unknown_for_a_while_is_counted_as_often_as_it_was_known(vault):
    without = sample(
        sampled_at=HOUR + timedelta(minutes=1), values={"backends": 9.0}, interval_seconds=None
    )
    write(vault, at(0), without)
    rollup.roll_up(vault, NOW)
    ((_, samples, covered, stats),) = hourly(vault)
    assert (samples, covered) == (2, 60)
    assert (stats["commits"]["n"], stats["backends"]["n"]) == (1, 2)


def test_an_hour_is_rolled_up_once_it_is_over_for_good(vault):
    write(vault, at(0))
    assert rollup.roll_up(vault, HOUR + timedelta(hours=1, minutes=4)).rows == 0
    assert rollup.roll_up(vault, NOW).rows == 1
    again = rollup.roll_up(vault, NOW)
    assert (again.hours, again.late_hours, again.rows, again.is_complete) == (0, 0, 0, True)


def test_a_clock_that_is_ahead_rolls_up_no_hour_that_is_not_over(vault):
    rollup.roll_up(vault, CLOCK + timedelta(days=3))
    (done,) = vault.execute("SELECT done_until FROM monitoring.roll_up_progress").fetchone()
    assert done <= datetime.now(UTC)


def test_a_call_does_as_much_as_it_may_and_the_next_goes_on(vault):
    write(vault, at(0))
    first = rollup.roll_up(vault, NOW, hours=2)
    assert (first.hours, first.is_complete) == (2, False)
    assert rollup.roll_up(vault, NOW).is_complete
    assert len(hourly(vault)) == 1


def test_late_samples_are_taken_in_and_only_their_server_is_done_again(vault):
    write(vault, at(0, 1))
    write(vault, at(0, 1), server="other")
    rollup.roll_up(vault, NOW)
    vault.execute("UPDATE monitoring.metric_hourly SET samples = -1")
    write(vault, at(30, 3))
    done = rollup.roll_up(vault, NOW)
    assert (done.hours, done.late_hours, done.rows, done.is_complete) == (0, 1, 1, True)
    assert sorted(row[1] for row in hourly(vault)) == [-1, 2]
    assert rollup.roll_up(vault, NOW).late_hours == 0


def test_a_writer_who_has_not_committed_is_waited_for_or_comes_again(migrated, vault):
    """Whatever the order, no sample stays out of its hour."""
    write(vault, at(0))
    rollup.roll_up(vault, NOW)
    with vaults.connect(migrated.conninfo) as other:
        with other.transaction():
            write(other, at(30))
            assert rollup.roll_up(vault, NOW).late_hours == 0
        assert rollup.roll_up(vault, NOW).late_hours == 1
    assert hourly(vault)[0][1] == 2


def test_a_day_is_made_of_its_hours_and_again_of_late_ones(vault):
    day = HOUR.replace(hour=0)
    first = sample(sampled_at=max(day, CLOCK - timedelta(hours=47)), values={"backends": 2.0})
    write(vault, first, at(1, 4))
    rolled = rollup.roll_up(vault, day + timedelta(days=1, minutes=6))
    assert rolled.days >= 1
    assert daily(vault)[-1][0] == day
    assert daily(vault)[-1][3]["backends"] == {"n": 2, "sum": 6, "min": 2, "max": 4}
    write(vault, at(10, 9))
    rollup.roll_up(vault, day + timedelta(days=1, minutes=6))
    (_, samples, covered, stats) = daily(vault)[-1]
    assert (samples, covered) == (3, 180)
    assert stats["backends"] == {"n": 3, "sum": 15, "min": 2, "max": 9}


def test_another_roll_up_at_work_is_left_alone(migrated, vault):
    with vaults.connect(migrated.conninfo) as other, other.transaction():
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('onevault:roll_up', 0))")
        done = rollup.roll_up(vault, NOW)
    assert (done.hours, done.is_complete) == (0, False)


# The worst statements


def grow(conn: Connection, *statements: StatementSample) -> None:
    store.write(conn, batch(statements=statements), SeriesCache())


def grown(query_id: int, minutes: float = 10, **changes: Any) -> StatementSample:
    return statement(query_id, HOUR + timedelta(minutes=minutes), **changes)


def recorded(conn: Connection) -> list[Any]:
    return conn.execute(
        "SELECT query_hash, calls, mean_time_ms, performance_rating, cardinality(optimization_suggestions), "
        "cache_hit_percent, query_text FROM monitoring.performance_metric_s WHERE load_end_date IS NULL "
        "ORDER BY total_time_ms DESC"
    ).fetchall()


LATER = HOUR + timedelta(hours=1)


def test_the_mean_is_weighted_by_calls(vault):
    grow(
        vault,
        grown(1, 10, calls=1_000_000, total_exec_ms=1_000_000.0),
        grown(1, 20, calls=11, total_exec_ms=55_000.0, role_name="app", toplevel=False),
    )
    assert performance.record(vault, LATER) == 1
    ((_, calls, mean, rating, *_),) = recorded(vault)
    assert (calls, rating) == (1_000_011, "EXCELLENT")
    assert mean == pytest.approx(1.055, abs=0.001)


def test_rare_statements_and_the_rest_are_left_out_and_twenty_are_enough(vault):
    many = [grown(n, total_exec_ms=float(n)) for n in range(100, 125)]
    grow(vault, grown(1, calls=5), grown(0), *many)
    assert performance.record(vault, LATER) == 20
    assert [row[0] for row in recorded(vault)] == [str(n) for n in range(124, 104, -1)]


def test_what_is_slow_says_what_to_look_at(vault):
    slow = grown(
        1, calls=6, total_exec_ms=6_006.0, shared_blks_hit=90, shared_blks_read=10, temp_blks_read=1
    )
    grow(vault, slow)
    performance.record(vault, LATER)
    ((_, _, mean, rating, suggestions, hit, text),) = recorded(vault)
    assert (mean, rating, suggestions, hit, text) == (1001.0, "CRITICAL", 3, 90.0, "select 1")


def test_recording_again_changes_nothing_until_more_is_known(vault):
    grow(vault, grown(1))
    assert performance.record(vault, LATER) == 1
    assert performance.record(vault, LATER) == 0
    grow(vault, grown(1, 59))
    assert performance.record(vault, LATER) == 1
    assert [row[1] for row in recorded(vault)] == [200]
    assert vault.execute("SELECT count(*) FROM monitoring.performance_metric_s").fetchone() == (2,)
    assert vault.execute("SELECT count(*) FROM monitoring.performance_metric_h").fetchone() == (1,)


def test_names_with_spaces_are_not_taken_for_others(vault):
    grow(
        vault,
        grown(1, database_name="a b", role_name="c"),
        grown(1, database_name="a", role_name="b c"),
    )
    assert performance.record(vault, LATER) == 2
    keys = vault.execute("SELECT performance_metric_bk FROM monitoring.performance_metric_h")
    named = {tuple(json.loads(key)[1:4]) for (key,) in keys}
    assert named == {("a b", "c", "1"), ("a", "b c", "1")}


def test_an_hour_that_is_not_over_is_not_recorded(vault):
    grow(vault, grown(1))
    assert performance.record(vault, LATER - timedelta(seconds=1)) == 0


def test_hours_that_were_missed_are_caught_up(vault):
    grow(vault, grown(1), grown(1, 70), grown(1, 200))
    assert performance.record(vault, HOUR + timedelta(hours=5)) == 3


@pytest.mark.parametrize(
    ("mean", "rating"),
    [
        (1000.1, Rating.CRITICAL),
        (1000, Rating.POOR),
        (500, Rating.GOOD),
        (100.1, Rating.GOOD),
        (100, Rating.EXCELLENT),
    ],
)
def test_the_rating_by_mean_time(mean, rating):
    assert performance.rate(mean) is rating
