"""One byte of a stored copy is changed, and the copy is looked at again."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from blocks.storage.local import LocalStore
from tasks.backup import manifest as manifests
from tasks.backup.rehearsal import reread
from tasks.backup.restore import OpenBackup
from tasks.errors import OneVaultError
from tasks.progress import Progress


@dataclass(frozen=True, slots=True)
class Damage:
    """What was changed, and what was said of it."""

    key: str
    offset: int
    caught: bool
    sentence: str


def damage_a_copy(backup: OpenBackup, into: Path) -> Damage:
    """Copy a backup, flip one bit in the middle of its largest object, and verify the copy."""
    if not isinstance(backup.store, LocalStore):
        message = "the demo damages a copy in a directory"
        raise OneVaultError(message)
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(backup.store.directory / backup.prefix, into / backup.prefix)
    largest = max(backup.manifest.objects, key=lambda item: item.size_bytes)
    path = into / f"{backup.prefix}/{largest.name}.age.payload"
    offset = largest.size_bytes // 2
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x01]))
    damaged = OpenBackup.open(LocalStore(directory=into), backup.keyring, backup.prefix)
    rung, _ = reread(damaged, Progress("damaged copy"))
    return Damage(path.name, offset, rung.outcome.value == "FAIL", rung.summary)


def forge_a_manifest(backup: OpenBackup, into: Path) -> str:
    """Edit the copy's manifest as a forger would, and return the refusal."""
    path = into / backup.prefix / manifests.MANIFEST_NAME
    path.write_bytes(path.read_bytes().replace(b'"database":"', b'"database":"x', 1))
    try:
        OpenBackup.open(LocalStore(directory=into), backup.keyring, backup.prefix)
    except OneVaultError as error:
        return str(error)
    return ""
