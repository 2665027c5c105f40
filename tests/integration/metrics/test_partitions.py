"""Partitions: made ahead in UTC, closed to those who have no right on the parent, dropped when they have expired."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from secrets import token_hex

import psycopg
import pytest
from psycopg import sql

from tasks import vault as vaults
from tasks.errors import Refused, Unavailable
from tasks.metrics import partitions, store
from tasks.metrics.partitions import Retention, Step
from tests.integration.metrics.samples import batch, sample

NOW = datetime(2026, 3, 1, 0, 30, tzinfo=UTC)
TODAY = datetime.now(UTC)


def bounds(conn: psycopg.Connection, table: str) -> dict[str, str]:
    conn.execute("SET timezone = 'UTC'")
    conn.execute("SET datestyle = 'ISO'")
    return dict(
        conn.execute(
            "SELECT relname, pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid IN "
            "(SELECT inhrelid FROM pg_inherits WHERE inhparent = %s::text::regclass) ORDER BY relname",
            [f"monitoring.{table}"],
        ).fetchall()
    )


def names(conn: psycopg.Connection, table: str) -> list[str]:
    return list(bounds(conn, table))


@pytest.mark.parametrize("zone", ["UTC", "America/Los_Angeles", "Pacific/Kiritimati"])
def test_partitions_are_utc_in_every_session(vault, zone):
    vault.execute(sql.SQL("SET timezone = {}").format(zone))
    vault.execute("SET datestyle = 'SQL, DMY'")
    made = partitions.ensure(vault, NOW)
    assert bounds(vault, "metric_sample") == {
        f"metric_sample_{first:%Y%m%d}": f"FOR VALUES FROM ('{first:%Y-%m-%d} 00:00:00+00') "
        f"TO ('{first + timedelta(days=1):%Y-%m-%d} 00:00:00+00')"
        for first in (datetime(2026, 2, 27, tzinfo=UTC) + timedelta(days=n) for n in range(6))
    }
    assert names(vault, "statement_sample")[0] == "statement_sample_20260227"
    assert bounds(vault, "metric_daily") == {
        "metric_daily_202602": "FOR VALUES FROM ('2026-02-01 00:00:00+00') TO ('2026-03-01 00:00:00+00')",
        "metric_daily_202603": "FOR VALUES FROM ('2026-03-01 00:00:00+00') TO ('2026-04-01 00:00:00+00')",
        "metric_daily_202604": "FOR VALUES FROM ('2026-04-01 00:00:00+00') TO ('2026-05-01 00:00:00+00')",
        "metric_daily_202605": "FOR VALUES FROM ('2026-05-01 00:00:00+00') TO ('2026-06-01 00:00:00+00')",
    }
    assert names(vault, "metric_hourly")[-1] == "metric_hourly_202605"
    assert len(made) == 20


def test_making_them_again_changes_nothing(vault):
    assert partitions.ensure(vault, NOW)
    assert partitions.ensure(vault, NOW) == ()
    assert partitions.ensure(vault, NOW + timedelta(days=1)) == (
        "metric_sample_20260305",
        "statement_sample_20260305",
    )


def test_two_at_once_make_each_once(migrated):
    starting = threading.Barrier(2)

    def work(_: int) -> tuple[str, ...]:
        with vaults.connect(migrated.conninfo) as conn:
            starting.wait(30)
            return partitions.ensure(conn, NOW)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, range(2))
    assert len({*first, *second}) == len(first) + len(second) == 20


def test_readers_and_writers_go_on_while_partitions_are_made(migrated, vault):
    partitions.ensure(vault, TODAY)
    with vaults.connect(migrated.conninfo) as other, other.transaction():
        store_one = "INSERT INTO monitoring.metric_sample VALUES (1, %s, 60, '{}')"
        other.execute(store_one, [TODAY])
        other.execute("SELECT count(*) FROM monitoring.metric_sample")
        made = partitions.ensure(vault, TODAY + timedelta(days=1))
    assert f"metric_sample_{TODAY + timedelta(days=4):%Y%m%d}" in made


def test_a_busy_table_is_left_for_later(migrated, vault):
    with vaults.connect(migrated.conninfo) as other, other.transaction():
        other.execute("LOCK TABLE monitoring.metric_sample IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(Unavailable, match="lock timeout"):
            partitions.ensure(vault, NOW)
    assert len(partitions.ensure(vault, NOW)) == 20


def test_a_foreign_partition_in_the_way_is_named(vault):
    vault.execute(
        "CREATE TABLE monitoring.winter PARTITION OF monitoring.metric_sample "
        "FOR VALUES FROM ('2026-01-01 00:00:00+00') TO ('2026-03-01 00:00:00+00')"
    )
    with pytest.raises(Refused, match="other bounds where metric_sample_20260227 belongs"):
        partitions.ensure(vault, NOW)


# Rights


@contextmanager
def reader(conn: psycopg.Connection, grant: sql.Composable):
    role = sql.Identifier(f"reader_{token_hex(4)}")
    conn.execute(sql.SQL("CREATE ROLE {}").format(role))
    conn.execute(sql.SQL("GRANT USAGE ON SCHEMA monitoring TO {}").format(role))
    conn.execute(sql.SQL("GRANT SELECT ON {} TO {}").format(grant, role))
    try:
        conn.execute(sql.SQL("SET ROLE {}").format(role))
        yield
    finally:
        conn.execute("RESET ROLE")
        conn.execute(sql.SQL("DROP OWNED BY {}").format(role))
        conn.execute(sql.SQL("DROP ROLE {}").format(role))


PARENTS = sql.SQL("monitoring.server_h, monitoring.series, monitoring.metric_sample")
EVERYTHING = sql.SQL("ALL TABLES IN SCHEMA monitoring")


def act_for(conn: psycopg.Connection, tenant: bytes) -> None:
    conn.execute("SELECT set_config('app.current_tenant_id', %s, false)", [tenant.hex()])


@pytest.fixture
def stored(vault) -> sql.Identifier:
    """One sample of the system's tenant; returns its partition."""
    store.write(vault, batch(sample(sampled_at=TODAY)), store.SeriesCache())
    return sql.Identifier("monitoring", f"metric_sample_{TODAY:%Y%m%d}")


def rows(conn: psycopg.Connection, table: sql.Identifier) -> int:
    return len(conn.execute(sql.SQL("SELECT * FROM {}").format(table)).fetchall())


def test_a_right_on_the_parent_is_none_on_its_partitions(vault, stored):
    with reader(vault, PARENTS), pytest.raises(psycopg.errors.InsufficientPrivilege):
        rows(vault, stored)


def test_even_a_right_on_everything_shows_no_rows_past_the_parent(vault, stored):
    parent = sql.Identifier("monitoring", "metric_sample")
    system = vault.execute("SELECT util.get_system_operations_tenant_hk()").fetchone()[0]
    with reader(vault, EVERYTHING):
        assert (rows(vault, parent), rows(vault, stored)) == (0, 0)
        act_for(vault, system)
        assert (rows(vault, parent), rows(vault, stored)) == (1, 0)
        act_for(vault, bytes(32))
        assert (rows(vault, parent), rows(vault, stored)) == (0, 0)


def test_every_table_of_monitoring_is_kept_apart_by_tenant(vault):
    partitions.ensure(vault, NOW)
    open_ones = vault.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'monitoring'::regnamespace "
        "AND relkind IN ('r', 'p') AND NOT relrowsecurity"
    ).fetchall()
    assert open_ones == []


# Retention


def test_only_what_has_expired_wholly_is_dropped(vault):
    for days in (20, 14, 0):
        partitions.ensure(vault, TODAY - timedelta(days=days))
    dropped = partitions.drop_expired(vault, TODAY, Retention())
    first_kept = Step.DAY.start(TODAY - timedelta(days=14))
    assert dropped.busy == ()
    assert dropped.dropped
    assert names(vault, "metric_sample")[0] == f"metric_sample_{first_kept:%Y%m%d}"
    assert {name.rpartition("_")[0] for name in dropped.dropped} == {"metric_sample"}
    assert partitions.drop_expired(vault, TODAY, Retention()).dropped == ()


def test_each_table_has_its_own_retention(vault):
    partitions.ensure(vault, TODAY - timedelta(days=500))
    partitions.ensure(vault, TODAY)
    dropped = partitions.drop_expired(vault, TODAY, Retention()).dropped
    assert {name.rpartition("_")[0] for name in dropped} == {
        "metric_sample",
        "statement_sample",
        "metric_hourly",
    }


def test_every_drop_is_on_the_audit_trail(vault):
    partitions.ensure(vault, TODAY - timedelta(days=20))
    dropped = partitions.drop_expired(vault, TODAY, Retention()).dropped
    trail = vault.execute(
        "SELECT subject, phase, outcome FROM audit.audit_detail_s WHERE event_type = 'partition.drop' "
        "ORDER BY load_date"
    ).fetchall()
    assert trail == [
        (f"monitoring.{name}", *what)
        for name in dropped
        for what in (("BEFORE", "STARTED"), ("AFTER", "SUCCEEDED"))
    ]


def test_partitions_of_other_hands_stay(vault):
    vault.execute(
        "CREATE TABLE monitoring.metric_sample_20200101 PARTITION OF monitoring.metric_sample "
        "FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2020-01-03 00:00:00+00')"
    )
    vault.execute(
        "CREATE TABLE monitoring.archive PARTITION OF monitoring.metric_sample "
        "FOR VALUES FROM ('2020-02-01 00:00:00+00') TO ('2020-02-02 00:00:00+00')"
    )
    vault.execute("CREATE TABLE monitoring.metric_sample_20200105 (LIKE monitoring.metric_sample)")
    assert partitions.drop_expired(vault, TODAY, Retention()) == partitions.Dropped((), ())
    assert names(vault, "metric_sample") == ["archive", "metric_sample_20200101"]


def test_what_is_being_read_is_dropped_the_next_time(migrated, vault):
    partitions.ensure_span(
        vault, "metric_sample", NOW - timedelta(days=400), NOW - timedelta(days=400)
    )
    with vaults.connect(migrated.conninfo) as other, other.transaction():
        other.execute("SELECT count(*) FROM monitoring.metric_sample")
        assert partitions.drop_expired(vault, TODAY, Retention()).busy == (
            "metric_sample_20250125",
        )
    assert partitions.drop_expired(vault, TODAY, Retention()).dropped == ("metric_sample_20250125",)


def test_a_clock_that_is_ahead_drops_nothing(vault):
    partitions.ensure(vault, TODAY)
    with pytest.raises(Refused, match="nothing was dropped"):
        partitions.drop_expired(vault, TODAY + timedelta(days=400), Retention())
    assert len(names(vault, "metric_sample")) == 6


@pytest.mark.parametrize(
    "name", ["metric_sample_2026030", "metric_sample_202603", "metric_sample_20261301", "x"]
)
def test_names_that_are_not_ours(name):
    assert partitions.named("metric_sample", name) is None


def test_names_that_are_ours():
    made = partitions.named("metric_hourly", "metric_hourly_202612")
    assert made is not None
    assert (made.starts_at, made.ends_at) == (
        datetime(2026, 12, 1, tzinfo=UTC),
        datetime(2027, 1, 1, tzinfo=UTC),
    )
