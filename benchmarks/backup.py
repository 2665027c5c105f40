"""Measures our backups beside those of others: ./ops run python -m benchmarks.backup [--gigabytes 2.5] [--rounds 2]."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

import click
from rich.console import Console

from benchmarks import peers, report, sections
from benchmarks.data import Source, source
from benchmarks.measure import ROOT, Series, Usage, measure_ours
from benchmarks.report import Pair, Results
from tasks.errors import OneVaultError, Refused
from tasks.folders import make_folder, remove_tree
from tasks.programs import Installation, server_programs
from tasks.scratch import scratch_folder, sweep

Candidate = Callable[[], Usage]
_TAKE = ("--stages", "take", "--depth", "none")
_MEMORY_SHARES = (0.4, 1.0, 2.0)
_JOBS = 2
# The newest that Debian's pgBackRest knows.
_PEER_MAJOR = 15


@dataclass
class Bench:
    """Where measurements are made, how often, and what came out."""

    folder: Path
    gigabytes: float
    rounds: int
    console: Console
    results: Results
    _numbers: Iterator[int] = field(default_factory=count)

    @contextmanager
    def source(
        self, installation: Installation, gigabytes: float | None = None
    ) -> Iterator[Source]:
        """Make a source of the chosen size."""
        size = gigabytes or self.gigabytes
        self.console.print(f"filling PostgreSQL {installation.version} with {size:g} GB ...")
        with source(self.folder / "source", installation, size) as made:
            self.console.print(f"  {made.name}")
            self.results.sources.append(made.name)
            yield made

    def new_folder(self) -> Path:
        """Make a folder for one run of ours."""
        return make_folder(self.folder / f"ours-{next(self._numbers)}", 0o711)

    def ours(self, made: Source, kind: str, *arguments: str, folder: Path | None = None) -> Usage:
        """Measure one run of ours; its store is removed unless a folder is given."""
        place = folder or self.new_folder()
        general = ["--conninfo", made.conninfo, "--folder", str(place), "--kind", kind]
        try:
            return measure_ours([*general, *arguments], made.pid, self.folder / "log")
        finally:
            if folder is None:
                remove_tree(place)

    def alternate(self, candidates: Mapping[str, Candidate]) -> list[Series]:
        """Run the candidates in turn, A/B/A/B, as often as there are rounds."""
        series = [Series(name) for name in candidates]
        for _ in range(self.rounds):
            for each, run in zip(series, candidates.values(), strict=True):
                each.runs.append(run())
                self.console.print(f"  {report.line(each.name, each.runs[-1])}")
        return series

    def pair(self, pair: Pair, candidates: Mapping[str, Candidate]) -> None:
        """Measure ours, named first, against a peer, and keep the result."""
        self.console.rule(pair.title)
        try:
            pair.series = self.alternate(candidates)
        except Refused as error:
            pair.missing = str(error)
        self.results.pairs.append(pair)


def logical_flow(bench: Bench, made: Source) -> None:
    """Measure the whole verified logical flow against the seed's bare dump."""
    pair = Pair("whole verified logical flow / bare pg_dump -Fc --compress=9", wall_target=0.8)
    seed = partial(peers.dump, made, bench.folder, "9")
    bench.pair(pair, {"ours": lambda: bench.ours(made, "logical"), "pg_dump gzip 9": seed})


def physical_flow(bench: Bench, made: Source) -> None:
    """Measure the whole verified physical flow against the seed's bare pg_basebackup."""
    pair = Pair("whole verified physical flow / bare pg_basebackup -Ft -z", wall_target=0.3)
    seed = partial(peers.base_backup, made, bench.folder)
    bench.pair(pair, {"ours": lambda: bench.ours(made, "physical"), "pg_basebackup -z": seed})


def logical_alone(bench: Bench, made: Source) -> None:
    """Measure the logical backup alone against pg_dump with zstd into a plain file."""
    pair = Pair("logical backup alone / pg_dump -Fc -Z zstd:1", wall_target=1.15)
    plain = partial(peers.dump, made, bench.folder, "zstd:1")
    bench.pair(pair, {"ours": lambda: bench.ours(made, "logical", *_TAKE), "pg_dump zstd 1": plain})


def logical_restore(bench: Bench, made: Source) -> None:
    """Measure the logical restore test against pg_restore with two jobs."""
    folder = bench.new_folder()
    taken = bench.ours(made, "logical", "--stages", "take", folder=folder)
    peers.dump(made, bench.folder, "zstd:1", keep=True)
    arguments = ("--backup-id", taken.detail["backup_id"], "--stages")
    pair = Pair(f"logical restore test / pg_restore -j{_JOBS} alone", stage="restore")
    bench.pair(
        pair,
        {
            "ours": lambda: bench.ours(made, "logical", *arguments, "restore", folder=folder),
            f"pg_restore -j{_JOBS}": partial(
                peers.restore_dump, made.installation, bench.folder, _JOBS
            ),
        },
    )
    remove_tree(folder)
    (bench.folder / "plain.dump").unlink()


def physical_alone(bench: Bench, made: Source) -> None:
    """Measure physical backup, re-read and restore test against pgBackRest."""
    folder = bench.new_folder()
    taken = bench.ours(made, "physical", "--stages", "take", folder=folder)
    stored = ("--backup-id", taken.detail["backup_id"], "--stages")
    with peers.pgbackrest(made, bench.folder / "pgbackrest") as rest:
        backup = Pair("physical backup alone / pgBackRest full", wall_target=1.0, cpu_target=0.9)
        bench.pair(
            backup,
            {"ours": lambda: bench.ours(made, "physical", *_TAKE), "pgBackRest": rest.backup},
        )
        bench.pair(
            Pair("re-read of a physical backup / pgbackrest verify", stage="reread"),
            {
                "ours": lambda: bench.ours(made, "physical", *stored, "reread", folder=folder),
                "pgbackrest verify": rest.verify,
            },
        )
        bench.pair(
            Pair("physical restore test / pgbackrest restore (does not start it)", stage="restore"),
            {
                "ours": lambda: bench.ours(made, "physical", *stored, "restore", folder=folder),
                "pgbackrest restore": rest.restore,
            },
        )
    bench.results.restore_share = bench.results.pairs[-1].ours.stage("restore") / backup.ours.stage(
        "take"
    )
    remove_tree(folder)


def memory(bench: Bench, installation: Installation) -> None:
    """Measure our peak memory at three sizes."""
    for share in _MEMORY_SHARES:
        with bench.source(installation, bench.gigabytes * share) as made:
            for kind in ("logical", "physical"):
                _memory_of(bench, made, kind)


def _memory_of(bench: Bench, made: Source, kind: str) -> None:
    folder = bench.new_folder()
    peaks = {}
    arguments: list[str] = []
    for stage in ("take", "reread", "restore"):
        usage = bench.ours(made, kind, "--stages", stage, *arguments, folder=folder)
        arguments = ["--backup-id", usage.detail["backup_id"]]
        peaks[stage] = usage.peak_bytes
    usage = bench.ours(made, kind)
    peaks["all in one process"] = usage.peak_bytes
    bench.results.memory.append(report.Memory(kind, made.database_bytes, peaks))
    bench.console.print(f"  {bench.results.memory[-1]}")
    remove_tree(folder)


_ON_MAIN = {
    "logical-flow": logical_flow,
    "physical-flow": physical_flow,
    "logical-alone": logical_alone,
    "logical-restore": logical_restore,
}
_PHYSICAL_ALONE = "physical-alone"
_MEMORY = "memory"


def run(bench: Bench, only: set[str], major: int) -> None:
    """Run what was chosen."""
    if chosen := [measurement for name, measurement in _ON_MAIN.items() if name in only]:
        with bench.source(server_programs(major)) as made:
            for measurement in chosen:
                measurement(bench, made)
    if _PHYSICAL_ALONE in only:
        with bench.source(server_programs(_PEER_MAJOR)) as made:
            try:
                physical_alone(bench, made)
            except Refused as error:
                title = "physical backup alone / pgBackRest full"
                bench.results.pairs.append(Pair(title, missing=str(error)))
    if _MEMORY in only:
        memory(bench, server_programs(major))


@click.command()
@click.option("--gigabytes", default=2.5, show_default=True, help="The size of the source.")
@click.option("--rounds", default=2, show_default=True, help="How often each candidate runs.")
@click.option("--pg", default=17, show_default=True, help="The source's PostgreSQL.")
@click.option("--only", multiple=True, type=click.Choice([*_ON_MAIN, _PHYSICAL_ALONE, _MEMORY]))
@click.option("--work", type=click.Path(path_type=Path), default="/var/tmp/onevault-benchmark")  # noqa: S108
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "benchmarks/RESULTS.md")
def main(
    gigabytes: float,
    rounds: int,
    pg: int,
    only: tuple[str, ...],
    work: Path,
    out: Path,
) -> None:
    """Measure our backups beside those of others and write RESULTS.md.

    It needs about six times the size in disk below --work, which must be a folder that PostgreSQL's user can reach.
    """
    console = Console(highlight=False)
    results = Results(command=" ".join(["python -m benchmarks.backup", *sys.argv[1:]]))
    sweep(work)
    try:
        with scratch_folder(work) as folder:
            bench = Bench(folder, gigabytes, rounds, console, results)
            run(bench, set(only) or {*_ON_MAIN, _PHYSICAL_ALONE, _MEMORY}, pg)
    except OneVaultError as error:
        raise click.ClickException(str(error)) from None
    console.print(report.table(results))
    sections.replace(out, report.TITLE, report.markdown(results))
    console.print(f"written: {out}")


if __name__ == "__main__":
    main()
