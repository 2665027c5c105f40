"""Keyrings: who may open a backup, and whose signature stands under its manifest."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from prefect.blocks.core import Block
from pydantic import AfterValidator, ConfigDict, Field, HttpUrl

from blocks import ed25519, x25519
from blocks.durable_files import (
    absolute,
    check_private_directory,
    explaining,
    make_directories,
    read_private,
    write_private,
)
from blocks.errors import Refused

_KEY_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
_KEY_TIME = "%Y%m%dT%H%M%SZ"
_AGE = ".agekey"
_SIGNING = ".ed25519"
_PUBLIC = ".ed25519.pub"


class UnknownSigner(Refused):
    """The public half of the key that signed is not held, so nobody can say whether the signature is right."""


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A file key, wrapped for each recipient: the active key first, then the recovery recipients."""

    key_id: str
    recipients: tuple[str, ...]
    stanzas: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """An Ed25519 signature, and the id of the key that made it."""

    key_id: str
    value: bytes


def _checked(recipient: str) -> str:
    x25519.parse_recipient(recipient)
    return recipient


class Keyring(Block, ABC):
    """The keys of backups. The newest pair seals and signs; every older one still opens and verifies.

    Attributes:
        recovery_recipients: Public age1... keys whose secret halves are kept offline.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    recovery_recipients: list[Annotated[str, AfterValidator(_checked)]] = Field(
        default_factory=list,
        description=(
            "Public age1... keys whose secret halves are kept offline; every backup can be opened with them too."
        ),
    )

    @property
    @abstractmethod
    def active_key_id(self) -> str:
        """The id of the pair that seals and signs now."""

    @abstractmethod
    def key_ids(self) -> tuple[str, ...]:
        """List the ids of all keys held, sorted; the ids of pairs begin with the time they were made."""

    @abstractmethod
    def recipients(self) -> tuple[str, ...]:
        """List the public keys that new backups are sealed for: the active one, then the recovery recipients."""

    @abstractmethod
    def wrap(self, file_key: bytes) -> Wrapped:
        """Wrap a file key for every recipient, one age stanza each."""

    @abstractmethod
    def unwrap(self, stanzas: Sequence[str], *, written_for: Sequence[str] = ()) -> bytes:
        """Open a file key with any key held; raises Refused when none fits.

        Key ids or recipients in written_for, if they are known, are named in that message.
        """

    @abstractmethod
    def sign(self, message: bytes) -> Signature:
        """Sign with the active pair."""

    @abstractmethod
    def verify(self, message: bytes, key_id: str, signature: bytes) -> None:
        """Raise Refused unless the key with this id made the signature; UnknownSigner when its public half is not held."""


class LocalKeyring(Keyring):
    """Keys in a directory of mode 0700, one pair per rotation, as files that age and openssl read.

    KEYID.agekey is an age identity file, KEYID.ed25519 and KEYID.ed25519.pub are PEM. Any other *.agekey file,
    say an offline recovery key put there for a restore, opens backups but never seals one; it may be the only one.

    Attributes:
        directory: The absolute path of the directory.
        recovery_recipients: Public age1... keys whose secret halves are kept offline.

    Example:
        Load a keyring and see which key is active:
        ```python
        from blocks.keyring import LocalKeyring

        keyring = LocalKeyring.load("BLOCK_NAME")
        print(keyring.active_key_id)
        ```
    """

    _block_type_name = "OneVault Local Keyring"
    _block_type_slug = "onevault-local-keyring"
    _description = "Keeps the keys that encrypt and sign backups in a private directory."
    _logo_url = HttpUrl(
        "https://raw.githubusercontent.com/PrefectHQ/prefect/420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos/secret.png"
    )
    _documentation_url = HttpUrl("https://age-encryption.org/v1")

    directory: Annotated[Path, AfterValidator(absolute)] = Field(
        description="The absolute path of the directory that holds the key files; only its owner may enter it.",
        examples=["/etc/onevault/keys"],
    )

    def create(self, now: datetime | None = None) -> str:
        """Make the directory and its first pair, unless they exist; returns the active key's id."""
        with explaining(self.directory):
            make_directories(self.directory)
        check_private_directory(self.directory)
        return self.active_key_id if self._pair_ids() else self.rotate(now)

    def rotate(self, now: datetime | None = None) -> str:
        """Add a pair and make it the active one; older ones stay readable. Returns the new key's id."""
        check_private_directory(self.directory)
        secret = x25519.generate()
        recipient = x25519.recipient_of(secret)
        made_at = self._next_time(now or datetime.now(UTC))
        key_id = f"{made_at:{_KEY_TIME}}-{hashlib.sha256(recipient.encode()).hexdigest()[:8]}"
        private_pem, public_pem = ed25519.generate()
        write_private(self._file(key_id, _PUBLIC), public_pem)
        write_private(self._file(key_id, _SIGNING), private_pem)
        # The age file comes last: a pair exists when it does.
        write_private(self._file(key_id, _AGE), _identity_file(secret, recipient, made_at))
        return key_id

    @property
    def active_key_id(self) -> str:
        """The id of the newest pair; raises Refused when there is none."""
        held = self.key_ids()
        pairs = self._pair_ids()
        if not pairs:
            msg = (
                f"The keyring {self.directory} holds only keys that open backups ({', '.join(held)}). "
                f"To seal and sign, make a pair: onevault rotate-key --keyring {self.directory}"
            )
            raise Refused(msg)
        return pairs[-1]

    def key_ids(self) -> tuple[str, ...]:
        """List the ids of all keys held, sorted; raises Refused when there is none."""
        check_private_directory(self.directory)
        held = self._held_ids()
        if not held:
            msg = (
                f"The keyring {self.directory} holds no key. Copy a key file (*.agekey, mode 600) from your safe copy "
                f"into it, or make a new pair: onevault rotate-key --keyring {self.directory}"
            )
            raise Refused(msg)
        return held

    def recipients(self) -> tuple[str, ...]:
        """List the public keys that new backups are sealed for: the active one, then the recovery recipients."""
        return self._recipients_of(self.active_key_id)

    def wrap(self, file_key: bytes) -> Wrapped:
        """Wrap a file key for every recipient, one age stanza each."""
        key_id = self.active_key_id
        recipients = self._recipients_of(key_id)
        return Wrapped(
            key_id, recipients, tuple(x25519.wrap(file_key, each) for each in recipients)
        )

    def unwrap(self, stanzas: Sequence[str], *, written_for: Sequence[str] = ()) -> bytes:
        """Open a file key with any key held, the newest first; raises Refused when none fits."""
        held = self.key_ids()
        for key_id in reversed(held):
            for secret in self._secrets(key_id):
                for stanza in stanzas:
                    if file_key := x25519.unwrap(stanza, secret):
                        return file_key
        raise Refused(_no_key(self.directory, held, written_for))

    def sign(self, message: bytes) -> Signature:
        """Sign with the active pair."""
        key_id = self.active_key_id
        key = ed25519.signing_key(self._file(key_id, _SIGNING))
        return Signature(key_id, key.sign(message))

    def verify(self, message: bytes, key_id: str, signature: bytes) -> None:
        """Raise Refused unless the key with this id made the signature; UnknownSigner when its public half is not held."""
        check_private_directory(self.directory)
        file = self._file(key_id, _PUBLIC)
        if not _KEY_ID.fullmatch(key_id) or not file.exists():
            msg = f"Unknown signing key id {key_id!r}. Put its .ed25519.pub file into {self.directory}, if you trust it."
            raise UnknownSigner(msg)
        try:
            ed25519.verifying_key(file).verify(signature, message)
        except InvalidSignature:
            msg = f"The signature by key {key_id} is wrong: what it signs was changed. Take another copy."
            raise Refused(msg) from None

    def _file(self, key_id: str, suffix: str) -> Path:
        return self.directory / f"{key_id}{suffix}"

    def _held_ids(self) -> tuple[str, ...]:
        with explaining(self.directory):
            return tuple(sorted(path.stem for path in self.directory.glob(f"[!.]*{_AGE}")))

    def _pair_ids(self) -> tuple[str, ...]:
        return tuple(key_id for key_id in self._held_ids() if _KEY_ID.fullmatch(key_id))

    def _next_time(self, now: datetime) -> datetime:
        # Later than every pair held, even when the clock was set back or two rotations share a second.
        times = [_time_of(key_id) + timedelta(seconds=1) for key_id in self._pair_ids()]
        return max([now.astimezone(UTC), *times])

    def _recipients_of(self, key_id: str) -> tuple[str, ...]:
        active = x25519.recipient_of(self._secrets(key_id)[0])
        return (
            active,
            *(each for each in dict.fromkeys(self.recovery_recipients) if each != active),
        )

    def _secrets(self, key_id: str) -> list[bytes]:
        path = self._file(key_id, _AGE)
        lines = read_private(path).decode("ascii", "replace").splitlines()
        try:
            found = [x25519.parse_identity(line) for line in _identity_lines(lines)]
        except Refused as error:
            msg = f"{path}: {error}"
            raise Refused(msg) from None
        if not found:
            msg = f"{path} holds no age identity. Restore the file from your safe copy."
            raise Refused(msg)
        return found


def _identity_lines(lines: Iterable[str]) -> Iterable[str]:
    return (line.strip() for line in lines if line.strip() and not line.startswith("#"))


def _identity_file(secret: bytes, recipient: str, made_at: datetime) -> bytes:
    created = f"{made_at:%Y-%m-%dT%H:%M:%SZ}"
    text = f"# created: {created}\n# public key: {recipient}\n{x25519.identity_text(secret)}\n"
    return text.encode("ascii")


def _time_of(key_id: str) -> datetime:
    return datetime.strptime(key_id.partition("-")[0], _KEY_TIME).replace(tzinfo=UTC)


def _no_key(directory: Path, held: Sequence[str], written_for: Sequence[str]) -> str:
    asked = f"; it was written for {', '.join(written_for)}" if written_for else ""
    return (
        f"None of the keys held in {directory} ({', '.join(held)}) opens this{asked}. "
        "Put the right .agekey file into the keyring; a recovery key will do."
    )
