"""Rules on counters look at all samples of a time, not at the newest one alone."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from tasks.alerts import reading, rules
from tasks.alerts.evaluation import evaluate
from tasks.alerts.models import Severity
from tasks.alerts.rules import RuleSet
from tasks.metrics import catalog

START = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
APP = {"database_name": "app"}


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@pytest.fixture(scope="module")
def shipped() -> RuleSet:
    return rules.load().bound(catalog.load().families)


def fired(vault: psycopg.Connection) -> dict[str, Severity]:
    return {alert.rule: alert.severity for alert in reading.open_alerts(vault)}


def test_growth_in_a_sample_before_the_newest_is_seen(vault, readings, shipped):
    for seconds, deadlocks in ((0, 0), (60, 3), (120, 0)):
        readings.grow("databases.deadlocks", deadlocks, at(seconds), labels=APP)
    (transition,) = evaluate(vault, shipped, at(121)).transitions
    assert (transition.alert.severity, transition.value) == (Severity.LOW, 3)
    assert transition.alert.summary == "3 deadlocks in app of shop in the last 10 minutes."
    readings.grow("databases.deadlocks", 9, at(180), labels=APP)
    (transition,) = evaluate(vault, shipped, at(181)).transitions
    assert (transition.alert.severity, transition.value) == (Severity.MEDIUM, 12)


def test_growth_ends_with_its_time(vault, readings, shipped):
    readings.grow("databases.deadlocks", 3, at(0), labels=APP)
    evaluate(vault, shipped, at(1))
    readings.grow("databases.deadlocks", 0, at(599), labels=APP)
    evaluate(vault, shipped, at(600))
    assert fired(vault) == {"deadlocks": Severity.LOW}
    readings.grow("databases.deadlocks", 0, at(600), labels=APP)
    evaluate(vault, shipped, at(601))
    assert fired(vault) == {}


@pytest.mark.parametrize(
    ("metric", "rule", "severity"),
    [
        ("archiver.failed_count", "archive_failures", Severity.MEDIUM),
        ("checksums.failures", "checksum_failures", Severity.CRITICAL),
        ("collection.lost_rows", "rows_lost", Severity.MEDIUM),
    ],
)
def test_what_happened_once_is_noticed(vault, readings, shipped, metric, rule, severity):
    readings.grow(metric, 2, at(0))
    readings.grow(metric, 0, at(300))
    evaluate(vault, shipped, at(301))
    assert fired(vault) == {rule: severity}


def test_a_counter_that_was_reset_is_not_known(vault, readings, shipped):
    readings.grow("checksums.failures", None, at(0), interval=None)
    (health,) = (each for each in _health(vault, shipped, at(1)) if each[0] == "checksums.failures")
    assert health == ("checksums.failures", "UNKNOWN", None)
    readings.grow("checksums.failures", 0, at(60))
    (health,) = (
        each for each in _health(vault, shipped, at(61)) if each[0] == "checksums.failures"
    )
    assert health == ("checksums.failures", "NORMAL", 0)


def _health(vault: psycopg.Connection, shipped: RuleSet, now: datetime) -> list[tuple[object, ...]]:
    evaluate(vault, shipped, now)
    return vault.execute(
        "SELECT metric_name, status, metric_value FROM monitoring.system_health_metric_s WHERE load_end_date IS NULL"
    ).fetchall()


@pytest.mark.parametrize(("every", "fires"), [(90, True), (150, False)])
def test_checkpoints_asked_for_again_and_again_are_noticed(vault, readings, shipped, every, fires):
    for minute in range(1, 26):
        asked = minute * 60 // every - (minute - 1) * 60 // every
        readings.grow("checkpointer.requested", asked, at(minute * 60))
        evaluate(vault, shipped, at(minute * 60 + 1))
    assert fired(vault) == ({"checkpoints_requested": Severity.LOW} if fires else {})


def test_a_rate_is_that_of_its_time(vault, readings, shipped):
    for minute, megabytes in enumerate((0, 0, 0, 9000, 9000, 9000, 9000, 9000, 9000, 9000, 9000)):
        grown = megabytes * 1024.0 * 1024
        readings.grow("databases.temp_bytes", grown, at(minute * 60), labels=APP)
        evaluate(vault, shipped, at(minute * 60 + 1))
    (alert,) = reading.open_alerts(vault)
    assert (
        alert.summary
        == "app of shop has written 150.0 MB a second to temporary files in the last 5 minutes."
    )


def test_it_explains_what_has_grown(vault, readings, shipped):
    readings.grow("databases.deadlocks", 2, at(0), labels=APP)
    readings.grow("databases.deadlocks", 5, at(60), labels=APP)
    (explained,) = reading.explain(vault, shipped, "shop", "deadlocks", at(61))
    assert explained.value == 7
