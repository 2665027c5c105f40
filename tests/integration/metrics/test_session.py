"""Sessions of the collector against real servers, with a small catalogue of their own and with the shipped one."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from secrets import token_hex
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tasks.connection import connect_async
from tasks.errors import Refused, Unavailable
from tasks.metrics import catalog as shipped
from tasks.metrics.catalog import Catalog
from tasks.metrics.deltas import Deltas
from tasks.metrics.models import (
    AVAILABILITY,
    FamilyAnswer,
    FamilyState,
    Target,
    Tier,
)
from tasks.metrics.session import Collected, ServerSession
from tasks.metrics.statements import StatementDeltas
from tests.backups import until
from tests.clusters import Database, Server

CATALOG = """
availability:
  description: Whether it answers.
  tier: light
  timeout_ms: 2000
  texts: [version]
  metrics:
    up: {kind: gauge, unit: boolean, direction: lower_is_worse, description: 1 when it answers.}
  sql:
    15: select 1 as up, current_setting('server_version') as version
work:
  description: What the database did.
  tier: light
  timeout_ms: 2000
  epoch: stats_reset
  metrics:
    commits: {kind: counter, unit: transactions, direction: neutral, description: Commits.}
    unknown: {kind: gauge, unit: count, direction: neutral, description: Not known.}
    strange: {kind: gauge, unit: count, direction: neutral, description: Not a number.}
  sql:
    15: |
      select xact_commit as commits, null::int as unknown, 'NaN'::float8 as strange, stats_reset::text
      from pg_stat_database where datname = current_database()
exact_size:
  description: The size of a table, which waits for its locks.
  tier: light
  timeout_ms: 10000
  metrics:
    size_bytes: {kind: gauge, unit: bytes, direction: neutral, description: Size.}
  sql:
    15: select pg_total_relation_size(to_regclass('public.held')) as size_bytes
limits:
  description: The time limit it is asked under.
  tier: minute
  timeout_ms: 7000
  texts: [statement_timeout, read_only, application]
  metrics:
    one: {kind: gauge, unit: count, direction: neutral, description: One.}
  sql:
    15: |
      select 1 as one, current_setting('statement_timeout') as statement_timeout,
             current_setting('default_transaction_read_only') as read_only,
             current_setting('application_name') as application
sleeps:
  description: It takes its time.
  tier: five_minutes
  timeout_ms: 60000
  metrics:
    one: {kind: gauge, unit: count, direction: neutral, description: One.}
  sql:
    15: select 1 as one from pg_sleep(60)
everybody:
  description: The statements that others run.
  tier: minute
  timeout_ms: 2000
  needs_right: pg_monitor
  metrics:
    sessions: {kind: gauge, unit: count, direction: neutral, description: Sessions.}
  sql:
    15: select count(*) as sessions from pg_stat_activity
of_primaries:
  description: The position in WAL.
  tier: minute
  timeout_ms: 2000
  runs: on_primary
  metrics:
    one: {kind: gauge, unit: count, direction: neutral, description: One.}
  sql:
    15: select 1 as one from pg_current_wal_lsn()
of_standbys:
  description: The replay.
  tier: minute
  timeout_ms: 2000
  runs: on_standby
  metrics:
    one: {kind: gauge, unit: count, direction: neutral, description: One.}
  sql:
    15: select 1 as one
of_the_future:
  description: It comes later.
  tier: minute
  timeout_ms: 2000
  metrics:
    one: {kind: gauge, unit: count, direction: neutral, description: One.}
  sql:
    99: select 1 as one
statements:
  description: Statements that were seen.
  tier: minute
  timeout_ms: 2000
  needs_extension: pg_stat_statements
  metrics:
    count: {kind: gauge, unit: count, direction: neutral, description: Statements.}
  sql:
    15: select count(*) as count from {pg_stat_statements}.pg_stat_statements(false)
tables:
  description: Tables in each database.
  level: database
  tier: hourly
  timeout_ms: 2000
  labels: [database_name]
  metrics:
    count: {kind: gauge, unit: count, direction: neutral, description: Tables.}
  sql:
    15: |
      select current_database()::text as database_name, count(*) as count
      from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'
"""

PASSWORD = "first"
LIGHT, MINUTE, FIVE, HOURLY = Tier


@pytest.fixture(scope="module")
def small() -> Catalog:
    return shipped.parse(CATALOG)


@dataclass
class Site:
    """A server under watch; login and database may change while a session lives."""

    server: Server
    catalog: Catalog
    database: str = "postgres"
    login: dict[str, str] = field(default_factory=dict)

    def conninfo(self, database: str | None) -> str:
        return make_conninfo(self.server.conninfo(database or self.database), **self.login)

    def session(self, **options: Any) -> ServerSession:
        return ServerSession(Target("db1", self.conninfo), self.catalog, **options)

    def run(self, body: Callable[[ServerSession], Awaitable[None]], **options: Any) -> None:
        """Run a body with a session of its own, closed after it."""

        async def whole() -> None:
            session = self.session(**options)
            try:
                await body(session)
            finally:
                await session.close()

        asyncio.run(whole())

    def sessions(self, waiting_for: str = "") -> list[tuple[int, str]]:
        """List the process and the database of each session of ours, those of other tests left out."""
        query = (
            "select pid, datname from pg_stat_activity where application_name = 'onevault metrics'"
            " and (datname = %s or datname not like 'test!_%%' escape '!')"
            " and coalesce(wait_event, '') ~ %s"
        )
        with self.server.connect() as connection:
            rows = connection.execute(query, [self.database, waiting_for]).fetchall()
        return [(row[0], row[1]) for row in rows]


def of(collected: Collected, family: str, database: str = "") -> FamilyAnswer:
    """Return the one answer of a family."""
    (answer,) = (a for a in collected.answers if (a.family, a.database) == (family, database))
    return answer


def states(collected: Collected) -> dict[str, FamilyState]:
    return {answer.family: answer.state for answer in collected.answers}


def number(answer: FamilyAnswer, name: str) -> float:
    (seen,) = answer.observations
    return seen.numbers[name]


@pytest.fixture
def site(database: Database, small: Catalog) -> Site:
    """A database of the shared server."""
    return Site(database.server, small, database.name)


@pytest.fixture
def own(other_cluster: Callable[..., Server], small: Catalog) -> Site:
    """A server of its own."""
    return Site(other_cluster(), small)


@contextmanager
def role(server: Server, options: LiteralString = "") -> Iterator[str]:
    """A login for the time of a block, with a password for TCP."""
    name = f"watcher_{token_hex(4)}"
    with server.connect() as connection:
        words = sql.SQL("create role {} login password {} {}")
        parts = (sql.Identifier(name), PASSWORD, sql.SQL(options))
        connection.execute(words.format(*parts))
    yield name
    with server.connect() as connection:
        connection.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def over_tcp(server: Server, user: str, password: str = PASSWORD) -> dict[str, str]:
    return {"host": server.host, "user": user, "password": password}


# The batch


def test_a_batch_answers_everything_that_is_due_availability_first(site: Site):
    async def body(session: ServerSession) -> None:
        collected = await session.collect([LIGHT])
        assert collected.answers[0].family == AVAILABILITY
        assert set(states(collected).values()) == {FamilyState.OK}
        assert states(collected).keys() == {AVAILABILITY, "work", "exact_size"}
        assert number(of(collected, AVAILABILITY), "up") == 1
        assert of(collected, AVAILABILITY).duration_ms > 0
        (seen,) = of(collected, "work").observations
        assert seen.numbers.keys() == {"commits"}
        assert collected.facts is not None
        assert collected.facts.server_major == site.server.major
        assert collected.facts.database == site.database
        assert seen.epoch.startswith(str(collected.facts.postmaster_started_at.year))

    site.run(body)


def test_the_session_says_who_it_is_writes_nothing_and_keeps_each_familys_time_limit(site: Site):
    async def body(session: ServerSession) -> None:
        (seen,) = of(await session.collect([MINUTE]), "limits").observations
        expected = {"statement_timeout": "7s", "read_only": "on", "application": "onevault metrics"}
        assert seen.texts == expected

    site.run(body)


def test_one_connection_serves_all_collections(site: Site):
    async def body(session: ServerSession) -> None:
        await session.collect([LIGHT])
        before = site.sessions()
        for _ in range(7):
            assert set(states(await session.collect([LIGHT])).values()) == {FamilyState.OK}
        assert site.sessions() == before
        assert len(before) == 1

    site.run(body)


def test_families_that_make_no_sense_there_are_not_asked(site: Site):
    async def body(session: ServerSession) -> None:
        collected = await session.collect([MINUTE])
        assert of(collected, "of_primaries").state is FamilyState.OK
        assert of(collected, "of_standbys").state is FamilyState.NOT_APPLICABLE
        assert "this server is a primary" in of(collected, "of_standbys").message
        assert of(collected, "of_the_future").state is FamilyState.NOT_APPLICABLE

    site.run(body)


def test_two_collections_at_once_are_refused(site: Site):
    async def body(session: ServerSession) -> None:
        first = asyncio.create_task(session.collect([LIGHT]))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="still running"):
            await session.collect([LIGHT])
        assert of(await first, AVAILABILITY).state is FamilyState.OK

    site.run(body)


# What fails alone


def test_a_hung_alter_table_degrades_only_the_family_that_waits_for_it(
    site: Site, database: Database
):
    async def body(session: ServerSession) -> None:
        with database.connect() as connection:
            connection.execute("create table held (id int)")
            # So often that the driver has prepared the queries.
            for _ in range(7):
                assert of(await session.collect([LIGHT]), "exact_size").state is FamilyState.OK
            with connection.transaction(force_rollback=True):
                connection.execute("alter table held add column more int")
                collected = await session.collect([LIGHT])
                ok, degraded = FamilyState.OK, FamilyState.DEGRADED
                expected = {AVAILABILITY: ok, "work": ok, "exact_size": degraded}
                assert states(collected) == expected
                assert "lock timeout" in of(collected, "exact_size").message
            # It is free again, but left alone for a while, its message kept.
            again = await session.collect([LIGHT])
            assert states(again) == expected
            assert of(again, "exact_size").message == of(collected, "exact_size").message
            assert of(again, "work").duration_ms == 0, "it was asked in a batch again"

    site.run(body)


def test_a_plan_that_the_server_no_longer_takes_costs_one_batch(site: Site, database: Database):
    changing = site.catalog.families["work"]
    variants = (replace(changing.variants[0], text="select * from public.changing"),)
    families = {**site.catalog.families, "work": replace(changing, variants=variants)}
    site.catalog = Catalog(families)

    async def body(session: ServerSession) -> None:
        with database.connect() as connection:
            connection.execute("create table changing (commits int)")
            connection.execute("insert into changing values (1)")
            for _ in range(7):
                await session.collect([LIGHT])
            connection.execute("alter table changing alter commits type bigint")
        for expected in (False, True):
            collected = await session.collect([LIGHT])
            assert set(states(collected).values()) == {FamilyState.OK}
            # Of a batch only the first family has a duration.
            assert (of(collected, "work").duration_ms == 0) is expected

    site.run(body)


def test_a_family_that_holds_everything_up_is_found_after_the_deadline(site: Site):
    async def body(session: ServerSession) -> None:
        first = await session.collect([LIGHT, FIVE])
        assert of(first, AVAILABILITY).state is FamilyState.OK
        assert of(first, "sleeps").state is FamilyState.UNAVAILABLE
        second = await session.collect([LIGHT, FIVE])
        assert of(second, "work").state is FamilyState.OK
        assert of(second, "sleeps").state is FamilyState.DEGRADED
        third = await session.collect([LIGHT, FIVE])
        assert of(third, "sleeps").state is FamilyState.DEGRADED
        assert of(third, "work").state is FamilyState.OK

    site.run(body, deadline_seconds=3)


def test_without_pg_monitor_what_needs_it_is_refused_and_the_rest_answers(site: Site):
    async def body(session: ServerSession) -> None:
        collected = await session.collect([LIGHT, MINUTE])
        refused = of(collected, "everybody")
        assert refused.state is FamilyState.REFUSED
        assert f'GRANT pg_monitor TO "{name}"' in refused.message
        assert refused.observations == ()
        assert of(collected, "work").state is FamilyState.OK
        with site.server.connect() as connection:
            connection.execute(sql.SQL("grant pg_monitor to {}").format(sql.Identifier(name)))
        await session.close()
        granted = await session.collect([MINUTE])
        assert of(granted, "everybody").state is FamilyState.OK

    with role(site.server) as name:
        site.login = over_tcp(site.server, name)
        site.run(body)


def test_without_the_extension_its_families_are_refused_with_what_to_do(site: Site):
    async def body(session: ServerSession) -> None:
        collected = await session.collect([LIGHT, MINUTE])
        refused = of(collected, "statements")
        assert refused.state is FamilyState.REFUSED
        assert f'pg_stat_statements is not installed in database "{site.database}"' in (
            refused.message
        )
        assert "CREATE EXTENSION pg_stat_statements" in refused.message
        assert of(collected, AVAILABILITY).state is FamilyState.OK
        with pytest.raises(Refused, match="not installed"):
            await session.statement_texts([1])

    site.run(body)


# Servers that go and come


def test_a_server_that_is_down_is_told_in_one_answer(small: Catalog):
    async def body() -> None:
        target = Target("db1", lambda _: "host=127.0.0.1 port=1 user=ann password=sesame")
        collected = await ServerSession(target, small).collect([LIGHT, MINUTE])
        (answer,) = collected.answers
        assert (answer.family, answer.state) == (AVAILABILITY, FamilyState.UNAVAILABLE)
        assert number(answer, "up") == 0
        assert "127.0.0.1 port 1" in answer.message
        assert "sesame" not in answer.message
        assert collected.facts is None

    asyncio.run(body())


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_invents_no_rate(own: Site, mode: str):
    async def body(session: ServerSession) -> None:
        deltas = Deltas()
        first = await session.collect([LIGHT])
        await session.collect([HOURLY])
        deltas.samples(first.answers, own.catalog)
        own.server.cluster.stop(mode)
        start(own.server)
        back = await session.collect([LIGHT])
        assert of(back, "work").state is FamilyState.OK
        samples = {s.family: s for s in deltas.samples(back.answers, own.catalog)}
        assert "commits" in samples["work"].raw
        assert "commits" not in samples["work"].values
        assert first.facts is not None
        assert back.facts is not None
        assert back.facts.postmaster_started_at > first.facts.postmaster_started_at
        then = {
            s.family: s
            for s in deltas.samples((await session.collect([LIGHT])).answers, own.catalog)
        }
        assert then["work"].values["commits"] >= 0

    own.run(body)


def test_a_backend_that_crashed_begins_a_new_epoch(own: Site):
    async def body(session: ServerSession) -> None:
        before = of(await session.collect([LIGHT]), "work").observations[0].epoch
        with own.server.connect() as connection:
            os.kill(connection.info.backend_pid, signal.SIGKILL)
        until(lambda: _answers(own.server))
        after = of(await session.collect([LIGHT]), "work").observations[0].epoch
        assert before != after

    own.run(body)


def test_while_the_server_is_down_only_availability_answers(own: Site):
    async def body(session: ServerSession) -> None:
        await session.collect([LIGHT])
        own.server.cluster.stop("fast")
        down = await session.collect([LIGHT])
        assert states(down) == {AVAILABILITY: FamilyState.UNAVAILABLE}
        assert number(of(down, AVAILABILITY), "up") == 0
        assert down.facts is None
        start(own.server)
        assert of(await session.collect([LIGHT]), "work").state is FamilyState.OK

    own.run(body)


def test_sessions_that_an_operator_ends_are_opened_again(site: Site):
    async def body(session: ServerSession) -> None:
        await session.collect([LIGHT])
        end(site)
        assert set(states(await session.collect([LIGHT])).values()) == {FamilyState.OK}

    site.run(body)


def test_a_session_that_ends_in_the_middle_does_not_mean_that_the_server_is_down(site: Site):
    async def body(session: ServerSession) -> None:
        collecting = asyncio.create_task(session.collect([LIGHT, FIVE]))
        await asyncio.to_thread(until, lambda: site.sessions("PgSleep"))
        await asyncio.to_thread(end, site)
        assert of(await collecting, AVAILABILITY).state is FamilyState.OK

    site.run(body, deadline_seconds=5)


def test_sessions_that_ended_are_opened_again_for_databases_alone(site: Site):
    async def body(session: ServerSession) -> None:
        await session.collect([HOURLY])
        end(site)
        collected = await session.collect([HOURLY])
        assert {a.family for a in collected.answers} == {"tables"}
        assert of(collected, "tables", site.database).state is FamilyState.OK

    site.run(body)


@pytest.mark.parametrize("whom", ["backend", "postmaster"])
def test_a_server_that_was_stopped_in_its_tracks_does_not_hold_the_collection(own: Site, whom: str):
    async def body(session: ServerSession) -> None:
        if whom == "backend":
            await session.collect([LIGHT])
            ((pid, _),) = own.sessions()
        else:
            pid = int((own.server.cluster.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(60):
                hung = await session.collect([LIGHT])
                if whom == "postmaster":
                    hung = await session.collect([LIGHT])
        finally:
            os.kill(pid, signal.SIGCONT)
        assert of(hung, AVAILABILITY).state is FamilyState.UNAVAILABLE
        assert number(of(hung, AVAILABILITY), "up") == 0
        assert hung.facts is None
        assert of(await session.collect([LIGHT]), AVAILABILITY).state is FamilyState.OK

    own.run(body, deadline_seconds=2)


def test_a_collection_that_is_given_up_leaves_a_session_that_works(site: Site):
    async def body(session: ServerSession) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await session.collect([FIVE])
        assert of(await session.collect([LIGHT]), "work").state is FamilyState.OK

    site.run(body)


def test_a_promoted_standby_changes_what_is_asked(own: Site):
    async def body(session: ServerSession) -> None:
        as_standby = await session.collect([LIGHT, MINUTE])
        assert as_standby.facts is not None
        assert as_standby.facts.is_in_recovery
        assert of(as_standby, "of_primaries").state is FamilyState.NOT_APPLICABLE
        assert of(as_standby, "of_standbys").state is FamilyState.OK
        with own.server.connect() as connection:
            connection.execute("select pg_promote()")
        promoted = await session.collect([LIGHT, MINUTE])
        assert promoted.facts is not None
        assert not promoted.facts.is_in_recovery
        assert of(promoted, "work").state is FamilyState.OK
        settled = await session.collect([MINUTE])
        assert of(settled, "of_primaries").state is FamilyState.OK
        assert of(settled, "of_standbys").state is FamilyState.NOT_APPLICABLE

    own.server.cluster.stop("fast")
    signal_file = own.server.cluster.data / "standby.signal"
    signal_file.touch()
    own.server.cluster.adopt()
    start(own.server, max_wal_senders="8", hot_standby="on")
    own.run(body)


# Logins


def test_a_new_password_is_used_for_new_sessions_and_the_open_one_goes_on(site: Site):
    async def body(session: ServerSession) -> None:
        assert of(await session.collect([LIGHT]), "work").state is FamilyState.OK
        with site.server.connect() as connection:
            statement = sql.SQL("alter role {} password 'second'").format(sql.Identifier(name))
            connection.execute(statement)
        assert of(await session.collect([LIGHT]), "work").state is FamilyState.OK
        end(site)
        (refused,) = (await session.collect([LIGHT])).answers
        assert (refused.family, refused.state) == (AVAILABILITY, FamilyState.REFUSED)
        assert "authentication failed" in refused.message
        assert "first" not in refused.message
        site.login = over_tcp(site.server, name, "second")
        assert of(await session.collect([LIGHT]), "work").state is FamilyState.OK

    with role(site.server) as name:
        site.login = over_tcp(site.server, name)
        site.run(body)


LIMITS: dict[int, LiteralString] = {2: "connection limit 2", 3: "connection limit 3"}


@pytest.mark.parametrize("limit", LIMITS)
def test_the_connection_limit_of_the_login_is_respected(own: Site, limit: int):
    names = [f"extra_{i}" for i in range(4)]

    async def body(session: ServerSession) -> None:
        most = 0

        async def count() -> None:
            nonlocal most
            while True:
                found = await watcher.execute(counting)
                most = max(most, *(await found.fetchone() or [0]))

        counting = (
            "select count(*) from pg_stat_activity where application_name = 'onevault metrics'"
        )
        watcher = await connect_async(own.server.conninfo())
        counter = asyncio.create_task(count())
        for _ in range(3):
            collected = await session.collect([LIGHT, HOURLY])
            read = {a.database for a in collected.answers if a.family == "tables"}
            assert read == {*names, "postgres"}
            assert set(states(collected).values()) == {FamilyState.OK}
        counter.cancel()
        await asyncio.wait({counter})
        await watcher.close()
        assert 1 <= most <= limit - 1

    with own.server.connect() as connection:
        for name in names:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    with role(own.server, LIMITS[limit]) as name:
        own.login = over_tcp(own.server, name)
        own.run(body, database_connections=5)
        until(lambda: not own.sessions())


# Databases


def test_thirty_databases_take_turns_over_two_connections(own: Site):
    names = {f"shop {i}" for i in range(30)} | {"Bücher \"alt\" 'neu'", "Ünïcode \N{SNOWMAN}"}

    async def body(session: ServerSession) -> None:
        collected = await session.collect([HOURLY])
        tables = {a.database: a for a in collected.answers if a.family == "tables"}
        assert tables.keys() == names | {"postgres"}
        assert {a.state for a in tables.values()} == {FamilyState.OK}
        for name, answer in tables.items():
            (seen,) = answer.observations
            assert seen.labels["database_name"] == name
        assert [name for _, name in own.sessions()] == ["postgres"]

    with own.server.connect() as connection:
        for name in names:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        connection.execute("create database closed allow_connections false")
    own.run(body, database_connections=2)


def test_what_the_deadline_leaves_is_read_the_next_time(own: Site):
    names = {f"shop_{i:02}" for i in range(12)}
    slow = own.catalog.families["tables"]
    text = slow.variants[0].text.replace("select current", "select pg_sleep(0.4), current")
    variants = (replace(slow.variants[0], text=text),)
    own.catalog = Catalog({**own.catalog.families, "tables": replace(slow, variants=variants)})

    async def body(session: ServerSession) -> None:
        rounds: list[set[str]] = []
        while set().union(*rounds) != names | {"postgres"}:
            collected = await session.collect([HOURLY])
            read = {a.database for a in collected.answers if a.state is FamilyState.OK}
            assert len(rounds) < 30
            rounds.append(read - {"", "postgres"} | {"postgres"})
        assert len(rounds) > 1
        assert not (rounds[0] & rounds[1]) - {"postgres"}

    with own.server.connect() as connection:
        for name in names:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    own.run(body, database_connections=1, deadline_seconds=3)


def test_between_collections_a_database_may_be_dropped_renamed_and_copied(own: Site):
    async def body(session: ServerSession) -> None:
        for _ in range(2):
            first = await session.collect([HOURLY])
            assert {a.state for a in first.answers} == {FamilyState.OK}
            with own.server.connect() as connection:
                connection.execute("alter database doomed rename to renamed")
                connection.execute("create database copied template renamed")
                connection.execute("drop database copied")
                connection.execute("alter database renamed rename to doomed")
        with own.server.connect() as connection:
            connection.execute("drop database doomed")

    with own.server.connect() as connection:
        connection.execute("create database doomed")
    own.run(body)


def test_a_database_that_is_dropped_is_no_longer_read(own: Site):
    async def body(session: ServerSession) -> None:
        first = await session.collect([HOURLY])
        assert {a.database for a in first.answers} == {"postgres", "doomed"}
        assert first.databases == ("doomed", "postgres")
        assert [name for _, name in own.sessions()] == ["postgres"]
        with own.server.connect() as connection:
            connection.execute("drop database doomed")
        then = await session.collect([HOURLY])
        assert then.databases == ("postgres",)
        assert {(a.database, a.state) for a in then.answers} == {("postgres", FamilyState.OK)}
        assert (await session.collect([LIGHT])).databases is None

    with own.server.connect() as connection:
        connection.execute("create database doomed")
    own.run(body)


def test_a_name_that_is_not_utf8_hides_nothing_else(own: Site):
    async def body(session: ServerSession) -> None:
        for _ in range(2):
            collected = await session.collect([Tier.LIGHT, HOURLY])
            assert number(of(collected, AVAILABILITY), "up") == 1
            of_families = {a.family: a.state for a in collected.answers if a.database == "plain"}
            assert set(of_families.values()) == {FamilyState.OK}
        whole = ServerSession(Target("db1", own.conninfo), shipped.load())
        for _ in range(2):
            collected = await whole.collect([Tier.LIGHT, Tier.MINUTE])
        await whole.close()
        names = {seen.labels["database_name"] for seen in of(collected, "databases").observations}
        assert names == {"postgres", "bytes", "plain", "M\ufffdller"}

    with own.server.connect() as connection:
        connection.execute("create database plain")
        connection.execute(
            "create database bytes encoding 'SQL_ASCII' template template0 lc_collate 'C' lc_ctype 'C'"
        )
    with own.server.connect("bytes", client_encoding="SQL_ASCII") as connection:
        connection.pgconn.exec_(b'create database "M\xfcller"')
    own.run(body)


def test_a_database_that_one_may_not_enter_is_refused_with_what_to_do(own: Site):
    async def body(session: ServerSession) -> None:
        collected = await session.collect([HOURLY])
        refused = of(collected, "tables", "private")
        assert refused.state is FamilyState.REFUSED
        assert 'GRANT CONNECT ON DATABASE "private"' in refused.message
        with own.server.connect() as connection:
            connection.execute("grant connect on database private to public")
        granted = await session.collect([HOURLY])
        assert of(granted, "tables", "private").state is FamilyState.OK

    with own.server.connect() as connection:
        connection.execute("create database private")
        connection.execute("revoke connect on database private from public")
    with role(own.server) as name:
        own.login = over_tcp(own.server, name)
        own.run(body)
        until(lambda: not own.sessions())


# The shipped catalogue


@pytest.mark.parametrize("user", ["superuser", "pg_monitor"])
def test_the_whole_shipped_catalogue_answers(other_cluster: Callable[..., Server], user: str):
    server = other_cluster(shared_preload_libraries="pg_stat_statements")
    site = Site(server, shipped.load())

    async def body(session: ServerSession) -> None:
        statements = StatementDeltas(None)
        for _ in range(2):
            collected = await session.collect(list(Tier))
            fine = {FamilyState.OK, FamilyState.NOT_APPLICABLE}
            assert {a.family: a.message for a in collected.answers if a.state not in fine} == {}
            grown = statements.grow(of(collected, "statements"))
        assert grown
        assert sum(sample.calls for sample in grown) > 0
        texts = await session.statement_texts([each.query_id for each in grown])
        assert any("pg_stat_activity" in text for text in texts.values())
        assert of(collected, "statements_info").state is FamilyState.OK

    with server.connect() as connection:
        connection.execute('create schema "Ext ensions"')
        connection.execute('create extension pg_stat_statements schema "Ext ensions"')
        if user == "pg_monitor":
            connection.execute("create role watcher login password 'first' in role pg_monitor")
            connection.execute('grant usage on schema "Ext ensions" to watcher')
            site.login = over_tcp(server, "watcher")
    site.run(body)


def test_the_text_of_a_utility_statement_has_no_literals(other_cluster: Callable[..., Server]):
    server = other_cluster(shared_preload_libraries="pg_stat_statements")
    site = Site(server, shipped.load())

    async def body(session: ServerSession) -> None:
        texts = await session.statement_texts(ids)
        assert len(texts) == len(ids) == 3
        assert not any("s3cr3t" in text for text in texts.values())
        assert "do $$?$$" in texts.values()

    with server.connect() as connection:
        connection.execute("create extension pg_stat_statements")
        connection.execute("do $$begin perform 's3cr3t'; end$$")
        connection.execute("create role ann password 's3cr3t' -- s3cr3t")
        connection.execute("set application_name = 's3cr3t'")
        seen = "select queryid from pg_stat_statements where query ~* '^(do|create role|set appl)'"
        ids = [row[0] for row in connection.execute(seen)]
    site.run(body)


# connect_async


def test_an_async_connection_has_the_settings_and_the_errors_of_a_plain_one(database: Database):
    async def body() -> None:
        conn = await connect_async(
            database.conninfo, application_name="x", settings={"jit": "off"}, lock_timeout_ms=7
        )
        async with conn:
            shown = [
                await (await conn.execute(query)).fetchone()
                for query in ("show application_name", "show jit", "show lock_timeout")
            ]
            assert shown == [("x",), ("off",), ("7ms",)]
            assert conn.autocommit
        with pytest.raises(Refused, match="does not exist"):
            await connect_async(make_conninfo(database.conninfo, dbname="none"))
        with pytest.raises(Unavailable) as caught:
            await connect_async("postgresql://ann:sesame@127.0.0.1:1/books")
        assert "sesame" not in str(caught.value)

    asyncio.run(body())


def start(server: Server, **settings: str) -> None:
    chosen = {"listen_addresses": "127.0.0.1", "port": str(server.port), "wal_level": "replica"}
    server.cluster.start(chosen | settings)


def end(site: Site) -> None:
    """End the sessions of ours, as an operator would, and wait until they are gone."""
    ended = set(site.sessions())
    with site.server.connect() as connection:
        for pid, _ in ended:
            connection.execute("select pg_terminate_backend(%s)", [pid])
    until(lambda: not ended & set(site.sessions()))


def _answers(server: Server) -> bool:
    try:
        with server.connect() as connection:
            connection.execute("select 1")
    except psycopg.OperationalError:
        return False
    return True
