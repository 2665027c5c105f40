from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tasks.alerts import baselines, rules
from tasks.alerts.evaluation import evaluate
from tasks.alerts.models import Transition
from tasks.metrics import catalog
from tests.integration.alerts.readings import Readings

# A Monday, 12:30 UTC.
NOW = datetime(2026, 3, 30, 12, 30, tzinfo=UTC)
WEEK = timedelta(days=7)
METRIC = "connections.used_percent"


@pytest.fixture
def weeks(vault: psycopg.Connection, readings: Readings) -> Callable[..., int]:
    """Hours like this one in the weeks before, each with its lows and highs."""
    vault.execute(
        "CREATE TABLE monitoring.metric_hourly_test PARTITION OF monitoring.metric_hourly "
        "FOR VALUES FROM ('2026-01-01 00:00+00') TO ('2026-05-01 00:00+00')"
    )
    vault.execute(
        "CREATE TABLE monitoring.metric_sample_test PARTITION OF monitoring.metric_sample "
        "FOR VALUES FROM ('2026-01-01 00:00+00') TO ('2026-05-01 00:00+00')"
    )
    series = readings.series("connections", {})

    def write(*bands: tuple[float, float]) -> int:
        for number, (low, high) in enumerate(bands, start=1):
            stats = {"used_percent": {"n": 2, "sum": low + high, "min": low, "max": high}}
            bucket = NOW.replace(minute=0) - number * WEEK
            vault.execute(
                "INSERT INTO monitoring.metric_hourly VALUES (%s, %s, 2, 3600, %s)",
                [series, bucket, Jsonb(stats)],
            )
        return series

    return write


def test_an_hour_of_the_week_is_counted_from_monday_in_utc():
    assert baselines.hour_of_week(datetime(2026, 3, 30, tzinfo=UTC)) == 0
    assert baselines.hour_of_week(datetime(2026, 4, 5, 23, 59, tzinfo=UTC)) == 167
    assert baselines.hour_of_week(NOW) == 12


def test_bands_are_made_of_an_hour_and_its_neighbours(vault, weeks):
    weeks((10, 20), (12, 22), (11, 21), (10, 20))
    assert baselines.compute(vault, NOW) == 1
    (row,) = vault.execute(
        "SELECT metric, hour_of_week, low, high, samples FROM monitoring.metric_baseline"
    ).fetchall()
    assert row[:2] == ("used_percent", 12)
    assert 10 <= row[2] <= 11
    assert 21 <= row[3] <= 22
    assert row[4] == 4


def test_one_odd_week_moves_a_band_little(vault, weeks):
    weeks((10, 20), (10, 20), (10, 20), (10, 500))
    baselines.compute(vault, NOW)
    ((high,),) = vault.execute("SELECT high FROM monitoring.metric_baseline").fetchall()
    assert high < 500


def test_what_is_older_than_four_weeks_is_forgotten(vault, weeks):
    weeks((10, 20), (10, 20), (10, 20))
    baselines.compute(vault, NOW)
    assert baselines.compute(vault, NOW + 5 * WEEK) == 0
    assert vault.execute("SELECT count(*) FROM monitoring.metric_baseline").fetchone() == (0,)


@pytest.mark.parametrize(("known", "noted"), [(3, True), (2, False)])
def test_an_alert_says_what_is_usual_when_enough_weeks_are_known(
    vault, readings, weeks, known, noted
):
    shipped = rules.load().bound(catalog.load().families)
    weeks(*[(10.0, 20.0)] * known)
    baselines.compute(vault, NOW)
    found: list[Transition] = []
    for seconds in range(0, 40, 10):
        moment = NOW + timedelta(seconds=seconds)
        readings.add(METRIC, 99.0, moment)
        found += evaluate(vault, shipped, moment).transitions
    details = found[0].alert.details
    usual = "usually 10-20 at this hour of the week (3 weeks); now 99"
    assert details.get("usually") == (usual if noted else None)


@pytest.mark.parametrize(
    ("points", "found"),
    [
        ([99, 99], [99.0]),
        ([20, 99], []),
        ([99, 20], []),
        ([22, 22], []),
        ([99], []),
        ([0, 0], [0.0]),
    ],
    ids=str,
)
def test_an_anomaly_is_two_values_far_outside(vault, weeks, points, found):
    series = weeks((10, 20), (10, 20), (10, 20))
    baselines.compute(vault, NOW)
    for number, value in enumerate(points):
        vault.execute(
            'INSERT INTO monitoring.metric_sample (series_id, sampled_at, "values") VALUES (%s, %s, %s)',
            [series, NOW - timedelta(minutes=number), Jsonb({"used_percent": value})],
        )
    anomalies = baselines.anomalies(vault, "shop", NOW)
    assert [each.value for each in anomalies] == found
    assert {each.metric for each in anomalies} <= {METRIC}
