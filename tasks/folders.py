"""Folders and locks on the local disk, also where they belong to another user."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tasks.accounts import Account

_ATTEMPTS = 5


def make_folder(path: Path, mode: int, owner: Account | None = None) -> Path:
    """Make a folder with exactly this mode, whatever the umask, and give it to ``owner``."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(mode)
    if owner is not None:
        os.chown(path, owner.uid, owner.gid)
    return path


def give_tree(path: Path, owner: Account | None) -> None:
    """Give a folder and all that is in it to ``owner``; nothing to do when that is None.

    Symbolic links are given away themselves and never followed.
    """
    if owner is None:
        return
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            os.chown(Path(folder, name), owner.uid, owner.gid, follow_symlinks=False)
    os.chown(path, owner.uid, owner.gid, follow_symlinks=False)


def remove_tree(path: Path) -> None:
    """Remove a folder with all that is in it, or a file; nothing to do when it is not there.

    Opens folders that their owner closed, and tries again while an ending program still writes.
    """
    if path.is_symlink() or path.is_file():
        path.unlink()
    for attempt in range(_ATTEMPTS):
        if attempt:
            _open_folders(path)
        with suppress(OSError):
            shutil.rmtree(path)
        if not path.exists():
            return
    shutil.rmtree(path)


def _open_folders(path: Path) -> None:
    # From above, each before it is entered: a closed folder cannot be walked.
    _open_folder(path)
    for folder, folders, _ in os.walk(path):
        for name in folders:
            _open_folder(Path(folder, name))


def _open_folder(path: Path) -> None:
    with suppress(OSError):
        if not path.is_symlink():
            path.chmod(0o700)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file for the time of a block, waiting for it as long as needed."""
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def try_lock(path: Path) -> IO[str] | None:
    """Take an exclusive lock on a file, or return None at once when somebody holds it.

    The lock lasts until the returned file is closed, at the latest until the process ends.
    """
    lock = path.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock
