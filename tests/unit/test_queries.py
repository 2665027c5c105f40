from pathlib import Path

import pytest
from psycopg import sql

from tasks import queries

TEXT = """-- A comment for the reader of the file.

-- name: locks
-- Who waits.
SELECT 1
-- a comment inside
FROM t WHERE a = %(a)s;

-- name: locks
-- since: 17
-- Who waits, as 17 tells it.
SELECT 17;

-- name: locks
-- since: 16
-- Who waits, as 16 tells it.
SELECT 16;

-- name: newest
-- since: 18
-- Only there.
SELECT '{}'::jsonb, * FROM {table};
"""


@pytest.mark.parametrize(("major", "end"), [(15, "%(a)s"), (16, "16"), (17, "17"), (19, "17")])
def test_the_closest_version_below_wins(major, end):
    assert queries.parse("room", TEXT).get("locks", major).endswith(end)


def test_a_statement_names_itself_and_keeps_its_comments():
    text = queries.parse("room", TEXT).get("locks", 15)
    assert text.startswith("/* onevault:room.locks */ SELECT 1\n-- a comment inside\n")
    assert not text.endswith(";")


def test_the_description_is_kept():
    assert (
        queries.parse("room", TEXT).statement("locks", 16).description
        == "Who waits, as 16 tells it."
    )


@pytest.mark.parametrize(("name", "major"), [("nothing", 18), ("newest", 17)])
def test_a_statement_that_is_not_there_is_named(name, major):
    with pytest.raises(
        LookupError, match=f"room/queries.sql has no statement '{name}' for PostgreSQL {major}"
    ):
        queries.parse("room", TEXT).get(name, major)


def test_identifiers_are_quoted():
    parsed = queries.parse("room", "-- name: one\n-- Reads.\nSELECT {column} FROM {table};")
    composed = parsed.compose(
        "one", 15, column=sql.Identifier('a"b'), table=sql.Identifier("s", "t")
    )
    assert composed.as_string(None) == '/* onevault:room.one */ SELECT "a""b" FROM "s"."t"'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("-- name: a\nSELECT 1;", "needs one description line"),
        ("-- name: a\n-- since: x\n-- Says.\nSELECT 1;", "needs one description line"),
        ("-- name: A\n-- Says.\nSELECT 1;", "needs one description line"),
        ("-- name: a\n-- Says.\n", "and a query after it"),
        ("-- name: a\n-- Says.\n;", "and a query after it"),
        ("SELECT 1;\n-- name: a\n-- Says.\nSELECT 1;", "before the first"),
        ("-- name: a\n-- Says.\nSELECT 1;\n-- name: a\n-- Says.\nSELECT 2;", "names 'a' twice"),
    ],
)
def test_a_file_that_breaks_the_grammar_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        queries.parse("room", text)


def test_a_room_and_a_path_load_the_same():
    path = Path(queries.__file__).parent / "backup" / "queries.sql"
    assert queries.load("tasks.backup") == queries.load(path)
    assert queries.load("tasks.backup") is queries.load("tasks.backup")
