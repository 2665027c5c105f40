"""Measures collection beside peers: ./ops run python -m benchmarks.metrics [--only latency] [--clients 500]."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console

from benchmarks import metrics_peers, metrics_report, metrics_runs, sections
from benchmarks.measure import ROOT
from benchmarks.metrics_probes import (
    ALL_TIERS,
    Chosen,
    Floor,
    Ours,
    Probe,
    exporter_families,
    instance_families,
)
from benchmarks.metrics_report import Figures, Load
from benchmarks.metrics_runs import LIGHT, Busy
from benchmarks.metrics_server import TABLES, WatchedServer, clients, watched_server
from tasks.errors import OneVaultError, Refused
from tasks.folders import make_folder
from tasks.metrics import catalog
from tasks.programs import server_programs
from tasks.scratch import scratch_folder, sweep

_LOADS = {
    "throttled: 300 simple updates a second": ("--builtin=simple-update", "--rate=300"),
    "saturated: as many single reads as it goes": ("--builtin=select-only",),
}
_LATENCY_SECONDS = 70.0
_FLEET_TARGETS = 50
_FLEET_SECONDS = 15.0
_TIER_RUNS = 20
_INTERVALS = (0, 10, 1)
_BLOCKS = 4
_EXPORTERS = {
    "exporter_all": (metrics_report.EXPORTER_ALL, None),
    "exporter_top": (metrics_report.EXPORTER_TOP, 100),
}
_LOGINS = ("floor", "light", "coverage", "whole", "checks", "fleet", "tiers", "beside")


@dataclass
class Bench:
    """Where measurements are made, and what came out."""

    folder: Path
    server: WatchedServer
    families: Chosen
    console: Console
    figures: Figures

    def ours(self) -> list[Ours]:
        """Make our probes."""
        whole = instance_families(self.families)
        covered = exporter_families(self.families)
        return [
            Ours(metrics_report.LIGHT, self.server, "light", whole, LIGHT, share=5),
            Ours(metrics_report.COVERAGE, self.server, "coverage", covered, ALL_TIERS),
            Ours(metrics_report.WHOLE, self.server, "whole", whole, ALL_TIERS),
        ]

    @contextmanager
    def peers(self) -> Iterator[list[Probe]]:
        """Make the probes of the peers that are installed; of the others the report says that they are missing."""
        with ExitStack() as stack:
            found: list[Probe] = []
            for login, (name, statements) in _EXPORTERS.items():
                running = metrics_peers.exporter(self.server, login, self.folder, name, statements)
                try:
                    found.append(stack.enter_context(running))
                except Refused as error:
                    self.figures.missing.append(f"{name}: {error}")
            yield found + self._checks()

    def _checks(self) -> list[Probe]:
        place = make_folder(self.folder / "checks", 0o700)
        found: list[Probe] = []
        for check in metrics_peers.checks(self.server, "checks", place):
            try:
                asyncio.run(check.run())
            except Refused as error:
                self.figures.missing.append(f"{check.name}: {error}")
            else:
                found.append(check)
        return found


def latency(bench: Bench) -> None:
    """Measure ours, the floor and the peers under both loads."""
    with bench.peers() as peers:
        for name, arguments in _LOADS.items():
            bench.console.rule(name)
            number, output = bench.figures.clients, bench.folder / "pgbench.log"
            with clients(bench.server, number, output, arguments):
                busy = Busy()
                series = asyncio.run(_take_turns(bench, peers))
                bench.figures.loads.append(Load(name, series, busy.others()))
            for each in series:
                bench.console.print(f"  {each}")


async def _take_turns(bench: Bench, peers: list[Probe]) -> list[metrics_runs.Series]:
    ours = bench.ours()
    stay: list[Probe] = [Floor(bench.server, "floor"), *ours]
    try:
        return await metrics_runs.take_turns([*stay, *peers], _LATENCY_SECONDS)
    finally:
        for probe in (*stay, *peers):
            await probe.close()
        for each in ours:
            bench.figures.faults |= each.reader.faults


def fleet(bench: Bench) -> None:
    """Measure one process polling many targets, and each tier by itself."""
    bench.console.rule("one process polling a fleet")
    busy, figures = Busy(), bench.figures
    light = instance_families(bench.families)
    polling = metrics_runs.poll_fleet(bench.server, "fleet", light, _FLEET_TARGETS, _FLEET_SECONDS)
    figures.fleet = asyncio.run(polling)
    figures.fleet_others = busy.others()
    tiers = metrics_runs.each_tier(bench.server, "tiers", bench.families, _TIER_RUNS)
    figures.tiers = asyncio.run(tiers)
    for each in (*figures.fleet, *figures.tiers):
        bench.console.print(f"  {each}")


def tps(bench: Bench) -> None:
    """Measure what the collector takes from the server's clients."""
    bench.console.rule("transactions per second with and without the collector")
    busy, log = Busy(), bench.folder / "pgbench.log"
    probe = Ours("light", bench.server, "beside", instance_families(bench.families), LIGHT)

    async def measure() -> metrics_runs.Windows:
        try:
            return await metrics_runs.windows(bench.server, probe, _INTERVALS, _BLOCKS, log)
        finally:
            await probe.close()

    bench.figures.windows = asyncio.run(measure())
    bench.figures.windows_others = busy.others()
    bench.console.print(f"  {bench.figures.windows.tps}")


_PARTS: dict[str, Callable[[Bench], None]] = {"latency": latency, "fleet": fleet, "tps": tps}


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(_PARTS)))
@click.option("--clients", "number", default=500, show_default=True, help="Clients under load.")
@click.option("--pg", default=15, show_default=True, help="The watched server's PostgreSQL.")
@click.option("--work", type=click.Path(path_type=Path), default="/var/tmp/onevault-benchmark")  # noqa: S108
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "benchmarks/RESULTS.md")
def main(only: tuple[str, ...], number: int, pg: int, work: Path, out: Path) -> None:
    """Measure what collecting metrics takes, beside peers, and write it into RESULTS.md.

    Peers that are not installed are left out (Debian 12: prometheus-postgres-exporter and check-pgactivity; the former
    reads PostgreSQL 15 and older only).
    """
    console, figures = Console(highlight=False), Figures(_command(), server_programs(pg))
    figures.clients, figures.tables = number, TABLES
    sweep(work)
    try:
        with (
            scratch_folder(work) as folder,
            watched_server(folder / "watched", figures.installation) as server,
        ):
            server.create_logins((*_LOGINS, *_EXPORTERS))
            figures.statements = server.count_statements()
            families = Chosen(catalog.load().families)
            bench = Bench(folder, server, families, console, figures)
            for name in only or _PARTS:
                _PARTS[name](bench)
    except OneVaultError as error:
        raise click.ClickException(str(error)) from None
    sections.replace(out, metrics_report.TITLE, metrics_report.section(figures))
    console.print(f"written: {out}")


def _command() -> str:
    return " ".join(["python -m benchmarks.metrics", *sys.argv[1:]])


if __name__ == "__main__":
    main()
