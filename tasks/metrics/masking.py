"""Leaving the literals out of SQL: utility statements keep theirs in pg_stat_statements, passwords among them."""

import re

_NAME = r"[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_\u0080-\U0010ffff]*"
# By PostgreSQL's lexical rules. What they leave open is read so that more is left out: where a plain literal has a
# backslash before a quotation mark, its end depends on standard_conforming_strings, and everything after it goes.
_TOKEN = re.compile(
    rf"""
    (?P<escaped>[eE]'(?:[^'\\]|\\.|'')*(?:'|\\?\Z))
    |(?P<plain>'(?:[^'\\]|''|\\[^'])*(?:'|\\?\Z|\\'.*))
    |(?P<dollar>\$(?P<tag>(?:{_NAME})?)\$(?:.*?\$(?P=tag)\$|.*))
    |(?P<name>"[^"]*"|[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_$\u0080-\U0010ffff]*|\$\d+)
    |(?P<line>--[^\r\n]*)
    |(?P<block>/\*)
    """,
    re.DOTALL | re.VERBOSE,
)
_INSTEAD = {"escaped": "E'?'", "plain": "'?'", "dollar": "$$?$$", "line": " "}
_BLOCK = re.compile(r"/\*|\*/")


def mask_literals(text: str) -> str:
    """Return SQL with ? for what its quoted literals hold, and without comments; names and numbers stay.

    It may be cut anywhere: a literal or a comment that does not end goes as a whole.
    """
    parts, at = [], 0
    while found := _TOKEN.search(text, at):
        parts.append(text[at : found.start()])
        kind, at = found.lastgroup or "", found.end()
        if found["block"]:
            parts.append(" ")
            at = _end_of_block(text, at)
        else:
            parts.append(_INSTEAD.get(kind, found[0]))
    return "".join([*parts, text[at:]]).strip()


def _end_of_block(text: str, at: int) -> int:
    """Return where the comment ends that began before; comments nest."""
    depth = 1
    while depth and (found := _BLOCK.search(text, at)):
        depth, at = depth + (1 if found[0] == "/*" else -1), found.end()
    return len(text) if depth else at
