"""The one pass from a source to a store: compress, encrypt, hash, write; constant memory, no temporary file."""

import hashlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import IO, Literal, NamedTuple, TypeVar, cast

import zstandard

from tasks import age
from tasks.backup.models import PART_BYTES, StoredObject, StoredPart
from tasks.backup.ports import KeyHolder, ObjectStore
from tasks.errors import Damaged

T = TypeVar("T")
OnBytes = Callable[[int], None]
Role = Literal["dump", "globals", "base", "tablespace", "backup_manifest", "inventory"]

_PATIENCE_SECONDS = 0.2
_PARTING_SECONDS = 2.0
_END = object()
_READ_BYTES = 128 * 1024


class _Failure(NamedTuple):
    error: BaseException


class _Producer(threading.Thread):
    """Takes items from a source and offers them, until the source ends or nobody wants them any more."""

    def __init__(self, items: Iterable[object], depth: int) -> None:
        super().__init__(name="prefetch", daemon=True)
        self._items = items
        self.offered: queue.Queue[object] = queue.Queue(depth)
        self.unwanted = threading.Event()

    def run(self) -> None:
        try:
            for item in self._items:
                if not self._offer(item):
                    return
            self._offer(_END)
        except BaseException as error:
            self._offer(_Failure(error))
        finally:
            _close(self._items)

    def _offer(self, item: object) -> bool:
        while not self.unwanted.is_set():
            with suppress(queue.Full):
                self.offered.put(item, timeout=_PATIENCE_SECONDS)
                return True
        return False


def prefetch(items: Iterable[T], depth: int = 8) -> Iterator[T]:
    """Yield the same items, produced by a thread of their own, at most `depth` ahead.

    The thread ends with its source: whoever leaves early ends the source as well.
    """
    producer = _Producer(items, depth)
    producer.start()
    try:
        while (item := producer.offered.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        producer.unwanted.set()
        producer.join(_PARTING_SECONDS)


def _close(items: Iterable[object]) -> None:
    # A stage closes what it reads from, in its own thread, so that a whole chain ends at once.
    if isinstance(items, Generator):
        items.close()


def counted(chunks: Iterable[bytes], on_bytes: OnBytes) -> Iterator[bytes]:
    """Yield the same chunks and report the length of each."""
    try:
        for chunk in chunks:
            on_bytes(len(chunk))
            yield chunk
    finally:
        _close(chunks)


def compress(chunks: Iterable[bytes], level: int) -> Iterator[bytes]:
    """Yield one zstd frame, with its checksum, of all chunks; one core compresses faster than pg_dump writes."""
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj()
    try:
        for chunk in chunks:
            if compressed := compressor.compress(chunk):
                yield compressed
        yield compressor.flush()
    finally:
        _close(chunks)


def encrypt(chunks: Iterable[bytes], file_key: bytes) -> Iterator[bytes]:
    """Yield the age payload of all chunks."""
    try:
        yield from age.encrypt_stream(chunks, file_key)
    finally:
        _close(chunks)


def decompress(chunks: Iterable[bytes], expected_bytes: int | None = None) -> Iterator[bytes]:
    """Yield what one zstd frame holds, in bounded pieces however much it expands.

    Damaged when the frame is broken, or does not hold `expected_bytes` (where that is known).
    """
    reader = zstandard.ZstdDecompressor().stream_reader(
        cast("IO[bytes]", _Source(chunks)), read_size=_READ_BYTES
    )
    produced = 0
    try:
        while plain := reader.read(2 * _READ_BYTES):
            produced += len(plain)
            yield plain
    except zstandard.ZstdError as error:
        message = f"the compressed stream is broken ({error}); restore from another backup"
        raise Damaged(message) from error
    finally:
        _close(chunks)
    if expected_bytes is not None and produced != expected_bytes:
        message = f"{produced:,} bytes came out of a stream of {expected_bytes:,}; restore from another backup"
        raise Damaged(message)


class _Source:
    """An iterator of chunks, read like a file."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def read(self, size: int) -> memoryview:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._rest = memoryview(chunk)
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


def cut(chunks: Iterable[bytes], size: int) -> Iterator[memoryview]:
    """Yield parts of exactly `size` bytes, the last one shorter; a part is valid until the next one is asked for."""
    buffer = memoryview(bytearray(size))
    filled = 0
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            taken = min(len(rest), size - filled)
            buffer[filled : filled + taken] = rest[:taken]
            filled, rest = filled + taken, rest[taken:]
            if filled == size:
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the objects of one backup go, and under whose keys."""

    store: ObjectStore
    keyring: KeyHolder
    prefix: str
    on_stored: OnBytes = lambda _: None


@dataclass(frozen=True, slots=True)
class Described:
    """What an object is, before it is stored."""

    name: str
    role: Role
    tablespace_oid: int | None = None
    tablespace_path: str | None = None


def payload_key(prefix: str, name: str) -> str:
    """Return the key of an object's encrypted payload."""
    return f"{prefix}/{name}.age.payload"


def header_key(prefix: str, name: str) -> str:
    """Return the key of an object's age header; header and payload in a row are an age file."""
    return f"{prefix}/{name}.age.header"


def store_object(
    to: Destination,
    described: Described,
    chunks: Iterable[bytes],
    source_bytes: Callable[[], int | None],
) -> StoredObject:
    """Encrypt and store one object, create-only; return what the manifest says of it."""
    file_key = age.new_file_key()
    header = age.seal_header(file_key, to.keyring.wrap(file_key).stanzas)
    parts = _write_parts(to, payload_key(to.prefix, described.name), chunks, file_key)
    to.store.put(header_key(to.prefix, described.name), header)
    return StoredObject(
        name=described.name,
        role=described.role,
        size_bytes=sum(part.size_bytes for part in parts.parts),
        sha256=parts.sha256,
        parts=parts.parts,
        source_bytes=source_bytes(),
        age_header=header.decode("ascii"),
        tablespace_oid=described.tablespace_oid,
        tablespace_path=described.tablespace_path,
    )


class _Written(NamedTuple):
    sha256: str
    parts: tuple[StoredPart, ...]


def _write_parts(to: Destination, key: str, chunks: Iterable[bytes], file_key: bytes) -> _Written:
    whole = hashlib.sha256()
    parts: list[StoredPart] = []
    encrypted = prefetch(encrypt(chunks, file_key))
    with to.store.create(key) as writer, closing(encrypted):  # type: ignore[type-var]
        for part in cut(encrypted, PART_BYTES):
            whole.update(part)
            parts.append(StoredPart(size_bytes=len(part), sha256=hashlib.sha256(part).hexdigest()))
            writer.write(part)
            to.on_stored(len(part))
        writer.commit()
    return _Written(whole.hexdigest(), tuple(parts))


def read_parts(
    store: ObjectStore, prefix: str, item: StoredObject, on_bytes: OnBytes
) -> Iterator[bytes]:
    """Yield an object's bytes as they lie in the store, each part checked against its SHA-256 first."""
    for place in _places(prefix, item):
        yield from _checked_part(store, place)
        on_bytes(place.part.size_bytes)
    _check_end(store, prefix, item)


def check_parts(
    store: ObjectStore, prefix: str, item: StoredObject, on_bytes: OnBytes, threads: int = 2
) -> None:
    """Read every part of an object, several at once, and compare it with its SHA-256; Damaged when one differs."""

    def check(place: _Place) -> int:
        _checked_part(store, place)
        return place.part.size_bytes

    with ThreadPoolExecutor(threads, "check-parts") as pool:
        for size in pool.map(check, _places(prefix, item)):
            on_bytes(size)
    _check_end(store, prefix, item)


def open_object(
    store: ObjectStore,
    keyring: KeyHolder,
    prefix: str,
    item: StoredObject,
    on_bytes: OnBytes = lambda _: None,
) -> Iterator[bytes]:
    """Yield an object's content: checked, decrypted and decompressed."""
    header = age.parse_header(item.age_header.encode("ascii"))
    file_key = keyring.unwrap(header.stanzas)
    header.check(file_key)
    checked = prefetch(read_parts(store, prefix, item, on_bytes))
    return prefetch(decompress(age.decrypt_stream(checked, file_key), item.source_bytes))


class _Place(NamedTuple):
    """A part, and where it lies."""

    key: str
    number: int
    parts: int
    offset: int
    part: StoredPart


def _places(prefix: str, item: StoredObject) -> Iterator[_Place]:
    offset = 0
    for number, part in enumerate(item.parts, start=1):
        yield _Place(payload_key(prefix, item.name), number, len(item.parts), offset, part)
        offset += part.size_bytes


def _checked_part(store: ObjectStore, place: _Place) -> list[bytes]:
    digest = hashlib.sha256()
    chunks = []
    for chunk in store.read(place.key, place.offset, place.part.size_bytes):
        digest.update(chunk)
        chunks.append(chunk)
    where = f"part {place.number} of {place.parts}"
    if sum(map(len, chunks)) != place.part.size_bytes:
        message = f"{place.key} is cut short in {where}; this copy is lost, use another backup"
        raise Damaged(message)
    if digest.hexdigest() != place.part.sha256:
        message = f"{place.key} is damaged in {where} (SHA-256 differs); this copy is lost, use another backup"
        raise Damaged(message)
    return chunks


def _check_end(store: ObjectStore, prefix: str, item: StoredObject) -> None:
    key = payload_key(prefix, item.name)
    if any(store.read(key, item.size_bytes, 1)):
        message = (
            f"{key} is longer than its manifest says; this copy was changed, use another backup"
        )
        raise Damaged(message)
