"""A real PgBouncer: what its console says, to a user who may only look."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

import psycopg
import pytest

from tasks.cluster_settings import free_port
from tasks.metrics import catalog, pgbouncer
from tasks.metrics.models import FamilyAnswer, FamilyState, Observation, Source
from tests.backups import until
from tests.clusters import TEMPLATE, Database, Server, drop_database, make_database
from tests.poolers import Pooler, pooler

FAMILIES = tuple(f for f in catalog.load().families.values() if f.source is Source.PGBOUNCER)


def scrape(conninfo: str) -> dict[str, FamilyAnswer]:
    return {a.family: a for a in asyncio.run(pgbouncer.scrape(conninfo, FAMILIES))}


def of(answers: dict[str, FamilyAnswer], family: str, database: str) -> Observation:
    (found,) = [o for o in answers[family].observations if o.labels["database"] == database]
    return found


@pytest.fixture
def databases(pg_cluster: Server) -> Iterator[list[Database]]:
    made = [make_database(pg_cluster, f"pool_{token_hex(4)}", TEMPLATE) for _ in range(3)]
    yield made
    for each in made:
        drop_database(each)


@pytest.fixture
def pool(pg_cluster: Server, databases: list[Database], short_path: Path) -> Iterator[Pooler]:
    with pooler(pg_cluster, short_path, *(each.name for each in databases)) as made:
        yield made


@contextmanager
def clients(pool: Pooler, database: str, count: int) -> Iterator[list[psycopg.Connection]]:
    with ExitStack() as stack:
        yield [stack.enter_context(pool.client(database)) for _ in range(count)]


def test_every_metric_of_the_catalogue_is_there(pool: Pooler, databases: list[Database]):
    for each in databases:
        with pool.client(each.name) as connection:
            connection.execute("select 1")
    answers = scrape(pool.console)
    assert set(answers) == {family.name for family in FAMILIES}
    for family in FAMILIES:
        answer = answers[family.name]
        assert (answer.state, answer.message) == (FamilyState.OK, "")
        assert answer.observations, family.name
        for seen in answer.observations:
            assert set(seen.labels) == set(family.labels)
            assert set(seen.texts) == set(family.texts)
            assert set(seen.numbers) == set(family.metrics)


def test_each_pool_is_a_row_and_the_console_is_none(pool: Pooler, databases: list[Database]):
    for each in databases:
        with pool.client(each.name) as connection:
            connection.execute("select 1")
    names = {each.name for each in databases}
    answers = scrape(pool.console)
    for family in ("pgbouncer_pools", "pgbouncer_databases", "pgbouncer_stats"):
        assert {o.labels["database"] for o in answers[family].observations} == names
    assert of(answers, "pgbouncer_pools", databases[0].name).texts == {"pool_mode": "transaction"}
    assert of(answers, "pgbouncer_databases", databases[0].name).numbers["pool_size"] == 2


def test_clients_that_wait_are_counted_with_their_longest_wait(
    pool: Pooler, databases: list[Database]
):
    name = databases[1].name
    with clients(pool, name, 5) as connections:
        busy, waiting = connections[:2], connections[2:]
        for connection in busy:
            connection.execute("begin")
        threads = [threading.Thread(target=c.execute, args=["select 1"]) for c in waiting]
        for thread in threads:
            thread.start()

        def seen() -> Observation | None:
            found = of(scrape(pool.console), "pgbouncer_pools", name)
            return found if found.numbers["cl_waiting"] == 3 else None

        first = until(seen)
        assert first.numbers["sv_active"] == 2
        assert first.numbers["sv_idle"] == 0
        longer = until(lambda: (s := seen()) and s.numbers["maxwait_seconds"] > 0 and s)
        assert longer.numbers["maxwait_seconds"] > first.numbers["maxwait_seconds"] or (
            first.numbers["maxwait_seconds"] > 0
        )
        others = of(scrape(pool.console), "pgbouncer_databases", databases[0].name)
        assert others.numbers["current_connections"] == 0
        for connection in busy:
            connection.execute("commit")
        for thread in threads:
            thread.join()
    until(lambda: of(scrape(pool.console), "pgbouncer_pools", name).numbers["cl_waiting"] == 0)


def test_totals_grow(pool: Pooler, databases: list[Database]):
    name = databases[0].name

    def total() -> float:
        return of(scrape(pool.console), "pgbouncer_stats", name).numbers["queries"]

    with pool.client(name) as connection:
        connection.execute("select 1")
        before = total()
        for _ in range(20):
            connection.execute("select 1")
    assert total() >= before + 20


def test_no_poller_stays_behind(pool: Pooler, databases: list[Database]):
    for _ in range(8):
        assert scrape(pool.console)["pgbouncer_lists"].state is FamilyState.OK
    with psycopg.connect(
        pool.console, autocommit=True, cursor_factory=psycopg.ClientCursor
    ) as connection:
        clients_there = connection.execute("SHOW CLIENTS").fetchall()
    assert len(clients_there) <= 2


def test_a_wrong_password_is_refused_without_telling_it(pool: Pooler):
    conninfo = psycopg.conninfo.make_conninfo(pool.console, password="hunter2")
    answers = scrape(conninfo)
    assert {a.state for a in answers.values()} == {FamilyState.REFUSED}
    words = {a.message for a in answers.values()}
    assert all("Could not connect to PgBouncer" in each for each in words)
    assert "hunter2" not in str(words)


def test_a_user_who_may_not_look_is_refused(pool: Pooler):
    answers = scrape(
        psycopg.conninfo.make_conninfo(
            pool.console, user="ops", password="a secret / of the: tests@"
        )
    )
    assert {a.state for a in answers.values()} == {FamilyState.REFUSED}


def test_nobody_there_is_unavailable():
    answers = scrape(f"host=127.0.0.1 port={free_port()} dbname=pgbouncer user=watcher")
    assert {a.state for a in answers.values()} == {FamilyState.UNAVAILABLE}
    assert all("Check that it runs" in a.message for a in answers.values())


def test_a_command_that_the_console_does_not_know_costs_the_others_nothing(
    pool: Pooler, monkeypatch: pytest.MonkeyPatch
):
    unknown = replace(pgbouncer.SHOWS["pgbouncer_lists"], command="SHOW NOTHING_OF_THE_KIND")
    monkeypatch.setitem(pgbouncer.SHOWS, "pgbouncer_lists", unknown)
    answers = scrape(pool.console)
    assert answers["pgbouncer_lists"].state is FamilyState.REFUSED
    assert "SHOW NOTHING_OF_THE_KIND" in answers["pgbouncer_lists"].message
    assert answers["pgbouncer_databases"].state is FamilyState.OK


def test_a_family_that_has_no_command_is_not_applicable(pool: Pooler):
    odd = replace(FAMILIES[0], name="pgbouncer_peers")
    (answer,) = asyncio.run(pgbouncer.scrape(pool.console, [odd]))
    assert answer.state is FamilyState.NOT_APPLICABLE
