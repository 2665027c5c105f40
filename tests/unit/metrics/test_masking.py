import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.metrics.masking import mask_literals

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("select $1 + 2, 'a' from t1", "select $1 + 2, '?' from t1"),
        ("create role ann password 'it''s' login", "create role ann password '?' login"),
        (r"select E'it\'s', e'\\', 1", "select E'?', E'?', 1"),
        ("select U&'d!0061t' uescape '!', x'1F', B'0'", "select U&'?' uescape '?', x'?', B'?'"),
        ("do $$begin null; end$$ language x", "do $$?$$ language x"),
        ("do $a$ x $$ y $b$ $a$ language x", "do $$?$$ language x"),
        ('select "it\'s", "a""b", U&"x" from t', 'select "it\'s", "a""b", U&"x" from t'),
        ("select a$b$c, d$1 from t$$", "select a$b$c, d$1 from t$$"),
        ("select $1$$x$$", "select $1$$?$$"),
        ("select 1 -- it's\n, 'x' -- end", "select 1  \n, '?'"),
        ("/* a /* it's */ b */ select 'x'", "select '?'"),
        ("select 'a' /* cut", "select '?'"),
        ("select 'cut", "select '?'"),
        (r"select 'cut\\", "select '?'"),
        ("do $x$ cut $x", "do $$?$$"),
        (r"select 'either\', 'or'", "select '?'"),
        (r"select 'C:\dir\\', 1", "select '?', 1"),
        ("set x = é'a'", "set x = é'?'"),
        ("", ""),
    ],
)
def test_literals_and_comments_go_and_the_rest_stays(text: str, masked: str):
    assert mask_literals(text) == masked


inside = st.lists(st.sampled_from([*"'\\$\"-*/ \neE&uUx1", "$$", "/*", "*/", "--", "é"]))
"""What literals may hold beside the secret, by preference what means something outside of them."""


@st.composite
def held(draw: st.DrawFn) -> str:
    before, after = "".join(draw(inside)), "".join(draw(inside))
    return f"{before}{SECRET}{after}"


def _dollar(text: str, tag: str) -> str:
    # A delimiter inside would end it.
    return f"${tag}${text.replace('$', '')}${tag}$"


def _comment(text: str) -> str:
    return f"/*{text.replace('/*', '').replace('*/', '').replace('/', '').replace('*', '')}*/"


literals = st.one_of(
    held().map(lambda text: "'" + text.replace("'", "''") + "'"),
    held().map(lambda text: "U&'" + text.replace("'", "''").replace("\\", "\\\\") + "'"),
    held().map(lambda text: "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"),
    held().map(lambda text: "e'" + text.replace("\\", "\\\\").replace("'", "''") + "'"),
    st.builds(_dollar, held(), st.sampled_from(["", "a", "_b1", "é"])),
    held().map(lambda text: "--" + text.replace("\n", "") + "\n"),
    held().map(_comment),
    held().map(lambda text: f"/* /*{_comment(text)}*/ ' */"),
)
others = st.sampled_from(
    [
        "select",
        "$1",
        "42",
        '"na\'me"',
        '"$$"',
        "a$b",
        "=",
        "(",
        ")",
        ";",
        "e",
        "U&",
        "call f(",
        "\n",
    ]
)
statements = st.lists(st.one_of(literals, others), max_size=8).map(" ".join)


@given(statements)
def test_no_literal_survives(text: str):
    assert SECRET not in mask_literals(text)


@given(statements, st.data())
def test_no_literal_survives_being_cut(text: str, data: st.DataObject):
    cut = text[: data.draw(st.integers(0, len(text)))]
    assert SECRET not in mask_literals(cut)


@given(statements)
def test_masking_again_changes_nothing(text: str):
    masked = mask_literals(text)
    assert mask_literals(masked) == masked


@given(st.lists(others, max_size=8).map(" ".join))
def test_without_literals_nothing_is_changed(text: str):
    assert mask_literals(text) == text.strip()


@given(st.text())
def test_any_text_is_masked(text: str):
    assert isinstance(mask_literals(text), str)
