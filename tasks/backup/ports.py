"""What the backup room asks of the outside; the blocks fulfil it without knowing."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import psycopg


class ObjectWriter(Protocol):
    """An object being written; it is visible only after commit."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes."""

    def commit(self) -> None:
        """Make the object visible and durable; refused when the key is taken."""


class ListedObject(Protocol):
    """An object as a listing shows it."""

    @property
    def key(self) -> str:
        """Return the object's key."""

    @property
    def size_bytes(self) -> int:
        """Return the object's size."""


class ObjectStore(Protocol):
    """Where backups lie: create-only objects under keys."""

    def create(self, key: str) -> AbstractContextManager[ObjectWriter]:
        """Open an object for writing."""

    def put(self, key: str, data: bytes) -> None:
        """Write a small object, create-only."""

    def read(self, key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read an object, or a range of it."""

    def get(self, key: str) -> bytes:
        """Read a small object whole."""

    def list(self, prefix: str = "") -> Iterator[ListedObject]:
        """List objects by key, sorted."""

    def delete_prefix(self, prefix: str) -> None:
        """Delete every object under a prefix."""

    def check(self) -> None:
        """Prove that objects can be written."""

    def free_bytes(self) -> int | None:
        """Return the room left, or None when the store does not know."""

    def location(self) -> str:
        """Return where the store is, for people."""


@runtime_checkable
class SweptStore(Protocol):
    """A store in which a writer that dies leaves something behind."""

    def sweep_partials(self, older_than_seconds: float) -> int:
        """Remove what dead writers left, and nothing of the living; return how much that was."""


class Wrapped(Protocol):
    """A file key, wrapped for each recipient."""

    @property
    def key_id(self) -> str:
        """Return the id of the active key."""

    @property
    def recipients(self) -> tuple[str, ...]:
        """Return the public recipients, the active key's first."""

    @property
    def stanzas(self) -> tuple[str, ...]:
        """Return one age stanza per recipient."""


class Signed(Protocol):
    """A signature and the key that made it."""

    @property
    def key_id(self) -> str:
        """Return the id of the signing key."""

    @property
    def value(self) -> bytes:
        """Return the Ed25519 signature."""


class KeyHolder(Protocol):
    """Who wraps file keys and signs manifests."""

    def wrap(self, file_key: bytes) -> Wrapped:
        """Wrap a file key for the active key and every recovery recipient."""

    def unwrap(self, stanzas: Sequence[str]) -> bytes:
        """Open a file key with any key held."""

    def sign(self, message: bytes) -> Signed:
        """Sign with the active signing key."""

    def verify(self, message: bytes, key_id: str, signature: bytes) -> None:
        """Check a signature; refused when it is bad or the key is unknown."""


class Server(Protocol):
    """A looked-after server, and how to reach it."""

    @property
    def database(self) -> str:
        """Return the maintenance database."""

    def connect(self, database: str | None = None) -> "psycopg.Connection[Any]":
        """Open a direct connection in autocommit mode."""

    def replication_connection(self) -> "psycopg.Connection[Any]":
        """Open a connection that speaks the replication protocol."""

    def libpq_environment(self, passfile: Path) -> dict[str, str]:
        """Return the PG* variables for client programs; the password stands in the passfile."""

    def write_passfile(self, path: Path) -> None:
        """Write the password file, readable by its owner only."""
