"""The project's documents, as the tests read them: shell blocks, links, headings."""

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[1]

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^>]*?) -->\n)?^(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(?P<text>.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, what the comment before it says, and its text."""

    kind: str
    mark: str
    text: str


def documents() -> list[Path]:
    """List every document a user reads."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(path: Path) -> list[Block]:
    """List the fenced blocks of a document."""
    found = _BLOCK.finditer(path.read_text(encoding="utf-8"))
    return [Block(each["kind"], each["mark"] or "", dedent(each["text"])) for each in found]


def links(path: Path) -> list[str]:
    """List where the links of a document lead."""
    return [each["target"] for each in _LINK.finditer(_prose(path))]


def anchors(path: Path) -> set[str]:
    """List the anchors of a document's headings, as GitHub names them."""
    headings = (each["text"].lower() for each in _HEADING.finditer(_prose(path)))
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in headings}


def _prose(path: Path) -> str:
    return _BLOCK.sub("", path.read_text(encoding="utf-8"))
