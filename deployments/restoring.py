"""Restores for good, and what else works on store, keys and vault without a flow."""

import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from blocks.keyring import Keyring, LocalKeyring, Signature, UnknownSigner, Wrapped
from deployments.running import on_terminal
from tasks import opening, vault
from tasks.accounts import Account
from tasks.backup import live_restore, manifest
from tasks.backup.models import BackupKind
from tasks.backup.restore import Limits, OpenBackup, extract, settle, verify_files
from tasks.errors import Refused
from tasks.processes import unprivileged_account
from tasks.programs import Installation, client_tools, server_programs
from tasks.progress import Progress, listener
from tasks.schema import migrator


@dataclass(frozen=True, slots=True)
class Request:
    """What is restored, from where, and where to."""

    backup_id: str
    place: str
    store: str = opening.DEFAULT
    keyring: str = opening.DEFAULT
    as_database: str | None = None
    with_globals: bool = False
    accept_unsigned: bool = False


@dataclass(slots=True)
class TrustingKeyring:
    """A keyring that lets pass what an unknown key signed, and remembers whose; a wrong signature stays refused."""

    keyring: Keyring
    unknown_signers: list[str] = field(default_factory=list)

    def wrap(self, file_key: bytes) -> Wrapped:
        """Wrap a file key for every recipient."""
        return self.keyring.wrap(file_key)

    def unwrap(self, stanzas: Sequence[str]) -> bytes:
        """Open a file key with any key held."""
        return self.keyring.unwrap(stanzas)

    def sign(self, message: bytes) -> Signature:
        """Sign with the active pair."""
        return self.keyring.sign(message)

    def verify(self, message: bytes, key_id: str, signature: bytes) -> None:
        """Raise Refused for a wrong signature; take note of a key that is not held."""
        try:
            self.keyring.verify(message, key_id, signature)
        except UnknownSigner:
            self.unknown_signers.append(key_id)


def restore(request: Request) -> list[str]:
    """Restore a backup and say what to do next; needs only the store and the keys."""
    backup, warnings = _open(request)
    physical = backup.manifest.kind is BackupKind.PHYSICAL
    with on_terminal(quiet=False):
        done = (_restore_directory if physical else _restore_database)(backup, request)
    return [*done, *warnings]


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


def _open(request: Request) -> tuple[OpenBackup, list[str]]:
    store, keyring = opening.open_store(request.store), opening.open_keyring(request.keyring)
    prefix = manifest.find_prefix(store, request.backup_id)
    if not request.accept_unsigned:
        try:
            return OpenBackup.open(store, keyring, prefix), []
        except UnknownSigner as error:
            message = (
                f"{error} Or restore with --accept-unsigned: then nobody says who made this backup."
            )
            raise Refused(message) from error
    trusting = TrustingKeyring(keyring)
    backup = OpenBackup.open(store, trusting, prefix)
    return backup, [_unsigned(key_id) for key_id in trusting.unknown_signers]


def _unsigned(key_id: str) -> str:
    return (
        f"WARNING: the signature by key {key_id} was NOT checked, its public half is not held. Encryption and checksums "
        "were, but whoever can write to the store could have made such a backup."
    )


def _restore_directory(backup: OpenBackup, request: Request) -> list[str]:
    if "://" in request.place or request.as_database or request.with_globals:
        message = (
            "a physical backup is a whole server and is restored into a directory: --to /path/of/an/empty/directory, "
            "without --as-database and --globals"
        )
        raise Refused(message)
    data = Path(request.place).expanduser().resolve()
    for place in (data, data.with_name(f"{data.name}.tablespaces")):
        _refuse_occupied(place)
    tools, account = server_programs(backup.manifest.server.major), unprivileged_account()
    started = time.monotonic()
    with _noting_remains(data):
        _extract(backup, data, tools, account)
    seconds = time.monotonic() - started
    owner = f" (owned by {account.name})" if account else ""
    return [
        f"{backup.manifest.backup_id} is in {data}{owner} after {seconds:.1f} s, every file checked by pg_verifybackup.",
        *_how_to_start(data, tools, account),
    ]


def _refuse_occupied(place: Path) -> None:
    if place.exists() and not place.is_dir():
        message = f"{place} is not a directory: name a new directory"
        raise Refused(message)
    if place.exists() and any(place.iterdir()):
        message = f"{place} is not empty: a restore never overwrites; name a new directory"
        raise Refused(message)


def _extract(backup: OpenBackup, data: Path, tools: Installation, account: Account | None) -> None:
    limits, progress = Limits(), _progress(backup)
    extract(backup, data, account, limits, progress.add)
    progress.finish()
    verify_files(tools, data, account, limits)
    settle(data)


@contextmanager
def _noting_remains(data: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if data.exists():
            error.add_note(f"{data} is not whole: do not start it; delete it before you try again.")
        raise


def _how_to_start(data: Path, tools: Installation, account: Account | None) -> Iterator[str]:
    if not (data / "postgresql.conf").exists():
        yield "The source kept its configuration elsewhere (as Debian does): put postgresql.conf and pg_hba.conf there."
    # The copy carries the source's port, and its archive_command would write into the source's archive.
    options = "-p 5433 -c archive_mode=off"
    argv = [str(tools.program("pg_ctl")), "-D", str(data), "-o", options, "start"]
    yield f"Start it: {shlex.join([*(['sudo', '-u', account.name] if account else []), *argv])}"


def _restore_database(backup: OpenBackup, request: Request) -> list[str]:
    source, limits = backup.manifest.server, Limits()
    server = live_restore.live_server(
        request.place, os.environ, lambda tls: client_tools(source.major, needs_tls=tls)
    )
    name = request.as_database or source.database or ""
    live_restore.refuse_unfit(server, name, prepared=request.as_database is not None)
    started = time.monotonic()
    kept = live_restore.restore_globals(backup, server, limits) if request.with_globals else ""
    progress = _progress(backup)
    live_restore.restore_database(backup, server, request.as_database, limits, progress.add)
    progress.finish()
    seconds = time.monotonic() - started
    done = f'{backup.manifest.backup_id} is restored as database "{name}" on {server.host} after {seconds:.1f} s, without an error.'
    return [done, f"{kept}."] if kept else [done]


def _progress(backup: OpenBackup) -> Progress:
    watching = listener.get()
    return Progress(
        "restore", *([watching] if watching else []), total_bytes=backup.manifest.stored_bytes
    )
