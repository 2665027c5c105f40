"""What every store can do, in primitives: create-only objects under keys."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import ConfigDict

from blocks.errors import Refused

_KEY_BYTES = 1024
_BAD_KEY = re.compile(r"(?:^|/)(?:\.{0,2}|\.partial-[^/]*)(?:/|$)|[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as a listing shows it."""

    key: str
    size_bytes: int
    modified_at: datetime


class ObjectWriter(ABC):
    """An object being written; nobody sees it before commit."""

    @abstractmethod
    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes; parts of 8 MiB are a good size."""

    @abstractmethod
    def commit(self) -> None:
        """Make the object visible and durable; raises Refused when its key was taken meanwhile."""


class BackupStore(Block, ABC):
    """A place for backups. Objects are written once, whole, and never changed."""

    model_config = ConfigDict(extra="forbid")

    kind: ClassVar[str]

    @abstractmethod
    def create(self, key: str) -> AbstractContextManager[ObjectWriter]:
        """Open a new object; leaving the context without commit leaves nothing behind.

        Raises Refused when the key is taken or is not a valid key.
        """

    @abstractmethod
    def read(
        self, key: str, offset: int = 0, length: int | None = None, chunk_bytes: int = 1 << 20
    ) -> Iterator[bytes]:
        """Read an object, or a range of it, in chunks; the first step raises Refused when it is missing."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """List the objects whose keys start with the prefix, sorted by key."""

    @abstractmethod
    def delete_object(self, key: str) -> None:
        """Delete an object; one that is missing is deleted already."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Say how many bytes still fit; None when the store has no such limit."""

    @abstractmethod
    def location(self) -> str:
        """Say where the store is, for people."""

    @abstractmethod
    def check(self) -> None:
        """Prove that objects can be written; raises Refused or Unavailable with what is wrong."""

    def put(self, key: str, data: bytes) -> None:
        """Write a small object at once; raises Refused when the key is taken."""
        with self.create(key) as writer:
            writer.write(data)
            writer.commit()

    def get(self, key: str) -> bytes:
        """Read a small object whole."""
        return b"".join(self.read(key))

    def delete_prefix(self, prefix: str) -> None:
        """Delete every object whose key starts with the prefix, which must not be empty."""
        if not prefix:
            msg = "An empty prefix would delete the whole store. Name what to delete."
            raise Refused(msg)
        for stored in self.list(prefix):
            self.delete_object(stored.key)


def check_key(key: str) -> str:
    """Return the key; raises Refused for one that some store could not hold, or that leaves its store."""
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError:
        size_bytes = _KEY_BYTES + 1
    if size_bytes > _KEY_BYTES or _BAD_KEY.search(key):
        msg = (
            f"{key!r} is not a valid key. Use up to {_KEY_BYTES} bytes of UTF-8: names joined by single slashes, "
            "none of them empty, '.', '..' or starting with '.partial-', and no control characters."
        )
        raise Refused(msg)
    return key
