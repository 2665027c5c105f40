"""What `status`, `top` and a dashboard read, with ages as of now."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tasks import datavault
from tasks.metrics import partitions, reading, rollup, store
from tasks.metrics.models import FamilyState, HealthStatus, Sample
from tasks.metrics.store import SeriesCache
from tests.integration.metrics.samples import (
    answer,
    availability,
    batch,
    facts,
    sample,
    statement,
)


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)


def write(conn: psycopg.Connection, *samples: Sample, **other: Any) -> None:
    store.write(conn, batch(*samples, **other), SeriesCache())


def add_alert(conn: psycopg.Connection, number: int, **changes: object) -> None:
    hub = datavault.insert_hub(
        conn, "monitoring.alert_definition_h", "alert_definition", f"rule-{number}"
    )
    key = datavault.hash_key(f"episode-{number}")
    conn.execute(
        "INSERT INTO monitoring.alert_instance_h (alert_instance_hk, alert_instance_bk, alert_definition_hk) "
        "VALUES (%s, %s, %s)",
        [key, f"episode-{number}", hub],
    )
    state = {
        "fingerprint": f"{number:064x}",
        "rule_name": f"rule-{number}",
        "server_name": "shop-1",
        "alert_category": "AVAILABILITY",
        "alert_status": "OPEN",
        "urgency_level": "MEDIUM",
        "started_timestamp": datetime(2026, 1, 1, number, tzinfo=UTC),
        "triggered_timestamp": datetime(2026, 1, 1, number, tzinfo=UTC),
        "summary": "Something.",
    }
    datavault.append_version(
        conn, "monitoring.alert_instance_s", "alert_instance_hk", key, {**state, **changes}
    )


def add_health(conn: psycopg.Connection, metric: str, status: str) -> None:
    key = datavault.insert_hub(
        conn, "monitoring.system_health_metric_h", "health_metric", f"shop-1 {metric}"
    )
    state = {
        "server_name": "shop-1",
        "metric_name": metric,
        "metric_category": "CAPACITY",
        "metric_value": None if status == "UNKNOWN" else 85.0,
        "metric_unit": "percent",
        "metric_direction": "higher_is_worse",
        "threshold_warning": 80.0,
        "status": status,
    }
    datavault.append_version(
        conn, "monitoring.system_health_metric_s", "health_metric_hk", key, state
    )


def test_the_fleet_shows_every_server_with_its_age(vault, now):
    write(vault, availability(now - timedelta(seconds=100)))
    write(vault, availability(now, up=0), server="shop-2", facts=None)
    first, second = reading.fleet(vault)
    assert (first.server, first.is_up, first.role, first.server_version) == (
        "shop-1",
        True,
        "primary",
        "17.6",
    )
    assert first.age_seconds is not None
    assert 100 <= first.age_seconds < 160
    assert (second.is_up, second.role, second.server_version) == (False, "unknown", None)
    assert (second.worst_alert, second.open_alerts, second.critical) == (None, 0, 0)
    assert [row.server for row in reading.fleet(vault, "shop-2")] == ["shop-2"]


def test_a_server_that_was_never_sampled_has_no_age(vault):
    write(vault, facts=facts(is_in_recovery=True))
    (row,) = reading.fleet(vault)
    assert (row.is_up, row.sampled_at, row.age_seconds, row.role) == (None, None, None, "standby")


def test_the_fleet_counts_what_is_wrong(vault, now):
    write(
        vault,
        availability(now),
        answers=(
            answer("a", FamilyState.DEGRADED, now),
            answer("b", FamilyState.NOT_APPLICABLE, now),
        ),
    )
    add_alert(vault, 1, urgency_level="LOW")
    add_alert(vault, 2, urgency_level="HIGH")
    add_alert(vault, 3, alert_status="ACKNOWLEDGED")
    add_alert(vault, 4, urgency_level="CRITICAL", server_name="another")
    resolved = {"alert_status": "RESOLVED", "resolved_timestamp": now}
    add_alert(vault, 5, urgency_level="CRITICAL", **resolved)
    for metric, status in [("disk", "CRITICAL"), ("wal", "UNKNOWN"), ("cpu", "NORMAL")]:
        add_health(vault, metric, status)
    (row,) = reading.fleet(vault)
    assert (row.worst_alert, row.open_alerts) == ("HIGH", 3)
    assert (row.critical, row.warning, row.unknown, row.faulty_families) == (1, 0, 1, 1)


def test_alerts_and_health_come_worst_first(vault):
    add_alert(vault, 1, labels={"datname": "shop"})
    add_alert(vault, 2, urgency_level="CRITICAL", alert_status="ESCALATED")
    assert [row.rule for row in reading.open_alerts(vault, "shop-1")] == ["rule-2", "rule-1"]
    assert reading.open_alerts(vault)[1].labels == {"datname": "shop"}
    assert reading.open_alerts(vault, "another") == ()
    for metric, status in [("cpu", "NORMAL"), ("wal", "UNKNOWN"), ("disk", "WARNING")]:
        add_health(vault, metric, status)
    rows = reading.health(vault, "shop-1")
    assert [(row.metric, row.status) for row in rows] == [
        ("disk", HealthStatus.WARNING),
        ("wal", HealthStatus.UNKNOWN),
        ("cpu", HealthStatus.NORMAL),
    ]
    assert rows[1].value is None


def test_the_latest_metrics_of_one_server(vault, now):
    write(vault, sample(sampled_at=now), availability(now))
    write(vault, sample(sampled_at=now), server="shop-2")
    first, second = reading.server_metrics(vault, "shop-1")
    assert (first.family, first.labels, first.per_second("commits")) == ("availability", {}, None)
    assert (second.family, second.labels) == ("database", {"datname": "shop"})
    assert (second.per_second("commits"), second.values["backends"]) == (2.0, 7.0)
    assert 0 <= second.age_seconds < 60
    (row,) = reading.server_metrics(vault, "shop-1", ["database"])
    assert row.family == "database"


def test_an_object_that_is_not_in_the_later_answer_is_gone(vault, now):
    before = now - timedelta(seconds=60)
    write(vault, sample(sampled_at=before), sample(sampled_at=before, labels={"datname": "x"}))
    write(vault, sample(sampled_at=now), answers=(answer(at=now),))
    shop, gone = reading.server_metrics(vault, "shop-1")
    assert (shop.labels, shop.is_gone) == ({"datname": "shop"}, False)
    assert (gone.labels, gone.is_gone) == ({"datname": "x"}, True)


def test_a_table_is_not_gone_because_another_database_answered(vault, now):
    before = now - timedelta(seconds=60)
    table = sample("tables", {"database": "shop", "table_name": "orders"}, sampled_at=before)
    write(
        vault,
        table,
        answers=(
            answer("tables", at=before, database="shop"),
            answer("tables", at=now, database="x"),
        ),
    )
    assert [row.is_gone for row in reading.server_metrics(vault, "shop-1")] == [False]
    write(vault, answers=(answer("tables", at=now, database="shop"),))
    assert [row.is_gone for row in reading.server_metrics(vault, "shop-1")] == [True]


def test_families_that_did_not_answer(vault, now):
    write(
        vault,
        answers=(
            answer("ok", at=now),
            answer("absent", FamilyState.NOT_APPLICABLE, now),
            answer("refused", FamilyState.REFUSED, now, message="Grant pg_monitor."),
        ),
    )
    first, second = reading.families_not_ok(vault, "shop-1")
    assert (first.family, first.state, first.message) == (
        "refused",
        FamilyState.REFUSED,
        "Grant pg_monitor.",
    )
    assert (second.state, second.age_seconds) == (FamilyState.NOT_APPLICABLE, None)


def test_the_top_statements_by_growth(vault, now):
    minutes = [now - timedelta(minutes=n) for n in (90, 20, 10)]
    write(
        vault,
        statements=(
            statement(1, minutes[0], total_exec_ms=9_000.0),
            statement(1, minutes[1], total_exec_ms=10.0),
            statement(2, minutes[1], total_exec_ms=30.0, temp_blks_read=4),
            statement(2, minutes[2], total_exec_ms=30.0, shared_blks_hit=0, shared_blks_read=0),
            statement(0, minutes[2], total_exec_ms=130.0),
        ),
    )
    first, second = reading.top_statements(vault, "shop-1", minutes=60)
    assert (first.query_id, first.calls, first.total_ms, first.mean_ms) == (2, 200, 60, 0.3)
    assert (first.query, first.hit_percent, first.temp_blocks) == ("select 2", 99.0, 4)
    assert (first.share_percent, second.share_percent) == (30.0, 5.0)
    assert 600 <= first.age_seconds < 660
    (all_of_them,) = reading.top_statements(vault, minutes=120, limit=1)
    assert (all_of_them.query_id, all_of_them.total_ms) == (1, 9_010)


def test_history_comes_from_samples_for_a_day(vault, now):
    start = now - timedelta(hours=2)
    points = [
        sample(sampled_at=start + timedelta(seconds=n), values={"commits": 60.0 + n})
        for n in (0, 60, 3600)
    ]
    write(vault, *points, sample(labels={"datname": "other"}, sampled_at=start))
    (series,) = reading.history(
        vault,
        "shop-1",
        ["database.commits"],
        start,
        start + timedelta(hours=10),
        {"datname": "shop"},
    )
    assert (series.metric, series.labels) == ("database.commits", {"datname": "shop"})
    assert [(p.n, p.total, p.low, p.high) for p in series.points] == [
        (2, 180, 60, 120),
        (1, 3660, 3660, 3660),
    ]
    assert [p.per_second for p in series.points] == [1.5, 61]
    assert series.points[0].at == start


def test_history_of_several_metrics_and_objects(vault, now):
    write(vault, sample(sampled_at=now), sample(labels={"datname": "b"}, sampled_at=now))
    found = reading.history(
        vault,
        "shop-1",
        ["database.commits", "database.backends", "database.nothing"],
        now - timedelta(hours=1),
        now,
    )
    assert [(each.metric, each.labels["datname"]) for each in found] == [
        ("database.backends", "b"),
        ("database.backends", "shop"),
        ("database.commits", "b"),
        ("database.commits", "shop"),
    ]


def test_longer_history_comes_from_the_roll_ups(vault, now):
    at = now - timedelta(hours=30)
    write(vault, sample(sampled_at=at, values={"backends": 4.0}))
    rollup.roll_up(vault, now)
    (hours,) = reading.history(vault, "shop-1", ["database.backends"], now - timedelta(days=7), now)
    assert [(p.at, p.mean) for p in hours.points] == [
        (at.replace(minute=0, second=0, microsecond=0), 4)
    ]


def test_the_longest_history_comes_from_days(vault, now):
    write(vault, sample(sampled_at=now))
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    partitions.ensure_span(vault, "metric_daily", day - timedelta(days=60), day)
    vault.execute(
        "INSERT INTO monitoring.metric_daily (series_id, bucket_at, samples, covered_seconds, stats) "
        "SELECT series_id, %s, 24, 3600, %s FROM monitoring.series",
        [day - timedelta(days=60), Jsonb({"commits": {"n": 24, "sum": 7200, "min": 0, "max": 9}})],
    )
    (days,) = reading.history(vault, "shop-1", ["database.commits"], now - timedelta(days=90), now)
    assert [(p.n, p.per_second, p.mean) for p in days.points] == [(24, 2, 300)]


@pytest.mark.parametrize(
    ("ago", "span", "name"),
    [
        (timedelta(hours=24), timedelta(hours=24), "history_of_samples"),
        (timedelta(days=7), timedelta(days=7), "history_of_hours"),
        (timedelta(days=20), timedelta(hours=24), "history_of_hours"),
        (timedelta(days=90), timedelta(days=90), "history_of_days"),
    ],
)
def test_the_source_is_the_finest_that_is_kept_and_not_too_much(now, ago, span, name):
    assert reading.source(now, now - ago, now - ago + span) == name


def test_a_name_is_only_a_name(vault, now):
    name = 'it\'s "odd"; drop'
    write(vault, sample(sampled_at=now), server=name, facts=facts(name))
    assert [row.server for row in reading.fleet(vault, name)] == [name]
    assert len(reading.server_metrics(vault, name)) == 1
