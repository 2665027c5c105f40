"""Rows of PgBouncer's console, by versions that differ in their columns."""

from decimal import Decimal
from typing import Any

import pytest

from tasks.metrics.models import Direction, Family, Kind, Level, Metric, Source, Tier
from tasks.metrics.pgbouncer import SHOWS, observations


def family(
    name: str, labels: tuple[str, ...], *metrics: str, texts: tuple[str, ...] = ()
) -> Family:
    made = {m: Metric(m, Kind.GAUGE, "count", Direction.NEUTRAL, m) for m in metrics}
    return Family(
        name=name,
        description=name,
        source=Source.PGBOUNCER,
        level=Level.INSTANCE,
        tier=Tier.LIGHT,
        timeout_ms=1000,
        metrics=made,
        labels=labels,
        texts=texts,
    )


POOLS = family(
    "pgbouncer_pools",
    ("database", "user"),
    "cl_active",
    "cl_waiting",
    "maxwait_seconds",
    texts=("pool_mode",),
)


def test_unknown_columns_are_ignored_and_missing_ones_are_absent():
    row = {"database": "shop", "user": "app", "cl_active": 3, "load_balance_hosts": 1}
    seen = observations(POOLS, SHOWS["pgbouncer_pools"], [row])
    assert [(o.labels, o.numbers, o.texts) for o in seen] == [
        ({"database": "shop", "user": "app"}, {"cl_active": 3.0}, {})
    ]


def test_a_database_is_what_clients_call_it_and_not_what_the_server_does():
    databases = family("pgbouncer_databases", ("database",), "pool_size", texts=("host",))
    row = {"name": "shop", "database": "shop_1", "host": "db", "pool_size": 5}
    (seen,) = observations(databases, SHOWS["pgbouncer_databases"], [row])
    assert (seen.labels, seen.texts) == ({"database": "shop"}, {"host": "db"})


def test_the_console_itself_is_left_out():
    pool = {"database": "pgbouncer", "user": "pgbouncer", "cl_active": 1}
    assert observations(POOLS, SHOWS["pgbouncer_pools"], [pool]) == ()
    databases = family("pgbouncer_databases", ("database",), "pool_size")
    row = {"name": "pgbouncer", "database": "pgbouncer", "pool_size": 2}
    assert observations(databases, SHOWS["pgbouncer_databases"], [row]) == ()


def test_a_null_is_absent_and_a_decimal_is_a_number():
    row = {"database": "shop", "user": "app", "cl_active": None, "cl_waiting": Decimal(7)}
    (seen,) = observations(POOLS, SHOWS["pgbouncer_pools"], [row])
    assert seen.numbers == {"cl_waiting": 7.0}


def test_the_longest_wait_is_made_of_two_columns():
    row = {"database": "shop", "user": "app", "maxwait": 1, "maxwait_us": 250_000}
    (seen,) = observations(POOLS, SHOWS["pgbouncer_pools"], [row])
    assert seen.numbers == {"maxwait_seconds": 1.25}


@pytest.mark.parametrize("column", ["reserve_pool", "reserve_pool_size"])
def test_a_renamed_column_is_found_under_both_names(column: str):
    databases = family("pgbouncer_databases", ("database",), "reserve_pool_size")
    row: dict[str, Any] = {"name": "shop", "database": "shop_1", column: 5}
    (seen,) = observations(databases, SHOWS["pgbouncer_databases"], [row])
    assert seen.numbers == {"reserve_pool_size": 5.0}


def test_a_list_is_one_row():
    lists = family("pgbouncer_lists", (), "used_clients", "free_clients", "peers")
    rows = [{"list": "used_clients", "items": 4}, {"list": "free_clients", "items": 46}]
    (seen,) = observations(lists, SHOWS["pgbouncer_lists"], rows)
    assert (seen.labels, seen.numbers) == ({}, {"used_clients": 4.0, "free_clients": 46.0})
