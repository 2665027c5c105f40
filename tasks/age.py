"""The age v1 file format (age-encryption.org/v1) with a detached header.

A header and a payload, one after the other, are a file that every age program opens. We keep them apart, so that
a header can be written anew for other keys while the payload stays where it is. Who may open the header is the
keyring's business: it makes the stanzas.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tasks.errors import Damaged

Bytes = bytes | bytearray | memoryview

FILE_KEY_BYTES = 16
NONCE_BYTES = 16
TAG_BYTES = 16
CHUNK_BYTES = 64 * 1024

_PIECE_CHUNKS = 16
_INTRO = "age-encryption.org/v1\n"
_STANZA = re.compile(r"->(?: [!-~]+)+\n(?:[A-Za-z0-9+/]{64}\n)*[A-Za-z0-9+/]{0,63}\n")
_HEADER = re.compile(
    rf"{re.escape(_INTRO)}(?P<stanzas>(?:{_STANZA.pattern})+)--- (?P<mac>[A-Za-z0-9+/]{{43}})\n"
)


def new_file_key() -> bytes:
    """Make the random key of one object: 16 bytes, never used for a second one."""
    return secrets.token_bytes(FILE_KEY_BYTES)


def encrypted_bytes(plain_bytes: int) -> int:
    """Say how many bytes the payload of so many plain bytes has, its nonce included."""
    chunks = max(1, -(-plain_bytes // CHUNK_BYTES))
    return NONCE_BYTES + plain_bytes + chunks * TAG_BYTES


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header: one stanza for each recipient, and the MAC that only the file key can check."""

    stanzas: tuple[str, ...]
    mac: bytes
    text: bytes = field(repr=False)

    def check(self, file_key: bytes) -> None:
        """Raise Damaged unless this header was sealed with this file key."""
        if not hmac.compare_digest(self.mac, _mac(file_key, self.text)):
            msg = (
                "The encryption header is damaged: its MAC does not fit its key. "
                "Take the header from another copy of the backup."
            )
            raise Damaged(msg)


def seal_header(file_key: bytes, stanzas: Sequence[str]) -> bytes:
    """Write the header that holds these stanzas, with its MAC.

    A stanza is its own text, from the arrow to the line feed of its last line. Raises ValueError for one that is not.
    """
    if not stanzas or not all(_STANZA.fullmatch(stanza) for stanza in stanzas):
        msg = (
            "A header needs one stanza or more, each a whole age stanza that ends with a line feed."
        )
        raise ValueError(msg)
    text = (_INTRO + "".join(stanzas) + "---").encode("ascii")
    mac = base64.b64encode(_mac(file_key, text)).rstrip(b"=")
    return text + b" " + mac + b"\n"


def parse_header(data: bytes) -> Header:
    """Read a header, strictly, without any key; raises Damaged where it is not exactly one."""
    try:
        return _parse(data)
    except ValueError:
        msg = (
            "The encryption header is damaged: it is not an age v1 header. "
            "Take it from another copy of the backup."
        )
        raise Damaged(msg) from None


class Encryptor:
    """Encrypts the payload of one object, piece by piece; memory stays at two chunks."""

    def __init__(self, file_key: bytes) -> None:
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._cipher = ChaCha20Poly1305(_derive(file_key, self._nonce, b"payload"))
        self._chunks = _Chunks(CHUNK_BYTES)
        self._counter = 0

    def update(self, data: Bytes) -> list[bytes]:
        """Take plain bytes; return what is ready, in order: the nonce first, then sealed chunks."""
        return [*self._opening(), *map(self._seal, self._chunks.push(data))]

    def finish(self) -> list[bytes]:
        """Return the rest; nothing may be added afterwards."""
        return [*self._opening(), self._seal(self._chunks.rest(), last=True)]

    def _opening(self) -> list[bytes]:
        nonce, self._nonce = self._nonce, b""
        return [nonce] if nonce else []

    def _seal(self, chunk: Bytes, last: bool = False) -> bytes:
        sealed = self._cipher.encrypt(_chunk_nonce(self._counter, last), chunk, None)
        self._counter += 1
        return sealed


class Decryptor:
    """Decrypts the payload of one object, piece by piece, and believes no byte before its tag is checked.

    What update returns is authentic, but only finish proves that nothing is missing at the end.
    """

    def __init__(self, file_key: bytes) -> None:
        self._file_key = file_key
        self._nonce = b""
        self._cipher: ChaCha20Poly1305 | None = None
        self._chunks = _Chunks(CHUNK_BYTES + TAG_BYTES)
        self._counter = 0

    def update(self, data: Bytes) -> list[bytes]:
        """Take encrypted bytes; return the plain ones that are ready. Raises Damaged at the first wrong tag."""
        if self._cipher is None:
            data = self._take_nonce(memoryview(data).cast("B"))
        return [self._open(chunk) for chunk in self._chunks.push(data)]

    def finish(self) -> list[bytes]:
        """Return the last plain bytes; raises Damaged when the payload is cut off or goes on after its end."""
        plain = self._open(self._chunks.rest(), last=True)
        if not plain and self._counter > 1:
            raise Damaged(_damaged(self._counter - 1))
        return [plain] if plain else []

    def _take_nonce(self, data: memoryview) -> memoryview:
        missing = NONCE_BYTES - len(self._nonce)
        self._nonce += bytes(data[:missing])
        if len(self._nonce) == NONCE_BYTES:
            self._cipher = ChaCha20Poly1305(_derive(self._file_key, self._nonce, b"payload"))
        return data[missing:]

    def _open(self, chunk: Bytes, last: bool = False) -> bytes:
        if self._cipher is None:
            msg = "The encrypted payload is cut off within its first 16 bytes. Restore it from another copy."
            raise Damaged(msg)
        try:
            plain = self._cipher.decrypt(_chunk_nonce(self._counter, last), chunk, None)
        except InvalidTag:
            raise Damaged(_damaged(self._counter)) from None
        self._counter += 1
        return plain


def encrypt_stream(chunks: Iterable[Bytes], file_key: bytes) -> Iterator[bytes]:
    """Encrypt a stream of plain bytes into a payload, in pieces of about 1 MiB."""
    cipher = Encryptor(file_key)
    return _pieces(cipher, chunks)


def decrypt_stream(chunks: Iterable[Bytes], file_key: bytes) -> Iterator[bytes]:
    """Decrypt a payload into a stream of plain bytes, in pieces of about 1 MiB.

    Raises Damaged where the payload is wrong. Everything yielded before is authentic, but may be incomplete.
    """
    cipher = Decryptor(file_key)
    return _pieces(cipher, chunks)


def _pieces(cipher: Encryptor | Decryptor, chunks: Iterable[Bytes]) -> Iterator[bytes]:
    ready: list[bytes] = []
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        for start in range(0, len(view), _PIECE_CHUNKS * CHUNK_BYTES):
            ready += cipher.update(view[start : start + _PIECE_CHUNKS * CHUNK_BYTES])
            if len(ready) >= _PIECE_CHUNKS:
                yield b"".join(ready)
                ready.clear()
    ready += cipher.finish()
    if ready:
        yield b"".join(ready)


class _Chunks:
    """Cuts bytes that arrive in any size into chunks of one size; the last one is always held back."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = bytearray()

    def push(self, data: Bytes) -> Iterator[Bytes]:
        view = memoryview(data).cast("B")
        start = 0
        if self._held:
            start = min(self._size - len(self._held), len(view))
            self._held += view[:start]
            if start == len(view):
                return
            yield self._held
            self._held = bytearray()
        while len(view) - start > self._size:
            yield view[start : start + self._size]
            start += self._size
        self._held += view[start:]

    def rest(self) -> Bytes:
        return self._held


def _parse(data: bytes) -> Header:
    found = _HEADER.fullmatch(data.decode("ascii"))
    if found is None:
        msg = "not a header"
        raise ValueError(msg)
    stanzas = tuple(match[0] for match in _STANZA.finditer(found["stanzas"]))
    for stanza in stanzas:
        _unbase64("".join(stanza.splitlines()[1:]))
    return Header(stanzas, _unbase64(found["mac"]), data[: data.rindex(b"--- ") + 3])


def _chunk_nonce(counter: int, last: bool) -> bytes:
    return (counter << 8 | last).to_bytes(12, "big")


def _derive(file_key: bytes, salt: bytes, info: bytes) -> bytes:
    if len(file_key) != FILE_KEY_BYTES:
        msg = f"A file key has {FILE_KEY_BYTES} bytes, not {len(file_key)}."
        raise ValueError(msg)
    return HKDF(SHA256(), 32, salt, info).derive(file_key)


def _mac(file_key: bytes, text: bytes) -> bytes:
    return hmac.digest(_derive(file_key, b"", b"header"), text, hashlib.sha256)


def _unbase64(text: str) -> bytes:
    try:
        data = binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    if base64.b64encode(data).decode().rstrip("=") != text:
        msg = "not canonical base64"
        raise ValueError(msg)
    return data


def _damaged(counter: int) -> str:
    start = NONCE_BYTES + counter * (CHUNK_BYTES + TAG_BYTES)
    return (
        f"The encrypted payload is damaged or cut off at byte {start} or in the 64 KiB after it, "
        "or the key is not its own. Restore it from another copy."
    )
