"""Measures reading from and writing to the vault as it grows: ./ops run python -m benchmarks.vault [--samples 30e6]."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter

import click
import psycopg
from rich.console import Console

from benchmarks import sections, vault_data, vault_report
from benchmarks.measure import ROOT
from benchmarks.vault_data import SERVER, Fill
from benchmarks.vault_report import Stage, Timing
from tasks import vault as vaults
from tasks.errors import OneVaultError
from tasks.metrics import reading, store
from tasks.private_cluster import PrivateCluster
from tasks.programs import server_programs
from tasks.schema import migrator
from tasks.scratch import scratch_folder, sweep

Act = Callable[[psycopg.Connection], object]
_SUPERUSER = "postgres"
_SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "autovacuum": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "5min",
}


def acts(ingest: Act) -> dict[str, Act]:
    """Return what is measured, by name; the floor comes first."""
    twelve = [f"{family}.{vault_data.METRICS[0]}" for family in vault_data.FAMILIES[:12]]
    one = {"object": "object-1"}

    def history(conn: psycopg.Connection, days: int) -> object:
        now = datetime.now(UTC)
        return reading.history(conn, SERVER, twelve, now - timedelta(days=days), now, one)

    return {
        "floor: SELECT 1": lambda conn: conn.execute("SELECT 1").fetchone(),
        "status of a server": lambda conn: reading.server_metrics(conn, SERVER),
        "fleet overview": reading.fleet,
        "24 h x 12 series": lambda conn: history(conn, 1),
        "7 d x 12 series, hourly": lambda conn: history(conn, 7),
        "top statements, 1 h": lambda conn: reading.top_statements(conn, SERVER),
        "ingest of 2,000 samples": ingest,
    }


def measure(conn: psycopg.Connection, chosen: dict[str, Act], rounds: int) -> list[Timing]:
    """Time each act in turn, round after round, so that all of them meet the same neighbours."""
    timings = [Timing(name) for name in chosen]
    for act in chosen.values():
        act(conn)
    for _ in range(rounds):
        for timing, act in zip(timings, chosen.values(), strict=True):
            begun = perf_counter()
            act(conn)
            timing.seconds.append(perf_counter() - begun)
    return timings


def run(conn: psycopg.Connection, samples: int, rounds: int, console: Console) -> list[Stage]:
    """Measure at one million samples, a day and more of one server, and at the end, days of ten servers."""
    fill = Fill(conn, datetime.now(UTC))
    fill.prepare()
    cache = store.SeriesCache()
    stages = []
    for size, servers in ((min(1_000_000, samples), 1), (samples, vault_data.SERVERS)):
        begun = perf_counter()
        fill.grow(size, servers)
        console.print(f"{size:,} samples after {perf_counter() - begun:.0f} s")
        timings = measure(conn, acts(lambda c: store.write(c, fill.batch(), cache)), rounds)
        stages.append(Stage(fill.samples, fill.rows, fill.bytes(), timings))
        for timing in timings:
            console.print(f"  {timing}")
    return stages


@click.command()
@click.option(
    "--samples", default=30e6, show_default=True, help="How many metric values at the end."
)
@click.option("--rounds", default=200, show_default=True, help="How often each act is timed.")
@click.option("--pg", default=17, show_default=True, help="The vault's PostgreSQL.")
@click.option("--work", type=click.Path(path_type=Path), default="/var/tmp/onevault-benchmark")  # noqa: S108
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "benchmarks/RESULTS.md")
def main(samples: float, rounds: int, pg: int, work: Path, out: Path) -> None:
    """Fill a private vault with samples, time what a dashboard and a collector do, and write it into RESULTS.md."""
    console = Console(highlight=False)
    sweep(work)
    command = " ".join(["python -m benchmarks.vault", *sys.argv[1:]])
    try:
        with scratch_folder(work) as folder:
            cluster = PrivateCluster(folder / "vault", server_programs(pg), superuser=_SUPERUSER)
            cluster.create(durable=True, checksums=True)
            with cluster.running(_SETTINGS):
                vaults.ensure_database(cluster.conninfo())
                conninfo = cluster.conninfo(vaults.DATABASE)
                migrator.migrate(conninfo)
                with vaults.connect(conninfo, statement_timeout_ms=0) as conn:
                    stages = run(conn, int(samples), rounds, console)
            cluster.remove()
    except OneVaultError as error:
        raise click.ClickException(str(error)) from None
    text = vault_report.section(command, cluster.installation, stages)
    sections.replace(out, vault_report.TITLE, text)
    console.print(f"written: {out}")


if __name__ == "__main__":
    main()
