"""Programs for another user: a copy where that user cannot reach the original."""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from tasks.errors import Refused
from tasks.folders import locked, make_folder
from tasks.home import make_home
from tasks.processes import Account, run
from tasks.programs import Installation


def usable_by(installation: Installation, account: Account | None) -> Installation:
    """Return the installation, or a copy of it below the home directory that ``account`` can run.

    A wheel in a virtual environment under /root cannot be entered by the user PostgreSQL runs as.
    No right of a foreign folder is ever changed; the copy is made once. Refused when the user
    cannot run the copy either, or when the installation cannot be moved.
    """
    if account is None or _runs(installation, account):
        return installation
    copied = _copy(installation)
    if not _runs(copied, account):
        message = (
            f"The user {account.name} can run PostgreSQL neither in {installation.bin_dir} nor in {copied.bin_dir}: "
            "set ONEVAULT_HOME to a folder it can enter (such as /var/lib/onevault), or ONEVAULT_RUN_AS"
        )
        raise Refused(message)
    return copied


def _runs(installation: Installation, account: Account) -> bool:
    name = "postgres" if installation.has_server else "pg_dump"
    asked = installation.bin_dir / name
    answer = run([asked, "--version"], timeout_seconds=10, account=account, check=False)
    return answer.returncode == 0


def _trees(installation: Installation) -> list[Path]:
    prefix = installation.bin_dir.parent
    if not installation.origin.startswith("wheel "):
        if not (prefix / "share").is_dir():
            message = f"PostgreSQL in {installation.bin_dir} cannot be entered by others and is no folder that can be copied: open it, or set ONEVAULT_RUN_AS"
            raise Refused(message)
        return [prefix]
    package = prefix.parent
    # The shared libraries of a repaired wheel lie beside the package and are found from there.
    libraries = package.with_name(f"{package.name}.libs")
    return [package, libraries] if libraries.is_dir() else [package]


def _copy(installation: Installation) -> Installation:
    trees = _trees(installation)
    place = make_folder(make_home() / "pg", 0o755)
    target = place / f"{trees[0].name}-{installation.version}"
    with locked(place / ".lock"):
        if not target.is_dir():
            _copy_trees(trees, target)
    inside = installation.bin_dir.relative_to(trees[0].parent)
    return replace(installation, bin_dir=target / inside)


def _copy_trees(trees: list[Path], target: Path) -> None:
    for left_over in target.parent.glob(".copy-*"):
        shutil.rmtree(left_over)
    temporary = Path(tempfile.mkdtemp(prefix=".copy-", dir=target.parent))
    try:
        for tree in trees:
            shutil.copytree(tree, temporary / tree.name, symlinks=True, ignore=_not_needed)
        _open_to_all(temporary)
        temporary.rename(target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        message = f"PostgreSQL's programs could not be copied to {target.parent}: {error}"
        raise Refused(message) from error


def _not_needed(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name == "__pycache__"}


def _open_to_all(tree: Path) -> None:
    for folder, _, names in os.walk(tree):
        Path(folder).chmod(0o755)
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
