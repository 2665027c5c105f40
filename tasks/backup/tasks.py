"""The tasks of a backup run: they open the blocks, call the room, and show what happened in Prefect."""

import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from uuid import UUID, uuid4

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from blocks.keyring import Keyring
from blocks.storage.base import BackupStore
from tasks import opening
from tasks.artifacts import ProgressArtifact, artifact_key, show_markdown, show_table
from tasks.backup import (
    capture,
    certificate,
    events,
    journal,
    manifest,
    preflight,
    rehearsal,
    retrying,
)
from tasks.backup import store as catalog
from tasks.backup.capture import Order
from tasks.backup.catalog import BackupIntent
from tasks.backup.comparison import TableRow
from tasks.backup.models import BackupKind, Manifest, Outcome, Proof, Rung, backup_id_for
from tasks.backup.options import BackupOptions
from tasks.backup.pipeline import Destination
from tasks.backup.preflight import Ready, Wanted
from tasks.backup.rehearsal import Rehearsal, Restored, ScratchServer
from tasks.backup.restore import OpenBackup
from tasks.connection import translating
from tasks.home import scratch_home
from tasks.opening import NamedServer
from tasks.private_cluster import PrivateCluster
from tasks.progress import Listener, Progress, listener
from tasks.scratch import sweep
from tasks.slots import server_slot

# Less would blame other work when Prefect itself is slow.
_SLOT_SECONDS = 30.0

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Site:
    """What a run works with: the opened blocks and its options."""

    server: NamedServer
    store: BackupStore
    keyring: Keyring
    options: BackupOptions
    retention_days: int

    @property
    def scratch(self) -> Path:
        """Return where scratch servers are made."""
        return self.options.scratch or scratch_home()

    @property
    def rehearsal(self) -> Rehearsal:
        """Return how restores are rehearsed."""
        options = self.options
        return Rehearsal(
            self.scratch, options.jobs, options.heap_all_indexed, options.timeout_seconds
        )


def _worth_retrying(_task: object, _run: TaskRun, state: "State[Any]") -> bool:
    error = state.result(raise_on_failure=False)
    return retrying.may_pass(error if isinstance(error, BaseException) else None)


def patient(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a task that is tried again, with growing delays, when its failure may pass."""
    return task(
        name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=2,
        retry_delay_seconds=[10, 60],
        retry_jitter_factor=0.3,
        retry_condition_fn=_worth_retrying,
    )


def once(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a task that is not tried again: what it finds is a result, not an accident."""
    return task(name=name, cache_policy=NO_CACHE, persist_result=False)


def open_site(server: str, options: BackupOptions) -> Site:
    """Open the blocks a run names; Refused when the environment demands more than they give."""
    opened = opening.open_server(server)
    keyring = opening.open_keyring(options.keyring)
    retention_days = opening.demand_environment(opened, keyring, verification=options.verify)
    return Site(opened, opening.open_store(options.store), keyring, options, retention_days)


@patient("check preconditions")
def check_preconditions(site: Site, kind: BackupKind, database: str | None) -> Ready:
    """Check server, rights, tools and disk space before anything is begun."""
    options = site.options
    wanted = Wanted(
        site.server.name,
        kind,
        database,
        options.verify,
        compared=options.compare != "none",
        needs_tls=site.server.block.sslmode in ("require", "verify-ca", "verify-full"),
    )
    with translating(f"look at server {site.server.name}"):
        ready = preflight.check(site.server, site.store, site.scratch, wanted)
    get_run_logger().info(
        "%s runs PostgreSQL %s; tools %s (%s); about %.1f MB to read",
        site.server.name,
        ready.server.version,
        ready.tools.version,
        ready.tools.origin,
        ready.source_bytes / 1e6,
    )
    return ready


@contextmanager
def server_to_itself(site: Site, ready: Ready) -> Iterator[None]:
    """Keep other backups of the server away, and mend what dead runs of it left behind."""
    logger = get_run_logger()
    with opening.open_vault() as vault, catalog.server_lock(vault, ready.server.system_identifier):
        for sentence in journal.mend(
            vault, ready.server.system_identifier, opening.open_store, site.keyring
        ):
            logger.warning(sentence)
        if swept := journal.tidy(site.store):
            logger.warning("removed %d half-written files of dead runs from the store", swept)
        for folder in sweep(site.scratch):
            logger.warning("removed the scratch server of a dead run: %s", folder)
        with server_slot(site.server.name, max(_SLOT_SECONDS, site.options.timeout_seconds)):
            yield


@patient("take backup")
def take_backup(site: Site, ready: Ready, kind: BackupKind) -> Manifest:
    """Store the backup and publish its signed manifest; a failed attempt leaves nothing in the store."""
    intent = _intent(site, ready, kind)
    prefix = manifest.prefix_of(ready.server.system_identifier, intent.backup_id)
    order = _order(site, ready, intent.backup_id)
    logger = get_run_logger()
    logger.info("%s begins", intent.backup_id)
    with journal.begun(opening.open_vault, site.store, intent):
        progress = _progress(f"{kind.value} backup", ready.table_bytes)
        to = Destination(site.store, site.keyring, prefix)
        take = capture.take_logical if kind is BackupKind.LOGICAL else capture.take_physical
        with translating(f"back up {site.server.name}"):
            taken = take(site.server, ready.tools, to, order, progress)
        progress.finish()
        made = journal.build_manifest(intent, taken, ready.server, site.keyring, site.options.level)
        sealed = manifest.publish(site.store, prefix, made, site.keyring)
    with opening.open_vault() as vault:
        catalog.mark_completed(vault, intent.backup_id, journal.facts_of(made, sealed))
    seconds = (made.completed_at - made.started_at).total_seconds()
    logger.info(
        "%s stored: %s bytes in %.1f s; %d tables with %s rows counted in the source",
        made.backup_id,
        f"{made.stored_bytes:,}",
        seconds,
        taken.tables,
        f"{taken.rows:,}",
    )
    return made


def open_stored(backup_id: str, options: BackupOptions) -> tuple[OpenBackup, Rehearsal]:
    """Open a stored backup through the blocks that the options name, and say how it is to be rehearsed."""
    backup = open_backup(
        opening.open_store(options.store), opening.open_keyring(options.keyring), backup_id
    )
    scratch = options.scratch or scratch_home()
    sweep(scratch)
    return backup, Rehearsal(
        scratch, options.jobs, options.heap_all_indexed, options.timeout_seconds
    )


def open_backup(site_store: BackupStore, keyring: Keyring, backup_id: str) -> OpenBackup:
    """Open a committed backup by its id; Damaged when its manifest is not what was signed."""
    return OpenBackup.open(site_store, keyring, manifest.find_prefix(site_store, backup_id))


def announce_proof(backup: OpenBackup) -> UUID:
    """Leave the audit row before a verification, and return the id that joins it to the row after."""
    verification_id = uuid4()
    with opening.open_vault() as vault:
        catalog.announce_verification(vault, backup.manifest.backup_id, verification_id)
    return verification_id


@patient("re-read from the store")
def reread_backup(backup: OpenBackup) -> tuple[Rung, int]:
    """Read every stored byte again and compare it with the signed manifest."""
    rung, size = rehearsal.reread(backup, _progress("re-read", backup.manifest.stored_bytes))
    _log(rung, "re-read")
    return rung, size


@once("restore into a scratch server")
def restore_into_scratch(backup: OpenBackup, cluster: PrivateCluster, plan: Rehearsal) -> Restored:
    """Restore the whole backup into a scratch server and start it; its duration is the measured RTO."""
    progress = _progress("restore test", backup.manifest.stored_bytes)
    restored = rehearsal.restore(backup, cluster, plan, progress)
    _log(restored.rung, "restore")
    return restored


@once("compare with the source")
def compare_with_source(
    backup: OpenBackup, server: ScratchServer, plan: Rehearsal
) -> tuple[Rung, list[TableRow]]:
    """Compare the restored copy with what the source held at the backup's instant."""
    with translating("compare the restored copy"):
        rung, rows = rehearsal.compare_with_source(backup, server, plan)
    _log(rung, "comparison")
    return rung, rows


@once("check structure")
def check_structure(backup: OpenBackup, server: ScratchServer, plan: Rehearsal) -> Rung:
    """Check tables, indexes and page checksums of the restored copy."""
    rung = rehearsal.check_structure(backup, server, plan)
    _log(rung, "structure")
    return rung


@patient("record the proof")
def record_proof(backup: OpenBackup, proof: Proof, rows: list[TableRow]) -> str:
    """Write the proof into the vault, and certificate and comparison into Prefect; return the headline."""
    made = backup.manifest
    sentence = certificate.headline(made, proof)
    failure = sentence if proof.outcome in (Outcome.FAIL, Outcome.PARTIAL) else None
    with opening.open_vault() as vault:
        catalog.record_verification(vault, journal.record_of(proof, failure))
    events.append_verification(backup.store, backup.prefix, proof, backup.keyring)
    page = certificate.markdown(made, proof, backup.store.location())
    key = artifact_key("certificate", made.server.name, made.server.database or "", made.kind.value)
    show_markdown(key, page, sentence)
    if rows:
        table = artifact_key(
            "comparison", made.server.name, made.server.database or "", made.kind.value
        )
        show_table(
            table,
            certificate.table_artifact(rows),
            f"{made.backup_id}: the source and the restored copy",
        )
    get_run_logger().info(sentence)
    return sentence


def _intent(site: Site, ready: Ready, kind: BackupKind) -> BackupIntent:
    now = datetime.now(UTC)
    backup_id = backup_id_for(kind, now, secrets.token_hex(4))
    server = ready.server
    run_id = flow_run.get_id()
    return BackupIntent(
        backup_id=backup_id,
        kind=kind,
        started_at=now.replace(microsecond=0),
        server_name=server.name,
        system_identifier=server.system_identifier,
        server_version=server.version,
        database_name=server.database,
        store_name=site.options.store,
        store_location=site.store.location(),
        backup_location=f"{site.store.location()}/{manifest.prefix_of(server.system_identifier, backup_id)}",
        host=socket.gethostname(),
        storage_type=site.store.kind,
        retention_days=site.retention_days,
        verification_required=site.options.verify,
        tool_version=f"{ready.tools.version} ({ready.tools.origin})",
        prefect_flow_run_id=UUID(str(run_id)) if run_id else None,
    )


def _order(site: Site, ready: Ready, backup_id: str) -> Order:
    options = site.options
    return Order(
        backup_id=backup_id,
        database=ready.server.database,
        level=options.level,
        threads=options.threads,
        depth=options.compare,
        jobs=options.jobs,
        lock_wait_seconds=options.lock_wait_seconds,
        timeout_seconds=options.timeout_seconds,
    )


def _progress(stage: str, total_bytes: int) -> Progress:
    listeners: list[Listener] = [ProgressArtifact(stage)]
    if watching := listener.get():
        listeners.append(watching)
    return Progress(stage, *listeners, total_bytes=total_bytes)


def _log(rung: Rung, name: str) -> None:
    logger = get_run_logger()
    say = logger.error if rung.outcome is Outcome.FAIL else logger.info
    say("%s: %s - %s", name, rung.outcome.value, rung.summary)
    for finding in rung.findings:
        say("  %s", finding)
