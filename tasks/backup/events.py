"""What happened to a backup after it was committed: signed, append-only events beside its manifest.

The manifest is never rewritten, so that a store may lock it; whoever lost the vault reads here what was proven.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from tasks.backup import envelope
from tasks.backup.models import Proof
from tasks.backup.ports import KeyHolder, ObjectStore
from tasks.errors import Damaged

FOLDER = "events/"
_NAME = "event"


def append_verification(store: ObjectStore, prefix: str, proof: Proof, keyring: KeyHolder) -> str:
    """Write what a verification showed beside the manifest, and return the event's key."""
    facts = {
        "outcome": proof.outcome.value,
        "rungs": {name: rung.outcome.value for name, rung in proof.rungs.items()},
        "restore_seconds": proof.restore_seconds,
        "started_at": proof.started_at.isoformat(),
    }
    return _append(store, prefix, "verification", proof.finished_at, facts, keyring)


def read_events(store: ObjectStore, prefix: str, keyring: KeyHolder) -> Iterator[dict[str, Any]]:
    """Yield the events of a backup, oldest first; Damaged when one is not what was signed, or belongs elsewhere."""
    for found in store.list(f"{prefix}/{FOLDER}"):
        event = envelope.unseal(_NAME, store.get(found.key), keyring)
        if (
            _key(event["prefix"], event["kind"], event["at"]) != found.key
            or event["prefix"] != prefix
        ):
            message = f"{found.key} is an event of another backup; someone changed the store"
            raise Damaged(message)
        yield event


def _append(
    store: ObjectStore,
    prefix: str,
    kind: str,
    at: datetime,
    facts: dict[str, Any],
    keyring: KeyHolder,
) -> str:
    stamp = f"{at:%Y%m%dT%H%M%S.%fZ}"
    body = {"prefix": prefix, "kind": kind, "at": stamp, "facts": facts}
    key = _key(prefix, kind, stamp)
    store.put(key, envelope.seal(_NAME, body, keyring))
    return key


def _key(prefix: str, kind: str, stamp: str) -> str:
    return f"{prefix}/{FOLDER}{stamp}-{kind}.json"
