"""The only door to other programs: each one ends when we say so, and when we die.

A child runs in a process group of its own, in a clean environment, and (where setpriv knows how)
under a death signal, so that nothing survives a crash of ours.
"""

import logging
import os
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self, TypeAlias, TypedDict, Unpack
from weakref import WeakSet

from tasks.accounts import Account, account_named, unprivileged_account
from tasks.errors import OneVaultError, Refused, Unavailable
from tasks.redaction import redact
from tasks.spawning import DEFAULT_PATH, Process, death_signal_tool, spawner

__all__ = [
    "DEVNULL",
    "PIPE",
    "Account",
    "Finished",
    "Options",
    "Process",
    "ProgramFailed",
    "StderrTail",
    "TimedOut",
    "TimeoutExpired",
    "Watchdog",
    "account_named",
    "death_signal_tool",
    "finish",
    "redact",
    "run",
    "running",
    "start",
    "stop_group",
    "unprivileged_account",
]

DEVNULL = subprocess.DEVNULL
PIPE = subprocess.PIPE
TimeoutExpired = subprocess.TimeoutExpired

_Stream: TypeAlias = int | IO[bytes]

_SHOWN_LINES = 5
_LINE_BYTES = 64 * 1024

log = logging.getLogger(__name__)


class ProgramFailed(OneVaultError):  # noqa: N818 - it names a situation
    """A program ended with a non-zero exit code; the message carries its last lines, redacted."""

    def __init__(self, program: str, returncode: int, lines: Sequence[str] = ()) -> None:
        self.program = program
        self.returncode = returncode
        self.lines = [redact(line) for line in lines if line.strip()]
        ended = f"exit {returncode}" if returncode >= 0 else f"killed by signal {-returncode}"
        said = " | ".join(self.lines[-_SHOWN_LINES:]) or "it said nothing"
        super().__init__(f"{program} failed ({ended}): {said}")


class TimedOut(Unavailable):
    """A program took longer than it may; its process group has been killed."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a program left behind."""

    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Its standard output as text, without the white space around it."""
        return self.stdout.decode(errors="replace").strip()

    @property
    def lines(self) -> list[str]:
        """The lines of its standard error."""
        return self.stderr.decode(errors="replace").splitlines()


class Options(TypedDict, total=False):
    """How a child is started; see ``start``."""

    env: Mapping[str, str] | None
    stdin: _Stream
    stdout: _Stream
    stderr: _Stream
    account: Account | None
    death_signal: str | None
    cwd: str | Path
    pass_fds: Sequence[int]


def _environment(env: Mapping[str, str] | None, account: Account | None) -> dict[str, str]:
    clean = {"PATH": os.environ.get("PATH", DEFAULT_PATH), "LC_ALL": "C", "LANG": "C"}
    clean["HOME"] = "/" if account else os.environ.get("HOME", "/")
    if "TZ" in os.environ:
        clean["TZ"] = os.environ["TZ"]
    return clean | dict(env or {})


def start(argv: Sequence[str | Path], **options: Unpack[Options]) -> Process:
    """Start a program and return at once; whoever calls must end it (see ``running``).

    ``env`` is added to a clean environment (no PG* variable of ours gets through). ``stdin``,
    ``stdout`` and ``stderr`` are /dev/null unless given. ``account`` needs root. ``death_signal``
    ("KILL" unless given, or None) is what the child gets when we die. Refused when the program
    cannot be executed.
    """
    account = options.get("account")
    env = _environment(options.get("env"), account)
    words = _found(argv, env["PATH"])
    death_signal = options.get("death_signal", "KILL")
    tool = death_signal_tool() if death_signal else None
    if tool and death_signal:
        words = [tool, "--pdeathsig", death_signal, "--", *words]

    def make() -> Process:
        return subprocess.Popen(
            words,
            env=env,
            stdin=options.get("stdin", DEVNULL),
            stdout=options.get("stdout", DEVNULL),
            stderr=options.get("stderr", DEVNULL),
            cwd=options.get("cwd", "/"),
            pass_fds=tuple(options.get("pass_fds", ())),
            process_group=0,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )

    try:
        return spawner().spawn(make)
    except OSError as error:
        message = f"{Path(words[0]).name} cannot be started: {error.strerror}: {error.filename}"
        raise Refused(message) from error


def _found(argv: Sequence[str | Path], path: str) -> list[str]:
    program = shutil.which(argv[0], path=path)
    if program is None:
        message = f"The program {argv[0]} does not exist here, or may not be executed: install it"
        raise Refused(message)
    return [str(program), *map(str, argv[1:])]


_ended: "WeakSet[Process]" = WeakSet()


def _signal_group(process: Process, number: signal.Signals) -> None:
    # macOS answers EPERM for a group that has only zombies left.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def stop_group(process: Process, grace_seconds: float = 5) -> None:
    """End a child and all of its process group: TERM, then KILL after the grace; reaps it.

    Does nothing the second time.
    """
    if process in _ended:
        return
    try:
        if process.poll() is None and grace_seconds > 0:
            _signal_group(process, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=grace_seconds)
    finally:
        # Also when the leader is gone: its own children may not be.
        _signal_group(process, signal.SIGKILL)
        process.wait()
        _ended.add(process)


def _close_pipes(process: Process) -> None:
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(OSError):
                stream.close()


@contextmanager
def running(argv: Sequence[str | Path], **options: Unpack[Options]) -> Iterator[Process]:
    """Start a program for the time of a block; whatever happens, its group is ended after it."""
    process = start(argv, **options)
    try:
        yield process
    finally:
        stop_group(process)
        _close_pipes(process)


def run(
    argv: Sequence[str | Path],
    *,
    timeout_seconds: float,
    input_bytes: bytes | None = None,
    env: Mapping[str, str] | None = None,
    account: Account | None = None,
    check: bool = True,
) -> Finished:
    """Run a short program to its end and return what it wrote.

    Raises TimedOut when it takes too long (its whole group is killed), ProgramFailed when it ends
    with another exit code than 0, unless ``check`` is false.
    """
    feed = DEVNULL if input_bytes is None else PIPE
    with running(argv, env=env, account=account, stdin=feed, stdout=PIPE, stderr=PIPE) as process:
        return finish(
            process, Path(argv[0]).name, timeout_seconds, input_bytes=input_bytes, check=check
        )


def finish(
    process: Process,
    name: str,
    timeout_seconds: float,
    *,
    input_bytes: bytes | None = None,
    check: bool = True,
) -> Finished:
    """Wait for the end of a program whose streams are pipes, and return what it wrote; raises as ``run`` does."""
    try:
        stdout, stderr = process.communicate(input_bytes, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        message = f"{name} did not finish within {timeout_seconds:g} s and was stopped"
        raise TimedOut(message) from None
    finished = Finished(process.returncode, stdout, stderr)
    if check and finished.returncode != 0:
        raise ProgramFailed(name, finished.returncode, finished.lines)
    return finished


class Watchdog:
    """Ends a child's process group at a deadline, whatever we are waiting for meanwhile.

    ``expired`` says whether it had to. Use it as a context manager.
    """

    def __init__(self, process: Process, timeout_seconds: float) -> None:
        self.expired = False
        self._process = process
        self._timer = threading.Timer(timeout_seconds, self._expire)
        self._timer.daemon = True

    def _expire(self) -> None:
        self.expired = True
        stop_group(self._process)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()


class StderrTail:
    """Reads a child's standard error to its end in a thread and keeps the last lines, redacted.

    ``on_line`` gets each line; when it raises, it is not called again and reading goes on, so
    that a chatty program never blocks.
    """

    def __init__(
        self, stream: IO[bytes], limit: int = 50, on_line: Callable[[str], None] | None = None
    ) -> None:
        self._stream = stream
        self._lines: deque[str] = deque(maxlen=limit)
        self._on_line = on_line
        self._thread = threading.Thread(target=self._read, name="stderr", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        # The stream may be closed under us when the program is ended.
        with suppress(ValueError, OSError):
            while chunk := self._stream.readline(_LINE_BYTES):
                self._keep(redact(chunk.decode(errors="replace").rstrip()))

    def _keep(self, line: str) -> None:
        self._lines.append(line)
        if self._on_line is None:
            return
        try:
            self._on_line(line)
        except Exception:
            self._on_line = None
            log.exception("a listener of standard error failed and is not called again")

    def lines(self, wait_seconds: float = 2) -> list[str]:
        """Return the last lines, waiting a little for the end of the stream."""
        self._thread.join(wait_seconds)
        return list(self._lines)
