"""Signed JSON in one canonical form: what the manifest and the events beside it are made of."""

import json
from typing import Any

from tasks.backup.ports import KeyHolder
from tasks.errors import Damaged

_ALGORITHM = "Ed25519"


def canonical(value: object) -> bytes:
    """Return the one JSON form that is signed: sorted keys, no white space, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def seal(name: str, body: object, keyring: KeyHolder) -> bytes:
    """Return a body under its name, with the active key's signature."""
    signature = keyring.sign(canonical(body))
    signed = {"algorithm": _ALGORITHM, "key_id": signature.key_id, "value": signature.value.hex()}
    return canonical({name: body, "signature": signed})


def unseal(name: str, data: bytes, keyring: KeyHolder) -> Any:
    """Return the body when bytes and signature are exactly as sealed, else raise Damaged (or the keyring's refusal)."""
    changed = f"the {name} is not what was signed; treat this copy as lost, use another backup"
    try:
        envelope = json.loads(data)
        signature = envelope["signature"]
        value = bytes.fromhex(signature["value"])
        exact = canonical(envelope) == data and value.hex() == signature["value"]
        if (
            not exact
            or set(envelope) != {name, "signature"}
            or signature["algorithm"] != _ALGORITHM
        ):
            raise Damaged(changed)
        keyring.verify(canonical(envelope[name]), signature["key_id"], value)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(changed) from error
    return envelope[name]
