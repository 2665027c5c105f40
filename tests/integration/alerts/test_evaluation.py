import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tasks import vault as vaults
from tasks.alerts import acknowledging, reading, rules, store
from tasks.alerts.evaluation import evaluate
from tasks.alerts.models import AlertStatus, Evaluation, Notify, Severity, Transition
from tasks.alerts.rules import RuleSet
from tasks.datavault import hash_key
from tasks.errors import Refused
from tasks.metrics import catalog

START = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
DISK = {"path": "/data", "purpose": "data"}
UP = "availability.up"
USED = "filesystem.used_percent"


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@pytest.fixture(scope="module")
def shipped() -> RuleSet:
    return rules.load().bound(catalog.load().families)


def rows(conn: psycopg.Connection, statement: Any, *values: object) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, values).fetchall()


def versions(conn: psycopg.Connection) -> list[dict[str, Any]]:
    return rows(conn, "SELECT * FROM monitoring.alert_instance_s ORDER BY load_date")


def down(readings, conn, shipped, since: float = 0) -> list[Evaluation]:
    """Let the server not answer for as long as its rule wants."""
    found: list[Evaluation] = []
    for seconds in (since, since + 10, since + 20):
        readings.add(UP, 0.0, at(seconds))
        found.append(evaluate(conn, shipped, at(seconds + 1)))
    return found


def test_an_alert_begins_and_ends_in_the_tables(vault, readings, shipped):
    first, second, third = down(readings, vault, shipped)
    assert (first.transitions, second.transitions, first.open_alerts) == ((), (), 0)
    assert [each.notify for each in third.transitions] == [Notify.FIRST]
    assert (third.servers, third.failures, third.skipped) == (1, (), False)
    for seconds in (30, 40, 50):
        readings.add(UP, 1.0, at(seconds))
        last = evaluate(vault, shipped, at(seconds + 1))
    assert [each.notify for each in last.transitions] == [Notify.RESOLVED]
    opened, resolved = versions(vault)
    assert opened["load_end_date"] == resolved["load_date"]
    assert (opened["alert_status"], resolved["alert_status"]) == ("OPEN", "RESOLVED")
    assert (opened["urgency_level"], opened["trigger_value"], opened["threshold_value"]) == (
        "CRITICAL",
        0,
        0,
    )
    assert opened["started_timestamp"] == at(0)
    assert resolved["resolved_timestamp"] == at(51)
    assert opened["summary"] == "shop does not answer."
    written = rows(vault, "SELECT * FROM monitoring.alert_transition ORDER BY transition_id")
    assert [(row["from_status"], row["to_status"], row["notify_reason"]) for row in written] == [
        (None, "OPEN", "first"),
        ("OPEN", "RESOLVED", "resolved"),
    ]


def test_the_same_readings_again_write_nothing(vault, readings, shipped):
    down(readings, vault, shipped)
    before = [versions(vault), rows(vault, "SELECT * FROM monitoring.rule_state ORDER BY 1")]
    assert evaluate(vault, shipped, at(22)).transitions == ()
    assert [
        versions(vault),
        rows(vault, "SELECT * FROM monitoring.rule_state ORDER BY 1"),
    ] == before


def test_a_condition_goes_on_counting_after_a_restart(vault, migrated, readings, shipped):
    readings.add(UP, 0.0, at(0))
    evaluate(vault, shipped, at(1))
    readings.add(UP, 0.0, at(20))
    with vaults.connect(migrated.conninfo) as another:
        assert [each.alert.rule for each in evaluate(another, shipped, at(21)).transitions] == [
            "server_down"
        ]


def test_an_alert_outlives_what_was_remembered_of_it(vault, readings, shipped):
    down(readings, vault, shipped)
    vault.execute("DELETE FROM monitoring.rule_state")
    readings.add(UP, 0.0, at(30))
    assert evaluate(vault, shipped, at(31)).transitions == ()
    for seconds in (40, 50, 60):
        readings.add(UP, 1.0, at(seconds))
        evaluate(vault, shipped, at(seconds + 1))
    assert [row["alert_status"] for row in versions(vault)] == ["OPEN", "RESOLVED"]


def test_an_alert_that_comes_again_is_another_episode_and_told(vault, readings, shipped):
    down(readings, vault, shipped)
    for seconds in (30, 40, 50):
        readings.add(UP, 1.0, at(seconds))
        evaluate(vault, shipped, at(seconds + 1))
    again = down(readings, vault, shipped, since=60)
    assert [each.notify for each in again[-1].transitions] == [Notify.REFIRE]
    hubs = rows(vault, "SELECT * FROM monitoring.alert_instance_h")
    assert len(hubs) == 2
    assert {row["alert_definition_hk"] for row in hubs} == {hash_key("server_down")}


def test_a_worse_level_makes_a_version_and_is_told(vault, readings, shipped):
    told: list[Notify | None] = []
    for seconds in range(0, 41, 10):
        readings.add(USED, 85.0, at(seconds), labels=DISK)
        told += [each.notify for each in evaluate(vault, shipped, at(seconds + 1)).transitions]
    for seconds in range(50, 81, 10):
        readings.add(USED, 96.0, at(seconds), labels=DISK)
        told += [each.notify for each in evaluate(vault, shipped, at(seconds + 1)).transitions]
    assert told == [Notify.FIRST, Notify.WORSE]
    assert [row["urgency_level"] for row in versions(vault)] == ["HIGH", "CRITICAL"]


def test_one_statement_writes_many_alerts(vault, readings, shipped):
    for number in range(200):
        labels = {"slot_name": f"slot {number}"}
        readings.add("slots.is_lost", 1.0, at(0), labels=labels, texts={"wal_status": "lost"})
    found = evaluate(vault, shipped, at(1))
    assert len(found.transitions) == found.open_alerts == 200
    assert len({row["fingerprint"] for row in versions(vault)}) == 200


@pytest.mark.parametrize("name", ["Zoë \"Ö\" 'quoted'", "line\nbreak {value}", "%s \\ 100 %"])
def test_any_name_can_stand_in_an_alert(vault, readings, shipped, name):
    readings.add("slots.is_lost", 1.0, at(0), labels={"slot_name": name})
    (transition,) = evaluate(vault, shipped, at(1)).transitions
    assert name in transition.alert.summary
    assert reading.open_alerts(vault)[0].labels == {"slot_name": name}
    assert evaluate(vault, shipped, at(2)).transitions == ()


def test_an_object_that_is_gone_ends_its_alert(vault, readings, shipped):
    readings.add("slots.is_lost", 1.0, at(0), labels={"slot_name": "old"})
    evaluate(vault, shipped, at(1))
    readings.answer("slots", at(60))
    evaluate(vault, shipped, at(61))
    assert versions(vault)[-1]["resolution_notes"] == "the object is gone"


def test_servers_that_are_not_asked_about_are_left_alone(vault, readings, shipped):
    for server in ("shop", "bank"):
        readings.add("slots.is_lost", 1.0, at(0), labels={"slot_name": "s"}, server=server)
    assert evaluate(vault, shipped, at(1), {"shop"}).open_alerts == 1
    assert evaluate(vault, shipped, at(2), {"bank"}).open_alerts == 1
    assert evaluate(vault, shipped, at(3), {"nobody"}).servers == 0
    assert {alert.server for alert in reading.open_alerts(vault)} == {"shop", "bank"}


def test_two_evaluations_at_once_do_not_collide(vault, migrated, readings, shipped):
    readings.add("slots.is_lost", 1.0, at(0), labels={"slot_name": "s"})
    evaluate(vault, shipped, at(0), {"nobody"})
    found: list[Evaluation] = []
    gate = threading.Barrier(4)

    def work() -> None:
        with vaults.connect(migrated.conninfo) as conn:
            gate.wait(30)
            found.append(evaluate(conn, shipped, at(1)))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(found) == 4
    assert sum(len(each.transitions) for each in found) == 1
    assert len(versions(vault)) == 1


def test_an_evaluation_is_skipped_while_another_is_at_work(vault, migrated, shipped):
    with vaults.connect(migrated.conninfo) as other, other.transaction():
        assert store.take_turn(other)
        assert evaluate(vault, shipped, at(1)).skipped
    assert not evaluate(vault, shipped, at(2)).skipped


def test_alerts_belong_to_the_tenant_of_their_server(vault, readings, shipped):
    acme = hash_key("ACME")
    vault.execute("INSERT INTO auth.tenant_h (tenant_hk, tenant_bk) VALUES (%s, 'ACME')", [acme])
    readings.server()
    vault.execute("UPDATE monitoring.server_h SET tenant_hk = %s", [acme])
    readings.add("slots.is_lost", 1.0, at(0), labels={"slot_name": "s"})
    (transition,) = evaluate(vault, shipped, at(1)).transitions
    assert transition.tenant == "ACME"
    hubs = rows(
        vault,
        "SELECT tenant_hk FROM monitoring.alert_instance_h UNION SELECT tenant_hk FROM monitoring.system_health_metric_h",
    )
    assert [row["tenant_hk"] for row in hubs] == [acme]


def test_rules_without_a_catalogue_are_refused(vault):
    with pytest.raises(ValueError, match="not bound to a catalogue"):
        evaluate(vault, rules.load(), at(0))


def test_a_statement_that_is_slow_again_and_again_is_noticed(vault, readings, shipped):
    vault.execute(
        "CREATE TABLE monitoring.statement_sample_test PARTITION OF monitoring.statement_sample "
        "FOR VALUES FROM ('2026-03-01 00:00+00') TO ('2026-04-01 00:00+00')"
    )
    vault.execute(
        "INSERT INTO monitoring.statement_text (server_hk, query_id, query) VALUES (%s, 7, 'select slow()')",
        [readings.server()],
    )
    found: list[Transition] = []
    for seconds in range(0, 361, 60):
        readings.answer("statements", at(seconds))
        for query_id, calls in ((7, 10), (8, 1), (0, 1000)):
            vault.execute(
                "INSERT INTO monitoring.statement_sample VALUES (%s, %s, 'app', 'app', %s, true, 60, %s, %s, 0, 0, 0, 0, 0, 0, 0)",
                [readings.server(), at(seconds), query_id, calls, calls * 6000.0],
            )
        found += evaluate(vault, shipped, at(seconds + 1)).transitions
    assert [each.alert.rule for each in found] == ["critical_statements"]
    assert found[0].alert.summary.startswith("1 statements of shop")
    assert found[0].alert.summary.endswith("select slow()")


# Health


def health(conn: psycopg.Connection, metric: str) -> list[dict[str, Any]]:
    return rows(
        conn,
        "SELECT * FROM monitoring.system_health_metric_s WHERE metric_name = %s ORDER BY load_date",
        metric,
    )


def test_health_has_a_version_for_each_change_of_status_only(vault, readings, shipped):
    for seconds in (0, 10, 20):
        readings.add("connections.used_percent", 10.0 + seconds, at(seconds))
        evaluate(vault, shipped, at(seconds + 1))
    (only,) = health(vault, "connections.used_percent")
    assert (only["status"], only["threshold_warning"], only["threshold_critical"]) == (
        "NORMAL",
        80,
        95,
    )
    assert (only["metric_unit"], only["metric_direction"]) == ("percent", "higher_is_worse")
    evaluate(vault, shipped, at(3600))
    normal, unknown = health(vault, "connections.used_percent")
    assert normal["load_end_date"] == unknown["load_date"]
    assert (unknown["status"], unknown["metric_value"]) == ("UNKNOWN", None)


def test_the_health_of_what_is_gone_is_closed(vault, readings, shipped):
    readings.add(USED, 10.0, at(0), labels=DISK)
    evaluate(vault, shipped, at(1))
    readings.answer("filesystem", at(60))
    evaluate(vault, shipped, at(61))
    assert [row["load_end_date"] is None for row in health(vault, USED)] == [False]
    readings.add(USED, 10.0, at(120), labels=DISK)
    evaluate(vault, shipped, at(121))
    assert [row["load_end_date"] is None for row in health(vault, USED)] == [False, True]


# Definitions


def test_a_definition_has_a_version_for_each_change_of_its_rule(vault, shipped):
    evaluate(vault, shipped, at(0))
    evaluate(vault, shipped, at(10))
    count = "SELECT count(*) AS n FROM monitoring.alert_definition_s"
    assert rows(vault, count)[0]["n"] == len(shipped.rules)
    changed = rules.load(suppression_minutes=5).bound(catalog.load().families)
    evaluate(vault, changed, at(20))
    assert rows(vault, count)[0]["n"] == 2 * len(shipped.rules)
    row = rows(
        vault,
        "SELECT * FROM monitoring.alert_definition_s WHERE alert_name = 'disk_used' AND load_end_date IS NULL",
    )[0]
    assert (row["alert_category"], row["metric_source"], row["threshold_operator"]) == (
        "CAPACITY",
        USED,
        ">",
    )
    assert row["suppression_window_minutes"] == 5


# What a person does


def test_an_alert_is_acknowledged_by_the_beginning_of_its_name(vault, readings, shipped):
    down(readings, vault, shipped)
    (alert,) = reading.open_alerts(vault)
    taken = acknowledging.acknowledge(
        vault, alert.fingerprint[:8], by="ann", note="on it", now=at(30)
    )
    assert taken.status is AlertStatus.ACKNOWLEDGED
    readings.add(UP, 0.0, at(30))
    assert evaluate(vault, shipped, at(7200)).transitions[0].alert.rule != "server_down"
    (alert,) = [each for each in reading.open_alerts(vault) if each.rule == "server_down"]
    assert (alert.acknowledged_by, alert.details["note"]) == ("ann", "on it")
    audited = rows(
        vault,
        "SELECT phase, actor, details FROM audit.audit_detail_s WHERE event_type = 'ALERT_ACKNOWLEDGED' ORDER BY phase",
    )
    assert [row["phase"] for row in audited] == ["AFTER", "BEFORE"]
    named = audited[0]["details"]
    assert (named["alert"], named["rule"]) == (alert.alert_hk.hex(), "server_down")


@pytest.mark.parametrize("name", ["abc", "nothex!", "0123456789", "%%%%%%"])
def test_a_name_that_fits_no_alert_is_refused(vault, name):
    with pytest.raises(Refused):
        acknowledging.acknowledge(vault, name, by="ann", now=at(0))


def test_an_alert_is_marked_as_false_even_after_its_end(vault, readings, shipped):
    readings.add("slots.is_lost", 1.0, at(0), labels={"slot_name": "s"})
    (transition,) = evaluate(vault, shipped, at(1)).transitions
    readings.add("slots.is_lost", 0.0, at(60), labels={"slot_name": "s"})
    evaluate(vault, shipped, at(61))
    name = transition.alert.alert_hk.hex()[:12]
    marked = acknowledging.mark_false_positive(vault, name, by="ann", note="a test slot")
    assert (marked.false_positive, marked.status) == (True, AlertStatus.RESOLVED)
    assert evaluate(vault, shipped, at(62)).transitions == ()
    with pytest.raises(Refused, match="resolved already"):
        acknowledging.acknowledge(vault, name, by="ann", now=at(70))


# Reading


def test_history_tells_what_happened_newest_first(vault, readings, shipped):
    down(readings, vault, shipped)
    (row,) = reading.history(vault, at(100), server="shop")
    assert (row["rule_name"], row["to_status"], row["notify_reason"]) == (
        "server_down",
        "OPEN",
        "first",
    )
    assert reading.history(vault, at(100), server="bank") == []
    assert reading.history(vault, at(100) + timedelta(days=8)) == []


def test_events_are_emitted_once(vault, readings, shipped):
    down(readings, vault, shipped)
    (waiting,) = store.not_emitted(vault)
    assert waiting["next_step"].startswith("Look whether the host is up")
    assert store.mark_emitted(vault, [waiting["transition_id"]], at(30)) == 1
    assert store.not_emitted(vault) == []


def test_open_alerts_come_the_worst_first(vault, readings, shipped):
    readings.add("availability.uptime_seconds", 100.0, at(0))
    readings.add("slots.is_lost", 1.0, at(0), labels={"slot_name": "s"})
    evaluate(vault, shipped, at(1))
    found = reading.open_alerts(vault, "shop")
    assert [alert.severity for alert in found] == [Severity.CRITICAL, Severity.LOW]


def test_it_explains_what_a_rule_waits_for(vault, readings, shipped):
    readings.add(UP, 0.0, at(0))
    evaluate(vault, shipped, at(1))
    (waiting,) = reading.explain(vault, shipped, "shop", "server_down", at(2))
    assert waiting.lines == ("CRITICAL: = 0 since 12:00:00 UTC, fires when that has lasted 20s",)
    (stale,) = reading.explain(vault, shipped, "shop", "server_down", at(7200))
    assert "unknown" in stale.lines[0]
    down(readings, vault, shipped)
    (firing,) = reading.explain(vault, shipped, "shop", "server_down", at(22))
    assert firing.alert is not None
    assert firing.lines == ("CRITICAL: firing, until it is no longer = 0 for 20s",)


def test_it_explains_the_rules_on_the_evaluation_itself(vault, readings, shipped):
    readings.add(UP, 1.0, at(0))
    evaluate(vault, shipped, at(1))
    (heard,) = reading.explain(vault, shipped, "shop", "server_unwatched", at(31))
    assert (heard.value, heard.lines) == (31.0, ("HIGH: not firing; it needs > 90 for 0s",))
    (unknown,) = reading.explain(vault, shipped, "shop", "rule_evaluation_failed", at(31))
    assert unknown.value is None


@pytest.mark.parametrize(("server", "rule"), [("nobody", "server_down"), ("shop", "no_rule")])
def test_it_explains_only_what_exists(vault, readings, shipped, server, rule):
    readings.server()
    with pytest.raises(Refused):
        reading.explain(vault, shipped, server, rule, at(0))
