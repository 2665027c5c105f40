"""Programs at the ends of a stream: one whose output is read, one that is fed; both bounded in time and memory."""

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from tasks.accounts import Account
from tasks.processes import (
    PIPE,
    Process,
    ProgramFailed,
    StderrTail,
    TimedOut,
    Watchdog,
    running,
)

_PIPE_BYTES = 1024 * 1024
_READ_BYTES = 256 * 1024
_KEPT_LINES = 1000


class ProgramOutput:
    """A running program whose standard output is iterated over; leaving the block ends its process group.

    The iteration raises ProgramFailed when the program fails and TimedOut when it takes too long.
    """

    def __init__(
        self, argv: Sequence[str | Path], *, env: Mapping[str, str], timeout_seconds: float
    ) -> None:
        self._argv = argv
        self._env = env
        self._timeout_seconds = timeout_seconds
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        self._process = self._ends.enter_context(
            running(self._argv, env=self._env, stdout=PIPE, stderr=PIPE)
        )
        _widen(self._stdout)
        self._tail = StderrTail(cast("IO[bytes]", self._process.stderr))
        self._watchdog = self._ends.enter_context(Watchdog(self._process, self._timeout_seconds))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ends.close()

    @property
    def _stdout(self) -> IO[bytes]:
        return cast("IO[bytes]", self._process.stdout)

    def __iter__(self) -> Iterator[bytes]:
        descriptor = self._stdout.fileno()
        while chunk := os.read(descriptor, _READ_BYTES):
            yield chunk
        _check(self._argv, self._process, self._watchdog, self._tail, self._timeout_seconds)


def feed(
    argv: Sequence[str | Path],
    chunks: Iterable[bytes],
    *,
    env: Mapping[str, str] | None = None,
    account: Account | None = None,
    timeout_seconds: float,
    check: bool = True,
) -> list[str]:
    """Run a program on a stream of bytes and return what it said on standard error.

    Raises ProgramFailed for another exit code than 0 unless `check` is false, always when a signal ended the
    program, and TimedOut.
    """
    with ExitStack() as ends:
        process = ends.enter_context(
            running(argv, env=env, account=account, stdin=PIPE, stderr=PIPE)
        )
        tail = StderrTail(cast("IO[bytes]", process.stderr), limit=_KEPT_LINES)
        watchdog = ends.enter_context(Watchdog(process, timeout_seconds))
        stdin = cast("IO[bytes]", process.stdin)
        _widen(stdin)
        _pour(chunks, stdin)
        try:
            _check(argv, process, watchdog, tail, timeout_seconds)
        except ProgramFailed as error:
            # A program that was killed has not said what it left undone.
            if check or error.returncode < 0:
                raise
        return tail.lines()


def _pour(chunks: Iterable[bytes], stdin: IO[bytes]) -> None:
    # A program that ends early says why on standard error; the broken pipe itself says nothing.
    with suppress(BrokenPipeError):
        for chunk in chunks:
            stdin.write(chunk)
    with suppress(BrokenPipeError):
        stdin.close()


def _check(
    argv: Sequence[str | Path],
    process: Process,
    watchdog: Watchdog,
    tail: StderrTail,
    timeout_seconds: float,
) -> None:
    name = Path(argv[0]).name
    returncode = process.wait()
    if watchdog.expired:
        message = f"{name} did not finish within {timeout_seconds:g} s and was stopped; raise the time limit or look for what it waits for"
        raise TimedOut(message)
    if returncode != 0:
        raise ProgramFailed(name, returncode, tail.lines())


def _widen(stream: IO[bytes]) -> None:
    # Linux only; elsewhere the pipe keeps its size.
    with suppress(AttributeError, OSError):
        fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
