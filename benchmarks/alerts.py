"""Measures how good the alerts are: ./ops run python -m benchmarks.alerts [--quick] [--minutes 20] [--servers 4]."""

import math
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from time import monotonic
from typing import TypeVar

import click
from rich.console import Console

from benchmarks import alert_report, benign, fault_kinds, sections
from benchmarks.alert_report import Run
from benchmarks.alert_scores import episodes, score
from benchmarks.alert_watch import watching
from benchmarks.benign import Benign
from benchmarks.fault_schedule import Event, Stage
from benchmarks.faults import Fault
from benchmarks.measure import ROOT
from benchmarks.shops import SUPERUSER, Shop, shop
from tasks import vault as vaults
from tasks.errors import OneVaultError
from tasks.private_cluster import PrivateCluster
from tasks.programs import Installation, server_programs
from tasks.schema import migrator
from tasks.scratch import scratch_folder, sweep

Kind = TypeVar("Kind", Fault, Benign)
_EXTRAS = (frozenset({"standby", "pooler"}), frozenset({"disk"}))
_FAULT_LANES = 3
_BENIGN_LANES = 2
_SLOW_EACH = 4
_SETTLE_SECONDS = 30.0
_QUICK_MINUTES = 1.5
_QUICK_PATIENCE_SECONDS = 30.0
_DRAIN_SECONDS = 900.0


@dataclass(frozen=True)
class Plan:
    """How long, how many servers, in which order."""

    minutes: float
    servers: int
    seed: int
    quick: bool


@contextmanager
def fleet(folder: Path, installation: Installation, servers: int) -> Iterator[list[Shop]]:
    """Run the servers: the odd ones with a standby and a pooler, the even ones with a small disk."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                shop(folder, f"shop-{number}", installation, _EXTRAS[(number - 1) % 2])
            )
            for number in range(1, servers + 1)
        ]


@contextmanager
def vault(folder: Path, installation: Installation) -> Iterator[str]:
    """Run a vault of its own."""
    cluster = PrivateCluster(folder / "vault", installation, superuser=SUPERUSER)
    cluster.create()
    with cluster.running({"autovacuum": "on"}):
        vaults.ensure_database(cluster.conninfo())
        conninfo = cluster.conninfo(vaults.DATABASE)
        migrator.migrate(conninfo)
        yield conninfo


def treat(stages: Sequence[Stage], plan: Plan, over: threading.Event) -> list[Event]:
    """Run every lane of every server until the time is over, and return what was done."""
    until = monotonic() + 60 * plan.minutes
    lanes = [thread for stage in stages for thread in _lanes(stage, plan, until)]
    for thread in lanes:
        thread.start()
    deadline = until + _DRAIN_SECONDS
    for thread in lanes:
        thread.join(max(0.0, deadline - monotonic()))
    over.set()
    return sorted((event for stage in stages for event in stage.events), key=lambda e: e.begun_at)


def _lanes(stage: Stage, plan: Plan, until: float) -> Iterator[threading.Thread]:
    fitting = [fault for fault in fault_kinds.KINDS if fault.fits(stage.shop)]
    longest = _QUICK_PATIENCE_SECONDS if plan.quick else math.inf
    chosen = [each for each in fitting if not each.slow and each.patience_seconds <= longest]
    swift = _shuffled(stage.dice, chosen)
    pile = _shuffled(stage.dice, [fault for fault in fitting if fault.slow])[:_SLOW_EACH]
    work = _shuffled(stage.dice, benign.KINDS)
    for _ in range(_FAULT_LANES):
        yield threading.Thread(target=stage.fault_lane, args=[swift, until], daemon=True)
    for _ in range(_BENIGN_LANES):
        yield threading.Thread(target=stage.benign_lane, args=[work, until], daemon=True)
    if not plan.quick:
        yield threading.Thread(target=stage.slow_lane, args=[pile, until], daemon=True)


def _shuffled(dice: Random, kinds: Sequence[Kind]) -> list[Kind]:
    return dice.sample(kinds, len(kinds))


def run(plan: Plan, folder: Path, installation: Installation, console: Console) -> Run:
    """Run it all, and score what came of it."""
    overrides = folder / "rules.yaml"
    overrides.write_text(fault_kinds.overrides())
    over, begun_at = threading.Event(), datetime.now(UTC)
    with (
        vault(folder, installation) as conninfo,
        fleet(folder, installation, plan.servers) as shops,
    ):
        targets = [target for each in shops for target in each.targets()]
        console.print(f"{len(targets)} servers run; seed {plan.seed}")
        with watching(conninfo, targets, overrides) as (board, evaluations):
            over.wait(_SETTLE_SECONDS)
            stages = [
                Stage(each, board.is_open, over, Random(f"{plan.seed}{each.name}"), console.print)  # noqa: S311
                for each in shops
            ]
            treated_at = datetime.now(UTC)
            events = treat(stages, plan, over)
            if not plan.quick:
                events += _revoke_rights(stages[-1], over)
        with vaults.connect(conninfo) as conn:
            found = episodes(conn)
            scores = score(found, events)
            alert_report.write_details(folder.parent / "alerts.json", found, events)
    return Run(
        "", installation, plan.seed, len(targets), begun_at, treated_at, events, scores,
        evaluations.seconds, sorted(evaluations.failures),
    )  # fmt: skip


def _revoke_rights(stage: Stage, over: threading.Event) -> list[Event]:
    """Take the collector's rights away on one server, last of all: it asks for nothing refused for an hour."""
    over.clear()
    before = len(stage.events)
    stage.cause(fault_kinds.LAST)
    return stage.events[before:]


@click.command()
@click.option("--minutes", default=18.0, show_default=True, help="How long faults are begun.")
@click.option("--servers", default=4, show_default=True, help="How many servers are treated.")
@click.option("--seed", default=None, type=int, help="The order of things; a new one unless given.")
@click.option("--pg", default=15, show_default=True, help="The PostgreSQL of servers and vault.")
@click.option(
    "--quick", is_flag=True, help="About three and a half minutes, without faults that take long."
)
@click.option("--work", type=click.Path(path_type=Path), default="/var/tmp/onevault-benchmark")  # noqa: S108
@click.option("--out", type=click.Path(path_type=Path), default=None, help="The file to write.")
def main(  # noqa: PLR0913, PLR0917 - one each for its option
    minutes: float,
    servers: int,
    seed: int | None,
    pg: int,
    quick: bool,
    work: Path,
    out: Path | None,
) -> None:
    """Cause faults and harmless work on private servers under load, and score the alerts that came of it.

    The full run's figures go into RESULTS.md; a quick one is only shown, unless --out is given.
    """
    console = Console(highlight=False)
    chosen = seed if seed is not None else Random().randrange(10_000)  # noqa: S311
    plan = Plan(_QUICK_MINUTES if quick else minutes, servers, chosen, quick)
    sweep(work)
    try:
        with scratch_folder(work) as folder:
            done = run(plan, folder, server_programs(pg), console)
    except OneVaultError as error:
        raise click.ClickException(str(error)) from None
    done.command = " ".join(["python -m benchmarks.alerts", *sys.argv[1:]])
    if seed is None:
        done.command += f" --seed {chosen}"
    text = alert_report.section(done)
    console.print(text, markup=False, soft_wrap=True)
    place = out or (None if quick else ROOT / "benchmarks/RESULTS.md")
    if place is not None:
        sections.replace(place, alert_report.TITLE, text)
        console.print(f"written: {place}")


if __name__ == "__main__":
    main()
