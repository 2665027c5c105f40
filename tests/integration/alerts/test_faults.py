"""What happens to alerts when the vault, the rules or the collector are not as they should be."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from tasks import vault as vaults
from tasks.alerts import reading, rules, store
from tasks.alerts.evaluation import evaluate
from tasks.alerts.rules import RuleSet
from tasks.datavault import hash_key
from tasks.metrics import catalog

START = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@pytest.fixture(scope="module")
def shipped() -> RuleSet:
    return rules.load().bound(catalog.load().families)


def fired(vault: psycopg.Connection) -> set[str]:
    return {alert.rule for alert in reading.open_alerts(vault)}


def test_a_collector_that_fell_silent_is_noticed(vault, readings, shipped):
    readings.add("availability.up", 1.0, at(0))
    readings.add("connections.total", 1.0, at(0))
    evaluate(vault, shipped, at(60))
    assert fired(vault) == set()
    for seconds in (100, 130, 160):
        evaluate(vault, shipped, at(seconds))
    assert fired(vault) == {"server_unwatched", "metrics_stale"}
    told = {
        row["rule_name"]: row["not_notified_because"] for row in reading.history(vault, at(200))
    }
    assert told == {
        "server_unwatched": None,
        "metrics_stale": "inhibited by server_unwatched on shop",
    }
    readings.add("availability.up", 1.0, at(200))
    readings.add("connections.total", 1.0, at(200))
    evaluate(vault, shipped, at(201))
    assert fired(vault) == set()


@pytest.mark.parametrize("every", [60, 300])
def test_two_readings_of_a_slow_collector_show_that_a_server_is_down(
    vault, readings, shipped, every
):
    for number in (0, 1):
        assert fired(vault) == set()
        readings.add("availability.up", 0.0, at(number * every))
        evaluate(vault, shipped, at(number * every + 1))
    assert fired(vault) == {"server_down"}


@pytest.mark.parametrize("every", [60, 300])
def test_two_evaluations_far_apart_show_that_metrics_are_stale(vault, readings, shipped, every):
    readings.add("connections.total", 1.0, at(0))
    for number in (1, 2):
        assert fired(vault) == set()
        readings.add("availability.up", 1.0, at(number * every))
        evaluate(vault, shipped, at(number * every + 1))
    assert fired(vault) == {"metrics_stale"}


def test_a_standby_that_restores_from_the_archive_only_is_not_behind(vault, readings, shipped):
    for number in range(40):
        readings.add("standby.replay_lag_seconds", 90000.0, at(number * 10))
        evaluate(vault, shipped, at(number * 10 + 1))
    assert fired(vault) == set()


def test_a_physical_slot_without_its_reader_is_told_once(vault, readings, shipped):
    for number in range(13):
        for kind in ("physical", "logical"):
            texts = {"slot_type": kind, "wal_status": "reserved"}
            labels = {"slot_name": kind}
            readings.add("slots.active", 0.0, at(number * 60), labels=labels, texts=texts)
        evaluate(vault, shipped, at(number * 60 + 1))
        if number == 2:
            assert fired(vault) == {"standby_slot_inactive"}
    told = {
        (row["rule_name"], row["labels"]["slot_name"]): row["not_notified_because"]
        for row in reading.history(vault, at(3600))
    }
    assert told == {
        ("standby_slot_inactive", "physical"): None,
        ("replication_slot_inactive", "physical"): "inhibited by standby_slot_inactive on shop",
        ("replication_slot_inactive", "logical"): None,
    }


def test_a_standby_that_vanishes_is_no_all_clear(vault, readings, shipped):
    labels = {"application_name": "s1", "client": "local"}
    for seconds in range(0, 61, 10):
        readings.add("replication.replay_lag_bytes", 2e9, at(seconds), labels=labels)
        evaluate(vault, shipped, at(seconds + 1))
    readings.answer("replication", at(70))
    (ended,) = evaluate(vault, shipped, at(71)).transitions
    assert ended.alert.resolution_notes is not None
    assert "no longer connected" in ended.alert.resolution_notes


def test_what_cannot_be_archived_is_told_once(vault, readings, shipped):
    archiver = {"archiving_on": 1.0, "is_failing": 1.0, "ready_files": 30.0}
    for seconds in range(0, 241, 10):
        series = readings.add("archiver.is_failing", 1.0, at(seconds))
        vault.execute(
            'UPDATE monitoring.metric_latest SET "values" = %s WHERE series_id = %s',
            [Jsonb({**archiver, "seconds_since_last_archived": 1000.0}), series],
        )
        evaluate(vault, shipped, at(seconds + 1))
    assert fired(vault) == {"archive_failing", "archive_backlog", "archive_stale"}
    told = {row["rule_name"] for row in reading.history(vault, at(300)) if row["notify_reason"]}
    assert told == {"archive_failing"}


def test_a_database_without_traffic_does_not_make_its_health_unknown(vault, readings, shipped):
    def read(seconds: float, **values: float) -> object:
        series = readings.add(
            "databases.numbackends", 1.0, at(seconds), labels={"database_name": "app"}
        )
        vault.execute(
            'UPDATE monitoring.metric_latest SET "values" = %s WHERE series_id = %s',
            [Jsonb(values), series],
        )
        evaluate(vault, shipped, at(seconds + 1))
        return vault.execute(
            "SELECT status FROM monitoring.system_health_metric_s WHERE metric_name = 'databases.cache_hit_percent' "
            "ORDER BY load_date"
        ).fetchall()

    busy, idle = {"blks_read": 90000.0, "cache_hit_percent": 99.0}, {"blks_read": 0.0}
    assert read(0, **busy) == [("NORMAL",)]
    for seconds in (60, 180):
        assert read(seconds, **idle) == [("NORMAL",)]
        assert read(seconds + 60, **busy) == [("NORMAL",)]
    assert read(300, cache_hit_percent=99.0) == [("NORMAL",), ("UNKNOWN",)]


def test_a_server_that_is_down_explains_the_rest(vault, readings, shipped):
    readings.add("slots.is_lost", 1.0, at(0), labels={"slot_name": "s"})
    for seconds in (0, 10, 20):
        readings.add("availability.up", 0.0, at(seconds))
        found = evaluate(vault, shipped, at(seconds + 1))
    assert fired(vault) == {"server_down", "replication_slot_lost"}
    (down,) = found.transitions
    assert down.alert.rule == "server_down"
    evaluate(vault, shipped, at(3600))
    assert "replication_slot_lost" in fired(vault)


def test_an_evaluation_that_fails_leaves_nothing_behind(vault, readings, shipped):
    readings.add("slots.is_lost", 1.0, at(0), labels={"slot_name": "s"})
    vault.execute(
        "ALTER TABLE monitoring.alert_transition ADD CONSTRAINT broken CHECK (fingerprint = '') NOT VALID"
    )
    with pytest.raises(psycopg.errors.CheckViolation):
        evaluate(vault, shipped, at(1))
    assert fired(vault) == set()
    assert vault.execute("SELECT count(*) FROM monitoring.alert_instance_h").fetchone() == (0,)
    vault.execute("ALTER TABLE monitoring.alert_transition DROP CONSTRAINT broken")
    evaluate(vault, shipped, at(2))
    assert fired(vault) == {"replication_slot_lost"}


def test_the_table_itself_holds_one_open_alert_for_a_fingerprint(vault, readings, shipped):
    readings.add("slots.is_lost", 1.0, at(0), labels={"slot_name": "s"})
    evaluate(vault, shipped, at(1))
    (alert,) = reading.open_alerts(vault)
    vault.execute(
        "INSERT INTO monitoring.alert_instance_h (alert_instance_hk, alert_instance_bk, alert_definition_hk) VALUES (%s, 'x', %s)",
        [hash_key("x"), hash_key(alert.rule)],
    )
    with pytest.raises(psycopg.errors.UniqueViolation, match="one_open_alert"):
        store.append_versions(vault, [replace(alert, alert_hk=hash_key("x"))])


def test_a_rule_taken_out_while_it_fires_ends_its_alert(vault, readings, shipped):
    readings.add("slots.is_lost", 1.0, at(0), labels={"slot_name": "s"})
    evaluate(vault, shipped, at(1))
    fewer = {name: rule for name, rule in shipped.rules.items() if name != "replication_slot_lost"}
    evaluate(vault, replace(shipped, rules=fewer), at(2))
    assert fired(vault) == set()
    row = vault.execute(
        "SELECT is_enabled FROM monitoring.alert_definition_s WHERE alert_name = 'replication_slot_lost' AND load_end_date IS NULL"
    ).fetchone()
    assert row == (False,)


def test_a_tenant_sees_its_own_alerts_only(vault, migrated, readings, shipped):
    acme = hash_key("ACME")
    vault.execute("INSERT INTO auth.tenant_h (tenant_hk, tenant_bk) VALUES (%s, 'ACME')", [acme])
    for server in ("shop", "bank"):
        readings.add("slots.is_lost", 1.0, at(0), labels={"slot_name": "s"}, server=server)
    vault.execute("UPDATE monitoring.server_h SET tenant_hk = %s WHERE server_bk = 'bank'", [acme])
    evaluate(vault, shipped, at(1))
    name = f"reader_{migrated.name}"
    vault.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))
    try:
        with vaults.connect(migrated.conninfo) as conn, conn.transaction(force_rollback=True):
            _become(conn, name, acme)
            seen = conn.execute("SELECT server_name FROM monitoring.alert_instance_s").fetchall()
            moved = conn.execute("SELECT count(*) FROM monitoring.alert_transition").fetchone()
        assert seen == [("bank",)]
        assert moved == (1,)
    finally:
        vault.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def _become(conn: psycopg.Connection, name: str, tenant: bytes) -> None:
    role = sql.Identifier(name)
    for statement in (
        "GRANT USAGE ON SCHEMA monitoring, util TO {}",
        "GRANT SELECT ON ALL TABLES IN SCHEMA monitoring TO {}",
        "SET LOCAL ROLE {}",
    ):
        conn.execute(sql.SQL(statement).format(role))
    conn.execute("SELECT set_config('app.current_tenant_id', %s, true)", [tenant.hex()])
