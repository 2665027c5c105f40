"""Alerts of servers that nobody watches any more, and what is forgotten of old ones."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tasks import vault as vaults
from tasks.alerts import acknowledging, evaluation, reading, rules, store
from tasks.alerts.models import AlertStatus, Notify
from tasks.alerts.rules import RuleSet
from tasks.metrics import catalog

START = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SLOT = {"slot_name": "s"}


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@pytest.fixture(scope="module")
def shipped() -> RuleSet:
    return rules.load().bound(catalog.load().families)


@pytest.fixture
def lost(vault, readings, shipped):
    """Two servers, each with an open alert."""
    for server in ("shop", "bank"):
        readings.add("availability.up", 1.0, at(0), server=server)
        readings.add("slots.is_lost", 1.0, at(0), labels=SLOT, server=server)
    evaluation.evaluate(vault, shipped, at(1))
    return vault


def servers(conn: psycopg.Connection) -> set[str]:
    return {alert.server for alert in reading.open_alerts(conn)}


def rows(conn: psycopg.Connection, statement: Any) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement).fetchall()


def test_alerts_of_a_server_that_is_not_watched_any_more_end(lost):
    found = evaluation.retire(lost, ["bank"], at(901))
    (ended,) = found.transitions
    assert (ended.alert.server, ended.alert.status, ended.notify) == (
        "shop",
        AlertStatus.RESOLVED,
        Notify.RESOLVED,
    )
    assert ended.alert.resolution_notes == "no longer watched"
    assert ended.next_step.startswith("Build the standby")
    assert servers(lost) == {"bank"}
    (told, *_) = reading.history(lost, at(902), server="shop")
    assert (told["to_status"], told["notify_reason"]) == ("RESOLVED", "resolved")
    left = "SELECT server_name FROM monitoring.{} WHERE {}"
    assert {row["server_name"] for row in rows(lost, left.format("rule_state", "true"))} == {"bank"}
    open_health = left.format("system_health_metric_s", "load_end_date IS NULL")
    assert {row["server_name"] for row in rows(lost, open_health)} == {"bank"}
    assert evaluation.retire(lost, ["bank"], at(903)).transitions == ()


def test_what_was_heard_of_just_now_is_left_alone(lost, readings):
    assert evaluation.retire(lost, ["bank"], at(900)).transitions == ()
    readings.add("availability.up", 0.0, at(3600))
    assert evaluation.retire(lost, [], at(3601)).transitions[0].alert.server == "bank"
    assert servers(lost) == {"shop"}


def test_what_nobody_was_told_of_ends_untold(vault, readings, shipped):
    for seconds in (0, 10, 20):
        readings.add("availability.up", 0.0, at(seconds))
        readings.add("slots.is_lost", float(seconds == 20), at(seconds), labels=SLOT)
        evaluation.evaluate(vault, shipped, at(seconds + 1))
    found = evaluation.retire(vault, [], at(7200))
    assert {each.alert.rule: each.notify for each in found.transitions} == {
        "server_down": Notify.RESOLVED,
        "replication_slot_lost": None,
    }


def test_a_server_that_is_watched_again_fires_again(lost, readings, shipped):
    evaluation.retire(lost, ["bank"], at(901))
    readings.add("availability.up", 1.0, at(1000))
    readings.add("slots.is_lost", 1.0, at(1000), labels=SLOT)
    evaluation.evaluate(lost, shipped, at(1001), ["shop"])
    assert servers(lost) == {"bank", "shop"}


def test_it_is_skipped_while_an_evaluation_is_at_work(lost, migrated):
    with vaults.connect(migrated.conninfo) as other, other.transaction():
        assert store.take_turn(other)
        assert evaluation.retire(lost, [], at(7200)).skipped
    assert not evaluation.retire(lost, [], at(7200)).skipped


# What happened to alerts


def test_taking_an_alert_on_is_something_that_happened(lost):
    alert = next(each for each in reading.open_alerts(lost) if each.server == "shop")
    store.mark_emitted(lost, [row["transition_id"] for row in store.not_emitted(lost)], at(2))
    acknowledging.acknowledge(lost, alert.fingerprint[:8], by="ann", now=at(60))
    (told, *_) = reading.history(lost, at(61), server="shop")
    assert (told["from_status"], told["to_status"], told["notify_reason"]) == (
        "OPEN",
        "ACKNOWLEDGED",
        None,
    )
    assert told["not_notified_because"] == "ann has acknowledged it"
    (waiting,) = store.not_emitted(lost)
    assert (waiting["to_status"], waiting["acknowledged_by"]) == ("ACKNOWLEDGED", "ann")


def test_a_milder_severity_is_an_event_too(vault, readings, shipped):
    disk = {"path": "/data", "purpose": "data"}
    for number, used in enumerate([96.0] * 4 + [85.0] * 14):
        readings.add("filesystem.used_percent", used, at(number * 10), labels=disk)
        evaluation.evaluate(vault, shipped, at(number * 10 + 1))
    events = store.not_emitted(vault)
    assert [(row["to_status"], row["urgency_level"]) for row in events] == [
        ("OPEN", "CRITICAL"),
        ("OPEN", "HIGH"),
    ]


def test_what_happened_long_ago_to_alerts_that_ended_is_forgotten(lost, readings, shipped):
    readings.add("slots.is_lost", 0.0, at(60), labels=SLOT)
    evaluation.evaluate(lost, shipped, at(61))
    assert store.forget(lost, at(61) + timedelta(days=400)) == 0
    assert store.forget(lost, at(62) + timedelta(days=400)) == 2
    left = reading.history(lost, at(100))
    assert [row["server_name"] for row in left] == ["bank"]
