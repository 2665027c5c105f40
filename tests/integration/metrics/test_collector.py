"""The collector with real servers, dead ones, silent ones, and a vault that comes and goes."""

import asyncio
import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tasks import vault as vaults
from tasks.cluster_settings import free_port
from tasks.errors import Refused, Unavailable
from tasks.metrics import catalog, partitions
from tasks.metrics.buffer import BatchBuffer
from tasks.metrics.collector import Collector, open_session
from tasks.metrics.deltas import SeriesKey, key_of
from tasks.metrics.models import (
    Batch,
    FamilyState,
    Sample,
    Source,
    StatementSample,
    StatementSnapshot,
    Target,
    Tier,
)
from tasks.metrics.pace import Pace
from tasks.metrics.ports import Collected, Session
from tasks.metrics.sink import VaultSink
from tasks.metrics.store import Heartbeat
from tasks.metrics.watch import Watch
from tests.backups import sessions, until
from tests.clusters import Database, Server
from tests.poolers import pooler

CATALOG = catalog.load()
SECONDS = {Tier.LIGHT: 0.2, Tier.MINUTE: 0.6, Tier.FIVE_MINUTES: 3.0, Tier.HOURLY: 3600.0}
PACE = Pace(
    seconds=SECONDS.__getitem__,
    targets_seconds=0.2,
    write_seconds=0.05,
    backoff_seconds=0.2,
    beat_seconds=0.1,
    texts_seconds=0.3,
)


class Vault:
    """A vault in memory, to fail as a test wants it."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.beats: list[tuple[int, int, int]] = []
        self.threads: set[int] = set()
        self.fault: Callable[[Sequence[Batch]], None] = lambda _: None

    def write(self, batches: Sequence[Batch]) -> Mapping[str, int]:
        self.threads.add(threading.get_ident())
        self.fault(batches)
        self.batches += batches
        return {}

    def latest(
        self, server: str
    ) -> tuple[Mapping[SeriesKey, Sample], StatementSnapshot | None] | None:
        self.threads.add(threading.get_ident())
        self.fault(())
        samples = {
            key_of(s.family, s.labels): s for batch in self.of(server) for s in batch.samples
        }
        return (samples, None) if samples else None

    def beat(self, servers: int, buffered_rows: int, lost_rows: int) -> None:
        self.threads.add(threading.get_ident())
        self.beats.append((servers, buffered_rows, lost_rows))

    def of(self, server: str) -> list[Batch]:
        return [batch for batch in list(self.batches) if batch.server == server]

    def ups(self, server: str) -> list[float]:
        """Return what availability said, batch by batch."""
        every = [sample for batch in self.of(server) for sample in batch.samples]
        return [sample.values["up"] for sample in every if sample.family == "availability"]


def away(_: Sequence[Batch]) -> None:
    message = "The vault is away for the test. Try again."
    raise Unavailable(message)


def only(batch: Batch, family: str) -> Sample:
    (found,) = [sample for sample in batch.samples if sample.family == family]
    return found


def target(name: str, conninfo: str, **options: Any) -> Target:
    return Target(name, lambda database: f"{conninfo} dbname={database or 'postgres'}", **options)


def live(name: str, server: Server) -> Target:
    return Target(name, lambda database: server.conninfo(database or "postgres"))


def dead(name: str) -> Target:
    return target(name, f"host=127.0.0.1 port={free_port()} user=ops")


@contextmanager
def silent(name: str) -> Iterator[Target]:
    """A server that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        yield target(name, f"host=127.0.0.1 port={port} user=ops connect_timeout=2")


def collector(targets: Sequence[Target], vault: Vault, **options: Any) -> Collector:
    return Collector(lambda: list(targets), CATALOG, vault, **{"pace": PACE, **options})


@contextmanager
def running(made: Collector) -> Iterator[Callable[[], None]]:
    """Run a collector in a thread; what it gives stops it and waits for its end."""
    ready, faults = threading.Event(), []
    stop: list[Callable[[], None]] = []

    async def main() -> None:
        event, loop = asyncio.Event(), asyncio.get_running_loop()

        def ask_to_stop() -> None:
            loop.call_soon_threadsafe(event.set)

        stop.append(ask_to_stop)
        ready.set()
        await made.run(event)

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            faults.append(error)
            raise

    def end() -> None:
        if thread.is_alive():
            stop[0]()
        thread.join(60)
        assert not thread.is_alive()
        assert faults == []

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(30)
    try:
        yield end
    finally:
        end()


def test_dead_and_silent_servers_do_not_delay_the_living(
    pg_cluster: Server, other_cluster: Callable[..., Server]
):
    vault, other = Vault(), other_cluster()
    with silent("silent") as mute:
        targets = [live("one", pg_cluster), live("two", other), dead("dead"), mute]
        with running(collector(targets, vault, concurrency=1)):
            until(lambda: vault.of("silent") and vault.of("dead"), 60)
            before = Counter(batch.server for batch in list(vault.batches))
            until(lambda: all(len(vault.of(n)) >= before[n] + 12 for n in ("one", "two")), 120)
            after = Counter(batch.server for batch in list(vault.batches))
    assert set(vault.ups("one")) == set(vault.ups("two")) == {1.0}
    assert set(vault.ups("dead")) == set(vault.ups("silent")) == {0.0}
    # Had they waited for each other, each would have had its turn as often as the others.
    grown = after - before
    assert min(grown["one"], grown["two"]) >= 2 * grown["silent"]
    for name in ("dead", "silent"):
        (answer,) = [a for a in vault.of(name)[-1].answers if a.family == "availability"]
        assert answer.state is FamilyState.UNAVAILABLE
        assert "127.0.0.1" in answer.message


def test_tiers_come_as_often_as_they_should(pg_cluster: Server):
    vault = Vault()
    longer = Pace(seconds=(SECONDS | {Tier.MINUTE: 3.0}).__getitem__, write_seconds=0.05)

    def tiers() -> list[set[Tier]]:
        read = [{answer.family for answer in batch.answers} for batch in vault.of("one")]
        return [{CATALOG.families[name].tier for name in names} for names in read]

    def often_enough() -> Counter[Tier] | None:
        counts = Counter(tier for each in tiers() for tier in each)
        return counts if counts[Tier.LIGHT] > 2 * counts[Tier.MINUTE] > 2 else None

    with running(collector([live("one", pg_cluster)], vault, pace=longer)):
        counts = until(often_enough, 60)
    assert tiers()[0] == set(Tier)
    assert all(Tier.LIGHT in each for each in tiers())
    assert counts[Tier.HOURLY] == 1


def test_the_collection_tells_about_itself(pg_cluster: Server):
    vault = Vault()
    with running(collector([live("one", pg_cluster)], vault)):
        until(lambda: len(vault.of("one")) >= 3, 60)
    values = only(vault.of("one")[-1], "collection").values
    assert values["duration_ms"] > 0
    assert values["families_degraded"] == 0
    assert values["lost_rows"] == 0
    assert values["buffered_rows"] >= 0


def test_samples_wait_for_the_vault_and_what_is_lost_is_counted(pg_cluster: Server):
    vault, buffer = Vault(), BatchBuffer(200)
    vault.fault = away
    with running(collector([live("one", pg_cluster)], vault, buffer=buffer)):
        lost = until(lambda: buffer.lost_rows, 60)
        assert vault.batches == []
        vault.fault = lambda _: None
        until(lambda: len(vault.of("one")) >= 5, 60)
    assert [b.collected_at for b in vault.of("one")] == sorted(
        b.collected_at for b in vault.of("one")
    )
    assert max(only(b, "collection").raw["lost_rows"] for b in vault.of("one")) >= lost
    assert vault.beats[-1][2] >= lost


def test_a_batch_that_cannot_be_written_is_dropped_alone(
    pg_cluster: Server, caplog: pytest.LogCaptureFixture
):
    vault, buffer = Vault(), BatchBuffer()

    def choke(batches: Sequence[Batch]) -> None:
        if any(batch.server == "bad" for batch in batches):
            message = "no such number"
            raise ValueError(message)

    vault.fault = choke
    targets = [live("good", pg_cluster), live("bad", pg_cluster)]
    with running(collector(targets, vault, buffer=buffer)):
        until(lambda: len(vault.of("good")) >= 10 and buffer.lost_of("bad"), 60)
        first = buffer.lost_of("bad")
        until(lambda: buffer.lost_of("bad") > first, 60)
    assert vault.of("bad") == []
    assert buffer.lost_of("good") == 0
    assert [r.getMessage() for r in caplog.records if "a batch failed" in r.getMessage()] == [
        "a batch failed; more of this kind are not logged"
    ]


def test_the_vault_is_used_by_one_thread_which_tells_what_was_written(pg_cluster: Server):
    vault, told = Vault(), []

    def note(servers: frozenset[str]) -> None:
        told.append((threading.get_ident(), servers))
        message = "what follows the writing fails"
        raise RuntimeError(message)

    with running(collector([live("one", pg_cluster)], vault, on_written=note)):
        until(lambda: len(told) >= 3 and vault.beats[-1:] and vault.beats[-1][0] == 1, 60)
    assert {thread for thread, _ in told} == vault.threads
    assert len(vault.threads) == 1
    assert {servers for _, servers in told} == {frozenset(["one"])}
    assert vault.beats[-1] == (1, vault.beats[-1][1], 0)


def test_a_new_collector_goes_on_where_the_last_one_was(pg_cluster: Server):
    vault = Vault()
    with running(collector([live("one", pg_cluster)], vault)):
        until(lambda: len(vault.of("one")) >= 2, 60)
    first = vault.of("one")
    assert only(first[0], "wal").interval_seconds is None
    with running(collector([live("one", pg_cluster)], vault)):
        until(lambda: len(vault.of("one")) > len(first), 60)
    again = only(vault.of("one")[len(first)], "wal")
    assert again.interval_seconds is not None
    assert again.interval_seconds > 0
    assert again.values.keys() >= again.raw.keys() > set()


def test_without_the_vault_the_first_interval_is_left_out(pg_cluster: Server):
    vault = Vault()
    with running(collector([live("one", pg_cluster)], vault)):
        until(lambda: vault.of("one"), 60)
    known, vault.fault = len(vault.of("one")), away
    with running(made := collector([live("one", pg_cluster)], vault)):
        until(lambda: made.buffer.rows, 60)
        vault.fault = lambda _: None
        until(lambda: len(vault.of("one")) >= known + 2, 60)
    assert only(vault.of("one")[known], "wal").interval_seconds is None


def test_servers_come_and_go_and_a_list_that_fails_changes_nothing(
    database: Database, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    server, vault = database.server, Vault()
    targets, broken = [live("one", server)], threading.Event()

    def listed() -> list[Target]:
        if broken.is_set():
            message = "the list is away"
            raise OSError(message)
        return list(targets)

    with running(Collector(listed, CATALOG, vault, pace=PACE)):
        until(lambda: vault.of("one"), 60)
        targets.append(live("two", server))
        until(lambda: vault.of("two"), 60)
        broken.set()
        until(lambda: any("cannot be read" in r.getMessage() for r in caplog.records), 60)
        count = len(vault.of("one"))
        until(lambda: len(vault.of("one")) >= count + 3, 60)
        del targets[:]
        broken.clear()
        until(lambda: vault.beats[-1][0] == 0, 60)
        until(lambda: not sessions(server, "onevault metrics"), 60)
    assert len([r for r in caplog.records if "cannot be read" in r.getMessage()]) == 1


def test_a_server_that_goes_and_comes_back_is_logged_once_each(
    other_cluster: Callable[..., Server], caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    server, vault = other_cluster(), Vault()
    with running(collector([live("one", server)], vault)):
        until(lambda: 1.0 in vault.ups("one"), 60)
        server.cluster.stop()
        until(lambda: vault.ups("one")[-3:] == [0.0] * 3, 60)
        until(lambda: any(disks_while_down(batch) for batch in vault.of("one")), 60)
        listening = {"listen_addresses": "127.0.0.1", "port": str(server.port)}
        with server.cluster.running(listening):
            until(lambda: vault.ups("one")[-3:] == [1.0] * 3, 60)
            count = len(vault.of("one"))
            until(lambda: len(vault.of("one")) > count + 3, 60)
            said = [r.getMessage() for r in caplog.records if r.name == "onevault.collector"]
    assert len([words for words in said if words.startswith("one is away: ")]) == 1
    assert said.count("one is back") == 1


def disks_while_down(batch: Batch) -> bool:
    is_down = only(batch, "availability").values["up"] == 0
    return is_down and any(sample.family == "filesystem" for sample in batch.samples)


def test_a_long_tier_that_fell_into_an_outage_is_made_up_for(other_cluster: Callable[..., Server]):
    server, vault = other_cluster(), Vault()
    server.cluster.stop()
    hourly = {f.name for f in CATALOG.families.values() if f.tier is Tier.HOURLY}
    with running(collector([live("one", server)], vault)):
        until(lambda: vault.ups("one")[-2:] == [0.0] * 2, 60)
        with server.cluster.running({"port": str(server.port)}):
            until(lambda: any(hourly & {a.family for a in b.answers} for b in vault.of("one")), 60)


def test_new_connection_settings_are_used(pg_cluster: Server):
    vault, targets = Vault(), [dead("one")]
    with running(Collector(lambda: list(targets), CATALOG, vault, pace=PACE)):
        until(lambda: vault.ups("one")[-1:] == [0.0], 60)
        targets[:] = [live("one", pg_cluster)]
        until(lambda: vault.ups("one")[-1:] == [1.0], 60)


def test_a_stop_writes_what_waits_and_closes_the_sessions(database: Database):
    vault = Vault()
    slow = Pace(seconds=SECONDS.__getitem__, write_seconds=3600, beat_seconds=3600)
    made = collector([live("one", database.server)], vault, pace=slow)
    with running(made) as end:
        until(lambda: made.buffer.rows, 60)
        assert vault.batches == []
        end()
    assert vault.of("one")
    assert made.buffer.rows == 0
    until(lambda: not sessions(database.server, "onevault metrics"))


def test_a_stop_does_not_wait_for_a_vault_that_hangs(pg_cluster: Server):
    vault, let_go, hangs = Vault(), threading.Event(), threading.Event()

    def hang(_: Sequence[Batch]) -> None:
        hangs.set()
        let_go.wait(60)

    short = Pace(seconds=SECONDS.__getitem__, write_seconds=0.05, stop_seconds=0.3)
    made = collector([live("one", pg_cluster)], vault, pace=short)
    with running(made) as end:
        until(lambda: vault.of("one"), 60)
        vault.fault = hang
        assert hangs.wait(60)
        end()
    let_go.set()


def test_one_collection_by_hand_reads_server_host_and_pooler(database: Database, short_path: Path):
    vault, server = Vault(), database.server
    with pooler(server, short_path, database.name) as pool:
        with pool.client(database.name) as connection:
            connection.execute("select 1")
        one = Target("one", live("one", server).conninfo, pgbouncer=lambda: pool.console)
        made = collector([], vault)
        batch = asyncio.run(made.collect_once(one, list(Tier)))
    assert vault.batches == []
    states = {a.family: a.state for a in batch.answers}
    assert states["availability"] is FamilyState.OK
    assert batch.answers[0].family == "availability"
    for family in ("filesystem", "host_memory", "pgbouncer_pools", "collection"):
        assert states[family] is FamilyState.OK
        assert any(sample.family == family for sample in batch.samples)
    assert batch.facts is not None
    assert batch.databases is not None
    assert "postgres" in batch.databases
    assert batch.absent == frozenset()
    assert not any(sample.family == "statements" for sample in batch.samples)
    assert not sessions(server, "onevault metrics")


def test_without_a_pooler_its_families_are_told_to_be_absent(pg_cluster: Server):
    batch = asyncio.run(collector([], Vault()).collect_once(live("one", pg_cluster), [Tier.LIGHT]))
    poolers = {f.name for f in CATALOG.families.values() if f.source is Source.PGBOUNCER}
    assert batch.absent == poolers > set()
    assert batch.databases is None


def test_statements_come_with_their_text_once(other_cluster: Callable[..., Server]):
    server, vault = other_cluster(shared_preload_libraries="pg_stat_statements"), Vault()
    with server.connect() as connection:
        connection.execute("create extension pg_stat_statements")

        def grown() -> list[StatementSample]:
            connection.execute("select 'a marked statement', count(*) from pg_class")
            every = [s for batch in vault.of("one") for s in batch.statements]
            texts = [each for batch in vault.of("one") for each in batch.texts.items()]
            marked = {query_id for query_id, text in texts if "count(*) from pg_class" in text}
            return [s for s in every if s.query_id in marked]

        with running(collector([live("one", server)], vault)):
            found = until(lambda: (seen := grown())[2:] and seen, 90)
    told = [query_id for batch in vault.of("one") for query_id in batch.texts]
    assert told.count(found[0].query_id) == 1
    assert all(s.calls > 0 for s in found)
    assert any(batch.snapshot for batch in vault.of("one"))
    assert not any(s.family == "statements" for batch in vault.of("one") for s in batch.samples)


def test_a_text_that_was_lost_is_asked_for_again(other_cluster: Callable[..., Server]):
    server, vault = other_cluster(shared_preload_libraries="pg_stat_statements"), Vault()
    refused: list[int] = []

    def choke_once(batches: Sequence[Batch]) -> None:
        texts = [query_id for b in batches for query_id in b.texts]
        if not texts or refused:
            return
        if len(batches) == 1:
            refused.extend(texts)
        message = "no such text"
        raise ValueError(message)

    vault.fault = choke_once
    with server.connect() as connection:
        connection.execute("create extension pg_stat_statements")

        def told() -> set[int]:
            connection.execute("select 'a marked statement', count(*) from pg_class")
            return {query_id for b in vault.of("one") for query_id in b.texts}

        with running(collector([live("one", server)], vault)):
            until(lambda: set(refused) & told(), 90)


def test_a_pooler_whose_settings_cannot_be_had_is_a_degraded_family(pg_cluster: Server):
    def refuse() -> str:
        message = "There is no such block."
        raise Refused(message)

    one = Target("one", live("one", pg_cluster).conninfo, pgbouncer=refuse)
    batch = asyncio.run(collector([], Vault()).collect_once(one, [Tier.LIGHT]))
    (pools,) = [a for a in batch.answers if a.family == "pgbouncer_pools"]
    assert (pools.state, pools.message) == (FamilyState.DEGRADED, "There is no such block.")
    assert only(batch, "collection").values["families_degraded"] == 1


def test_a_pooler_that_was_removed_is_a_fault_no_longer(pg_cluster: Server):
    def refuse() -> str:
        message = "There is no such block."
        raise Refused(message)

    one = Target("one", live("one", pg_cluster).conninfo, pgbouncer=refuse)

    async def collect() -> list[float]:
        watch = Watch(one, CATALOG, open_session)
        first = await watch.collect([Tier.LIGHT])
        watch.renew(replace(one, pgbouncer=None))
        then = await watch.collect([Tier.LIGHT])
        await watch.close()
        assert (first.absent, then.absent >= {"pgbouncer_pools"}) == (frozenset(), True)
        return [only(each, "collection").values["families_degraded"] for each in (first, then)]

    assert asyncio.run(collect()) == [1, 0]


def test_an_oddity_of_the_pooler_leaves_the_servers_samples(pg_cluster: Server):
    def fail() -> str:
        message = "an oddity"
        raise KeyError(message)

    one = Target("one", live("one", pg_cluster).conninfo, pgbouncer=fail)
    batch = asyncio.run(collector([], Vault()).collect_once(one, [Tier.LIGHT]))
    (pools,) = [a for a in batch.answers if a.family == "pgbouncer_pools"]
    assert pools.state is FamilyState.DEGRADED
    assert "KeyError" in pools.message
    assert only(batch, "availability").values["up"] == 1


def test_a_fault_of_the_collector_does_not_end_the_watch(
    pg_cluster: Server, caplog: pytest.LogCaptureFixture
):
    faults = iter([True, True])

    class Odd:
        """A session that fails twice in a way no session should."""

        def __init__(self, session: Session) -> None:
            self.collect, self.close = self._collect, session.close
            self.statement_texts, self._session = session.statement_texts, session

        async def _collect(self, tiers: Collection[Tier]) -> Collected:
            if next(faults, False):
                message = "an oddity"
                raise KeyError(message)
            return await self._session.collect(tiers)

    vault = Vault()
    odd = collector(
        [live("one", pg_cluster)], vault, make_session=lambda t, c: Odd(open_session(t, c))
    )
    with running(odd):
        until(lambda: 1.0 in vault.ups("one"), 60)
    for batch in vault.of("one")[:2]:
        assert batch.answers[0].state is FamilyState.UNAVAILABLE
        assert "The collector failed (KeyError)" in batch.answers[0].message
        assert not any(sample.family == "availability" for sample in batch.samples)
    assert any("collecting from one failed" in r.getMessage() for r in caplog.records)


def test_what_is_collected_stands_in_the_vault(migrated: Database):
    identity = Heartbeat("test", "here", os.getpid(), datetime.now(UTC))
    faults: list[str] = []
    sink = VaultSink(
        lambda: vaults.connect(migrated.conninfo), identity, lambda: faults.append("lost")
    )
    assert sink.lead()
    with vaults.connect(migrated.conninfo) as conn:
        partitions.ensure(conn, datetime.now(UTC))
        made = Collector(lambda: [live("one", migrated.server)], CATALOG, sink, pace=PACE)
        with running(made):
            until(lambda: rates(conn), 60)
            until(lambda: beats(conn) == [(1, 0)], 60)
    sink.close()
    assert (made.buffer.rows, made.buffer.lost_rows, faults) == (0, 0, [])


def beats(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    return conn.execute("select servers, lost_rows from monitoring.collector").fetchall()


def rates(conn: psycopg.Connection) -> int:
    """Count the samples of WAL with an interval."""
    row = conn.execute(
        "select count(*) from monitoring.metric_sample join monitoring.series using (series_id)"
        " where family = 'wal' and interval_seconds > 0"
    ).fetchone()
    assert row is not None
    return int(row[0])
