"""Reading a backup back: its files into a directory, or its dump into a server."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks import processes, streaming
from tasks.accounts import Account
from tasks.backup.inventory import Inventory
from tasks.backup.manifest import load
from tasks.backup.models import Manifest, StoredObject
from tasks.backup.pipeline import OnBytes, open_object
from tasks.backup.ports import KeyHolder, ObjectStore
from tasks.errors import Refused
from tasks.folders import make_folder
from tasks.programs import Installation

_FULL = re.compile(r"No space left on device|disk full|Disk quota exceeded", re.IGNORECASE)
# Names may hold line ends: a location that were overlooked here would be the source's own.
_TABLESPACE_LOCATION = re.compile(
    rb"""^(CREATE TABLESPACE (?:"(?:[^"]|"")+"|\S+) OWNER (?:"(?:[^"]|"")+"|\S+)) LOCATION E?'[^']*';$""",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class OpenBackup:
    """A committed backup whose manifest has been checked, and the means to read it."""

    store: ObjectStore
    keyring: KeyHolder
    prefix: str
    manifest: Manifest

    @classmethod
    def open(cls, store: ObjectStore, keyring: KeyHolder, prefix: str) -> "OpenBackup":
        """Open a backup by its folder; Damaged when the manifest is not what was signed."""
        return cls(store, keyring, prefix, load(store, prefix, keyring))

    def content(self, item: StoredObject, on_bytes: OnBytes = lambda _: None) -> Iterator[bytes]:
        """Yield an object's plain content; `on_bytes` hears of stored bytes as they are read."""
        return open_object(self.store, self.keyring, self.prefix, item, on_bytes)

    def inventory(self) -> Inventory:
        """Return what the source held."""
        return Inventory.model_validate_json(
            b"".join(self.content(self.manifest.object("inventory")))
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """How long each program of a restore may run."""

    timeout_seconds: float = 4 * 3600.0


def extract(
    backup: OpenBackup, data: Path, account: Account | None, limits: Limits, on_bytes: OnBytes
) -> None:
    """Extract a physical backup into an empty directory; tablespaces go to DATA.tablespaces, never to their old places."""
    manifest = backup.manifest
    for item in (found for found in manifest.objects if found.role in ("base", "tablespace")):
        into = data if item.role == "base" else _tablespace_folder(data, item)
        make_folder(into, 0o700, account)
        argv: list[str | Path] = [
            "tar",
            "--extract",
            "--file=-",
            "--preserve-permissions",
            "--directory",
            into,
        ]
        streaming.feed(
            argv,
            backup.content(item, on_bytes),
            account=account,
            timeout_seconds=limits.timeout_seconds,
        )
    for item in (found for found in manifest.objects if found.role == "tablespace"):
        _link_tablespace(data, item)
    target = data / "backup_manifest"
    target.write_bytes(b"".join(backup.content(manifest.object("backup_manifest"))))
    target.chmod(0o644)


def settle(data: Path) -> None:
    """Make an extracted backup ready to start: its tablespaces where they lie now, and no standby of anything."""
    for name in ("standby.signal", "recovery.signal"):
        (data / name).unlink(missing_ok=True)
    path = data / "tablespace_map"
    if not path.exists():
        return
    links = sorted((data / "pg_tblspc").iterdir())
    path.write_text(
        "".join(f"{link.name} {link.readlink()}\n" for link in links if link.is_symlink())
    )


def restore_globals(
    backup: OpenBackup,
    tools: Installation,
    environment: Mapping[str, str],
    limits: Limits,
) -> list[str]:
    """Run the globals (roles, tablespaces, grants) on a scratch server and return the errors it reported.

    The superuser exists already, and tablespaces are made inside its own directory: never where
    the source has them, which may be on this very machine.
    """
    # The globals are small: roles and tablespaces, no data.
    text = b"".join(backup.content(backup.manifest.object("globals")))
    text = _for_scratch(text, backup.manifest.server.superuser)
    argv: list[str | Path] = [
        tools.program("psql"),
        "--no-psqlrc",
        "--quiet",
        "--no-password",
        "--file=-",
    ]
    said = streaming.feed(
        argv, [text], env=environment, timeout_seconds=limits.timeout_seconds, check=False
    )
    return errors_in(said)


def restore_dump(
    backup: OpenBackup,
    tools: Installation,
    environment: Mapping[str, str],
    arguments: Sequence[str],
    limits: Limits,
    on_bytes: OnBytes = lambda _: None,
) -> list[str]:
    """Run pg_restore on the dump and return every error it reported; none are swallowed."""
    argv: list[str | Path] = [tools.program("pg_restore"), "--no-password", *arguments]
    chunks = backup.content(backup.manifest.object("dump"), on_bytes)
    said = streaming.feed(
        argv, chunks, env=environment, timeout_seconds=limits.timeout_seconds, check=False
    )
    return errors_in(said)


def errors_in(lines: Sequence[str]) -> list[str]:
    """Return what a client program reported as wrong, each error with the detail that follows it."""
    found: list[str] = []
    inside = False
    for line in lines:
        if any(mark in line for mark in ("ERROR:", "FATAL:", "error:", "fatal:")):
            found.append(line)
            inside = True
        elif inside and line.startswith(("DETAIL:", "HINT:", "Command was:", "LINE ")):
            found[-1] += f" {line}"
        else:
            inside = False
    return found


def refuse_when_full(place: Path, said: Iterable[str]) -> None:
    """Raise Refused when a program complained of a full disk there: that says nothing of the backup."""
    if any(_FULL.search(line) for line in said):
        message = (
            f"the disk of {place} became full, so the restore could not be tested: free space or set ONEVAULT_SCRATCH "
            "to a larger disk, then run `onevault verify`"
        )
        raise Refused(message)


def verify_files(tools: Installation, data: Path, account: Account | None, limits: Limits) -> None:
    """Check every extracted file against the server's own manifest with pg_verifybackup; ProgramFailed when one differs."""
    processes.run(
        [tools.program("pg_verifybackup"), "--quiet", data],
        account=account,
        timeout_seconds=limits.timeout_seconds,
    )


def _tablespace_folder(data: Path, item: StoredObject) -> Path:
    return data.with_name(f"{data.name}.tablespaces") / str(item.tablespace_oid)


def _link_tablespace(data: Path, item: StoredObject) -> None:
    link = data / "pg_tblspc" / str(item.tablespace_oid)
    link.unlink(missing_ok=True)
    link.symlink_to(_tablespace_folder(data, item))


def _for_scratch(text: bytes, superuser: str) -> bytes:
    plain = superuser.isascii() and superuser.isidentifier() and superuser == superuser.lower()
    quoted = superuser if plain else '"' + superuser.replace('"', '""') + '"'
    text = text.replace(f"\nCREATE ROLE {quoted};\n".encode(), b"\n")
    return _TABLESPACE_LOCATION.sub(rb"\1 LOCATION '';", text)
