"""What is written of a batch, once, and what a restarted collector finds."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tasks import datavault
from tasks import vault as vaults
from tasks.errors import Refused, Unavailable
from tasks.metrics import store
from tasks.metrics.models import Batch, FamilyState, StatementSnapshot
from tasks.metrics.store import Heartbeat, SeriesCache, Written
from tests.integration.metrics.samples import (
    NOW,
    STARTED,
    answer,
    availability,
    batch,
    facts,
    later,
    sample,
    statement,
)


@pytest.fixture
def cache() -> SeriesCache:
    return SeriesCache()


def count(conn: psycopg.Connection, table: str) -> int:
    query = psycopg.sql.SQL("SELECT count(*) FROM {}").format(
        psycopg.sql.Identifier("monitoring", table)
    )
    ((number,),) = conn.execute(query).fetchall()
    return int(number)


def only(conn: psycopg.Connection, table: str) -> dict[str, object]:
    query = psycopg.sql.SQL("SELECT * FROM {}").format(psycopg.sql.Identifier("monitoring", table))
    with conn.cursor(row_factory=dict_row) as cursor:
        (row,) = cursor.execute(query).fetchall()
    return row


TABLES = (
    "server_h",
    "server_s",
    "series",
    "metric_sample",
    "metric_latest",
    "family_status",
    "statement_text",
    "statement_sample",
    "statement_snapshot",
)


def full(**changes: Any) -> Batch:
    shot = StatementSnapshot(NOW, "e1", b"packed")
    made = batch(
        availability(),
        sample(),
        sample(labels={"datname": 'Ünï "quoted"'}),
        answers=(answer("availability"), answer()),
        statements=(statement(1), statement(0)),
        snapshot=shot,
    )
    return replace(made, **changes)


def test_a_batch_is_stored_whole(vault, cache):
    assert store.write(vault, full(), cache) == Written(stored=7, refused=0)
    assert {table: count(vault, table) for table in TABLES} == {
        "server_h": 1,
        "server_s": 1,
        "series": 3,
        "metric_sample": 3,
        "metric_latest": 3,
        "family_status": 2,
        "statement_text": 1,
        "statement_sample": 2,
        "statement_snapshot": 1,
    }


def test_what_was_sampled_is_kept_number_by_number(vault, cache):
    made = sample(texts={"state": "streaming"})
    store.write(vault, batch(made), cache)
    row = only(vault, "metric_sample")
    assert (row["sampled_at"], row["interval_seconds"]) == (NOW, 60)
    assert row["values"] == {"commits": 120, "backends": 7}
    row = only(vault, "metric_latest")
    assert (row["raw"], row["texts"], row["epoch"]) == (
        {"commits": 1_000_120},
        {"state": "streaming"},
        "e1",
    )


def test_a_batch_sent_again_changes_nothing(vault, cache):
    store.write(vault, full(), cache)
    before = {table: count(vault, table) for table in TABLES}
    for again in (cache, SeriesCache()):
        assert store.write(vault, full(), again) == Written(7, 0)
    assert {table: count(vault, table) for table in TABLES} == before


def test_the_facts_of_a_known_server_are_not_compared_again(vault, cache):
    store.write(vault, full(), cache)
    vault.execute("ALTER TABLE monitoring.server_s RENAME TO out_of_reach")
    assert store.write(vault, full(), cache).stored == 7
    with pytest.raises(psycopg.errors.UndefinedTable):
        store.write(vault, full(), SeriesCache())


def test_new_facts_are_a_new_version(vault, cache):
    store.write(vault, full(), cache)
    promoted = replace(facts(), is_in_recovery=True)
    store.write(vault, full(facts=promoted), cache)
    store.write(vault, full(facts=promoted), SeriesCache())
    rows = vault.execute(
        "SELECT is_in_recovery, load_end_date IS NULL FROM monitoring.server_s ORDER BY load_date"
    ).fetchall()
    assert rows == [(False, False), (True, True)]


def test_what_is_no_number_is_unknown(vault, cache):
    values = {"a": float("nan"), "b": float("inf"), "c": 1.5}
    store.write(vault, batch(sample(values=values)), cache)
    assert only(vault, "metric_sample")["values"] == {"c": 1.5}


def test_text_that_postgresql_cannot_keep_loses_no_batch(vault, cache):
    made = batch(
        sample(labels={"datname": "a\0b"}, texts={"t": "\udc80"}),
        statements=(statement(5),),
        texts={5: "select '\0\udc80'"},
        answers=(answer(message="\0"),),
    )
    store.write(vault, made, cache)
    assert only(vault, "series")["labels"] == {"datname": "ab"}
    assert only(vault, "statement_text")["query"] == "select '?'"


def test_the_latest_sample_is_never_an_older_one(vault, cache):
    for seconds in (0, -30, 0):
        store.write(vault, batch(sample(sampled_at=later(seconds), epoch=str(seconds))), cache)
    row = only(vault, "metric_latest")
    assert (row["sampled_at"], row["epoch"]) == (NOW, "0")
    assert count(vault, "metric_sample") == 2


def test_the_newest_of_one_batch_is_the_latest(vault, cache):
    store.write(vault, batch(sample(), sample(sampled_at=later(-30)), sample()), cache)
    assert only(vault, "metric_latest")["sampled_at"] == NOW
    assert count(vault, "metric_sample") == 2


def test_the_latest_comes_back_from_the_future(vault, cache):
    """The collector's clock was ahead, and was set right."""
    ahead = batch(sample(sampled_at=later(3600)), answers=(answer(at=later(3600)),))
    store.write(vault, ahead, cache)
    store.write(vault, batch(sample(), answers=(answer(),)), cache)
    assert only(vault, "metric_latest")["sampled_at"] == NOW
    assert only(vault, "family_status")["collected_at"] == NOW


def test_impossible_times_are_refused_and_counted(vault, cache):
    days = [timedelta(days=-2, minutes=-5), timedelta(days=1, minutes=5)]
    bad = [NOW + each for each in days]
    made = batch(
        sample(),
        *(sample(sampled_at=at) for at in bad),
        statements=tuple(statement(at=at) for at in bad),
        answers=tuple(answer(at=at) for at in bad),
    )
    assert store.write(vault, made, cache) == Written(stored=1, refused=6)
    assert (count(vault, "metric_sample"), count(vault, "statement_sample")) == (1, 0)
    assert count(vault, "family_status") == 0


def test_only_an_answer_moves_the_time_of_collection(vault, cache):
    store.write(vault, batch(answers=(answer(),)), cache)
    degraded = answer(state=FamilyState.DEGRADED, at=later(60), message="canceled", duration_ms=9)
    store.write(vault, batch(answers=(degraded,)), cache)
    row = only(vault, "family_status")
    assert (row["state"], row["message"], row["duration_ms"]) == ("DEGRADED", "canceled", 9)
    assert (row["collected_at"], row["attempted_at"]) == (NOW, later(60))


def test_an_answer_that_never_came_has_no_time(vault, cache):
    made = tuple(answer(str(state), state) for state in FamilyState)
    store.write(vault, batch(answers=made), cache)
    rows = vault.execute(
        "SELECT family FROM monitoring.family_status WHERE collected_at IS NOT NULL"
    ).fetchall()
    assert rows == [("OK",)]


def test_an_older_status_does_not_overwrite(vault, cache):
    store.write(vault, batch(answers=(answer(),)), cache)
    older = answer(state=FamilyState.UNAVAILABLE, at=later(-60))
    store.write(vault, batch(answers=(older,)), cache)
    assert only(vault, "family_status")["state"] == "OK"


def test_a_collector_goes_on_from_the_counters(vault, cache):
    store.write(vault, full(), cache)
    samples, shot = store.latest(vault, "shop-1")
    key = ("database", (("datname", "shop"),))
    assert set(samples) == {key, ("database", (("datname", 'Ünï "quoted"'),))}
    found = samples[key]
    assert (found.raw, found.epoch, found.sampled_at) == ({"commits": 1_000_120}, "e1", NOW)
    assert shot == StatementSnapshot(NOW, "e1", b"packed")
    assert store.latest(vault, "another") == ({}, None)


def test_the_snapshot_does_not_go_back(vault, cache):
    store.write(vault, full(), cache)
    older = StatementSnapshot(later(-60), "e0", b"old")
    store.write(vault, full(snapshot=older), cache)
    assert store.latest(vault, "shop-1")[1] == StatementSnapshot(NOW, "e1", b"packed")


# Tenants


def add_tenant(conn: psycopg.Connection, name: str) -> bytes:
    key = datavault.hash_key(name)
    conn.execute("INSERT INTO auth.tenant_h (tenant_hk, tenant_bk) VALUES (%s, %s)", [key, name])
    return key


def test_an_unknown_tenant_is_refused_with_nothing_written(vault, cache):
    with pytest.raises(Refused, match='tenant "ACME", which the vault does not know'):
        store.write(vault, full(facts=facts(tenant="ACME")), cache)
    assert count(vault, "server_h") == 0


def test_a_server_that_never_answered_gets_its_tenant_when_it_does(vault, cache):
    acme = add_tenant(vault, "ACME")
    down = batch(availability(up=0), facts=None)
    store.write(vault, down, cache)
    assert only(vault, "server_h")["tenant_hk"] == datavault.SYSTEM_TENANT_HK
    store.write(vault, full(facts=facts(tenant="ACME")), cache)
    assert only(vault, "server_h")["tenant_hk"] == acme
    store.write(vault, down, cache)
    assert only(vault, "server_h")["tenant_hk"] == acme


def test_a_server_does_not_change_its_tenant(vault, cache):
    add_tenant(vault, "ACME")
    store.write(vault, full(), cache)
    with pytest.raises(Refused, match="does not change its tenant"):
        store.write(vault, full(facts=facts(tenant="ACME")), cache)


# Faults


def test_a_batch_that_fails_leaves_nothing_and_teaches_nothing(vault, cache):
    too_big = statement(calls=2**70)
    with pytest.raises(psycopg.errors.NumericValueOutOfRange):
        store.write(vault, full(statements=(too_big,)), cache)
    assert count(vault, "series") == count(vault, "server_h") == 0
    assert store.write(vault, full(), cache) == Written(7, 0)
    assert count(vault, "metric_sample") == 3


def test_partitions_that_nobody_made_are_made(vault, cache):
    made = vault.execute(
        "SELECT FROM pg_inherits WHERE inhparent = 'monitoring.metric_sample'::regclass"
    )
    assert made.rowcount == 0
    assert store.write(vault, full(), cache).stored == 7


def test_a_cache_learned_from_lost_series_is_forgotten(vault, cache):
    store.write(vault, full(), cache)
    for table in ("metric_sample", "metric_latest", "series"):
        vault.execute(
            psycopg.sql.SQL("DELETE FROM {}").format(psycopg.sql.Identifier("monitoring", table))
        )
    assert store.write(vault, full(), cache).stored == 7
    assert count(vault, "metric_latest") == 3


def test_a_restored_vault_whose_numbers_mean_others_is_noticed(vault, cache):
    """Samples under a number that means another series now would be the worst of all: silently wrong."""
    store.write(vault, batch(sample(labels={"datname": "old"})), cache)
    vault.execute("TRUNCATE monitoring.series, monitoring.metric_latest RESTART IDENTITY CASCADE")
    vault.execute("DELETE FROM monitoring.metric_sample")
    store.write(vault, batch(sample(labels={"datname": "new"})), SeriesCache())
    store.write(vault, batch(sample(labels={"datname": "old"}, sampled_at=later(1))), cache)
    rows = vault.execute(
        "SELECT labels ->> 'datname', sampled_at FROM monitoring.metric_sample "
        "JOIN monitoring.series USING (series_id) ORDER BY 1"
    ).fetchall()
    assert rows == [("new", NOW), ("old", later(1))]


def test_a_lost_vault_may_come_back(migrated, vault, cache):
    store.write(vault, full(), cache)
    with migrated.connect() as other:
        other.execute("SELECT pg_terminate_backend(%s)", [vault.info.backend_pid])
    with pytest.raises(Unavailable, match="store the metrics of shop-1"):
        store.write(vault, full(), cache)
    with vaults.connect(migrated.conninfo) as again:
        assert store.write(again, full(), cache).stored == 7


def test_two_collectors_may_write_the_same_at_once(migrated):
    keys = [{"datname": f"db{n}"} for n in range(200)]
    starting = threading.Barrier(2)

    def work(forwards: bool) -> Written:
        labels = keys if forwards else list(reversed(keys))
        made = batch(*(sample(labels=each) for each in labels))
        with vaults.connect(migrated.conninfo) as conn:
            starting.wait(30)
            return store.write(conn, made, SeriesCache())

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, [True, False])) == [Written(200, 0)] * 2
    with migrated.connect() as conn:
        assert count(conn, "metric_sample") == count(conn, "series") == 200


# Collectors


def test_a_heartbeat_is_dated_by_the_vault(vault):
    made = Heartbeat("fleet", "host-1", 7, STARTED, servers=3, buffered_rows=5, lost_rows=2)
    store.beat(vault, made)
    store.beat(vault, replace(made, buffered_rows=0))
    (row,) = store.collectors(vault)
    assert (row.name, row.servers, row.buffered_rows, row.lost_rows) == ("fleet", 3, 0, 2)
    assert 0 <= row.age_seconds < 60
    assert row.started_at == STARTED


def test_one_collector_leads(migrated, vault):
    assert store.try_lead(vault, "fleet") is True
    with vaults.connect(migrated.conninfo) as other:
        assert store.try_lead(other, "fleet") is False
        assert store.try_lead(other, "another") is True
        store.stop_leading(vault, "fleet")
        assert store.try_lead(other, "fleet") is True


def test_hours_that_had_ended_when_samples_came_are_marked(vault, cache):
    old = NOW - timedelta(hours=3)
    made = batch(sample(sampled_at=later(7200)), sample(sampled_at=old))
    store.write(vault, made, cache)
    store.write(vault, made, cache)
    row = only(vault, "late_bucket")
    assert row["bucket_at"] == old.replace(minute=0, second=0, microsecond=0)


def add_text(conn: psycopg.Connection, query_id: int, last_seen_days: int) -> None:
    conn.execute(
        "INSERT INTO monitoring.statement_text (server_hk, query_id, query, last_seen_at)"
        " VALUES (%s, %s, 'select', now() - make_interval(days => %s))",
        [datavault.hash_key("shop-1"), query_id, last_seen_days],
    )


# What is gone


def statuses(conn: psycopg.Connection) -> dict[tuple[str, str], str]:
    rows = conn.execute("SELECT family, database_name, state FROM monitoring.family_status")
    return {(family, database): state for family, database, state in rows}


def of_databases(*names: str, at: float = 0, **other: Any) -> Batch:
    answers = [answer("relations", at=later(at), database=name) for name in names]
    whole = replace(batch(answers=(answer(at=later(at)), *answers)), collected_at=later(at))
    return replace(whole, **({"databases": names} | other))


def test_databases_that_a_complete_list_no_longer_has_are_waited_for_no_longer(vault, cache):
    store.write(vault, of_databases("shop", "gone", "a\0b", "it's 100%"), cache)
    store.write(vault, of_databases("shop", "gone", at=30, databases=None), cache)
    assert set(statuses(vault).values()) == {"OK"}
    # It was never known to this process that there was such a database.
    store.write(vault, of_databases("shop", "a\0b", at=60), SeriesCache())
    assert statuses(vault) == {
        ("database", ""): "OK",
        ("relations", "shop"): "OK",
        ("relations", "ab"): "OK",
        ("relations", "gone"): "NOT_APPLICABLE",
        ("relations", "it's 100%"): "NOT_APPLICABLE",
    }
    row = vault.execute(
        "SELECT message, attempted_at, collected_at FROM monitoring.family_status WHERE database_name = 'gone'"
    ).fetchone()
    words = 'There is no database "gone" to connect to any more.'
    assert row == (words, later(60), later(30))


def test_an_older_list_ends_nothing_and_an_empty_one_everything(vault, cache):
    store.write(vault, of_databases("shop"), cache)
    store.write(vault, of_databases("other", at=-60), cache)
    assert statuses(vault)["relations", "shop"] == "OK"
    store.write(vault, of_databases(at=60), cache)
    assert statuses(vault)["relations", "shop"] == "NOT_APPLICABLE"


def test_a_database_that_comes_back_is_read_again(vault, cache):
    for at, names in enumerate((("shop",), (), ("shop",))):
        store.write(vault, of_databases(*names, at=60 * at), cache)
    assert statuses(vault)["relations", "shop"] == "OK"


def test_the_list_of_a_collector_with_an_impossible_clock_ends_nothing(vault, cache):
    store.write(vault, of_databases("shop"), cache)
    store.write(vault, of_databases("other", at=3 * 86400), cache)
    assert statuses(vault)["relations", "shop"] == "OK"


def test_families_that_nobody_answers_for_any_more_are_waited_for_no_longer(vault, cache):
    def write(at: float, absent: frozenset[str], *families: str) -> None:
        answers = tuple(answer(name, at=later(at)) for name in ("database", *families))
        made = replace(batch(answers=answers, absent=absent), collected_at=later(at))
        store.write(vault, made, cache)

    gone = frozenset(["pgbouncer_pools", "pgbouncer_stats"])
    for at, state in ((0, "OK"), (20, "OK")):
        write(at, frozenset(), "pgbouncer_pools")
        assert statuses(vault)["pgbouncer_pools", ""] == state
        write(at + 10, gone)
        assert statuses(vault) == {
            ("database", ""): "OK",
            ("pgbouncer_pools", ""): "NOT_APPLICABLE",
        }


def test_what_nobody_has_seen_for_long_is_forgotten(vault, cache):
    store.write(vault, full(), cache)
    for query_id, days in ((7, 35), (8, 37)):
        add_text(vault, query_id, days)
    assert store.forget_gone(vault, NOW + timedelta(days=29)) == 0
    assert count(vault, "family_status") == 2
    assert count(vault, "series") == 3
    assert store.forget_gone(vault, NOW + timedelta(days=31)) == 3
    assert count(vault, "family_status") == count(vault, "metric_latest") == 0
    # Their samples are still there.
    assert count(vault, "series") == 3
    vault.execute("DELETE FROM monitoring.metric_sample")
    store.forget_gone(vault, NOW + timedelta(days=31))
    assert count(vault, "series") == 0
    assert store.write(vault, full(), cache).stored == 7


@pytest.mark.parametrize("table", ["metric_hourly", "metric_daily"])
def test_a_series_with_a_history_keeps_its_number(vault, cache, table):
    store.write(vault, batch(sample()), cache)
    query = psycopg.sql.SQL("INSERT INTO {} SELECT series_id, %s, 1, 60, '{{}}' FROM {}")
    names = [psycopg.sql.Identifier("monitoring", each) for each in (table, "series")]
    vault.execute(query.format(*names), [NOW])
    vault.execute("DELETE FROM monitoring.metric_sample")
    store.forget_gone(vault, NOW + timedelta(days=31))
    assert (count(vault, "metric_latest"), count(vault, "series")) == (0, 1)


def test_a_text_is_kept_for_as_long_as_its_statement_is_seen(vault, cache):
    store.write(vault, full(), cache)
    for query_id, days in ((7, 30), (8, 30)):
        add_text(vault, query_id, days)
    store.write(vault, batch(answers=(answer(),), statements=(statement(7),), texts={}), cache)
    store.forget_gone(vault, NOW + timedelta(days=7))
    rows = vault.execute("SELECT query_id FROM monitoring.statement_text ORDER BY 1").fetchall()
    assert rows == [(1,), (7,)]


def test_a_collector_goes_on_from_the_servers_clock(vault, cache):
    clock = {"up": 1.0, "clock_epoch_seconds": 1_790_000_000.25}
    store.write(vault, batch(replace(availability(), values=clock), sample()), cache)
    samples, _ = store.latest(vault, "shop-1")
    assert samples["availability", ()].values == clock
    assert samples["availability", ()].sampled_at == NOW
