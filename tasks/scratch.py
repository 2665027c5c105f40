"""Scratch folders that never outlive their owner by more than one run.

The owner holds a lock on a file inside for as long as it lives. A folder whose lock is free was
left by a crash, and ``sweep`` removes it together with the PostgreSQL that may still run in it.
"""

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tasks.errors import Refused
from tasks.folders import locked, make_folder, remove_tree, try_lock
from tasks.postmaster import stop_postmaster
from tasks.private_cluster import SOCKET_NOTE

_PREFIX = "scratch-"
_LOCK = "lock"


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Make a folder below ``parent`` for the time of a block and remove it after.

    Others can enter it and not list it (0711). Refused when it cannot be made.
    """
    folder, lock = _make(parent)
    try:
        yield folder
    finally:
        with lock:
            _empty(folder)
            # Under the lock of the parent, or a sweep would see a folder without an owner.
            with locked(parent / ".lock"):
                _finish(folder)


def sweep(parent: Path) -> list[Path]:
    """Remove every scratch folder below ``parent`` whose owner is gone, and return their paths.

    A PostgreSQL left behind in one is stopped first. Folders in use are left alone.
    """
    if not parent.is_dir():
        return []
    with locked(parent / ".lock"):
        return [folder for folder in sorted(parent.glob(f"{_PREFIX}*")) if _swept(folder)]


def abandoned(parent: Path) -> list[Path]:
    """List the scratch folders below ``parent`` whose owner is gone; change nothing."""
    if not os.access(parent, os.R_OK | os.W_OK):
        return []
    with locked(parent / ".lock"):
        return [folder for folder in sorted(parent.glob(f"{_PREFIX}*")) if _is_abandoned(folder)]


def _is_abandoned(folder: Path) -> bool:
    lock = try_lock(folder / _LOCK)
    if lock is not None:
        lock.close()
    return lock is not None


def _make(parent: Path) -> tuple[Path, IO[str]]:
    try:
        # A folder that somebody named, such as /tmp, keeps its mode.
        if not parent.is_dir():
            make_folder(parent, 0o711)
        # Between making the folder and locking it, a sweep must not see it.
        with locked(parent / ".lock"):
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            folder.chmod(0o711)
            lock = try_lock(folder / _LOCK)
    except OSError as error:
        message = f"No scratch folder can be made in {parent} ({error.strerror}): free some space or name another folder"
        raise Refused(message) from error
    if lock is None:
        message = f"The new scratch folder {folder} is locked by somebody else: name another folder than {parent}"
        raise Refused(message)
    return folder, lock


def _swept(folder: Path) -> bool:
    lock = try_lock(folder / _LOCK)
    if lock is None:
        return False
    with lock:
        _empty(folder)
        _finish(folder)
    return True


def _empty(folder: Path) -> None:
    # A cluster's own folder is the scratch folder or one in it.
    for pattern in ("*/postmaster.pid", "*/*/postmaster.pid"):
        for pid_file in folder.glob(pattern):
            stop_postmaster(pid_file, signal.SIGQUIT)
    for note in [*folder.glob(SOCKET_NOTE), *folder.glob(f"*/{SOCKET_NOTE}")]:
        for place in note.read_text().splitlines():
            remove_tree(Path(place))
    for entry in folder.glob("*"):
        if entry.name != _LOCK:
            remove_tree(entry)


def _finish(folder: Path) -> None:
    with suppress(FileNotFoundError):
        (folder / _LOCK).unlink()
        folder.rmdir()
