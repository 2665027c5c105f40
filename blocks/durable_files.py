"""Files that appear whole, on disk and under a free name, or not at all; and sentences for what disks answer."""

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blocks.errors import OneVaultError, Refused, Unavailable

PARTIAL_PREFIX = ".partial-"

# Dirty pages are handed to the disk this often, and clean ones forgotten, so that a backup of a terabyte
# neither stalls in one long fsync nor pushes the database out of the page cache.
_WRITEBACK_BYTES = 8 * 1024 * 1024
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_SENTENCES = {
    errno.ENOENT: "{path} does not exist. Create it, or mount the file system that holds it.",
    errno.ENOTDIR: "{path} lies under something that is not a directory. Name another place.",
    errno.EISDIR: "{path} is a directory where a file should be. Name another place.",
    errno.EACCES: "{path}: permission denied for the user with id {user}. Give that user the right, or run as its owner.",
    errno.EPERM: "{path}: not permitted for the user with id {user}. Give that user the right, or run as its owner.",
    errno.EROFS: "{path} lies on a read-only file system. Mount it for writing, or name another place.",
    errno.EEXIST: "{path} exists already, and nothing is ever overwritten. Use a new name.",
    errno.ENAMETOOLONG: "{path} has a name that is too long for its file system. Use a shorter one.",
    errno.EFBIG: "{path} would be larger than its file system or the limit of this process (ulimit -f) allows.",
    errno.ENOSPC: "disk full: {path} needs {needed} bytes more, {free} are free. Free space or enlarge the file system.",
    errno.EDQUOT: "quota used up: {path} needs {needed} bytes more. Free space or raise the quota.",
}


def explained(error: OSError, path: Path, needed_bytes: int = 0) -> OneVaultError:
    """Turn what the operating system said into a sentence: Refused when a person must act, else Unavailable."""
    sentence = _SENTENCES.get(error.errno or 0)
    if sentence is None:
        return Unavailable(
            f"{path}: {error.strerror}. Try again; if it stays, look at the disk and its mount."
        )
    free = free_bytes(path) or 0
    return Refused(sentence.format(path=path, user=os.geteuid(), needed=needed_bytes, free=free))


@contextmanager
def explaining(path: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Turn an OSError of the body into its sentence."""
    try:
        yield
    except OSError as error:
        raise explained(error, path, needed_bytes) from error


def absolute(path: Path) -> Path:
    """Return the path; raises Refused when it is relative."""
    if not path.is_absolute():
        msg = f"The path {str(path)!r} is relative, and a worker may start anywhere. Write the whole path."
        raise Refused(msg)
    return path


def free_bytes(path: Path) -> int | None:
    """Say how many bytes an unprivileged user may still write there; None when that cannot be known."""
    for place in (path, *path.parents):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return None


def check_private_directory(directory: Path) -> None:
    """Raise Refused unless the directory exists and only its owner may enter it."""
    with explaining(directory):
        mode = directory.stat().st_mode
    if not stat.S_ISDIR(mode):
        msg = f"{directory} is not a directory. Name the directory that holds the private files."
        raise Refused(msg)
    if mode & _OTHERS:
        msg = f"{directory} is open to other users (mode {mode & 0o777:o}). Run: chmod 700 {directory}"
        raise Refused(msg)


def read_private(path: Path) -> bytes:
    """Read a file whole; raises Refused when it is missing, or when anyone but its owner may read it."""
    with explaining(path), path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        data = file.read()
    if mode & _OTHERS:
        msg = f"{path} is open to other users (mode {mode & 0o777:o}). Run: chmod 600 {path}"
        raise Refused(msg)
    return data


def write_private(path: Path, data: bytes) -> None:
    """Write a new file with mode 0600; raises Refused when the name is taken."""
    with explaining(path), PartialFile(path.parent) as partial:
        partial.write(data)
        partial.publish(path)


def make_directories(directory: Path) -> None:
    """Make a directory with mode 0700, and those above it that are missing, durably."""
    missing = [place for place in (directory, *directory.parents) if not place.exists()]
    for place in reversed(missing):
        with suppress(FileExistsError):
            place.mkdir(mode=0o700)
        sync_directory(place.parent)


def sync_directory(directory: Path) -> None:
    """Put a directory's entries on disk, where its file system can."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


class PartialFile:
    """A file of mode 0600 being written under a hidden name, in the directory where it shall appear.

    It holds a lock while it is open, so that a sweeper can tell it from the remains of a dead process. Closing it
    without publish leaves nothing behind. Making one raises OSError; afterwards the disk's errors come as sentences.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / f"{PARTIAL_PREFIX}{secrets.token_hex(8)}"
        self._size_bytes = self._flushed_bytes = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        with suppress(OSError):  # a network file system may know no locks; then only age tells
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __enter__(self) -> "PartialFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes."""
        view = memoryview(data).cast("B")
        while view:
            with explaining(self._path.parent, len(view)):
                written = os.write(self._descriptor, view)
            view = view[written:]
            self._size_bytes += written
        if self._size_bytes - self._flushed_bytes >= _WRITEBACK_BYTES:
            self._start_writeback()

    def publish(self, path: Path) -> None:
        """Put the bytes on disk, give them their name, which must be free, and close the file."""
        with explaining(path):
            os.fsync(self._descriptor)
            self._forget_pages(0, 0)
            self._link(path)
            self._path.unlink()
            sync_directory(path.parent)
        self.close()

    def close(self) -> None:
        """Close the file, and remove it unless it was published."""
        if self._descriptor >= 0:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def _link(self, path: Path) -> None:
        try:
            os.link(self._path, path)
        except FileExistsError:
            # Over NFS a repeated request finds the link that the first one made.
            if not path.samefile(self._path):
                raise
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
                raise
            msg = f"{path.parent} lies on a file system without hard links. Use ext4, XFS, Btrfs, ZFS or NFS."
            raise Refused(msg) from error

    def _start_writeback(self) -> None:
        # Linux starts to write the dirty pages that it is advised to forget, and forgets the clean ones.
        start = max(0, self._flushed_bytes - 4 * _WRITEBACK_BYTES)
        self._forget_pages(start, self._size_bytes - start)
        self._flushed_bytes = self._size_bytes

    def _forget_pages(self, start: int, length: int) -> None:
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(self._descriptor, start, length, os.POSIX_FADV_DONTNEED)
