"""Bech32, with the vectors of BIP 173."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks import bech32

VALID = [
    "A12UEL5L",
    "a12uel5l",
    "an83characterlonghumanreadablepartthatcontainsthenumber1andtheexcludedcharactersbio1tt5tgs",
    "abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw",
    "11qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqc8247j",
    "split1checkupstagehandshakeupstreamerranterredcaperred2y9e3w",
    "?1ezyfcl",
]
INVALID = [
    " 1nwldj5",
    "\x7f1axkwrx",
    "\x801eym55h",
    "pzry9x0s0muk",
    "1pzry9x0s0muk",
    "x1b4n0q5v",
    "li1dgmt3",
    "de1lg7wt\xff",
    "A1G7SGD8",
    "10a06t8",
    "1qzzfhee",
    "A12uEL5L",
    "",
]


@pytest.mark.parametrize("text", VALID)
def test_valid_vectors_are_read(text: str) -> None:
    prefix, words = bech32.split(text)
    assert text.lower().startswith(f"{prefix}1")
    assert len(prefix) + 1 + len(words) + 6 == len(text)


@pytest.mark.parametrize("text", INVALID)
def test_invalid_vectors_are_not(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(it|upper)"):
        bech32.decode(text)


def test_all_words_decode_to_bytes() -> None:
    prefix, data = bech32.decode("abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw")
    assert (prefix, data.hex()) == ("abcdef", "00443214c74254b635cf84653a56d7c675be77df")


@given(prefix=st.from_regex(r"[a-z!-/0-9]{1,12}", fullmatch=True), data=st.binary(max_size=200))
def test_bytes_round_trip(prefix: str, data: bytes) -> None:
    text = bech32.encode(prefix, data)
    assert bech32.decode(text) == (prefix, data)
    assert bech32.decode(text.upper()) == (prefix, data)


@given(
    data=st.binary(min_size=1, max_size=40),
    place=st.integers(0),
    letter=st.sampled_from("qpzry9x8gf2tvdw0"),
)
def test_one_changed_letter_is_found(data: bytes, place: int, letter: str) -> None:
    text = bech32.encode("age", data)
    place = 4 + place % (len(text) - 4)
    changed = text[:place] + letter + text[place + 1 :]
    if changed != text:
        with pytest.raises(ValueError, match="checksum"):
            bech32.decode(changed)
