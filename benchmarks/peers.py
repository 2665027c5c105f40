"""What we are measured against: the bare commands of PostgreSQL, and pgBackRest."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data import SUPERUSER, Source
from benchmarks.measure import Command, Usage, measure
from tasks.cluster_settings import SOCKET_PORT
from tasks.errors import Refused
from tasks.folders import make_folder, remove_tree
from tasks.private_cluster import PrivateCluster
from tasks.programs import Installation

STANZA = "benchmark"
NOT_INSTALLED = "not installed: apt install pgbackrest"


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def dump(source: Source, folder: Path, compress: str, *, keep: bool = False) -> Usage:
    """Measure pg_dump in its custom format into a plain file."""
    file = folder / "plain.dump"
    file.unlink(missing_ok=True)
    tool = source.installation.program("pg_dump")
    argv: list[str | Path] = [tool, "--format=custom", f"--compress={compress}", f"--file={file}"]
    usage = measure(Command(argv, source.environment), source.pid, folder / "log")
    usage = _with_size(usage, file.stat().st_size)
    if not keep:
        file.unlink()
    return usage


def base_backup(source: Source, folder: Path) -> Usage:
    """Measure pg_basebackup -Ft -z."""
    target = folder / "plain-base"
    tool = source.installation.program("pg_basebackup")
    argv: list[str | Path] = [tool, "-Ft", "-z", "--checkpoint=fast", f"--pgdata={target}"]
    usage = measure(Command(argv, source.environment), source.pid, folder / "log")
    usage = _with_size(usage, size_of(target))
    remove_tree(target)
    return usage


def restore_dump(installation: Installation, folder: Path, jobs: int) -> Usage:
    """Measure pg_restore of the kept plain dump into a scratch server that does not wait for the disk."""
    cluster = PrivateCluster(folder / "plain-restore", installation, superuser=SUPERUSER)
    cluster.create()
    try:
        with cluster.running({"maintenance_work_mem": "256MB", "max_wal_size": "64GB"}):
            assert cluster.process is not None  # noqa: S101 - it runs
            env = {
                "PGHOST": str(cluster.socket_dir),
                "PGPORT": str(SOCKET_PORT),
                "PGUSER": SUPERUSER,
            }
            tool = installation.program("pg_restore")
            argv: list[str | Path] = [
                tool,
                f"--jobs={jobs}",
                "--create",
                "--dbname=postgres",
                folder / "plain.dump",
            ]
            return measure(Command(argv, env), cluster.process.pid, folder / "log")
    finally:
        cluster.remove()


@dataclass(frozen=True)
class PgBackRest:
    """A stanza with a repository of its own: zstd level 1, AES-256-CBC, two processes."""

    program: str
    source: Source
    folder: Path

    def backup(self) -> Usage:
        """Measure a full backup."""
        known = size_of(self.folder / "repository")
        usage = self._measure("--type=full", "backup")
        return _with_size(usage, size_of(self.folder / "repository") - known)

    def verify(self) -> Usage:
        """Measure the verification of everything in the repository."""
        return self._measure("verify")

    def restore(self) -> Usage:
        """Measure a restore of the latest backup; the server is not started."""
        target = make_folder(self.folder / "restored", 0o700, self.source.cluster.account)
        usage = self._measure(f"--pg1-path={target}", "restore")
        remove_tree(target)
        return usage

    def create(self) -> None:
        """Make the stanza."""
        self._measure("stanza-create")

    def _measure(self, *arguments: str) -> Usage:
        argv = [self.program, f"--config={self.folder / 'conf'}", f"--stanza={STANZA}", *arguments]
        command = Command(argv, account=self.source.cluster.account)
        return measure(command, self.source.pid, self.folder / "log")


@contextmanager
def pgbackrest(source: Source, folder: Path) -> Iterator[PgBackRest]:
    """Make a stanza on the source for the time of a block; Refused when pgBackRest is not installed."""
    program = shutil.which("pgbackrest")
    if program is None:
        raise Refused(NOT_INSTALLED)
    make_folder(folder, 0o711)
    account = source.cluster.account
    places = {
        name: make_folder(folder / name, 0o700, account) for name in ("repository", "lock", "spool")
    }
    conf = folder / "conf"
    conf.touch(mode=0o644)
    # It need not wait for the archiver, as we need not: that is the shortest way it has.
    conf.write_text(f"""[global]
repo1-path={places["repository"]}
repo1-retention-full=99
repo1-cipher-type=aes-256-cbc
repo1-cipher-pass={secrets.token_hex(24)}
lock-path={places["lock"]}
spool-path={places["spool"]}
compress-type=zst
compress-level=1
process-max=2
start-fast=y
archive-check=n
archive-mode-check=n
log-level-console=warn
log-level-file=off

[{STANZA}]
pg1-path={source.cluster.data}
pg1-socket-path={source.cluster.socket_dir}
pg1-port={SOCKET_PORT}
pg1-user={SUPERUSER}
pg1-database=postgres
""")
    made = PgBackRest(program, source, folder)
    try:
        made.create()
        yield made
    finally:
        remove_tree(folder)


def _with_size(usage: Usage, stored_bytes: int) -> Usage:
    return Usage(
        usage.wall_seconds,
        usage.client_seconds,
        usage.server_seconds,
        usage.others,
        stored_bytes=stored_bytes,
    )
