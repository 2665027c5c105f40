"""The figures, for the terminal and for RESULTS.md."""

import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil
from rich.table import Table

from benchmarks.measure import Series, Usage
from tasks import processes
from tasks.errors import OneVaultError
from tasks.programs import discover

TITLE = "Backups"
MEMORY_TARGET_BYTES = 200_000_000
RESTORE_TARGET = 2.0


@dataclass
class Pair:
    """Ours against a peer, with the ratios that were aimed at."""

    title: str
    wall_target: float | None = None
    cpu_target: float | None = None
    stage: str | None = None
    series: list[Series] = field(default_factory=list)
    missing: str | None = None

    @property
    def ours(self) -> Series:
        """Return our runs."""
        return self.series[0]

    @property
    def peer(self) -> Series:
        """Return the peer's runs."""
        return self.series[1]

    @property
    def wall_ratio(self) -> float:
        """Return the ratio of median wall seconds, start of Python included."""
        return self.ours.wall / self.peer.wall

    @property
    def cpu_ratio(self) -> float:
        """Return the ratio of median CPU seconds."""
        return self.ours.cpu / self.peer.cpu

    @property
    def started_ratio(self) -> float:
        """Return the ratio of wall seconds without the imports of our process."""
        return (self.ours.wall - self.ours.stage("import")) / self.peer.wall

    @property
    def verdict(self) -> str:
        """Return whether the targets were met."""
        aimed = [(self.wall_ratio, self.wall_target), (self.cpu_ratio, self.cpu_target)]
        met = [ratio <= target for ratio, target in aimed if target is not None]
        if not met:
            return "no target"
        return "met" if all(met) else "NOT met"


@dataclass(frozen=True)
class Memory:
    """The peaks of our own process by stage."""

    kind: str
    database_bytes: int
    peaks: Mapping[str, int]


@dataclass
class Results:
    """All that was measured in one run of the benchmark."""

    command: str
    begun_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    sources: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    restore_share: float | None = None


def line(name: str, usage: Usage) -> str:
    """Return one run in a line."""
    stages = usage.detail.get("stages", {})
    told = "  ".join(f"{stage} {seconds:.2f}" for stage, seconds in stages.items())
    cpu = f"{usage.client_seconds:.2f}+{usage.server_seconds:.2f}"
    return f"{name}: {usage.wall_seconds:.2f} s, CPU {cpu} s, others {usage.others:.0%}  {told}"


def table(results: Results) -> Table:
    """Return the pairs as a table for the terminal."""
    made = Table(
        "pair", "wall s", "wall ratio", "CPU s", "CPU ratio", "target", "", title="Figures"
    )
    for pair in results.pairs:
        made.add_row(*_cells(pair))
    for row in results.memory:
        made.add_row(
            f"peak memory, {row.kind}, {_giga(row.database_bytes)}", *[""] * 4, *_peak(row)
        )
    return made


def markdown(results: Results) -> str:
    """Return RESULTS.md."""
    return "\n".join([*_head(results), *_pairs(results), *_memory(results), *_runs(results)]) + "\n"


def _head(results: Results) -> Iterator[str]:
    yield f"# {TITLE}"
    yield ""
    yield f"* {results.begun_at:%Y-%m-%d %H:%M} UTC, `{results.command}`"
    yield f"* {machine()}"
    yield f"* sources: {'; '.join(results.sources)}; data checksums on, fsync on, in the page cache"
    yield f"* {'; '.join(_versions())}"
    yield ""
    yield (
        "Candidates ran in turn (A/B/A/B); figures are medians. CPU is that of the client with its children and of the"
        " server. Ours is timed from the start of its Python to its end; the ratio without start leaves out the imports"
        " (Prefect above all), which a flow run has behind it when its backup begins. *Alone* means"
        " `Order(depth='none')`: tables are neither counted nor fingerprinted, as the peers do not."
    )
    yield ""


def _pairs(results: Results) -> Iterator[str]:
    yield "| ours / peer | wall s | ratio | without start | CPU s | ratio | MB stored | target | |"
    yield "| --- | --- | ---: | ---: | --- | ---: | --- | --- | --- |"
    for pair in results.pairs:
        name, wall, wall_ratio, cpu, cpu_ratio, target, verdict = _cells(pair)
        started = "" if pair.missing else f"{pair.started_ratio:.2f}"
        stored = "" if pair.missing else " / ".join(_stored(each) for each in pair.series)
        cells = (name, wall, wall_ratio, started, cpu, cpu_ratio, stored, target, verdict)
        yield f"| {' | '.join(cells)} |"
    if results.restore_share is not None:
        met = "met" if results.restore_share <= RESTORE_TARGET else "NOT met"
        yield ""
        yield (
            f"Physical restore test (extract, pg_verifybackup, recover, answer) / physical backup:"
            f" {results.restore_share:.2f} (target {RESTORE_TARGET:g}: {met})."
        )
    yield ""
    yield from _rates(results)


def _rates(results: Results) -> Iterator[str]:
    for pair in results.pairs:
        if pair.stage is None or pair.missing:
            continue
        seconds, run = pair.ours.stage(pair.stage), pair.ours.runs[-1]
        yield (
            f"* {pair.title}: the stage itself {seconds:.2f} s, {run.stored_bytes / seconds / 1e6:,.0f} MB/s stored;"
            f" {pair.peer.name} {pair.peer.wall:.2f} s, {run.stored_bytes / pair.peer.wall / 1e6:,.0f} MB/s"
        )
    yield ""


def _memory(results: Results) -> Iterator[str]:
    if not results.memory:
        return
    yield "## Peak memory of our process (VmHWM, Prefect's import included)"
    yield ""
    stages = list(results.memory[0].peaks)
    yield f"| kind | database | {' | '.join(f'{stage}, MB' for stage in stages)} | target |"
    yield f"| --- | ---: |{' ---: |' * len(stages)} --- |"
    for row in results.memory:
        peaks = " | ".join(f"{row.peaks[stage] / 1e6:.0f}" for stage in stages)
        yield f"| {row.kind} | {_giga(row.database_bytes)} | {peaks} | {' '.join(_peak(row))} |"
    yield ""


def _runs(results: Results) -> Iterator[str]:
    yield "## Every run"
    yield ""
    yield "Seconds; CPU is client+server; *others* is the share of the cores that other work had meanwhile."
    yield ""
    for pair in results.pairs:
        yield f"### {pair.title}"
        yield ""
        for each in pair.series:
            yield from (f"* {line(each.name, run)}" for run in each.runs)
        if pair.missing:
            yield f"* {pair.missing}"
        yield ""


def _cells(pair: Pair) -> tuple[str, str, str, str, str, str, str]:
    if pair.missing:
        return pair.title, pair.missing, "", "", "", "", "not measured"
    target = ", ".join(
        f"{name} <= {value:g}"
        for name, value in (("wall", pair.wall_target), ("CPU", pair.cpu_target))
        if value is not None
    )
    return (
        pair.title,
        " / ".join(f"{each.wall:.2f}" for each in pair.series),
        f"{pair.wall_ratio:.2f}",
        " / ".join(f"{each.cpu:.2f}" for each in pair.series),
        f"{pair.cpu_ratio:.2f}",
        target,
        pair.verdict,
    )


def _stored(series: Series) -> str:
    return f"{series.stored / 1e6:,.0f}" if series.stored else "-"


def _peak(row: Memory) -> tuple[str, str]:
    highest = max(row.peaks.values())
    met = "met" if highest < MEMORY_TARGET_BYTES else "NOT met"
    return f"{highest / 1e6:.0f} < {MEMORY_TARGET_BYTES / 1e6:.0f}", met


def _giga(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def machine() -> str:
    """Say which processor, how many of it, and how much memory."""
    found = None
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE)
    processor = found[1] if found else platform.processor()
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores ({processor}), {memory:.0f} GiB, {platform.system()} {platform.release()}"


def _versions() -> Iterator[str]:
    yield f"Python {platform.python_version()}"
    for installation in discover():
        yield f"PostgreSQL {installation.version} ({installation.origin})"
    if program := shutil.which("pgbackrest"):
        try:
            yield processes.run([program, "version"], timeout_seconds=10).text
        except OneVaultError:
            return
