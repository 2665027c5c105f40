"""The tasks of monitoring: they open servers and vault, collect, roll up, and show health in Prefect."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from blocks.pgbouncer import PgBouncerConsole
from blocks.postgres import PostgresServer
from tasks import opening
from tasks.artifacts import artifact_key, show_table
from tasks.errors import Refused
from tasks.metrics import catalog, partitions, performance, reading, rollup, store
from tasks.metrics.catalog import Catalog
from tasks.metrics.collector import Collector
from tasks.metrics.health import HealthLine, condensed, lines
from tasks.metrics.models import FamilyState, Target, Tier
from tasks.metrics.partitions import Retention
from tasks.metrics.sink import FLEET, VaultSink
from tasks.metrics.store import Heartbeat
from tasks.metrics.wording import ago, named

WATCH_DEPLOYMENT = "watch-servers/watch"
_ALIVE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Collection:
    """What one collection of one server came to."""

    server: str
    is_up: bool
    samples: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class WatchReport:
    """What a time of watching came to."""

    servers: int
    seconds: float
    lost_rows: int
    superseded: bool

    @property
    def sentence(self) -> str:
        """Say it."""
        ended = "; another collector took over" if self.superseded else ""
        lost = (
            f"; {self.lost_rows:,} rows were lost while the vault was away"
            if self.lost_rows
            else ""
        )
        return f"watched {self.servers} servers for {self.seconds:,.0f} s{lost}{ended}"


@cache
def metrics_catalog() -> Catalog:
    """Read the catalogue of metrics, once."""
    return catalog.load()


class ServerList:
    """The servers to be watched: those of these names, or every one that has a block.

    Reading it again brings changed logins to the targets that were given out before; they are never asked of Prefect
    when a connection is made.
    """

    def __init__(self, names: Sequence[str] | None) -> None:
        self._names = names
        self._servers: dict[str, PostgresServer] = {}
        self._consoles: dict[str, PgBouncerConsole] = {}

    def read(self) -> list[Target]:
        """Read the blocks; the same server under two names is watched once, and not as `default`.

        Raises Refused for a name without a block, and for a connection weaker than the environment demands.
        """
        blocks = opening.saved(PostgresServer)
        every = sorted(blocks, key=lambda name: (name == opening.DEFAULT, name))
        wanted = every if self._names is None else self._names
        if missing := [name for name in wanted if name not in blocks]:
            message = f"There is no server block named {missing[0]!r}: `onevault config` lists what there is, `onevault register` makes them."
            raise Refused(message)
        # What is gone stays known until its session is closed.
        self._servers |= {name: blocks[name].for_metrics() for name in wanted}
        self._consoles = opening.saved(PgBouncerConsole)
        found: dict[tuple[str, int], Target] = {}
        for name in wanted:
            block = self._servers[name]
            opening.demand_connection(block)
            found.setdefault((block.host, block.port), self._target(name))
        return list(found.values())

    def demand(self) -> list[Target]:
        """Read the blocks; Refused when there is none."""
        targets = self.read()
        if not targets:
            message = "There is no server to watch: `onevault register` makes the block of one."
            raise Refused(message)
        return targets

    def _target(self, name: str) -> Target:
        def conninfo(database: str | None) -> str:
            return self._servers[name].conninfo(database).get_secret_value()

        def console() -> str:
            return self._consoles[name].conninfo().get_secret_value()

        tenant = self._servers[name].tenant
        return Target(name, conninfo, console if name in self._consoles else None, tenant)


@contextmanager
def leading(on_superseded: Callable[[], None] = lambda: None) -> Iterator[VaultSink | None]:
    """Hold the lead of the fleet for the time of a block; None when another collector has it."""
    prepare_storage()
    identity = Heartbeat(
        FLEET, socket.gethostname(), os.getpid(), datetime.now(UTC), flow_run_id=_flow_run_id()
    )
    sink = VaultSink(opening.open_vault, identity, on_superseded)
    try:
        yield sink if sink.lead() else None
    finally:
        sink.close()


def prepare_storage() -> None:
    """Make the partitions that samples of today and of the next days go to."""
    with opening.open_vault() as conn:
        partitions.ensure(conn, datetime.now(UTC))


def living_collector() -> str:
    """Say in words which collector has the lead, and how old its last sign of life is."""
    with opening.open_vault() as conn:
        for row in store.collectors(conn):
            if row.name == FLEET:
                return f"the collector on {row.host} (process {row.process_id}) leads; it gave a sign of life {row.age_seconds:.0f} s ago"
    return "another collector leads"


def watch(
    names: Sequence[str] | None,
    run_for_seconds: float,
    on_written: Callable[[frozenset[str]], None],
) -> WatchReport | None:
    """Collect from servers until the time is over; None when another collector leads.

    on_written hears, in the writer's thread, of which servers samples were just stored.
    """
    return asyncio.run(_watch(names, run_for_seconds, on_written))


async def _watch(
    names: Sequence[str] | None,
    run_for_seconds: float,
    on_written: Callable[[frozenset[str]], None],
) -> WatchReport | None:
    loop, stop, superseded = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def step_down() -> None:
        superseded.set()
        stop.set()

    with leading(lambda: _call(loop, step_down)) as sink:
        if sink is None:
            return None
        servers = ServerList(names)
        watched = len(servers.demand())
        started = loop.time()
        loop.call_later(run_for_seconds, stop.set)
        collector = Collector(servers.read, metrics_catalog(), sink, on_written=on_written)
        await collector.run(stop)
        lost = collector.buffer.lost_rows
        return WatchReport(watched, loop.time() - started, lost, superseded.is_set())


def _call(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop has ended already
        loop.call_soon_threadsafe(what)


@task(
    name="collect from a server",
    task_run_name="collect from {target.name}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
def collect_from(target: Target, sink: VaultSink) -> Collection:
    """Read every family of a server once and store the samples; a server that is down is a finding, not a failure."""
    collector = Collector(lambda: [target], metrics_catalog(), sink)
    batch = asyncio.run(collector.collect_once(target, list(Tier)))
    sink.write([batch])
    first = batch.answers[0]
    is_up = first.state is FamilyState.OK
    get_run_logger().info(
        "%s: %s samples%s", target.name, len(batch.samples), "" if is_up else f"; {first.message}"
    )
    return Collection(target.name, is_up, len(batch.samples), first.message)


@task(name="roll up samples", cache_policy=NO_CACHE, persist_result=False)
def roll_up() -> rollup.RollUp:
    """Make partitions ahead, hourly and daily roll-ups, and the record of the worst statements."""
    now = datetime.now(UTC)
    with opening.open_vault() as conn:
        partitions.ensure(conn, now)
        done = rollup.roll_up(conn, now)
        performance.record(conn, now)
    get_run_logger().info("%s", done)
    return done


@task(name="drop expired samples", cache_policy=NO_CACHE, persist_result=False)
def drop_expired(retention: Retention) -> partitions.Dropped:
    """Drop the partitions whose samples are older than they are kept."""
    with opening.open_vault() as conn:
        now = datetime.now(UTC)
        dropped = partitions.drop_expired(conn, now, retention)
        gone = store.forget_gone(conn, now)
    log = get_run_logger()
    log.info(
        "dropped %s; forgot %d objects that are gone", ", ".join(dropped.dropped) or "nothing", gone
    )
    if dropped.busy:
        log.warning("busy, left for the next run: %s", ", ".join(dropped.busy))
    return dropped


@task(
    name="show health",
    task_run_name="show health of {server}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
def show_health(server: str) -> None:
    """Leave a table of a server's health on the run: value, status, thresholds and age of each metric."""
    with opening.open_vault() as conn:
        found = lines(reading.health(conn, server), reading.server_metrics(conn, server))
    description = f"Health of {server}: {len(found)} metrics, worst first"
    rows = [_shown(line, others) for line, others in condensed(found)]
    show_table(artifact_key("health", server), rows, description)


def _shown(line: HealthLine, others: int) -> dict[str, str | int | None]:
    row = line.row
    more = f" (worst of {others + 1})" if others else ""
    return {
        "status": row.status.value,
        "metric": f"{row.metric} {named(row.labels)}{more}".strip(),
        "now": line.shown,
        "limits": line.limits,
        "age": f"{ago(line.series.age_seconds)}" if line.series else "",
    }


def start_collector() -> None:
    """Start the long-lived collector's deployment, when there is one."""
    log = get_run_logger()
    try:
        run_deployment(WATCH_DEPLOYMENT, timeout=0, as_subflow=False)
    except ObjectNotFound:
        log.warning("no collector runs, and there is no deployment %s to start", WATCH_DEPLOYMENT)
    else:
        log.warning("no collector ran: %s was started", WATCH_DEPLOYMENT)


def _flow_run_id() -> UUID | None:
    known = flow_run.id
    return UUID(known) if known else None
