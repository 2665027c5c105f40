"""What happens to alerts when the vault, the rules or the collector are not as they should be."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import sql

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
