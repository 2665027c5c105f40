"""The product as it runs: its collector over a fleet, its rules after each writing, and what is open right now."""

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import LiteralString

import psycopg

from tasks import vault as vaults
from tasks.alerts import evaluation, loading
from tasks.alerts.rules import RuleSet
from tasks.metrics import catalog, partitions
from tasks.metrics.collector import Collector
from tasks.metrics.models import Target
from tasks.metrics.sink import FLEET, VaultSink
from tasks.metrics.store import Heartbeat

_STOP_SECONDS = 60.0
_OPEN: LiteralString = """
SELECT server_name, rule_name FROM monitoring.alert_instance_s
WHERE load_end_date IS NULL AND alert_status <> 'RESOLVED'
"""


@dataclass
class Board:
    """Which alerts are open, as of a second ago; threads may ask."""

    conninfo: str
    stopping: threading.Event = field(default_factory=threading.Event)
    _open: frozenset[tuple[str, str]] = frozenset()

    def is_open(self, server: str, rule: str) -> bool:
        """Tell whether this rule has an open alert on this server."""
        return (server, rule) in self._open

    def follow(self) -> None:
        """Look again and again until it is stopped."""
        with vaults.connect(self.conninfo, application_name="board") as conn:
            while not self.stopping.wait(0.5):
                rows = conn.execute(_OPEN).fetchall()
                self._open = frozenset((str(server), str(rule)) for server, rule in rows)


@dataclass
class Evaluations:
    """Evaluates the rules on servers whose samples were just written, and times that."""

    conn: psycopg.Connection
    rules: RuleSet
    seconds: list[float] = field(default_factory=list)
    failures: set[str] = field(default_factory=set)

    def __call__(self, servers: frozenset[str]) -> None:
        """Evaluate."""
        begun = perf_counter()
        found = evaluation.evaluate(self.conn, self.rules, datetime.now(UTC), servers)
        self.seconds.append(perf_counter() - begun)
        self.failures.update(found.failures)


@contextmanager
def watching(
    conninfo: str, targets: Sequence[Target], overrides: Path
) -> Iterator[tuple[Board, Evaluations]]:
    """Watch these servers for the time of a block, with the shipped rules and these overrides of them."""
    with vaults.connect(conninfo) as conn:
        partitions.ensure(conn, datetime.now(UTC))
    known = catalog.load()
    environ = {"ONEVAULT_ENV": "production", "ONEVAULT_RULES": str(overrides)}
    rules = loading.load(known.families, environ)
    identity = Heartbeat(FLEET, "benchmark", os.getpid(), datetime.now(UTC))
    sink = VaultSink(lambda: vaults.connect(conninfo), identity, lambda: None)
    board = Board(conninfo)
    with vaults.connect(conninfo) as conn:
        evaluations = Evaluations(conn, rules)
        collector = Collector(lambda: targets, known, sink, on_written=evaluations)
        loop, stop = asyncio.new_event_loop(), asyncio.Event()
        threads = [
            threading.Thread(target=_collect, args=[loop, collector, stop], name="collector"),
            threading.Thread(target=board.follow, name="board", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield board, evaluations
        finally:
            board.stopping.set()
            loop.call_soon_threadsafe(stop.set)
            for thread in threads:
                thread.join(_STOP_SECONDS)
            sink.close()


def _collect(loop: asyncio.AbstractEventLoop, collector: Collector, stop: asyncio.Event) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(collector.run(stop))
    finally:
        loop.close()
