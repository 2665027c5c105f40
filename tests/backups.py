"""Real backups for the tests, taken without Prefect's engine."""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from blocks.keyring import LocalKeyring
from blocks.postgres import PostgresServer
from blocks.storage.local import LocalStore
from tasks.backup import capture, manifest, pipeline, preflight
from tasks.backup.capture import Order, Taken
from tasks.backup.models import BackupKind, Manifest, backup_id_for
from tasks.backup.pipeline import Destination
from tasks.backup.preflight import Ready, Wanted
from tasks.opening import NamedServer, local_keyring, local_store
from tasks.progress import Progress
from tests.clusters import Server


@dataclass(frozen=True, slots=True)
class Backup:
    """A committed backup in a store in a folder."""

    store: LocalStore
    keyring: LocalKeyring
    prefix: str
    manifest: Manifest

    @property
    def folder(self) -> Path:
        return self.store.directory / self.prefix


class BackupMaker:
    """Takes backups of a test cluster, all into one store under one keyring, in a folder of its own."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.source = NamedServer("test", PostgresServer.from_conninfo(server.url()))
        self.store = local_store(folder / "store")
        self.keyring = local_keyring(folder / "keys")
        self.scratch = folder / "scratch"

    def take(self, kind: BackupKind, database: str | None = None) -> Backup:
        """Take a backup and commit it."""
        started_at = datetime.now(UTC)
        wanted = Wanted("test", kind, database, verify=False)
        ready = preflight.check(self.source, self.store, self.scratch, wanted)
        backup_id = backup_id_for(kind, started_at, secrets.token_hex(4))
        order = Order(backup_id, ready.server.database)
        prefix = manifest.prefix_of(ready.server.system_identifier, backup_id)
        to = Destination(self.store, self.keyring, prefix)
        take = capture.take_logical if kind is BackupKind.LOGICAL else capture.take_physical
        taken = take(self.source, ready.tools, to, order, Progress("take"))
        made = self._manifest(kind, started_at, ready, order, taken)
        manifest.publish(self.store, prefix, made, self.keyring)
        return Backup(self.store, self.keyring, prefix, made)

    def _manifest(
        self, kind: BackupKind, started_at: datetime, ready: Ready, order: Order, taken: Taken
    ) -> Manifest:
        wrapped = self.keyring.wrap(bytes(16))
        return Manifest(
            backup_id=order.backup_id,
            kind=kind,
            started_at=started_at,
            completed_at=datetime.now(UTC),
            server=ready.server,
            point=taken.point,
            tool=taken.tool,
            compression_level=order.level,
            compressed_by="server" if taken.compressed_by_server else "client",
            encryption_key_id=wrapped.key_id,
            recipients=wrapped.recipients,
            part_bytes=pipeline.PART_BYTES,  # type: ignore[attr-defined]
            objects=taken.objects,
            onevault_version="0.1.0",
        )
