"""The figures of collection as a section of RESULTS.md."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from platform import python_version
from statistics import mean, median

from benchmarks import metrics_peers
from benchmarks.metrics_probes import Floor
from benchmarks.metrics_runs import Polls, Series, Windows
from benchmarks.report import machine
from tasks.metrics.models import Tier
from tasks.programs import Installation

TITLE = "Metrics: collection"
LIGHT = "light tier"
WHOLE = "whole standard batch"
COVERAGE = "ours, the exporter's coverage"
EXPORTER_ALL = "postgres_exporter, every statement"
EXPORTER_TOP = "postgres_exporter, 100 statements"
FLOOR = Floor.name
LIGHT_P95_MS = 100.0
OVER_FLOOR_MS = 30.0
CLIENT_CPU_RATIO = 0.5
CHECK_WALL_RATIO = 0.1


@dataclass
class Load:
    """The probes under one load."""

    name: str
    series: list[Series]
    others: float

    def named(self, name: str) -> Series | None:
        """Return a probe's figures, if it could be measured."""
        return next((s for s in self.series if s.name == name and s.seconds), None)


@dataclass
class Figures:
    """Everything one run found."""

    command: str
    installation: Installation
    statements: int = 0
    tables: int = 0
    clients: int = 0
    loads: list[Load] = field(default_factory=list)
    fleet: list[Polls] = field(default_factory=list)
    fleet_others: float = 0.0
    tiers: list[Series] = field(default_factory=list)
    windows: Windows | None = None
    windows_others: float = 0.0
    faults: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)


def section(figures: Figures) -> str:
    """Return the section, its heading included."""
    return "\n".join(_lines(figures)) + "\n"


def _lines(figures: Figures) -> Iterator[str]:
    yield f"# {TITLE}"
    yield ""
    yield f"* {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `{figures.command}`"
    yield f"* {machine()}; the server, its clients and the collector share these cores"
    peers = "; ".join(metrics_peers.versions()) or "no peers installed"
    server = figures.installation
    yield (
        f"* PostgreSQL {server.version} ({server.origin}), fsync and checksums on, shared_buffers 512 MB;"
        f" Python {python_version()}; {peers}"
    )
    yield (
        f"* one database with {figures.tables} tables, pg_stat_statements with {figures.statements:,} statements,"
        " track_io_timing on; each prober is a login of its own with pg_monitor, over TCP on the loopback interface"
    )
    yield from (f"* not measured: {sentence}" for sentence in figures.missing)
    yield from (f"* a family did not answer: {sentence}" for sentence in sorted(figures.faults))
    yield ""
    if figures.loads:
        yield from _latency(figures)
    if figures.fleet:
        yield from _fleet(figures)
    if figures.windows:
        yield from _tps(figures, figures.windows)


def _latency(figures: Figures) -> Iterator[str]:
    yield f"## {figures.clients} client connections under load"
    yield ""
    yield (
        "Probes took turns in random order within one run. Wall is the whole of one execution: of ours from the question"
        " to the samples made of the answers, of the exporter one scrape without compression, of check_pgactivity the"
        " program from its start to its end; storing what was read is left out on all sides. CPU is the mean of one execution: client is the process that reads (ours,"
        " the exporter's, check_pgactivity with its psql), server its backends. *Numbers* are the values that one"
        " execution brings."
    )
    yield ""
    for load in figures.loads:
        yield f"### {load.name} (others had {load.others:.0%} of the cores)"
        yield ""
        yield "| probe | n | p50 ms | p95 ms | p99 ms | client CPU ms | server CPU ms | numbers |"
        yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
        yield from map(_row, load.series)
        yield ""
    yield "| target | load | found | |"
    yield "| --- | --- | --- | --- |"
    for load in figures.loads:
        yield from _targets(load)
    yield ""


def _row(series: Series) -> str:
    times = " | ".join(f"{series.percentile_ms(percent):.1f}" for percent in (50, 95, 99))
    return (
        f"| {series.name} | {len(series.seconds)} | {times} | {series.client_ms:.2f} |"
        f" {series.server_ms:.2f} | {series.numbers:,} |"
    )


def _targets(load: Load) -> Iterator[str]:
    light, floor = load.named(LIGHT), load.named(FLOOR)
    if light and floor:
        p95, least = light.percentile_ms(95), floor.percentile_ms(95)
        yield _target(
            f"light tier p95 < {LIGHT_P95_MS:.0f} ms", load, f"{p95:.1f} ms", met=p95 < LIGHT_P95_MS
        )
        yield _target(
            f"light tier p95 <= floor + {OVER_FLOOR_MS:.0f} ms",
            load,
            f"{p95:.1f} = {least:.1f} + {p95 - least:.1f} ms",
            met=p95 <= least + OVER_FLOOR_MS,
        )
    yield from _ratio(load, COVERAGE, EXPORTER_ALL, CLIENT_CPU_RATIO, "client CPU")
    yield from _ratio(load, COVERAGE, EXPORTER_TOP, None, "client CPU")
    yield from _ratio(load, COVERAGE, EXPORTER_ALL, None, "server CPU")
    for peer in (each.name for each in load.series if each.name.startswith(metrics_peers.CHECKS)):
        yield from _ratio(load, WHOLE, peer, CHECK_WALL_RATIO, "p50 wall")


def _ratio(load: Load, ours: str, peer: str, most: float | None, what: str) -> Iterator[str]:
    one, other = load.named(ours), load.named(peer)
    if not one or not other:
        return
    read = {"client CPU": _client, "server CPU": _server, "p50 wall": _p50}[what]
    ratio = read(one) / max(read(other), 1e-9)
    aim = "" if most is None else f" <= {most:g}"
    found = f"{ratio:.2f} ({read(one):.2f} / {read(other):.2f} ms)"
    yield _target(
        f"{what} of {ours} / {peer}{aim}", load, found, met=None if most is None else ratio <= most
    )


def _client(series: Series) -> float:
    return series.client_ms


def _server(series: Series) -> float:
    return series.server_ms


def _p50(series: Series) -> float:
    return series.percentile_ms(50)


def _target(aim: str, load: Load, found: str, *, met: bool | None) -> str:
    verdict = {True: "met", False: "NOT met", None: "no target"}[met]
    return f"| {aim} | {load.name.partition(':')[0]} | {found} | {verdict} |"


def _fleet(figures: Figures) -> Iterator[str]:
    targets = figures.fleet[0].targets
    yield "## One process polling a fleet"
    yield ""
    yield (
        f"{targets} targets, all of them the one server without other load, 32 polled at a time, light tier only, as fast"
        f" as it goes, samples made and thrown away (others had {figures.fleet_others:.0%} of the cores). Targets per core"
        " are derived from the client's CPU alone."
    )
    yield ""
    yield "| | polls/s | client CPU ms | server CPU ms | derived targets per core at 10 s | at 60 s |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for each in figures.fleet:
        per_core = [seconds * 1e3 / each.client_ms for seconds in (10, 60)]
        rates = " | ".join(f"{number:,.0f}" for number in per_core)
        yield f"| {each.name} | {each.rate:.0f} | {each.client_ms:.2f} | {each.server_ms:.2f} | {rates} |"
    yield ""
    yield "Each tier by itself, one after the other, families of databases included:"
    yield ""
    yield "| tier | p50 ms | client CPU ms | server CPU ms | numbers |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for tier in figures.tiers:
        yield (
            f"| {tier.name}, every {Tier(tier.name).seconds:,} s | {tier.percentile_ms(50):.1f} |"
            f" {tier.client_ms:.2f} | {tier.server_ms:.2f} | {tier.numbers:,} |"
        )
    yield ""
    yield from _hour(figures.tiers)


def _hour(tiers: Sequence[Series]) -> Iterator[str]:
    runs: Mapping[str, float] = {tier.value: 3600 / tier.seconds for tier in Tier}
    client = sum(each.client_ms * runs[each.name] for each in tiers) / 1e3
    server = sum(each.server_ms * runs[each.name] for each in tiers) / 1e3
    yield (
        f"Derived: every tier at its interval costs {client:.1f} s of client CPU and {server:.1f} s of server CPU an hour"
        f" ({server / 36:.3f} % of one core); one core collects from {3600 / client:,.0f} such servers, without the"
        " writing."
    )
    yield ""


def _tps(figures: Figures, found: Windows) -> Iterator[str]:
    yield "## Cost for the watched server"
    yield ""
    blocks = len(found.tps[0])
    yield (
        f"TPC-B by pgbench, 32 clients, {blocks} blocks of windows of {found.seconds} s in shuffled order, the light tier"
        " collected at an interval or not at all; ratios are those within a block, median (lowest to highest)"
        f" (others had {figures.windows_others:.0%} of the cores). Windows without a collector lie"
        f" {found.spread():.0%} apart among themselves: less than that is not to be seen."
    )
    yield ""
    yield "| light tier | mean tps | tps with / without |"
    yield "| --- | ---: | --- |"
    yield f"| not collected | {mean(found.tps[0]):,.0f} | |"
    for interval in sorted((i for i in found.tps if i), reverse=True):
        yield f"| every {interval} s | {mean(found.tps[interval]):,.0f} | {found.line(interval)} |"
    yield ""
    for interval in (i for i in found.tps if i):
        ratios = found.ratios(interval)
        hidden = min(ratios) <= 1 <= max(ratios) or abs(median(ratios) - 1) <= found.spread() / 2
        verdict = "not visible: met" if hidden else "visible: NOT met"
        yield f"* every {interval} s: {verdict}"
    yield ""
