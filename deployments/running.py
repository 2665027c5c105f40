"""Runs flows from the command line, with their progress on the terminal."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table

from tasks.progress import Reading, listener

if TYPE_CHECKING:
    from flows.backup import BackupReport, Kind

_STYLE = {"PASS": "green", "PARTIAL": "yellow", "FAIL": "red", "NOT_RUN": "dim"}


def backup(
    server: str, kind: str, database: str | None, options: Mapping[str, Any], *, quiet: bool
) -> "BackupReport | None":
    """Run backup_and_verify here and now; None when its window is closed."""
    from flows.backup import backup_and_verify
    from tasks.backup.options import BackupOptions

    with on_terminal(quiet=quiet):
        return backup_and_verify(server, cast("Kind", kind), database, BackupOptions(**options))


def verify(
    backup_id: str, options: Mapping[str, Any], *, restore: bool, quiet: bool
) -> "BackupReport":
    """Run verify_backup here and now."""
    from flows.backup import verify_backup
    from tasks.backup.options import BackupOptions

    with on_terminal(quiet=quiet):
        return verify_backup(backup_id, restore, BackupOptions(**options))


def rungs_table(report: "BackupReport") -> Table:
    """Return what was proven, rung by rung, as a table."""
    table = Table(title=report.backup_id, title_justify="left", box=SIMPLE, pad_edge=False)
    table.add_column("proof")
    table.add_column("outcome")
    table.add_column("what it showed", overflow="fold")
    table.add_column("seconds", justify="right")
    for name, rung in report.rungs.items():
        style = _STYLE[rung.outcome.value]
        table.add_row(
            name,
            f"[{style}]{rung.outcome.value}[/{style}]",
            escape(rung.summary),
            f"{rung.seconds:.1f}",
        )
    return table


@contextmanager
def on_terminal(*, quiet: bool) -> Iterator[None]:
    """Show the progress of everything inside the block: bytes, rate, time left."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal or os.environ.get("ONEVAULT_NO_PROGRESS"):
        yield
        return
    with _bars(console) as bars:
        shown = _Shown(bars)
        token = listener.set(shown)
        try:
            yield
        finally:
            listener.reset(token)


def _bars(console: Console) -> Bars:
    return Bars(
        TextColumn("{task.description:<18}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


class _Shown:
    """One bar per stage."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, reading: Reading) -> None:
        task = self._tasks.get(reading.stage)
        if task is None:
            task = self._tasks[reading.stage] = self._bars.add_task(
                reading.stage, total=reading.total_bytes
            )
        total = reading.done_bytes if reading.finished else reading.total_bytes
        self._bars.update(task, completed=reading.done_bytes, total=total)
