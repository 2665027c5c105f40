"""The manifest: the signed commit record of a backup. No manifest, no backup."""

from pydantic import ValidationError

from tasks.backup import envelope, events
from tasks.backup.models import BACKUP_ID, Manifest
from tasks.backup.pipeline import header_key, payload_key
from tasks.backup.ports import KeyHolder, ObjectStore
from tasks.errors import Damaged, Refused

MANIFEST_NAME = "manifest.json"
SUMS_NAME = "SHA256SUMS"
_NAME = "manifest"


def prefix_of(system_identifier: str, backup_id: str) -> str:
    """Return the folder of a backup inside a store."""
    return f"{system_identifier}/{backup_id}"


def seal(manifest: Manifest, keyring: KeyHolder) -> bytes:
    """Return the signed manifest as it is stored."""
    return envelope.seal(_NAME, manifest.model_dump(mode="json"), keyring)


def unseal(data: bytes, keyring: KeyHolder) -> Manifest:
    """Return the manifest when its bytes, its signature and its fields are exactly as sealed, else raise Damaged."""
    body = envelope.unseal(_NAME, data, keyring)
    try:
        return Manifest.model_validate_json(envelope.canonical(body))
    except ValidationError as error:
        message = "the manifest has fields this version does not know; use the version of OneVault that wrote it, or a newer one"
        raise Damaged(message) from error


def sums(manifest: Manifest, prefix: str = ".") -> bytes:
    """Return the SHA256SUMS file of the payloads, for `sha256sum --check`."""
    lines = (
        f"{item.sha256}  {payload_key(prefix, item.name).removeprefix('./')}\n"
        for item in manifest.objects
    )
    return "".join(lines).encode()


def publish(store: ObjectStore, prefix: str, manifest: Manifest, keyring: KeyHolder) -> bytes:
    """Store SHA256SUMS and then, as the commit, the signed manifest; return its bytes."""
    sealed = seal(manifest, keyring)
    store.put(f"{prefix}/{SUMS_NAME}", sums(manifest))
    store.put(f"{prefix}/{MANIFEST_NAME}", sealed)
    return sealed


def load(store: ObjectStore, prefix: str, keyring: KeyHolder) -> Manifest:
    """Return the checked manifest of a backup; Damaged when it is not that backup's."""
    manifest = unseal(store.get(f"{prefix}/{MANIFEST_NAME}"), keyring)
    if prefix_of(manifest.server.system_identifier, manifest.backup_id) != prefix:
        message = f"the manifest under {prefix} belongs to backup {manifest.backup_id}; this copy was moved or swapped"
        raise Damaged(message)
    return manifest


def is_committed(store: ObjectStore, prefix: str) -> bool:
    """Return whether a backup has its manifest."""
    key = f"{prefix}/{MANIFEST_NAME}"
    return any(found.key == key for found in store.list(key))


def find_prefix(store: ObjectStore, backup_id: str) -> str:
    """Return the folder of a committed backup by its id alone, as when the vault is lost."""
    if not BACKUP_ID.fullmatch(backup_id):
        message = f"{backup_id!r} is not a backup id; they look like 20261122T183012Z-logical-3fa9c1d2 (see `onevault backups`)"
        raise Refused(message)
    ending = f"/{backup_id}/{MANIFEST_NAME}"
    for found in store.list():
        if found.key.endswith(ending):
            return found.key.removesuffix(f"/{MANIFEST_NAME}")
    message = f"no backup {backup_id} in {store.location()}; `onevault backups` lists what there is"
    raise Refused(message)


def check_listing(store: ObjectStore, prefix: str, manifest: Manifest, keyring: KeyHolder) -> None:
    """Raise Damaged unless the folder holds just what the manifest names, headers, sums and events as sealed."""
    expected = {f"{prefix}/{MANIFEST_NAME}", f"{prefix}/{SUMS_NAME}"}
    for item in manifest.objects:
        expected |= {payload_key(prefix, item.name), header_key(prefix, item.name)}
    found = {entry.key for entry in store.list(f"{prefix}/")}
    found = {key for key in found if not key.startswith(f"{prefix}/{events.FOLDER}")}
    if missing := expected - found:
        message = f"{min(missing)} is missing from the store; this copy is lost, use another backup"
        raise Damaged(message)
    if unknown := found - expected:
        message = f"{min(unknown)} does not belong to this backup; someone changed the store"
        raise Damaged(message)
    for _ in events.read_events(store, prefix, keyring):
        pass
    for item in manifest.objects:
        if store.get(header_key(prefix, item.name)) != item.age_header.encode("ascii"):
            message = f"{header_key(prefix, item.name)} differs from the signed manifest; this copy was changed"
            raise Damaged(message)
    if store.get(f"{prefix}/{SUMS_NAME}") != sums(manifest):
        message = f"{prefix}/{SUMS_NAME} differs from the signed manifest; this copy was changed"
        raise Damaged(message)
