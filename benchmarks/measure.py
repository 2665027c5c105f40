"""Running a program and measuring it: wall and CPU seconds, of it, of its children and of the server it talks to."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Any

import psutil

from tasks import processes
from tasks.accounts import Account
from tasks.errors import OneVaultError

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_SECONDS = 3600.0
_PARTING_SECONDS = 0.3
_CORES = os.cpu_count() or 1


class RunFailed(OneVaultError):  # noqa: N818 - it names a situation
    """A measured program failed; the message carries the end of what it said."""


@dataclass(frozen=True)
class Usage:
    """What one run took."""

    wall_seconds: float
    client_seconds: float
    server_seconds: float
    others: float
    peak_bytes: int = 0
    stored_bytes: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cpu_seconds(self) -> float:
        """Return the CPU seconds of both sides."""
        return self.client_seconds + self.server_seconds

    def stage(self, name: str) -> float:
        """Return the seconds of one stage of ours."""
        return float(self.detail["stages"][name])


@dataclass
class Series:
    """The runs of one candidate."""

    name: str
    runs: list[Usage] = field(default_factory=list)

    @property
    def wall(self) -> float:
        """Return the median wall seconds."""
        return median(run.wall_seconds for run in self.runs)

    @property
    def cpu(self) -> float:
        """Return the median CPU seconds."""
        return median(run.cpu_seconds for run in self.runs)

    @property
    def peak(self) -> int:
        """Return the highest peak."""
        return max(run.peak_bytes for run in self.runs)

    @property
    def stored(self) -> int:
        """Return the bytes of the last run."""
        return self.runs[-1].stored_bytes

    def stage(self, name: str) -> float:
        """Return the median seconds of one stage of ours."""
        return median(run.stage(name) for run in self.runs)


@dataclass(frozen=True)
class Command:
    """A program to be measured, as whom it runs, and where its output goes."""

    argv: Sequence[str | Path]
    env: Mapping[str, str] = field(default_factory=dict)
    account: Account | None = None
    stdout: Path | None = None


def measure(command: Command, server_pid: int, log: Path) -> Usage:
    """Run a program to its end; the CPU seconds of all its children count as its own."""
    busy, server = _busy_seconds(), server_seconds(server_pid)
    begun = time.monotonic()
    client = _run(command, log)
    wall = time.monotonic() - begun
    # The last backends are still ending, and their seconds go to the postmaster when they have.
    threading.Event().wait(_PARTING_SECONDS)
    server = server_seconds(server_pid) - server
    others = (_busy_seconds() - busy - client - server) / ((wall + _PARTING_SECONDS) * _CORES)
    return Usage(wall, client, server, max(0.0, others))


def measure_ours(arguments: Sequence[str], server_pid: int, log: Path) -> Usage:
    """Run ours in a fresh Python and read what it printed."""
    printed = log.with_suffix(".json")
    argv = [sys.executable, "-m", "benchmarks.ours", *arguments]
    usage = measure(Command(argv, stdout=printed), server_pid, log)
    detail = json.loads(printed.read_text())
    if bad := {name: said for name, said in detail["outcomes"].items() if said != "PASS"}:
        message = f"ours did not prove its backup: {bad}"
        raise RunFailed(message)
    return Usage(
        usage.wall_seconds,
        usage.client_seconds,
        usage.server_seconds,
        usage.others,
        detail["peak_bytes"],
        detail["stored_bytes"],
        detail,
    )


def _run(command: Command, log: Path) -> float:
    with log.open("wb") as said, _open(command.stdout, said) as output:
        process = processes.start(
            command.argv,
            env=command.env,
            account=command.account,
            stdout=output,
            stderr=said,
            cwd=ROOT,
        )
        watchdog = threading.Timer(TIMEOUT_SECONDS, _kill, [process.pid])
        watchdog.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            processes.stop_group(process)
            raise
        finally:
            watchdog.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        tail = log.read_text(errors="replace").strip()[-2000:]
        message = f"{Path(command.argv[0]).name} failed ({process.returncode}): {tail}"
        raise RunFailed(message)
    return usage.ru_utime + usage.ru_stime


def _open(path: Path | None, otherwise: IO[bytes]) -> IO[bytes]:
    return path.open("wb") if path else os.fdopen(os.dup(otherwise.fileno()), "wb")


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def server_seconds(pid: int) -> float:
    """Return the CPU seconds of a postmaster, of its living children and of those that have ended."""
    postmaster = psutil.Process(pid)
    times = postmaster.cpu_times()
    seconds = times.user + times.system + times.children_user + times.children_system
    for child in postmaster.children():
        with suppress(psutil.NoSuchProcess):
            lived = child.cpu_times()
            seconds += lived.user + lived.system
    return float(seconds)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice + times.irq + times.softirq)
