"""Named SQL: a room's statements live in its queries.sql and are chosen by the server's version."""

import re
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import LiteralString

from psycopg import sql

_STATEMENT = re.compile(
    r"--[ ]name:[ ]*(?P<name>[a-z][a-z0-9_]*)[ ]*\n"
    r"(?:--[ ]since:[ ]*(?P<since>\d+)[ ]*\n)?"
    r"--[ ](?!name:|since:)(?P<description>\S[^\n]*)\n"
    r"(?P<text>.*)",
    re.DOTALL,
)
_START = re.compile(r"^(?=--[ ]name:)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Statement:
    """One named statement, from server major version `since` on."""

    name: str
    since: int
    description: str
    text: LiteralString


@dataclass(frozen=True, slots=True)
class Queries:
    """The statements of one queries.sql, by name."""

    room: str
    statements: dict[str, tuple[Statement, ...]] = field(repr=False)

    def statement(self, name: str, server_major: int) -> Statement:
        """Return the variant with the highest `since` that this server has reached; LookupError without one."""
        variants = [item for item in self.statements.get(name, ()) if item.since <= server_major]
        if not variants:
            message = (
                f"{self.room}/queries.sql has no statement {name!r} for PostgreSQL {server_major}."
            )
            raise LookupError(message)
        return max(variants, key=lambda item: item.since)

    def get(self, name: str, server_major: int) -> LiteralString:
        """Return a statement to be sent as it is, its parameters written %(name)s."""
        return self.statement(name, server_major).text

    def compose(self, name: str, server_major: int, **identifiers: sql.Composable) -> sql.Composed:
        """Return a statement with its `{identifier}` places filled, quoted as psycopg.sql does it."""
        return sql.SQL(self.statement(name, server_major).text).format(**identifiers)


def parse(room: str, text: str) -> Queries:
    """Read named statements; ValueError says which one breaks the grammar."""
    before, *chunks = _START.split(text)
    if any(line.strip() and not line.startswith("--") for line in before.splitlines()):
        message = f"{room}/queries.sql has SQL before the first '-- name:' line."
        raise ValueError(message)
    statements: dict[str, tuple[Statement, ...]] = {}
    for chunk in chunks:
        statement = _parse_statement(room, chunk)
        known = statements.setdefault(statement.name, ())
        if any(item.since == statement.since for item in known):
            message = f"{room}/queries.sql names {statement.name!r} twice for the same version."
            raise ValueError(message)
        statements[statement.name] = (*known, statement)
    return Queries(room, statements)


def _parse_statement(room: str, chunk: str) -> Statement:
    match = _STATEMENT.fullmatch(chunk)
    body = match["text"].strip().removesuffix(";") if match else ""
    if not match or not body:
        heading = chunk.splitlines()[0]
        message = (
            f"{room}/queries.sql: {heading!r} needs one description line and a query after it."
        )
        raise ValueError(message)
    named = f"/* onevault:{room}.{match['name']} */ {body}"
    # The files ship with the code, so their text is as trusted as a literal in it. This is the only such place.
    text: LiteralString = named
    return Statement(match["name"], int(match["since"] or 0), match["description"], text)


@cache
def load(package_or_path: str | Path) -> Queries:
    """Read a room's queries.sql (`load("tasks.backup")`) or any file of that grammar, once."""
    if isinstance(package_or_path, Path):
        return parse(package_or_path.parent.name, package_or_path.read_text(encoding="utf-8"))
    room = package_or_path.rpartition(".")[2]
    return parse(room, (files(package_or_path) / "queries.sql").read_text(encoding="utf-8"))
