"""What the tests of stores share."""

from collections.abc import Iterable

from blocks.storage.base import BackupStore

PART = bytes(range(256)) * 4096


def keys(store: BackupStore, prefix: str = "") -> list[str]:
    return [stored.key for stored in store.list(prefix)]


def write_all(store: BackupStore, key: str, parts: Iterable[bytes]) -> None:
    with store.create(key) as writer:
        for part in parts:
            writer.write(part)
        writer.commit()
