"""The measurements of collection: probes taking turns, a fleet polled as fast as it goes, and windows of load."""

import asyncio
import random
import re
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, quantiles
from time import monotonic, perf_counter, process_time

import psutil

from benchmarks.measure import _busy_seconds as busy_seconds
from benchmarks.metrics_probes import Chosen, Ours, Probe, Reader
from benchmarks.metrics_server import WatchedServer, start_pgbench
from tasks import processes
from tasks.errors import Unavailable
from tasks.metrics.models import Tier

_WARM_ROUNDS = 3
_LARGEST_PAUSE_SECONDS = 0.02
_LANES = 32
_TPS = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)
LIGHT = frozenset([Tier.LIGHT])


@dataclass
class Series:
    """What one probe took: each wall time, the CPU seconds of all runs, and the numbers of the last."""

    name: str
    seconds: list[float] = field(default_factory=list)
    client_seconds: float = 0.0
    server_seconds: float = 0.0
    numbers: int = 0
    missing: str = ""

    def percentile_ms(self, percent: int) -> float:
        """Return a percentile of the wall times in milliseconds."""
        if len(self.seconds) < 2:
            return 1e3 * sum(self.seconds)
        return 1e3 * quantiles(self.seconds, n=100, method="inclusive")[percent - 1]

    @property
    def client_ms(self) -> float:
        """Return the client's CPU milliseconds of one run."""
        return 1e3 * self.client_seconds / max(1, len(self.seconds))

    @property
    def server_ms(self) -> float:
        """Return the server's CPU milliseconds of one run."""
        return 1e3 * self.server_seconds / max(1, len(self.seconds))

    def __str__(self) -> str:
        """Return it as a line."""
        if self.missing:
            return f"{self.name}: {self.missing}"
        p50, p95, p99 = (self.percentile_ms(percent) for percent in (50, 95, 99))
        return (
            f"{self.name}: n {len(self.seconds)}, p50 {p50:.1f} p95 {p95:.1f} p99 {p99:.1f} ms,"
            f" CPU client {self.client_ms:.2f} server {self.server_ms:.2f} ms, {self.numbers} numbers"
        )


class Busy:
    """How much of the processors others had since it was made, our children left out."""

    def __init__(self) -> None:
        self._at, self._all, self._own = monotonic(), busy_seconds(), _family_seconds()

    def others(self) -> float:
        """Return their share of all cores."""
        foreign = busy_seconds() - self._all - (_family_seconds() - self._own)
        return max(0.0, foreign / ((monotonic() - self._at) * (psutil.cpu_count() or 1)))


def _family_seconds() -> float:
    me = psutil.Process()
    seconds = 0.0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


async def take_turns(probes: Sequence[Probe], seconds: float) -> list[Series]:
    """Run probes in rounds of random order for so long, and return each one's figures."""
    for probe in probes:
        for _ in range(_WARM_ROUNDS if probe.every == 1 else 1):
            await probe.run()
    series = {probe.name: Series(probe.name) for probe in probes}
    before = [(probe.client_seconds(), probe.server_seconds()) for probe in probes]
    until, number = monotonic() + seconds, 0
    while monotonic() < until:
        await _round([p for p in probes if number % p.every == 0], series)
        number += 1
    for probe, (client, server) in zip(probes, before, strict=True):
        series[probe.name].client_seconds = probe.client_seconds() - client
        series[probe.name].server_seconds = probe.server_seconds() - server
    return list(series.values())


async def _round(probes: Sequence[Probe], series: dict[str, Series]) -> None:
    order = [probe for probe in probes for _ in range(probe.share)]
    random.shuffle(order)
    for probe in order:
        await asyncio.sleep(random.uniform(0, _LARGEST_PAUSE_SECONDS))  # noqa: S311 - no secret
        begun = perf_counter()
        series[probe.name].numbers = await probe.run()
        series[probe.name].seconds.append(perf_counter() - begun)


@dataclass
class Polls:
    """What polling a fleet took."""

    name: str
    targets: int
    polls: int
    seconds: float
    client_seconds: float
    server_seconds: float

    @property
    def rate(self) -> float:
        """Return the polls of one second."""
        return self.polls / self.seconds

    @property
    def client_ms(self) -> float:
        """Return our CPU milliseconds of one poll."""
        return 1e3 * self.client_seconds / self.polls

    @property
    def server_ms(self) -> float:
        """Return the server's CPU milliseconds of one poll."""
        return 1e3 * self.server_seconds / self.polls

    def __str__(self) -> str:
        """Return it as a line."""
        return f"{self.name}: {self.rate:.0f} polls/s, CPU client {self.client_ms:.2f} server {self.server_ms:.2f} ms"


async def poll_fleet(
    server: WatchedServer, login: str, catalog: Chosen, targets: int, seconds: float
) -> list[Polls]:
    """Poll the light tier of so many targets as fast as it goes, over connections that stay and over new ones."""
    found = []
    for name, stays in (("connections that stay", True), ("a new connection each time", False)):
        fleet = [Reader(server.target(login, f"{login}-{n}"), catalog) for n in range(targets)]
        for reader in fleet:
            await reader.read(LIGHT)
        before, begun, cpu = _spent(server, login), monotonic(), process_time()
        polls = await _poll(fleet, seconds, stays=stays)
        taken, cpu = monotonic() - begun, process_time() - cpu
        spent = _spent(server, login) - before
        found.append(Polls(name, targets, polls, taken, cpu, spent))
        for reader in fleet:
            await reader.session.close()
    return found


def _spent(server: WatchedServer, login: str) -> float:
    return server.backends_seconds(login) + server.ended_seconds()


async def _poll(fleet: Sequence[Reader], seconds: float, *, stays: bool) -> int:
    lanes, until = asyncio.Semaphore(_LANES), monotonic() + seconds

    async def go_on(reader: Reader) -> int:
        polls = 0
        while monotonic() < until:
            async with lanes:
                await reader.read(LIGHT)
                if not stays:
                    await reader.session.close()
            polls += 1
        return polls

    return sum(await asyncio.gather(*map(go_on, fleet)))


async def each_tier(server: WatchedServer, login: str, catalog: Chosen, runs: int) -> list[Series]:
    """Return the figures of every tier by itself, asked so many times one after the other."""
    found = []
    for tier in Tier:
        probe = Ours(tier.value, server, login, catalog, frozenset([tier]))
        for _ in range(_WARM_ROUNDS):
            await probe.run()
        series = Series(tier.value)
        client, spent = probe.client_seconds(), server.backends_seconds(login)
        for _ in range(runs):
            begun = perf_counter()
            series.numbers = await probe.run()
            series.seconds.append(perf_counter() - begun)
        series.client_seconds = probe.client_seconds() - client
        series.server_seconds = server.backends_seconds(login) - spent
        found.append(series)
        await probe.close()
    return found


@dataclass
class Windows:
    """Transactions per second of each window, by the collector's interval in seconds; 0 is none."""

    seconds: int
    tps: dict[int, list[float]] = field(default_factory=dict)

    def ratios(self, interval: int) -> list[float]:
        """Return each window's ratio to the one without a collector of the same block."""
        return [on / off for on, off in zip(self.tps[interval], self.tps[0], strict=True)]

    def spread(self) -> float:
        """Return how far the windows without a collector lie apart, relative to their mean."""
        return (max(self.tps[0]) - min(self.tps[0])) / mean(self.tps[0])

    def line(self, interval: int) -> str:
        """Return one interval's figures as a line."""
        ratios = self.ratios(interval)
        return f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


async def windows(
    server: WatchedServer, probe: Ours, intervals: Collection[int], blocks: int, output: Path
) -> Windows:
    """Run TPC-B with and without the collector, in blocks of shuffled order."""
    found = Windows(9, {interval: [] for interval in intervals})
    await probe.run()
    await _window(server, probe, 0, found.seconds // 2, output)
    for _ in range(blocks):
        order = list(intervals)
        random.shuffle(order)
        for interval in order:
            tps = await _window(server, probe, interval, found.seconds, output)
            found.tps[interval].append(tps)
    return found


async def _window(
    server: WatchedServer, probe: Ours, interval: int, seconds: int, output: Path
) -> float:
    process = start_pgbench(server, output, "--client=32", "--jobs=2", f"--time={seconds}")
    ended = threading.Event()
    waiting = asyncio.create_task(asyncio.to_thread(_wait, process, ended))
    try:
        while not ended.is_set():
            if interval:
                await probe.run()
            await asyncio.wait({waiting}, timeout=interval or None)
        await waiting
    finally:
        processes.stop_group(process)
    said = output.read_text(errors="replace")
    if (tps := _TPS.search(said)) is None:
        message = f"pgbench told no rate: {said.strip()[-300:]}"
        raise Unavailable(message)
    return float(tps[1])


def _wait(process: processes.Process, ended: threading.Event) -> None:
    process.wait()
    ended.set()
