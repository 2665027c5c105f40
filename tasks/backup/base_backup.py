"""BASE_BACKUP spoken over the replication protocol (PostgreSQL 15 and newer).

pg_basebackup cannot stream a compressed backup together with its manifest, nor tablespaces, to one pipe; the protocol
can: see "BASE_BACKUP" in the PostgreSQL documentation, chapter "Streaming Replication Protocol".
"""

import select
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import psycopg
from psycopg import pq, sql

from tasks.errors import Refused, Unavailable
from tasks.processes import TimedOut

_GATHERED_BYTES = 256 * 1024
_WAIT_SECONDS = 0.5
_REFUSED_CLASSES = (b"28", b"42", b"53", b"0A")
_MAIN_ARCHIVE = "base.tar"


@dataclass(frozen=True, slots=True)
class ArchiveStart:
    """The stream goes on with this archive; `oid` and `path` are of its tablespace, None for the data directory."""

    name: str
    oid: int | None
    path: str | None


@dataclass(frozen=True, slots=True)
class ManifestStart:
    """The stream goes on with the server's backup_manifest."""


Item = ArchiveStart | ManifestStart | bytes


@dataclass(frozen=True, slots=True)
class WalPosition:
    """A place in the WAL."""

    lsn: str
    timeline: int


class BaseBackup:
    """A running BASE_BACKUP on a replication connection that is its alone.

    `items()` yields what the server sends; `start` is known from the first item on, `stop` after the last.
    The server checks data checksums as it reads, and its error is raised here.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        *,
        label: str,
        level: int,
        workers: int,
        timeout_seconds: float,
    ) -> None:
        self._pgconn = connection.pgconn
        self._label = label
        self._level = level
        self._workers = workers
        self._timeout_seconds = timeout_seconds
        self._deadline = time.monotonic() + timeout_seconds
        self._stop_asked = threading.Event()
        self.compressed_by_server = False
        self.start: WalPosition | None = None
        self.stop: WalPosition | None = None
        self.total_bytes: int | None = None
        self.done_bytes = 0

    def begin(self) -> None:
        """Start the backup with server-side zstd, or uncompressed where the server was built without it."""
        self.compressed_by_server = True
        try:
            self._send(compress=True)
        except Refused:
            # The words differ by version and language; what else may be wrong is said again without compression.
            while self._pgconn.get_result() is not None:
                pass
            self.compressed_by_server = False
            self._send(compress=False)

    def cancel(self) -> None:
        """Ask the server to stop; `items()` then raises."""
        self._stop_asked.set()

    def items(self) -> Iterator[Item]:
        """Yield archive starts, their bytes, and last the server's manifest; call begin() first."""
        gathered: list[bytes] = []
        size = 0
        for kind, data in self._messages():
            if kind == b"d":
                gathered.append(data)
                size += len(data)
                if size >= _GATHERED_BYTES:
                    yield b"".join(gathered)
                    gathered, size = [], 0
            elif kind == b"p":
                self.done_bytes = int.from_bytes(data, "big")
            else:
                if gathered:
                    yield b"".join(gathered)
                    gathered, size = [], 0
                yield self._start_of(kind, data)
        if gathered:
            yield b"".join(gathered)

    def _start_of(self, kind: bytes, data: bytes) -> Item:
        if kind == b"m":
            return ManifestStart()
        name, path, _ = data.split(b"\0", 2)
        archive = name.decode().removesuffix(".zst")
        oid = None if archive == _MAIN_ARCHIVE else int(archive.removesuffix(".tar"))
        return ArchiveStart(archive, oid, path.decode() or None)

    def _send(self, *, compress: bool) -> None:
        self._pgconn.send_query(self._command(compress=compress))
        begun = self._result(pq.ExecStatus.TUPLES_OK)
        self.start = _position(begun)
        sizes = self._result(pq.ExecStatus.TUPLES_OK)
        column = sizes.nfields - 1
        kilobytes = [sizes.get_value(row, column) for row in range(sizes.ntuples)]
        self.total_bytes = sum(int(value) * 1024 for value in kilobytes if value) or None
        self._result(pq.ExecStatus.COPY_OUT)

    def _command(self, *, compress: bool) -> bytes:
        options = [
            sql.SQL("LABEL {}").format(sql.Literal(self._label)),
            sql.SQL(
                "PROGRESS true, CHECKPOINT 'fast', WAL true, TABLESPACE_MAP true, MANIFEST 'yes', TARGET 'client'"
            ),
        ]
        if compress:
            detail = f"level={self._level},workers={self._workers}"
            options.append(
                sql.SQL("COMPRESSION 'zstd', COMPRESSION_DETAIL {}").format(sql.Literal(detail))
            )
        return sql.SQL("BASE_BACKUP ({})").format(sql.SQL(", ").join(options)).as_bytes()

    def _messages(self) -> Iterator[tuple[bytes, bytes]]:
        while True:
            if self._stop_asked.is_set() or time.monotonic() > self._deadline:
                self._abort()
            size, data = self._pgconn.get_copy_data(1)
            if size > 0:
                yield bytes(data[:1]), bytes(data[1:])
            elif size == 0:
                self._wait()
            else:
                break
        self.stop = _position(self._result(pq.ExecStatus.TUPLES_OK))
        while (ended := self._pgconn.get_result()) is not None:
            _check(ended)

    def _wait(self) -> None:
        readable, _, _ = select.select([self._pgconn.socket], [], [], _WAIT_SECONDS)
        if readable:
            try:
                self._pgconn.consume_input()
            except psycopg.OperationalError as error:
                said = " ".join(str(error).split())
                message = f"the server closed the connection in mid-backup ({said}); the backup will be taken anew"
                raise Unavailable(message) from error

    def _abort(self) -> None:
        with suppress(psycopg.Error):
            self._pgconn.get_cancel().cancel()
        if self._stop_asked.is_set():
            message = "the base backup was cancelled"
            raise Unavailable(message)
        message = f"the base backup did not finish within {self._timeout_seconds:g} s and was cancelled; raise the time limit"
        raise TimedOut(message)

    def _result(self, expected: pq.ExecStatus) -> "pq.abc.PGresult":
        while self._pgconn.is_busy():
            if time.monotonic() > self._deadline:
                self._abort()
            self._wait()
        result = self._pgconn.get_result()
        if result is None:
            message = (
                "the server closed the connection in mid-backup; the backup will be taken anew"
            )
            raise Unavailable(message)
        _check(result)
        if result.status != expected:
            message = f"the server answered BASE_BACKUP with {pq.ExecStatus(result.status).name}; it needs PostgreSQL 15 or newer"
            raise Refused(message)
        return result


def _position(result: "pq.abc.PGresult") -> WalPosition:
    lsn, timeline = result.get_value(0, 0), result.get_value(0, 1)
    assert lsn is not None  # noqa: S101 - the protocol says so
    assert timeline is not None  # noqa: S101
    return WalPosition(lsn.decode(), int(timeline))


def _check(result: "pq.abc.PGresult") -> None:
    if result.status != pq.ExecStatus.FATAL_ERROR:
        return
    state = result.error_field(pq.DiagnosticField.SQLSTATE) or b""
    said = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message).decode()
    message = f"the server refused the base backup: {said.strip()} (SQLSTATE {state.decode()})"
    raise (Refused if state[:2] in _REFUSED_CLASSES else Unavailable)(message)


class Archives:
    """Splits the items of a base backup into its archives, in stream order."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._next: Item | None = None

    def __iter__(self) -> Iterator[tuple[ArchiveStart | ManifestStart, Iterator[bytes]]]:
        """Yield each start with the iterator of its bytes; use the bytes up before going on."""
        self._next = next(self._items, None)
        while self._next is not None:
            start = self._next
            if isinstance(start, bytes):
                message = "the server sent data before naming an archive; it may not be PostgreSQL"
                raise Refused(message)
            yield start, self._bytes()

    def _bytes(self) -> Iterator[bytes]:
        self._next = None
        for item in self._items:
            if not isinstance(item, bytes):
                self._next = item
                return
            yield item
