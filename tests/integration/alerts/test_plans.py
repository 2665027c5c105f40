"""How an evaluation reads a vault of twenty servers with six hundred series each."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tasks import queries
from tasks.alerts import rows, rules
from tasks.alerts.rules import RuleSet
from tasks.metrics import catalog

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
ONE = {"servers": ["server 7"]}
LARGE = {"metric_latest", "series", "metric_sample_test", "alert_instance_s", "alert_transition"}
FILL = """
INSERT INTO monitoring.server_h (server_hk, server_bk)
SELECT sha256(convert_to('server ' || n, 'utf8')), 'server ' || n FROM generate_series(1, 20) AS n;

INSERT INTO monitoring.series (server_hk, family, labels)
SELECT server_hk, (%(families)s::text[])[1 + n %% cardinality(%(families)s::text[])], jsonb_build_object('object', 'a table ' || n)
FROM monitoring.server_h, generate_series(1, 600) AS n;

INSERT INTO monitoring.metric_latest (series_id, sampled_at, interval_seconds, "values", raw)
SELECT series_id, %(now)s, 60, numbers, numbers
FROM monitoring.series, (
    SELECT jsonb_object_agg('a_number_of_some_kind_' || n, n * 1234567.89) AS numbers FROM generate_series(1, 12) AS n
) AS made;

CREATE TABLE monitoring.metric_sample_test PARTITION OF monitoring.metric_sample DEFAULT;
INSERT INTO monitoring.metric_sample (series_id, sampled_at, interval_seconds, "values")
SELECT series_id, %(now)s::timestamptz - n * interval '1 minute', 60, '{"deadlocks": 1}'
FROM monitoring.series, generate_series(0, 4) AS n;

INSERT INTO monitoring.family_status (server_hk, family, state, attempted_at, collected_at)
SELECT DISTINCT server_hk, family, 'OK', %(now)s::timestamptz, %(now)s::timestamptz FROM monitoring.series;

INSERT INTO monitoring.alert_definition_h (alert_definition_hk, alert_definition_bk) VALUES ('\\x01', 'a rule');
INSERT INTO monitoring.alert_definition_s (
    alert_definition_hk, alert_name, alert_description, alert_category, metric_source, threshold_operator,
    condition_logic, suppression_window_minutes, next_step
)
VALUES ('\\x01', 'a rule', 'A rule.', 'CAPACITY', 'a.b', '>', '{}', 60, 'Do something.');

INSERT INTO monitoring.alert_instance_h (alert_instance_hk, alert_instance_bk, alert_definition_hk)
SELECT sha256(convert_to(n::text, 'utf8')), 'alert ' || n, '\\x01' FROM generate_series(1, 10000) AS n;

INSERT INTO monitoring.alert_instance_s (
    alert_instance_hk, fingerprint, rule_name, server_name, alert_category, alert_status, urgency_level,
    started_timestamp, triggered_timestamp, resolved_timestamp, summary
)
SELECT
    alert_instance_hk, encode(alert_instance_hk, 'hex'), 'a rule', 'server ' || 1 + n %% 20, 'CAPACITY',
    CASE WHEN n <= 100 THEN 'OPEN' ELSE 'RESOLVED' END, 'LOW', began, began,
    CASE WHEN n > 100 THEN began + interval '1 minute' END, 'Something is wrong.'
FROM generate_series(1, 10000) AS n
CROSS JOIN LATERAL (SELECT sha256(convert_to(n::text, 'utf8')), %(now)s::timestamptz - n * interval '1 hour')
    AS made (alert_instance_hk, began);

INSERT INTO monitoring.alert_transition (
    alert_instance_hk, fingerprint, happened_at, from_status, to_status, urgency_level, event_emitted_at
)
SELECT
    alert_instance_hk, fingerprint, triggered_timestamp + n * interval '1 minute', 'OPEN', 'OPEN', 'LOW',
    CASE WHEN triggered_timestamp < %(now)s::timestamptz - interval '1 hour' THEN triggered_timestamp END
FROM monitoring.alert_instance_s, generate_series(0, 1) AS n;
"""


@pytest.fixture(scope="module")
def shipped() -> RuleSet:
    return rules.load().bound(catalog.load().families)


@pytest.fixture
def full(vault: psycopg.Connection, shipped: RuleSet) -> Iterator[psycopg.ClientCursor[Any]]:
    families = sorted({rule.family for rule in shipped.rules.values()})
    with psycopg.ClientCursor(vault) as cursor:
        cursor.execute(FILL.encode(), {"families": families, "now": NOW})
        cursor.execute("ANALYZE")
        yield cursor


def scanned(cursor: psycopg.ClientCursor[Any], statement: Any, values: dict[str, Any]) -> set[str]:
    """Return the tables that a statement reads from their beginning to their end."""
    text = cursor.mogrify(statement, values)
    cursor.execute(f"EXPLAIN (FORMAT JSON) {text}".encode())
    row = cursor.fetchone()
    assert row is not None
    plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
    return {
        node["Relation Name"] for node in _nodes(plan[0]["Plan"]) if node["Node Type"] == "Seq Scan"
    }


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def test_what_is_read_of_one_server_is_found_by_indexes(full, shipped):
    asked = queries.load("tasks.alerts")
    families = sorted({rule.family for rule in shipped.rules.values()})
    growing = [rule for rule in shipped.rules.values() if rule.over]
    read: dict[str, dict[str, Any]] = {
        "latest": {"families": families},
        "growths": {
            "families": [rule.family for rule in growing],
            "metrics": [rule.metric_name for rule in growing],
            "spans": [rule.over for rule in growing],
            "now": NOW,
        },
        "family_statuses": {},
        "memories": {},
        "open_health": {},
        "open_alerts": {},
    }
    found = {}
    for name, values in read.items():
        columns = {"columns": rows.selected()} if name == "open_alerts" else {}
        statement = asked.compose(name, 99, **columns) if columns else asked.get(name, 99)
        found[name] = scanned(full, statement, {**values, **ONE}) & LARGE
    assert found == {name: set() for name in read}


def test_what_is_read_of_alerts_is_found_by_indexes(full):
    asked = queries.load("tasks.alerts")
    week = NOW - timedelta(days=7)
    read: dict[str, dict[str, Any]] = {
        "not_emitted": {"limit": 500},
        "history": {"server": None, "since": week, "limit": 100},
        "forget_transitions": {"before": NOW - timedelta(days=416)},
    }
    found = {
        name: scanned(full, asked.get(name, 99), values) & LARGE for name, values in read.items()
    }
    assert found == {name: set() for name in read}
