"""The vault's figures as a section of RESULTS.md."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median, quantiles

from benchmarks.report import machine
from tasks.programs import Installation

TITLE = "Metrics: the vault"
TARGET_MS = 50.0


@dataclass
class Timing:
    """How long one act took, each time."""

    name: str
    seconds: list[float] = field(default_factory=list)

    @property
    def p50_ms(self) -> float:
        """Return the median in milliseconds."""
        return 1e3 * median(self.seconds)

    @property
    def p95_ms(self) -> float:
        """Return the 95th percentile in milliseconds."""
        return 1e3 * quantiles(self.seconds, n=20)[-1]

    def __str__(self) -> str:
        """Return it as a line."""
        return f"{self.name}: p50 {self.p50_ms:.1f} ms, p95 {self.p95_ms:.1f} ms"


@dataclass(frozen=True)
class Stage:
    """The figures at one size: metric values, rows that hold them, their bytes, and the times."""

    samples: int
    rows: int
    size: tuple[int, int]
    timings: list[Timing]

    @property
    def bytes_per_sample(self) -> float:
        """Return the bytes of one metric value, indexes included."""
        size, rows = self.size
        return size / rows * self.rows / self.samples


def section(command: str, installation: Installation, stages: list[Stage]) -> str:
    """Return the section, its heading included."""
    return "\n".join(_lines(command, installation, stages)) + "\n"


def _lines(command: str, installation: Installation, stages: list[Stage]) -> Iterator[str]:
    yield f"# {TITLE}"
    yield ""
    yield f"* {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, `{command}`"
    yield f"* {machine()}"
    yield f"* PostgreSQL {installation.version} ({installation.origin}), fsync and checksums on, shared_buffers 512 MB"
    yield (
        "* a sample is one metric value; ten of them lie in one row (one reading of a family's object), one every five"
        " minutes: first 41 hours of one server with 200 such objects, then days of ten servers with 2,000; eight days"
        " of hourly roll-ups and a day of statements lie beside them"
    )
    for stage in stages:
        yield (
            f"* {stage.samples:,} samples = {stage.rows:,} rows x 10 values: {stage.size[0] / 1e6:,.0f} MB with indexes,"
            f" {stage.bytes_per_sample:.1f} bytes a sample"
        )
    yield ""
    yield (
        f"All acts in turn, {len(stages[0].timings[0].seconds)} rounds, over one connection on a unix socket; times"
        " are the client's, rows made into Python objects. The ingest is `store.write` of 200 rows x 10 values with"
        " their latest values and 20 family states, committed and flushed."
    )
    yield ""
    heads = [f"{stage.samples / 1e6:.0f} M p50 / p95 ms" for stage in stages]
    yield f"| act | {' | '.join(heads)} | target p95 | |"
    yield f"| --- |{' ---: |' * len(stages)} ---: | --- |"
    for timings in zip(*(stage.timings for stage in stages), strict=True):
        yield _row(timings)
    yield ""


def _row(timings: tuple[Timing, ...]) -> str:
    cells = [f"{each.p50_ms:.1f} / {each.p95_ms:.1f}" for each in timings]
    if timings[0].name.startswith("floor"):
        return f"| {' | '.join([timings[0].name, *cells])} | | |"
    met = "met" if all(each.p95_ms < TARGET_MS for each in timings) else "NOT met"
    return f"| {' | '.join([timings[0].name, *cells])} | < {TARGET_MS:.0f} | {met} |"
