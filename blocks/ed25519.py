"""Ed25519 keys as PEM files, which openssl reads too."""

from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from blocks.durable_files import explaining, read_private
from blocks.errors import Refused


def generate() -> tuple[bytes, bytes]:
    """Make a pair of keys; return the private one (PKCS 8) and the public one as PEM."""
    key = Ed25519PrivateKey.generate()
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


def signing_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key, which only its owner may be able to read; raises Refused for anything else."""
    data = read_private(path)
    with suppress(ValueError, TypeError, UnsupportedAlgorithm):
        key = load_pem_private_key(data, password=None)
        if isinstance(key, Ed25519PrivateKey):
            return key
    raise Refused(_unreadable(path))


def verifying_key(path: Path) -> Ed25519PublicKey:
    """Read a public key; raises Refused for anything else."""
    with explaining(path):
        data = path.read_bytes()
    with suppress(ValueError, UnsupportedAlgorithm):
        key = load_pem_public_key(data)
        if isinstance(key, Ed25519PublicKey):
            return key
    raise Refused(_unreadable(path))


def _unreadable(path: Path) -> str:
    return f"{path} holds no readable Ed25519 key. Restore the file from your safe copy."
