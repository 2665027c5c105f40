"""A running PostgreSQL that is no child of ours, known by its postmaster.pid."""

import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

_STOP_SECONDS = 60
_POLL_SECONDS = 0.05


def find_postmaster(pid_file: Path) -> psutil.Process | None:
    """Return the server that wrote this file in a cluster's data folder; None when it is gone.

    The number alone proves nothing: the process must have been started for this cluster's folder.
    """
    try:
        process = psutil.Process(int(pid_file.read_text().splitlines()[0]))
        words = process.cmdline()
    except (FileNotFoundError, ValueError, IndexError, psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    ours = str(pid_file.parent.parent)
    return process if any(ours in word for word in words) else None


def stop_postmaster(pid_file: Path, how: signal.Signals = signal.SIGINT) -> bool:
    """Stop that server and say whether one was running.

    ``how`` is SIGINT (fast) or SIGQUIT (immediate); what does not end within a minute is killed.
    """
    process = find_postmaster(pid_file)
    if process is None:
        return False
    for number in (how, signal.SIGQUIT, signal.SIGKILL):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
        if _ended(process):
            break
    return True


def _ended(process: psutil.Process) -> bool:
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline:
        with suppress(psutil.TimeoutExpired):
            process.wait(_POLL_SECONDS)
            return True
        # In a container without an init nobody reaps the dead.
        with suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
    return False
