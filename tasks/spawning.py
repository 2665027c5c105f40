"""How a child is born so that it dies with us."""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from queue import SimpleQueue
from typing import TypeAlias

Process: TypeAlias = subprocess.Popen[bytes]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@cache
def death_signal_tool() -> str | None:
    """Find the setpriv that can set a death signal; None where there is none (as on macOS)."""
    tool = shutil.which("setpriv") or shutil.which("setpriv", path=DEFAULT_PATH)
    if tool is None:
        return None
    # A bootstrap question, asked before ``start`` can rely on the answer.
    asked = subprocess.run(
        [tool, "--pdeathsig", "KILL", "true"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return tool if asked.returncode == 0 else None


class Spawner:
    """One thread that starts every child and lives as long as the process.

    The kernel sends the death signal when the *thread* that started the child ends, and the
    threads of a task runner end long before the process does.
    """

    def __init__(self) -> None:
        self._requests: SimpleQueue[tuple[Future[Process], Callable[[], Process]]] = SimpleQueue()
        threading.Thread(target=self._serve, name="spawner", daemon=True).start()

    def _serve(self) -> None:
        while True:
            future, make = self._requests.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(make())
            except BaseException as error:
                future.set_exception(error)
            del future, make

    def spawn(self, make: Callable[[], Process]) -> Process:
        """Have ``make`` called by the thread and return its child, or raise what it raised."""
        future: Future[Process] = Future()
        self._requests.put((future, make))
        try:
            return future.result()
        except BaseException:
            # Interrupted between asking and getting: nobody would end this child.
            if not future.cancel():
                future.add_done_callback(_end_unwanted)
            raise


def _end_unwanted(future: "Future[Process]") -> None:
    if future.exception() is None:
        process = future.result()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@cache
def spawner() -> Spawner:
    """Return the spawner of this process."""
    return Spawner()


os.register_at_fork(after_in_child=spawner.cache_clear)
