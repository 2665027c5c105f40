"""Bech32 (BIP 173) without its limit of 90 characters: how age writes keys."""

from collections.abc import Iterable

_CHARSET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM_WORDS = 6


def encode(prefix: str, data: bytes) -> str:
    """Write bytes as lower-case bech32 under a lower-case prefix."""
    words = _regroup(data, 8, 5, pad=True)
    checksum = _polymod([*_expand(prefix), *words, *[0] * _CHECKSUM_WORDS]) ^ 1
    words += [checksum >> 5 * (5 - i) & 31 for i in range(_CHECKSUM_WORDS)]
    return f"{prefix}1{''.join(_CHARSET[word] for word in words)}"


def decode(text: str) -> tuple[str, bytes]:
    """Read the prefix, in lower case, and the bytes; raises ValueError, without the text, for anything else."""
    prefix, words = split(text)
    return prefix, bytes(_regroup(words, 5, 8, pad=False))


def split(text: str) -> tuple[str, list[int]]:
    """Check the form and the checksum; return the prefix and the words of five bits, without the checksum."""
    if text not in (text.lower(), text.upper()):
        msg = "upper and lower case are mixed"
        raise ValueError(msg)
    prefix, one, tail = text.lower().rpartition("1")
    if not prefix or not one or not all("!" <= letter <= "~" for letter in prefix):
        msg = "it has no valid prefix before its last 1"
        raise ValueError(msg)
    if len(tail) < _CHECKSUM_WORDS or not set(tail) <= set(_CHARSET):
        msg = "it is too short or holds a letter that bech32 does not use"
        raise ValueError(msg)
    words = [_CHARSET.index(letter) for letter in tail]
    if _polymod([*_expand(prefix), *words]) != 1:
        msg = "its checksum is wrong: a letter was changed or lost"
        raise ValueError(msg)
    return prefix, words[:-_CHECKSUM_WORDS]


def _expand(prefix: str) -> list[int]:
    return [*(ord(letter) >> 5 for letter in prefix), 0, *(ord(letter) & 31 for letter in prefix)]


def _polymod(words: Iterable[int]) -> int:
    checksum = 1
    for word in words:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ word
        for i, generator in enumerate(_GENERATOR):
            checksum ^= generator if top >> i & 1 else 0
    return checksum


def _regroup(values: Iterable[int], from_bits: int, to_bits: int, *, pad: bool) -> list[int]:
    held = bits = 0
    groups = []
    for value in values:
        held = (held << from_bits | value) & 0xFFF
        bits += from_bits
        while bits >= to_bits:
            bits -= to_bits
            groups.append(held >> bits & (1 << to_bits) - 1)
    rest = held & (1 << bits) - 1
    if pad and bits:
        groups.append(rest << to_bits - bits)
    elif not pad and (bits >= from_bits or rest):
        msg = "its last bits are not the padding that bech32 asks for"
        raise ValueError(msg)
    return groups
