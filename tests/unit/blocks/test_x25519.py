"""X25519 stanzas and keys, held against pyrage."""

import base64
import re

import pyrage  # type: ignore[import-untyped]
import pytest

from blocks import bech32, x25519
from blocks.errors import Refused

FILE_KEY = bytes(range(16))
SECRET = x25519.generate()
RECIPIENT = x25519.recipient_of(SECRET)


def test_pyrage_derives_the_same_recipient() -> None:
    text = x25519.identity_text(SECRET)
    assert text.startswith("AGE-SECRET-KEY-1")
    assert str(pyrage.x25519.Identity.from_str(text).to_public()) == RECIPIENT
    assert x25519.parse_identity(text) == SECRET


def test_a_wrapped_key_comes_back_for_its_secret_only() -> None:
    stanza = x25519.wrap(FILE_KEY, RECIPIENT)
    assert x25519.unwrap(stanza, SECRET) == FILE_KEY
    assert x25519.unwrap(stanza, x25519.generate()) is None


def test_two_wraps_differ() -> None:
    assert x25519.wrap(FILE_KEY, RECIPIENT) != x25519.wrap(FILE_KEY, RECIPIENT)


def test_stanzas_of_other_kinds_are_passed_over() -> None:
    assert x25519.unwrap("-> scrypt c2FsdA 18\nAAAA\n", SECRET) is None
    assert x25519.unwrap("-> X25519tag AAAA\nAAAA\n", SECRET) is None


@pytest.mark.parametrize("place", range(11, 90, 7))
def test_a_tampered_stanza_opens_nothing(place: int) -> None:
    stanza = x25519.wrap(FILE_KEY, RECIPIENT)
    other = "A" if stanza[place] != "A" else "Q"
    changed = stanza[:place] + other + stanza[place + 1 :]
    try:
        assert x25519.unwrap(changed, SECRET) is None
    except Refused as error:
        assert "malformed" in str(error)  # noqa: PT017 - both outcomes are right


@pytest.mark.parametrize(
    "stanza",
    [
        "-> X25519\nAAAA\n",
        f"-> X25519 {'A' * 42}\n{'A' * 43}\n",
        f"-> X25519 {'A' * 43}\n{'A' * 42}\n",
        f"-> X25519 {'A' * 43} extra\n{'A' * 43}\n",
        f"-> X25519 {'A' * 42}B\n{'A' * 43}\n",
        f"-> X25519 {'A' * 43}\n{'A' * 43}\n",  # a point of low order: the shared secret is zero
    ],
)
def test_a_malformed_stanza_is_refused(stanza: str) -> None:
    with pytest.raises(Refused, match="malformed"):
        x25519.unwrap(stanza, SECRET)


@pytest.mark.parametrize(
    "text",
    ["", "age1", RECIPIENT[:-1], "ssh-ed25519 AAAA", bech32.encode("age", bytes(31))],
    ids=["empty", "prefix", "cut", "ssh", "short"],
)
def test_what_is_no_recipient_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="not an age recipient"):
        x25519.parse_recipient(text)


def test_a_secret_in_the_place_of_a_recipient_is_refused_and_not_repeated() -> None:
    secret = x25519.identity_text(SECRET)
    with pytest.raises(Refused, match="public half") as caught:
        x25519.parse_recipient(secret)
    assert secret not in str(caught.value)
    with pytest.raises(Refused) as caught:
        x25519.parse_identity(secret[:-1])
    assert secret[20:40] not in str(caught.value)


def test_a_degenerate_recipient_is_refused() -> None:
    with pytest.raises(Refused, match="degenerate"):
        x25519.wrap(FILE_KEY, bech32.encode("age", bytes(32)))


def test_the_stanza_has_the_form_of_the_specification() -> None:
    stanza = x25519.wrap(FILE_KEY, RECIPIENT)
    found = re.fullmatch(r"-> X25519 ([A-Za-z0-9+/]{43})\n([A-Za-z0-9+/]{43})\n", stanza)
    assert found is not None
    assert len(base64.b64decode(found[1] + "=")) == 32
