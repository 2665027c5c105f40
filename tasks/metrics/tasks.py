"""The tasks of monitoring: they open servers and vault, collect, roll up, and show health in Prefect."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from threading import Event
from time import monotonic
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run

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
# A worker needs some ten seconds to begin a run; the one that begins waits for the one that ends.
_START_SECONDS = 30.0
_HANDOVER_SECONDS = 120.0

log = logging.getLogger("onevault.collector")


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

        Raises Refused for a name without a block. A server whose connection is weaker than the environment demands is
        never connected to: it is shown as down, with that sentence.
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
            found.setdefault((block.host, block.port), self._target(name))
        return list(found.values())

    def demand(self) -> list[Target]:
        """Read the blocks; Refused when there is none, and for one that was named and is weaker than it may be."""
        targets = self.read()
        for name in self._names or ():
            opening.demand_connection(self._servers[name])
        if not targets:
            message = "There is no server to watch: `onevault register` makes the block of one."
            raise Refused(message)
        return targets

    def _target(self, name: str) -> Target:
        def conninfo(database: str | None) -> str:
            opening.demand_connection(self._servers[name])
            return self._servers[name].conninfo(database).get_secret_value()

        def console() -> str:
            return self._consoles[name].conninfo().get_secret_value()

        tenant = self._servers[name].tenant
        return Target(name, conninfo, console if name in self._consoles else None, tenant)


@contextmanager
def leading(
    on_superseded: Callable[[], None] = lambda: None, wait_seconds: float = 0.0
) -> Iterator[VaultSink | None]:
    """Hold the lead of the fleet for the time of a block; None when another collector keeps it for so long."""
    identity = Heartbeat(
        FLEET, socket.gethostname(), os.getpid(), datetime.now(UTC), flow_run_id=_flow_run_id()
    )
    sink = VaultSink(opening.open_vault, identity, on_superseded)
    try:
        yield sink if _takes_the_lead(sink, wait_seconds) else None
    finally:
        sink.close()


def _takes_the_lead(sink: VaultSink, wait_seconds: float) -> bool:
    deadline, waiting = monotonic() + wait_seconds, Event()
    while not sink.lead():
        if monotonic() >= deadline:
            return False
        waiting.wait(1)
    return True


def living_collector() -> str:
    """Say in words which collector has the lead, and how old its last sign of life is."""
    with opening.open_vault() as conn:
        for row in store.collectors(conn):
            if row.name == FLEET:
                return f"the collector on {row.host} (process {row.process_id}) leads; it gave a sign of life {row.age_seconds:.0f} s ago"
    return "another collector leads"


@dataclass(frozen=True, slots=True)
class Watch:
    """What to watch and for how long, waiting so long for another collector to end; names None is every server."""

    names: Sequence[str] | None
    run_for_seconds: float
    wait_for_lead_seconds: float = 0.0


def watch(order: Watch, on_written: Callable[[frozenset[str]], None]) -> WatchReport | None:
    """Collect from servers until the time is over; None when another collector leads.

    on_written hears, in the writer's thread, of which servers samples were just stored. A run of a deployment starts
    the next one shortly before its end, so that watching has no end.
    """
    return asyncio.run(_watch(order, on_written))


async def _watch(order: Watch, on_written: Callable[[frozenset[str]], None]) -> WatchReport | None:
    # What it says of a lost connection, the collector says as well, once.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    loop, stop, superseded = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def step_down() -> None:
        superseded.set()
        stop.set()

    with leading(lambda: _call(loop, step_down), order.wait_for_lead_seconds) as sink:
        if sink is None:
            return None
        servers = ServerList(order.names)
        watched = len(servers.demand())
        started = loop.time()
        loop.call_later(order.run_for_seconds, stop.set)
        if deployment.id:
            start = partial(_start_successor, order, UUID(deployment.id), str(flow_run.id))
            before = max(0.0, order.run_for_seconds - _START_SECONDS)
            loop.call_later(before, loop.run_in_executor, None, start)
        collector = Collector(servers.read, metrics_catalog(), sink, on_written=on_written)
        await collector.run(stop)
        lost = collector.buffer.lost_rows
        return WatchReport(watched, loop.time() - started, lost, superseded.is_set())


def _start_successor(order: Watch, deployment_id: UUID, run_id: str) -> None:
    parameters = {
        "servers": order.names,
        "run_for_seconds": order.run_for_seconds,
        "wait_for_lead_seconds": _HANDOVER_SECONDS,
    }
    try:
        run_deployment(
            deployment_id,
            parameters=parameters,
            timeout=0,
            as_subflow=False,
            idempotency_key=f"after-{run_id}",
        )
    except Exception as error:  # the five-minute flow starts one when there is none
        log.warning("the next collector could not be started: %s", error)


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
        gone = store.forget_gone(conn, now, statement_days=retention.statements.days + 1)
    told = get_run_logger()
    told.info(
        "dropped %s; forgot %d objects that are gone", ", ".join(dropped.dropped) or "nothing", gone
    )
    if dropped.busy:
        told.warning("busy, left for the next run: %s", ", ".join(dropped.busy))
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
    told = get_run_logger()
    try:
        parameters = {"wait_for_lead_seconds": _HANDOVER_SECONDS}
        run_deployment(WATCH_DEPLOYMENT, parameters=parameters, timeout=0, as_subflow=False)
    except ObjectNotFound:
        told.warning("no collector runs, and there is no deployment %s to start", WATCH_DEPLOYMENT)
    else:
        told.warning("no collector ran: %s was started", WATCH_DEPLOYMENT)


def _flow_run_id() -> UUID | None:
    known = flow_run.id
    return UUID(known) if known else None
