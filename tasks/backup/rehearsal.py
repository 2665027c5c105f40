"""The rehearsal of a restore: a backup becomes a running scratch server, and is looked at from every side."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg

from tasks import connection, processes
from tasks.backup import capture, comparison
from tasks.backup.capture import Order
from tasks.backup.comparison import TableRow
from tasks.backup.inventory import Inventory
from tasks.backup.manifest import check_listing
from tasks.backup.models import BackupKind, Outcome, Rung, not_run
from tasks.backup.pipeline import check_parts
from tasks.backup.restore import (
    Limits,
    OpenBackup,
    extract,
    refuse_when_full,
    restore_dump,
    restore_globals,
    settle,
    verify_files,
)
from tasks.errors import Damaged, OneVaultError
from tasks.private_cluster import ClusterDidNotStart, PrivateCluster
from tasks.processes import ProgramFailed
from tasks.programs import Installation, client_tools, server_programs
from tasks.progress import Progress
from tasks.scratch import scratch_folder

_SHOWN_ERRORS = 50


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """How a restore is rehearsed, and where."""

    scratch: Path
    jobs: int = max(2, os.cpu_count() or 2)
    heap_all_indexed: bool = False
    timeout_seconds: float = 4 * 3600.0

    @property
    def limits(self) -> Limits:
        """Return the time limits of the restore's programs."""
        return Limits(self.timeout_seconds)


@dataclass(frozen=True, slots=True)
class ScratchServer:
    """A running scratch cluster, seen as a server."""

    cluster: PrivateCluster
    database: str

    def connect(self, database: str | None = None) -> "psycopg.Connection[Any]":
        """Open a connection without time limits."""
        return connection.connect(
            self.cluster.conninfo(database or self.database),
            statement_timeout_ms=0,
            lock_timeout_ms=0,
        )

    def replication_connection(self) -> "psycopg.Connection[Any]":
        """Open a connection that speaks the replication protocol."""
        return connection.connect(self.cluster.conninfo(), replication=True)

    def libpq_environment(self, passfile: Path) -> dict[str, str]:
        """Return the PG* variables for client programs; there is no password to this server."""
        parts = psycopg.conninfo.conninfo_to_dict(self.cluster.conninfo())
        return {
            "PGHOST": str(parts["host"]),
            "PGPORT": str(parts["port"]),
            "PGUSER": str(parts["user"]),
            "PGPASSFILE": str(passfile),
        }

    def write_passfile(self, path: Path) -> None:
        """Write an empty password file."""
        path.touch(mode=0o600)


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore led to: a running server or the reasons why there is none."""

    rung: Rung
    server: ScratchServer | None
    seconds: float | None


def reread(backup: OpenBackup, progress: Progress) -> tuple[Rung, int]:
    """Read every stored byte again, compare it with the signed manifest and open it; return the rung and the bytes."""
    started = time.monotonic()
    manifest = backup.manifest
    progress.expect(manifest.stored_bytes)
    try:
        check_listing(backup.store, backup.prefix, manifest, backup.keyring)
        for item in manifest.objects:
            if item.role in ("dump", "base", "tablespace"):
                check_parts(backup.store, backup.prefix, item, progress.add)
            else:
                for _ in backup.content(item, progress.add):
                    pass
    except OneVaultError as error:
        return Rung(Outcome.FAIL, str(error), time.monotonic() - started), 0
    progress.finish()
    parts = sum(len(item.parts) for item in manifest.objects)
    summary = f"{len(manifest.objects)} objects, {parts} parts, {manifest.stored_bytes:,} bytes: every SHA-256 equals the signed manifest"
    return Rung(Outcome.PASS, summary, time.monotonic() - started), manifest.stored_bytes


@contextmanager
def scratch_cluster(backup: OpenBackup, plan: Rehearsal) -> Iterator[PrivateCluster]:
    """Give an empty scratch cluster of the backup's own major version, for the time of a block."""
    server = backup.manifest.server
    installation = server_programs(server.major)
    with scratch_folder(plan.scratch) as folder:
        cluster = PrivateCluster(folder / "restored", installation, superuser=server.superuser)
        try:
            yield cluster
        finally:
            cluster.stop("immediate")


def restore(
    backup: OpenBackup, cluster: PrivateCluster, plan: Rehearsal, progress: Progress
) -> Restored:
    """Restore a backup into a scratch cluster and start it; what is wrong with the backup is the rung's finding.

    Whatever else goes wrong (no room, no rights, no time) is raised: it says nothing of the backup.
    """
    manifest = backup.manifest
    progress.expect(manifest.stored_bytes)
    started = time.monotonic()
    how = _restore_dump if manifest.kind is BackupKind.LOGICAL else _restore_files
    try:
        rung = how(backup, cluster, plan, progress)
    except OSError as error:
        refuse_when_full(plan.scratch, [str(error)])
        raise
    except (Damaged, ProgramFailed, ClusterDidNotStart) as error:
        refuse_when_full(plan.scratch, [str(error)])
        if manifest.kind is BackupKind.LOGICAL and not isinstance(error, Damaged):
            raise  # of an empty cluster, or a program that was killed
        return Restored(Rung(Outcome.FAIL, str(error), time.monotonic() - started), None, None)
    refuse_when_full(plan.scratch, rung.findings)
    progress.finish()
    server = ScratchServer(cluster, manifest.server.database or "postgres")
    return Restored(rung, server, time.monotonic() - started)


def compare_with_source(
    backup: OpenBackup, server: ScratchServer, plan: Rehearsal
) -> tuple[Rung, list[TableRow]]:
    """Compare the restored server with what the source held; return the rung and every table side by side."""
    started = time.monotonic()
    manifest = backup.manifest
    source = backup.inventory()
    if not source.databases:
        return not_run("the backup was taken without counting its source (compare: none)"), []
    depth = "counts" if _only_counted(source) else "content"
    order = Order(
        manifest.backup_id,
        manifest.server.database,
        depth=depth,  # type: ignore[arg-type]
        jobs=plan.jobs,
        timeout_seconds=plan.timeout_seconds,
    )
    # The same pg_dump that read the source's schema, so that its way of writing is the same.
    tools = client_tools(manifest.server.major)
    found = _inventory(server, tools, order, manifest.kind)
    rung = comparison.compare(source, found, manifest.kind)
    rung = replace(rung, seconds=time.monotonic() - started)
    return rung, comparison.table_rows(source, found)


def check_structure(backup: OpenBackup, server: ScratchServer, plan: Rehearsal) -> Rung:
    """Check every table and index with pg_amcheck and, after a clean stop, every data checksum."""
    started = time.monotonic()
    said: list[str] = []
    findings = _amcheck(server, plan, said)
    if backup.manifest.kind is BackupKind.PHYSICAL:
        findings += _page_checksums(
            server.cluster, backup.manifest.server.data_checksums, plan, said
        )
    seconds = time.monotonic() - started
    if findings:
        summary = f"{len(findings)} structural errors: {findings[0]}"
        return Rung(Outcome.FAIL, summary, seconds, tuple(findings[:_SHOWN_ERRORS]))
    skipped = any("not " in sentence for sentence in said)
    return Rung(Outcome.PARTIAL if skipped else Outcome.PASS, "; ".join(said), seconds)


def _restore_dump(
    backup: OpenBackup, cluster: PrivateCluster, plan: Rehearsal, progress: Progress
) -> Rung:
    started = time.monotonic()
    cluster.create()
    cluster.start(
        {
            "allow_in_place_tablespaces": "on",
            "maintenance_work_mem": "256MB",
            "max_parallel_maintenance_workers": str(plan.jobs),
            "max_worker_processes": str(2 * plan.jobs + 8),
            "max_wal_size": "64GB",
        }
    )
    tools = cluster.installation
    server = ScratchServer(cluster, "postgres")
    environment = server.libpq_environment(Path(os.devnull))
    errors = restore_globals(backup, tools, environment | {"PGDATABASE": "postgres"}, plan.limits)
    arguments = ["--create", "--clean", "--if-exists", "--dbname=template1"]
    errors += restore_dump(backup, tools, environment, arguments, plan.limits, progress.add)
    seconds = time.monotonic() - started
    if errors:
        summary = f"pg_restore and psql reported {len(errors)} errors: {errors[0]}"
        return Rung(Outcome.FAIL, summary, seconds, tuple(errors[:_SHOWN_ERRORS]))
    return Rung(
        Outcome.PASS, f"restored into a scratch server in {seconds:.1f} s without an error", seconds
    )


def _restore_files(
    backup: OpenBackup, cluster: PrivateCluster, plan: Rehearsal, progress: Progress
) -> Rung:
    started = time.monotonic()
    cluster.directory.mkdir(mode=0o755, exist_ok=True)
    cluster.directory.chmod(0o755)
    extract(backup, cluster.data, cluster.account, plan.limits, progress.add)
    verify_files(cluster.installation, cluster.data, cluster.account, plan.limits)
    settle(cluster.data)
    cluster.adopt()
    cluster.start(ready_seconds=plan.timeout_seconds)
    seconds = time.monotonic() - started
    summary = f"pg_verifybackup accepted every file; the server recovered and answered after {seconds:.1f} s"
    return Rung(Outcome.PASS, summary, seconds)


def _inventory(
    server: ScratchServer, tools: Installation, order: Order, kind: BackupKind
) -> Inventory:
    if kind is BackupKind.PHYSICAL:
        return capture.take_inventory(server, tools, order)
    return capture.take_one_database(server, tools, order)


def _only_counted(source: Inventory) -> bool:
    # Tables may be missing; the large objects of a database are always looked at.
    return all(database.large_object_fingerprint is None for database in source.databases)


def _amcheck(server: ScratchServer, plan: Rehearsal, said: list[str]) -> list[str]:
    with server.connect("postgres") as admin:
        available = admin.execute(
            "SELECT FROM pg_available_extensions WHERE name = 'amcheck'"
        ).fetchone()
    if available is None:
        said.append(
            "pg_amcheck was not run: the amcheck extension is not installed here (install PostgreSQL's contrib package)"
        )
        return []
    tools = server.cluster.installation
    argv: list[str | Path] = [
        tools.program("pg_amcheck"),
        "--all",
        "--install-missing",
        "--no-password",
        f"--jobs={plan.jobs}",
    ]
    if plan.heap_all_indexed:
        argv.append("--heapallindexed")
    environment = server.libpq_environment(Path(os.devnull))
    finished = processes.run(
        argv, env=environment, timeout_seconds=plan.timeout_seconds, check=False
    )
    if finished.returncode == 0:
        said.append("pg_amcheck found no fault in any table or index")
        return []
    lines = [line for line in (*finished.text.splitlines(), *finished.lines) if line.strip()]
    return [f"pg_amcheck: {line.strip()}" for line in lines] or [
        "pg_amcheck failed and said nothing"
    ]


def _page_checksums(
    cluster: PrivateCluster, enabled: bool, plan: Rehearsal, said: list[str]
) -> list[str]:
    cluster.stop()
    if not enabled:
        said.append("the source has no data checksums (initdb --data-checksums)")
        return []
    argv: list[str | Path] = [
        cluster.installation.program("pg_checksums"),
        "--check",
        "-D",
        cluster.data,
    ]
    finished = processes.run(
        argv, timeout_seconds=plan.timeout_seconds, account=cluster.account, check=False
    )
    if finished.returncode == 0:
        blocks = re.search(r"Blocks scanned: +(\d+)", finished.text)
        said.append(
            f"the data checksums of all {int(blocks[1]) if blocks else 0:,} pages are right"
        )
        return []
    return [
        f"pg_checksums: {line}" for line in (*finished.text.splitlines(), *finished.lines) if line
    ]
