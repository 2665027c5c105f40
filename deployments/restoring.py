"""Restores for good, and what else works on store, keys and vault without a flow."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from blocks.keyring import LocalKeyring
from deployments.running import on_terminal
from tasks import opening, vault
from tasks.backup.models import BackupKind
from tasks.backup.restore import (
    Limits,
    OpenBackup,
    extract,
    restore_dump,
    restore_globals,
    settle,
    verify_files,
)
from tasks.backup.tasks import open_backup
from tasks.errors import Damaged, Refused
from tasks.processes import unprivileged_account
from tasks.programs import client_tools, server_programs
from tasks.progress import Progress, listener
from tasks.schema import migrator

_PASSED_ON = ("PGPASSWORD", "PGPASSFILE", "PGSSLROOTCERT", "PGSSLMODE", "PGSERVICEFILE", "HOME")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a restore goes."""

    place: str
    as_database: str | None = None
    with_globals: bool = False


def restore(target: Target, backup_id: str, store: str, keyring: str) -> str:
    """Restore a backup and say what to do next; needs only the store and the keys."""
    backup = open_backup(opening.open_store(store), opening.open_keyring(keyring), backup_id)
    with on_terminal(quiet=False):
        if backup.manifest.kind is BackupKind.PHYSICAL:
            return _restore_directory(backup, target)
        return _restore_database(backup, target)


def migrate() -> list[str]:
    """Apply what the vault's schema lacks, and say what was applied."""
    applied = migrator.migrate(vault.ensure_url())
    return [f"applied {item}" for item in applied] or ["nothing to do: the vault is up to date"]


def rotate(keyring: str) -> str:
    """Make a new key the active one."""
    opened = opening.open_keyring(keyring)
    if not isinstance(opened, LocalKeyring):
        message = f"the keys of {keyring} are rotated where they live, not here"
        raise Refused(message)
    return f"{opened.rotate()} is active now; keep a copy of {opened.directory} where the backups are not"


def _restore_directory(backup: OpenBackup, target: Target) -> str:
    data = Path(target.place).expanduser().resolve()
    if "://" in target.place:
        message = "a physical backup is restored into a directory: --to /path/of/an/empty/directory"
        raise Refused(message)
    if data.exists() and any(data.iterdir()):
        message = f"{data} is not empty: a restore never overwrites; name a new directory"
        raise Refused(message)
    started = time.monotonic()
    account = unprivileged_account()
    limits = Limits()
    progress = _progress(backup)
    extract(backup, data, account, limits, progress.add)
    progress.finish()
    verify_files(server_programs(backup.manifest.server.major), data, account, limits)
    settle(data)
    seconds = time.monotonic() - started
    owner = f" (owned by {account.name})" if account else ""
    return f"{backup.manifest.backup_id} is in {data}{owner} after {seconds:.1f} s, every file checked by pg_verifybackup. Start it: pg_ctl -D {data} start"


def _restore_database(backup: OpenBackup, target: Target) -> str:
    parts = _parts(target)
    tools = client_tools(backup.manifest.server.major)
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | parts
    limits = Limits()
    errors: list[str] = []
    started = time.monotonic()
    if target.with_globals:
        errors += restore_globals(backup, tools, environment, limits, scratch=False)
    progress = _progress(backup)
    maintenance = parts["PGDATABASE"]
    arguments = (
        [f"--dbname={target.as_database}"]
        if target.as_database
        else ["--create", f"--dbname={maintenance}"]
    )
    errors += restore_dump(backup, tools, environment, arguments, limits, progress.add)
    progress.finish()
    if errors:
        listed = "\n  ".join(errors[:20])
        message = (
            f"the restore of {backup.manifest.backup_id} reported {len(errors)} errors:\n  {listed}"
        )
        raise Damaged(message)
    name = target.as_database or backup.manifest.server.database
    return f"{backup.manifest.backup_id} is restored as database {name} after {time.monotonic() - started:.1f} s, without an error"


def _parts(target: Target) -> dict[str, str]:
    if not target.place.startswith(("postgresql://", "postgres://")):
        message = "a logical backup is restored into a server: --to postgresql://user@host:port/maintenance_database"
        raise Refused(message)
    parts = conninfo_to_dict(target.place)
    if parts.pop("password", None):
        message = "no passwords on the command line, others can read it: set PGPASSWORD, PGPASSFILE or ~/.pgpass"
        raise Refused(message)
    names = {
        "host": "PGHOST",
        "port": "PGPORT",
        "user": "PGUSER",
        "dbname": "PGDATABASE",
        "sslmode": "PGSSLMODE",
    }
    return {"PGDATABASE": "postgres"} | {
        names[key]: str(value) for key, value in parts.items() if key in names
    }


def _progress(backup: OpenBackup) -> Progress:
    watching = listener.get()
    return Progress(
        "restore", *([watching] if watching else []), total_bytes=backup.manifest.stored_bytes
    )
