"""A store in a directory: a local disk, or a mounted one."""

import fcntl
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, HttpUrl

from blocks.durable_files import (
    PARTIAL_PREFIX,
    PartialFile,
    absolute,
    explained,
    explaining,
    free_bytes,
    make_directories,
)
from blocks.errors import Refused
from blocks.storage.base import BackupStore, ObjectWriter, StoredObject, check_key

# A directory that another process removes as empty, while we are about to write into it, is made again.
_ATTEMPTS = 5


class LocalStore(BackupStore):
    """Backups in a directory, on a local or a mounted disk.

    Objects are files of mode 0600 in directories of mode 0700. A file appears whole and on disk, or not at all.

    Attributes:
        directory: The absolute path of the directory, which must exist.

    Example:
        Load a store and look at what it holds:
        ```python
        from blocks.storage.local import LocalStore

        store = LocalStore.load("BLOCK_NAME")
        for stored in store.list():
            print(stored.key, stored.size_bytes)
        ```
    """

    _block_type_name = "OneVault Local Store"
    _block_type_slug = "onevault-local-store"
    _description = "Keeps backups in a directory, on a local or a mounted disk."
    _logo_url = HttpUrl(
        "https://raw.githubusercontent.com/PrefectHQ/prefect/420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos/filesystem.png"
    )
    _documentation_url = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")

    kind: ClassVar[str] = "LOCAL"

    directory: Annotated[Path, AfterValidator(absolute)] = Field(
        description="The absolute path of the directory that holds the backups; it must exist.",
        examples=["/srv/backups"],
    )

    def prepare(self) -> None:
        """Make the directory, with mode 0700, when it is missing."""
        with explaining(self.directory):
            make_directories(self.directory)

    @contextmanager
    def create(self, key: str) -> Iterator[ObjectWriter]:
        """Open a new object; leaving the context without commit leaves nothing behind."""
        path = self._path(key)
        self._demand_directory()
        if os.path.lexists(path):
            msg = f"{key} exists already in {self.location()}, and no object is ever overwritten. Use a new key."
            raise Refused(msg)
        with self._partial_beside(path) as partial:
            try:
                yield _FileWriter(partial, path)
            finally:
                partial.close()
                self._prune(path.parent)

    def read(
        self, key: str, offset: int = 0, length: int | None = None, chunk_bytes: int = 1 << 20
    ) -> Iterator[bytes]:
        """Read an object, or a range of it, in chunks; the first step raises Refused when it is missing."""
        path = self._path(key)
        try:
            yield from _read_range(path, offset, length, chunk_bytes)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            msg = f"{key} is missing from {self.location()}. Look for it in another copy of the backup."
            raise Refused(msg) from None
        except OSError as error:
            raise explained(error, path) from error

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """List the objects whose keys start with the prefix, sorted by key."""
        self._demand_directory()
        top = self._path(prefix.rpartition("/")[0]) if "/" in prefix else self.directory
        with explaining(top):
            found = [stored for path in _files(top) if (stored := self._stored(path))]
        found.sort(key=lambda stored: stored.key)
        yield from (stored for stored in found if stored.key.startswith(prefix))

    def delete_object(self, key: str) -> None:
        """Delete an object; one that is missing is deleted already."""
        path = self._path(key)
        with explaining(path), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
        self._prune(path.parent)

    def free_bytes(self) -> int | None:
        """Say how many bytes are free for us on the file system."""
        return free_bytes(self.directory)

    def location(self) -> str:
        """Say where the store is: a file URL."""
        return f"file://{self.directory}"

    def check(self) -> None:
        """Prove that objects can be written, by writing and removing one."""
        self._demand_directory()
        probe = self.directory / f"{PARTIAL_PREFIX}check-{secrets.token_hex(8)}"
        with explaining(self.directory), PartialFile(self.directory) as partial:
            partial.write(b"probe")
            partial.publish(probe)
            probe.unlink()

    def sweep_partials(self, older_than_seconds: float, now: datetime | None = None) -> int:
        """Remove what dead writers left, if it was not touched for so long; return how many files that were.

        A file that a living process of this machine is writing is left alone, whatever its age.
        """
        oldest = (now or datetime.now(UTC)).timestamp() - older_than_seconds
        self._demand_directory()
        with explaining(self.directory):
            partials = [path for path in _files(self.directory) if _is_partial(path)]
            swept = [path for path in partials if _remove_abandoned(path, oldest)]
        for path in swept:
            self._prune(path.parent)
        return len(swept)

    def _path(self, key: str) -> Path:
        return self.directory / check_key(key)

    def _demand_directory(self) -> None:
        with explaining(self.directory):
            os.scandir(self.directory).close()

    def _partial_beside(self, path: Path) -> PartialFile:
        with explaining(path.parent):
            for _ in range(_ATTEMPTS):
                with suppress(FileNotFoundError):
                    make_directories(path.parent)
                    return PartialFile(path.parent)
            return PartialFile(path.parent)

    def _prune(self, directory: Path) -> None:
        while directory != self.directory:
            try:
                directory.rmdir()
            except OSError:
                return
            directory = directory.parent

    def _stored(self, path: Path) -> StoredObject | None:
        with suppress(FileNotFoundError):
            facts = path.lstat()
            if stat.S_ISREG(facts.st_mode) and not _is_partial(path):
                key = path.relative_to(self.directory).as_posix()
                return StoredObject(key, facts.st_size, datetime.fromtimestamp(facts.st_mtime, UTC))
        return None


class _FileWriter(ObjectWriter):
    """Writes one object of a LocalStore."""

    def __init__(self, partial: PartialFile, path: Path) -> None:
        self._partial = partial
        self._path = path

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._partial.write(data)

    def commit(self) -> None:
        self._partial.publish(self._path)


def _read_range(path: Path, offset: int, length: int | None, chunk_bytes: int) -> Iterator[bytes]:
    left = sys.maxsize if length is None else length
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while data := file.read(min(left, chunk_bytes)):
            left -= len(data)
            yield data


def _files(top: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(top, onerror=_raise_unless_gone):
        yield from (Path(directory, name) for name in names)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _is_partial(path: Path) -> bool:
    return path.name.startswith(PARTIAL_PREFIX)


def _remove_abandoned(path: Path, oldest: float) -> bool:
    with suppress(FileNotFoundError, BlockingIOError), path.open("ab") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_mtime <= oldest:
            path.unlink()
            return True
    return False
