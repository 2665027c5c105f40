"""Sections of RESULTS.md, each replaced by its own benchmark only."""

import re
from pathlib import Path


def replace(out: Path, title: str, text: str) -> None:
    """Put a section in the place of its older self, or at the end; the text begins with its heading `# title`."""
    there = out.read_text() if out.exists() else ""
    pattern = re.compile(rf"^# {re.escape(title)}\n.*?(?=^# |\Z)", re.MULTILINE | re.DOTALL)
    if (found := pattern.search(there)) is None:
        out.write_text(f"{there.rstrip()}\n\n\n{text}" if there else text)
        return
    gap = "\n\n" if found.end() < len(there) else ""
    out.write_text(f"{there[: found.start()]}{text}{gap}{there[found.end() :]}")
