"""X25519 recipients of the age v1 format: how a file key is wrapped for a public key, and unwrapped with its secret."""

import base64
import binascii
import re

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from blocks import bech32
from blocks.errors import Refused

KEY_BYTES = 32
FILE_KEY_BYTES = 16

_RECIPIENT_PREFIX = "age"
_IDENTITY_PREFIX = "age-secret-key-"
_INFO = b"age-encryption.org/v1/X25519"
_NONCE = bytes(12)
_OURS = re.compile(r"-> X25519(?: |\n)")
_STANZA = re.compile(r"-> X25519 (?P<share>[A-Za-z0-9+/]{43})\n(?P<body>[A-Za-z0-9+/]{43})\n")


def generate() -> bytes:
    """Make a secret key of 32 bytes."""
    return X25519PrivateKey.generate().private_bytes_raw()


def recipient_of(secret: bytes) -> str:
    """Write the public half of a secret key as age does: age1..."""
    return bech32.encode(_RECIPIENT_PREFIX, _public(secret))


def identity_text(secret: bytes) -> str:
    """Write a secret key as age does: AGE-SECRET-KEY-1..."""
    return bech32.encode(_IDENTITY_PREFIX, secret).upper()


def parse_recipient(text: str) -> bytes:
    """Read an age1... recipient; raises Refused, and never repeats a secret that stands in its place."""
    if text.strip().upper().startswith(_IDENTITY_PREFIX.upper()):
        msg = "This is a secret key, not a recipient: give its public half (age-keygen -y prints it) and keep it secret."
        raise Refused(msg)
    try:
        return _decode(_RECIPIENT_PREFIX, text)
    except ValueError as error:
        msg = f"{text!r} is not an age recipient of the kind age1... (X25519): {error}. Copy it again from age-keygen."
        raise Refused(msg) from None


def parse_identity(text: str) -> bytes:
    """Read an AGE-SECRET-KEY-1... line; raises Refused without repeating it."""
    try:
        return _decode(_IDENTITY_PREFIX, text)
    except ValueError as error:
        msg = f"A line that should be an age identity (AGE-SECRET-KEY-1...) is not one: {error}. Restore the key file."
        raise Refused(msg) from None


def wrap(file_key: bytes, recipient: str) -> str:
    """Wrap a file key of 16 bytes for a recipient; returns the stanza's text, line feeds included."""
    public = parse_recipient(recipient)
    ephemeral = X25519PrivateKey.generate()
    share = ephemeral.public_key().public_bytes_raw()
    try:
        key = _wrapping_key(ephemeral, public, share + public)
    except ValueError:
        msg = f"{recipient!r} is a degenerate key that keeps nothing secret. Make a new one with age-keygen."
        raise Refused(msg) from None
    body = ChaCha20Poly1305(key).encrypt(_NONCE, file_key, None)
    return f"-> X25519 {_base64(share)}\n{_base64(body)}\n"


def unwrap(stanza: str, secret: bytes) -> bytes | None:
    """Unwrap the file key with a secret key; None when the stanza is for another key or of another kind.

    Raises Refused for an X25519 stanza that is malformed, as the format demands.
    """
    if not _OURS.match(stanza):
        return None
    try:
        share, body = _parse(stanza)
        key = _wrapping_key(
            X25519PrivateKey.from_private_bytes(secret), share, share + _public(secret)
        )
    except ValueError:
        msg = "The encryption header holds a malformed X25519 stanza. Take the header from another copy of the backup."
        raise Refused(msg) from None
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, body, None)
    except InvalidTag:
        return None


def _public(secret: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def _wrapping_key(mine: X25519PrivateKey, theirs: bytes, salt: bytes) -> bytes:
    shared = mine.exchange(X25519PublicKey.from_public_bytes(theirs))
    return HKDF(SHA256(), 32, salt, _INFO).derive(shared)


def _parse(stanza: str) -> tuple[bytes, bytes]:
    found = _STANZA.fullmatch(stanza)
    if found is None:
        msg = "malformed"
        raise ValueError(msg)
    return _unbase64(found["share"]), _unbase64(found["body"])


def _decode(prefix: str, text: str) -> bytes:
    found, data = bech32.decode(text)
    if found != prefix or len(data) != KEY_BYTES:
        msg = "its prefix or its length is wrong"
        raise ValueError(msg)
    return data


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _unbase64(text: str) -> bytes:
    try:
        data = binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    if _base64(data) != text:
        msg = "not canonical base64"
        raise ValueError(msg)
    return data
