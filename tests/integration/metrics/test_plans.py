"""The statements that run all day read the partitions they need, by index, however much the vault holds."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from tasks import datavault, queries
from tasks import vault as vaults
from tasks.metrics import columns, partitions
from tests.clusters import drop_database, make_database
from tests.integration.metrics.samples import answer, sample, statement

NOW = datetime.now(UTC)
SERVER_HK = datavault.hash_key("shop-1")
DAYS = 5
TINY = 1000
PARTITIONED = ("metric_sample_", "statement_sample_", "metric_hourly_", "metric_daily_")

FILL: LiteralString = """
INSERT INTO monitoring.server_h (server_hk, server_bk)
SELECT util.hash_binary('shop-' || n), 'shop-' || n
FROM generate_series(1, 150) AS n;
INSERT INTO monitoring.series (server_hk, family, labels)
SELECT server_hk, 'family' || family, jsonb_build_object('datname', 'db' || db)
FROM monitoring.server_h, generate_series(1, 20) AS family, generate_series(1, 10) AS db;
INSERT INTO monitoring.metric_sample (series_id, sampled_at, interval_seconds, "values")
SELECT series_id, at, 900, '{"commits": 5, "backends": 2, "blocks": 77}'
FROM monitoring.series, generate_series(now() - interval '5 days', now(), interval '15 minutes') AS at
WHERE server_hk IN (util.hash_binary('shop-1'), util.hash_binary('shop-2'));
INSERT INTO monitoring.metric_latest (series_id, sampled_at, "values", raw)
SELECT series_id, now(), '{"commits": 5}', '{"commits": 500}'
FROM monitoring.series;
INSERT INTO monitoring.metric_hourly (series_id, bucket_at, samples, covered_seconds, stats)
SELECT series_id, at, 4, 3600, '{"commits": {"n": 4, "sum": 20, "min": 1, "max": 9}}'
FROM monitoring.series, generate_series(date_trunc('hour', now(), 'UTC') - interval '15 days', now(), '1 hour') AS at
WHERE server_hk IN (util.hash_binary('shop-1'), util.hash_binary('shop-2'));
INSERT INTO monitoring.statement_sample (server_hk, sampled_at, database_name, role_name, query_id, toplevel, interval_seconds, calls, total_exec_ms, rows, shared_blks_hit, shared_blks_read, shared_blks_dirtied, temp_blks_read, temp_blks_written, wal_bytes)
SELECT server_hk, at, 'shop', 'app', query_id, true, 900, 10, 5, 10, 10, 1, 0, 0, 0, 0
FROM monitoring.server_h, generate_series(1, 25) AS query_id, generate_series(now() - interval '5 days', now(), interval '15 minutes') AS at
WHERE server_hk IN (util.hash_binary('shop-1'), util.hash_binary('shop-2'));
INSERT INTO monitoring.alert_definition_h (alert_definition_hk, alert_definition_bk) VALUES ('x', 'x');
INSERT INTO monitoring.alert_instance_h (alert_instance_hk, alert_instance_bk, alert_definition_hk)
SELECT util.hash_binary(n::text), n, 'x'
FROM generate_series(1, 5000) AS n;
INSERT INTO monitoring.alert_instance_s (alert_instance_hk, fingerprint, rule_name, server_name, alert_category, alert_status, urgency_level, started_timestamp, triggered_timestamp, resolved_timestamp, summary)
SELECT util.hash_binary(n::text), lpad(to_hex(n), 64, '0'), 'x', 'shop-' || n % 40, 'PERFORMANCE', CASE WHEN n > 4900 THEN 'OPEN' ELSE 'RESOLVED' END, 'LOW', now(), now(), CASE WHEN n <= 4900 THEN now() END, 'x'
FROM generate_series(1, 5000) AS n;
"""


@pytest.fixture(scope="module")
def filled(vault_template) -> Iterator[psycopg.Connection]:
    """A vault with five days of samples of two servers, and the latest ones of many."""
    template = vault_template
    made = make_database(template.server, f"vault_{token_hex(4)}", template.name)
    with vaults.connect(made.conninfo) as conn:
        partitions.ensure(conn, NOW - timedelta(days=DAYS))
        partitions.ensure(conn, NOW)
        partitions.ensure_span(conn, "metric_hourly", NOW - timedelta(days=16), NOW)
        conn.execute(FILL)
        conn.execute("ANALYZE")
        yield conn
    drop_database(made)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def explain(
    conn: psycopg.Connection, name: str, values: dict[str, Any], **places: sql.Composable
) -> list[dict[str, Any]]:
    loaded = queries.load("tasks.metrics")
    text = loaded.compose(name, 15, **places) if places else sql.SQL(loaded.get(name, 15))
    statement = sql.SQL("EXPLAIN (FORMAT JSON) ") + text
    ((((plan,)),),) = conn.execute(statement, values).fetchall()
    return list(nodes(plan["Plan"]))


@pytest.fixture
def whole_scans(filled) -> Callable[[list[dict[str, Any]]], set[str]]:
    """The tables that a plan reads from end to end, but for tiny ones."""
    rows = dict(filled.execute("SELECT relname, reltuples FROM pg_class").fetchall())

    def of(found: list[dict[str, Any]]) -> set[str]:
        names = {node["Relation Name"] for node in found if node["Node Type"] == "Seq Scan"}
        return {name for name in names if rows[name] > TINY}

    return of


def scanned(found: list[dict[str, Any]]) -> set[str]:
    names = {node["Relation Name"] for node in found if "Relation Name" in node}
    return {name for name in names if name.startswith(PARTITIONED)}


def days(table: str, since: datetime, until: datetime) -> set[str]:
    return {part.name for part in partitions.spanning(table, since, until)}


def history_values(since: datetime) -> dict[str, Any]:
    wanted = [(f"family{n}", "commits") for n in range(1, 13)]
    return {
        "server_hk": SERVER_HK,
        "families": [family for family, _ in wanted],
        "metrics": [metric for _, metric in wanted],
        "labels": '{"datname": "db1"}',
        "since": since,
        "until": NOW,
        "step": timedelta(minutes=5),
    }


def test_a_day_of_twelve_series_reads_two_partitions_by_index(filled, whole_scans):
    since = NOW - timedelta(days=1)
    found = explain(filled, "history_of_samples", history_values(since))
    assert scanned(found)
    assert scanned(found) <= days("metric_sample", since, NOW)
    assert whole_scans(found) == set()


def test_three_days_of_twelve_series_by_the_hour(filled, whole_scans):
    since = NOW - timedelta(days=3)
    found = explain(filled, "history_of_hours", history_values(since))
    assert scanned(found)
    assert scanned(found) <= days("metric_hourly", since, NOW)
    assert whole_scans(found) == set()


def test_the_latest_of_a_server_is_found_by_its_series(filled, whole_scans):
    found = explain(filled, "server_metrics", {"server_hk": SERVER_HK, "families": None})
    assert whole_scans(found) == set()
    found = explain(filled, "latest_counters", {"server_hk": SERVER_HK})
    assert whole_scans(found) == set()


def test_the_top_statements_of_an_hour_read_that_hour(filled, whole_scans):
    found = explain(filled, "top_statements", {"server": "shop-1", "minutes": 60, "limit": 20})
    assert scanned(found)
    # The vault's now is somewhat after this module's.
    since = NOW - timedelta(hours=1)
    assert scanned(found) <= days("statement_sample", since, NOW + timedelta(hours=1))
    assert whole_scans(found) == set()
    assert any(node.get("Subplans Removed", 0) >= DAYS - 1 for node in found)


def test_open_alerts_of_a_server_are_found_among_many_resolved(filled, whole_scans):
    found = explain(filled, "open_alerts", {"server": "shop-1"})
    assert "idx_alert_instance_s_open" in {node.get("Index Name") for node in found}
    assert whole_scans(found) == set()


def test_the_worst_statements_of_an_hour_read_that_hour(filled, whole_scans):
    since = NOW - timedelta(hours=1)
    values = {"since": since, "until": NOW, "limit": 20, "above_calls": 5}
    found = explain(filled, "worst_statements", values)
    assert scanned(found) <= days("statement_sample", since, NOW)
    assert whole_scans(found) == set()


@pytest.mark.parametrize("server_hk", [None, SERVER_HK])
def test_an_hour_is_rolled_up_from_its_day(filled, server_hk):
    hour = NOW.replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
    of_server = sql.SQL(
        "AND sample.series_id IN (SELECT series_id FROM monitoring.series WHERE server_hk = %(server_hk)s)"
    )
    found = explain(
        filled,
        "roll_up_hour",
        {"bucket_at": hour, "server_hk": server_hk},
        of_server=of_server if server_hk else sql.SQL(""),
    )
    read = {name for name in scanned(found) if name.startswith("metric_sample_")}
    assert read <= days("metric_sample", hour, hour + timedelta(hours=1))


def test_writing_reads_nothing_but_series(filled, whole_scans):
    samples = [sample(labels={"datname": f"db{n}"}) for n in range(1, 200)]
    numbered = list(enumerate(samples, start=1))
    keys = [columns.key_of(each) for each in samples]
    batch: dict[str, dict[str, object]] = {
        "find_series": columns.series(keys),
        "add_series": columns.series(keys),
        "add_samples": columns.samples(numbered),
        "upsert_latest": columns.latest(numbered),
        "upsert_family_status": columns.answers([answer()]),
        "add_statement_samples": columns.statements([statement()]),
        "mark_late": {"buckets": [NOW]},
    }
    for name, values in batch.items():
        found = explain(filled, name, {"server_hk": SERVER_HK, **values})
        assert whole_scans(found) == set(), name
