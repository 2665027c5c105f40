"""Real backups for the tests, taken without Prefect's engine."""

import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict

from blocks.keyring import LocalKeyring
from blocks.postgres import PostgresServer
from blocks.storage.local import LocalStore
from tasks import processes, vault
from tasks.backup import capture, journal, manifest, preflight, rehearsal
from tasks.backup import store as catalog
from tasks.backup.capture import Order, Taken
from tasks.backup.catalog import BackupIntent, CatalogEntry
from tasks.backup.comparison import TableRow
from tasks.backup.models import BackupKind, Manifest, Rung, backup_id_for
from tasks.backup.pipeline import Destination
from tasks.backup.preflight import Ready, Wanted
from tasks.backup.rehearsal import Rehearsal, Restored
from tasks.backup.restore import OpenBackup
from tasks.connection import translating
from tasks.opening import NamedServer, local_keyring, local_store
from tasks.private_cluster import PrivateCluster
from tasks.programs import Installation
from tasks.progress import Progress
from tasks.schema import migrator
from tests.clusters import PASSWORD, SUPERUSER, Server, running_server, short_folder

AWKWARD = Path(__file__).parents[1] / "deployments" / "demo" / "awkward.sql"
AWKWARD_DATABASE = "demo_shop"


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

    def open(self) -> OpenBackup:
        return OpenBackup.open(self.store, self.keyring, self.prefix)


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """A backup restored into a scratch server that runs."""

    backup: OpenBackup
    plan: Rehearsal
    cluster: PrivateCluster
    restored: Restored

    def compare(self) -> tuple[Rung, list[TableRow]]:
        assert self.restored.server is not None, self.restored.rung
        return rehearsal.compare_with_source(self.backup, self.restored.server, self.plan)

    def structure(self) -> Rung:
        assert self.restored.server is not None, self.restored.rung
        return rehearsal.check_structure(self.backup, self.restored.server, self.plan)

    def connect(self, database: str | None = None) -> "psycopg.Connection[Any]":
        assert self.restored.server is not None, self.restored.rung
        return self.restored.server.connect(database)


class BackupMaker:
    """Takes backups of a test cluster, all into one store under one keyring, in a folder of its own."""

    def __init__(self, server: Server, folder: Path, conninfo: str | None = None) -> None:
        self.source = NamedServer("test", PostgresServer.from_conninfo(conninfo or server.url()))
        self.folder = folder
        self.store = local_store(folder / "store")
        self.keyring = local_keyring(folder / "keys")
        self.scratch = folder / "scratch"

    def take(self, kind: BackupKind, database: str | None = None, **order: Any) -> Backup:
        """Take a backup and commit it; `order` overrides fields of the Order."""
        ready = self.check(kind, database)
        started_at = datetime.now(UTC)
        backup_id = backup_id_for(kind, started_at, secrets.token_hex(4))
        taken = self._take(kind, ready, backup_id, order)
        made = journal.build_manifest(
            self.intent(kind, ready, backup_id), taken, ready.server, self.keyring, 1
        )
        prefix = manifest.prefix_of(ready.server.system_identifier, backup_id)
        manifest.publish(self.store, prefix, made, self.keyring)
        return Backup(self.store, self.keyring, prefix, made)

    def take_journaled(
        self, vault_url: str, kind: BackupKind, database: str | None = None, **order: Any
    ) -> str:
        """Take a backup as a run does, with the vault told of it; return its id."""
        ready = self.check(kind, database)
        backup_id = backup_id_for(kind, datetime.now(UTC), secrets.token_hex(4))
        intent = self.intent(kind, ready, backup_id)
        prefix = manifest.prefix_of(ready.server.system_identifier, backup_id)
        with journal.begun(lambda: vault.connect(vault_url), self.store, intent):
            taken = self._take(kind, ready, backup_id, order)
            made = journal.build_manifest(intent, taken, ready.server, self.keyring, 1)
            sealed = manifest.publish(self.store, prefix, made, self.keyring)
        with vault.connect(vault_url) as conn:
            catalog.mark_completed(conn, backup_id, journal.facts_of(made, sealed))
        return backup_id

    def check(
        self, kind: BackupKind, database: str | None = None, *, verify: bool = False
    ) -> Ready:
        """Check the preconditions."""
        wanted = Wanted("test", kind, database, verify=verify)
        with translating("look at the server"):
            return preflight.check(self.source, self.store, self.scratch, wanted)

    @contextmanager
    def rehearsed(self, backup: Backup, **plan: Any) -> Iterator[Rehearsed]:
        """Restore a backup into a scratch server for the time of a block."""
        chosen = replace(Rehearsal(self.scratch, jobs=2, timeout_seconds=120), **plan)
        opened = backup.open()
        with rehearsal.scratch_cluster(opened, chosen) as cluster:
            restored = rehearsal.restore(opened, cluster, chosen, Progress("restore"))
            yield Rehearsed(opened, chosen, cluster, restored)

    def intent(self, kind: BackupKind, ready: Ready, backup_id: str) -> BackupIntent:
        """Say what is about to be done."""
        prefix = manifest.prefix_of(ready.server.system_identifier, backup_id)
        return BackupIntent(
            backup_id=backup_id,
            kind=kind,
            started_at=datetime.now(UTC),
            server_name="test",
            system_identifier=ready.server.system_identifier,
            server_version=ready.server.version,
            database_name=ready.server.database,
            store_name=str(self.store.directory),
            store_location=self.store.location(),
            backup_location=f"{self.store.location()}/{prefix}",
            host="here",
        )

    def newest(self, vault_url: str) -> CatalogEntry:
        """Return what the vault says of the newest backup in this store."""
        here = self.store.location()
        return next(each for each in entries(vault_url) if each.store_location == here)

    def leftovers(self) -> list[str]:
        """List every file in the store, the half-written ones too."""
        top = self.store.directory
        return sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file())

    def _take(self, kind: BackupKind, ready: Ready, backup_id: str, order: dict[str, Any]) -> Taken:
        chosen = Order(backup_id, ready.server.database, **order)
        prefix = manifest.prefix_of(ready.server.system_identifier, backup_id)
        to = Destination(self.store, self.keyring, prefix)
        take = capture.take_logical if kind is BackupKind.LOGICAL else capture.take_physical
        with translating("back up test"):
            return take(self.source, ready.tools, to, chosen, Progress("take"))


@contextmanager
def maker_of(server: Server, conninfo: str | None = None) -> Iterator[BackupMaker]:
    """Give a maker with a folder that PostgreSQL's user can enter."""
    with short_folder() as folder:
        yield BackupMaker(server, folder, conninfo)


def load_awkward(server: Server) -> None:
    """Make the database that is awkward on purpose."""
    with server.connect() as connection:
        connection.execute("create database demo_shop")
    psql(server, AWKWARD_DATABASE, AWKWARD)


def psql(server: Server, database: str, script: Path) -> None:
    """Run a script as the superuser."""
    program = server.cluster.installation.program("psql")
    environment = {
        "PGHOST": server.host,
        "PGPORT": str(server.port),
        "PGUSER": SUPERUSER,
        "PGPASSWORD": PASSWORD,
        "PGDATABASE": database,
        "PGCLIENTENCODING": "UTF8",
    }
    argv: list[str | Path] = [
        program,
        "--no-psqlrc",
        "--quiet",
        "--set=ON_ERROR_STOP=1",
        f"--file={script}",
    ]
    processes.run(argv, env=environment, timeout_seconds=60)


def make_vault(server: Server, name: str = "onevault") -> str:
    """Make a vault on a server and return its URL."""
    vault.ensure_database(server.url(), name)
    migrator.migrate(server.url(name))
    return server.url(name)


def entries(vault_url: str) -> list[CatalogEntry]:
    """Read the catalog, newest first."""
    with vault.connect(vault_url) as conn:
        return catalog.catalog(conn)


def until(condition: Callable[[], object], seconds: float = 30) -> Any:
    """Wait until a condition holds and return what it gave."""
    deadline = monotonic() + seconds
    while not (found := condition()):
        assert monotonic() < deadline, f"it did not happen within {seconds:g} s"
        threading.Event().wait(0.02)
    return found


def sessions(server: Server, application: str = "") -> list[str]:
    """List the queries of foreign sessions on a server, those of one application only when it is named."""
    query = (
        "select application_name || ': ' || query from pg_stat_activity where pid <> pg_backend_pid()"
        " and backend_type in ('client backend', 'walsender') and application_name ~ %s"
    )
    with server.connect() as connection:
        return [row[0] for row in connection.execute(query, [application]).fetchall()]


def programs_of(port: int) -> list[str]:
    """List the client programs that talk to a port of this machine."""
    found = []
    for process in psutil.process_iter(["name"]):
        if process.info["name"] in {"pg_dump", "pg_dumpall", "pg_restore", "psql"}:
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            if environment.get("PGPORT") == str(port):
                found.append(process.info["name"])
    return found


def port_of(url: str) -> int:
    """Return the port in a URL."""
    return int(conninfo_to_dict(url)["port"] or 0)


def is_root() -> bool:
    return os.geteuid() == 0


class InThread:
    """Something that runs beside the test."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    def done(self) -> bool:
        return not self._thread.is_alive()

    def error(self, seconds: float) -> BaseException:
        """Return what it raised, within this time."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"it did not end within {seconds:g} s"
        assert self._error is not None, "it raised nothing"
        return self._error


@dataclass(frozen=True, slots=True)
class FlowSite:
    """All that a flow needs, each in a place of its own: a source, a vault, a store, keys and scratch."""

    source: Server
    vault_url: str
    folder: Path
    server: str = "source"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "ONEVAULT_ENV": "development",
            "ONEVAULT_HOME": str(self.folder / "home"),
            "ONEVAULT_VAULT_URL": self.vault_url,
        }

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    @property
    def options(self) -> dict[str, Any]:
        return {
            "store": str(self.store),
            "keyring": str(self.folder / "keys"),
            "scratch": str(self.scratch),
        }

    def stored(self) -> list[str]:
        """List every file in the store, the half-written ones too."""
        return sorted(
            str(path.relative_to(self.store)) for path in self.store.rglob("*") if path.is_file()
        )

    def committed(self) -> set[str]:
        """Return the ids of the backups whose manifest is good."""
        store, keyring = local_store(self.store), local_keyring(self.folder / "keys")
        return {
            OpenBackup.open(store, keyring, key.rpartition("/")[0]).manifest.backup_id
            for key in self.stored()
            if key.endswith("/manifest.json")
        }

    def entries(self) -> list[CatalogEntry]:
        """Read the catalog, newest first."""
        return entries(self.vault_url)

    def entries_since(self, count: int) -> list[CatalogEntry]:
        """Read what the catalog gained after it had so many entries, newest first."""
        found = self.entries()
        return found[: len(found) - count]

    def audit(self, backup_id: str) -> list[tuple[str, str, str]]:
        """Read the audit rows of a backup in order: operation, phase, outcome."""
        query = (
            "select event_type, phase, outcome from audit.audit_detail_s where subject = %s"
            " order by load_date"
        )
        with vault.connect(self.vault_url) as conn:
            return [tuple(row) for row in conn.execute(query, [backup_id]).fetchall()]

    def clear(self) -> None:
        """Forget every backup: in the vault too."""
        shutil.rmtree(self.store, ignore_errors=True)
        local_store(self.store)


@contextmanager
def flow_site(installation: Installation) -> Iterator[FlowSite]:
    """Make a source with a small database, and all else that a flow needs."""
    with short_folder() as folder, short_folder() as empty:
        cluster = PrivateCluster(empty, installation, superuser=SUPERUSER)
        cluster.create(password=PASSWORD)
        with (
            running_server(installation, cluster.data) as source,
            running_server(installation, cluster.data) as keeper,
        ):
            fill(source)
            made = FlowSite(source, make_vault(keeper), folder)
            local_store(made.store)
            local_keyring(folder / "keys")
            yield made


def fill(server: Server) -> None:
    with server.connect() as connection:
        connection.execute("create database shop")
    with server.connect("shop") as connection:
        connection.execute("create table item (id int primary key, name text)")
        connection.execute(
            "insert into item select i, 'item ' || i from generate_series(1, 1000) i"
        )
        connection.execute("create table locked as select i from generate_series(1, 100) i")
        connection.execute(
            "create table noise as select sha512((i || 'x')::bytea) from generate_series(1, 5000) i"
        )
