"""The age v1 format, held against pyrage and the age program."""

import base64
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise

import pyrage  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks import x25519
from tasks.age import (
    CHUNK_BYTES,
    Decryptor,
    Encryptor,
    decrypt_stream,
    encrypt_stream,
    encrypted_bytes,
    new_file_key,
    parse_header,
    seal_header,
)
from tasks.errors import Damaged

SECRET = x25519.generate()
RECIPIENT = x25519.recipient_of(SECRET)
IDENTITY = pyrage.x25519.Identity.from_str(x25519.identity_text(SECRET))
KEY = new_file_key()
EDGES = [
    0,
    1,
    15,
    16,
    CHUNK_BYTES - 1,
    CHUNK_BYTES,
    CHUNK_BYTES + 1,
    3 * CHUNK_BYTES,
    20 * CHUNK_BYTES + 7,
]


def header(key: bytes = KEY) -> bytes:
    return seal_header(key, [x25519.wrap(key, RECIPIENT)])


def encrypt(plain: bytes) -> bytes:
    return b"".join(encrypt_stream([plain], KEY))


def decrypt(payload: bytes) -> bytes:
    return b"".join(decrypt_stream([payload], KEY))


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return (data[start:end] for start, end in pairwise(edges))


@pytest.mark.parametrize("size", EDGES)
def test_pyrage_reads_what_we_write(size: int) -> None:
    plain = secrets.token_bytes(size)
    assert pyrage.decrypt(header() + encrypt(plain), [IDENTITY]) == plain


@pytest.mark.parametrize("size", EDGES)
def test_we_read_what_pyrage_writes(size: int) -> None:
    plain = secrets.token_bytes(size)
    file = pyrage.encrypt(plain, [pyrage.x25519.Recipient.from_str(RECIPIENT)])
    head, payload = split_file(file)
    parsed = parse_header(head)
    key = next(key for each in parsed.stanzas if (key := x25519.unwrap(each, SECRET)))
    parsed.check(key)
    assert b"".join(decrypt_stream([payload], key)) == plain


@pytest.mark.skipif(
    not shutil.which("age"), reason="the age program is not installed (Debian: apt install age)"
)
@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 5 * CHUNK_BYTES + 3])
def test_the_age_program_reads_what_we_write(size: int, tmp_path) -> None:
    plain = secrets.token_bytes(size)
    identity = tmp_path / "key.txt"
    identity.write_text(x25519.identity_text(SECRET) + "\n")
    done = subprocess.run(
        ["age", "-d", "-i", identity],
        input=header() + encrypt(plain),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, plain, b"")


@given(
    size=st.integers(0, 3 * CHUNK_BYTES + 5),
    cuts=st.lists(st.integers(0, 1 << 18), max_size=6),
    other_cuts=st.lists(st.integers(0, 1 << 18), max_size=6),
)
@settings(deadline=None, max_examples=60)
def test_any_cutting_round_trips(size: int, cuts: list[int], other_cuts: list[int]) -> None:
    plain = secrets.token_bytes(size)
    payload = b"".join(encrypt_stream(cut(plain, cuts), KEY))
    assert len(payload) == encrypted_bytes(size)
    assert b"".join(decrypt_stream(cut(payload, other_cuts), KEY)) == plain
    assert pyrage.decrypt(header() + payload, [IDENTITY]) == plain


@given(size=st.integers(0, 2 * CHUNK_BYTES + 5), place=st.integers(0), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=60)
def test_every_flipped_bit_is_damage(size: int, place: int, bit: int) -> None:
    payload = bytearray(encrypt(secrets.token_bytes(size)))
    payload[place % len(payload)] ^= 1 << bit
    with pytest.raises(Damaged, match="another copy"):
        decrypt(bytes(payload))


@given(size=st.integers(0, 2 * CHUNK_BYTES + 5), kept=st.integers(0))
@settings(deadline=None, max_examples=60)
def test_every_truncation_is_damage(size: int, kept: int) -> None:
    payload = encrypt(secrets.token_bytes(size))
    with pytest.raises(Damaged, match="cut off"):
        decrypt(payload[: kept % len(payload)])


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_cut_between_two_chunks_is_damage(chunks: int) -> None:
    payload = encrypt(bytes(3 * CHUNK_BYTES))
    with pytest.raises(Damaged, match="cut off"):
        decrypt(payload[: 16 + chunks * (CHUNK_BYTES + 16)])


@pytest.mark.parametrize("size", [0, 5, CHUNK_BYTES])
def test_bytes_after_the_end_are_damage(size: int) -> None:
    with pytest.raises(Damaged):
        decrypt(encrypt(bytes(size)) + b"x")


def test_swapped_chunks_are_damage() -> None:
    payload = encrypt(bytes(3 * CHUNK_BYTES))
    sealed = CHUNK_BYTES + 16
    swapped = payload[:16] + payload[16 + sealed : 16 + 2 * sealed] + payload[16 : 16 + sealed]
    with pytest.raises(Damaged):
        decrypt(swapped + payload[16 + 2 * sealed :])


def test_an_empty_last_chunk_after_others_is_damage() -> None:
    # Authentic, but not what the format allows: a full chunk sealed as not the last, then an empty last one.
    cipher = Encryptor(KEY)
    payload = b"".join([*cipher.update(bytes(CHUNK_BYTES + 1))])
    cipher._chunks._held.clear()
    with pytest.raises(Damaged):
        decrypt(payload + b"".join(cipher.finish()))


def test_another_key_is_damage() -> None:
    with pytest.raises(Damaged, match="not its own"):
        b"".join(decrypt_stream([encrypt(b"text")], new_file_key()))


def test_two_encryptions_share_nothing() -> None:
    first, second = encrypt(bytes(100)), encrypt(bytes(100))
    assert first[:16] != second[:16]
    assert first[16:] != second[16:]


def test_memory_does_not_grow_with_the_stream() -> None:
    cipher, plain = Encryptor(KEY), Decryptor(KEY)
    for _ in range(50):
        for sealed in cipher.update(bytes(100_000)):
            plain.update(sealed)
        assert len(cipher._chunks.rest()) <= CHUNK_BYTES
        assert len(plain._chunks.rest()) <= CHUNK_BYTES + 16


def test_pieces_are_of_a_good_size_for_any_input() -> None:
    for size in (1000, 8 << 20):
        pieces = [len(piece) for piece in encrypt_stream([bytes(size)] * (8_388_608 // size), KEY)]
        assert max(pieces) < 2 << 20
        assert len(pieces) < 12


def test_a_header_tells_what_it_was_made_of() -> None:
    stanzas = [x25519.wrap(KEY, RECIPIENT), "-> other arg\n\n", f"-> long\n{'A' * 64}\n\n"]
    parsed = parse_header(seal_header(KEY, stanzas))
    assert parsed.stanzas == tuple(stanzas)
    parsed.check(KEY)


def test_a_header_of_another_key_is_damage() -> None:
    with pytest.raises(Damaged, match="MAC"):
        parse_header(header()).check(new_file_key())


@given(place=st.integers(0), byte=st.integers(1, 255))
def test_every_changed_byte_of_a_header_is_damage(place: int, byte: int) -> None:
    text = bytearray(header())
    text[place % len(text)] ^= byte
    with pytest.raises(Damaged):
        parse_header(bytes(text)).check(KEY)


@given(kept=st.integers(0))
def test_every_truncated_header_is_damage(kept: int) -> None:
    text = header()
    with pytest.raises(Damaged):
        parse_header(text[: kept % len(text)])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda text: text + b"x",
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"-> X25519", b"->  X25519"),
        lambda text: text.replace(b"/v1", b"/v2"),
        lambda text: text[:-2] + b"=\n",
    ],
)
def test_a_header_is_read_strictly(wrong) -> None:
    with pytest.raises(Damaged):
        parse_header(wrong(header()))


def test_base64_that_is_not_canonical_is_damage() -> None:
    # 'AB' and 'AA' both decode to one zero byte; only one of them may be read.
    assert parse_header(seal_header(KEY, ["-> any\nAA\n"])).stanzas
    with pytest.raises(Damaged):
        parse_header(seal_header(KEY, ["-> any\nAB\n"]))


@pytest.mark.parametrize("stanza", ["", "X25519\n\n", "-> X25519", "-> a\n" + "A" * 65 + "\n"])
def test_what_is_no_stanza_is_not_sealed(stanza: str) -> None:
    with pytest.raises(ValueError, match="stanza"):
        seal_header(KEY, [stanza])


@pytest.mark.parametrize("size", [0, 15, 17, 32])
def test_a_file_key_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Encryptor(bytes(size))
    with pytest.raises(ValueError, match="16 bytes"):
        b"".join(decrypt_stream([bytes(64)], bytes(size)))


def split_file(file: bytes) -> tuple[bytes, bytes]:
    end = file.index(b"\n", file.index(b"\n--- ") + 1) + 1
    assert len(base64.b64decode(file[:end].rsplit(b" ", 1)[1].strip() + b"=")) == 32
    return file[:end], file[end:]
