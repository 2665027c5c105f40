"""What a PostgreSQL server of ours wrote into its log."""

import re
from pathlib import Path

from tasks.redaction import redact

_TAIL_BYTES = 16 * 1024
_COMPLAINT = re.compile(r"\b(FATAL|PANIC|ERROR|DETAIL|HINT):")


def size_of(log_path: Path) -> int:
    """Return the size of a log in bytes; 0 when there is none."""
    try:
        return log_path.stat().st_size
    except FileNotFoundError:
        return 0


def tail_of(log_path: Path, *, after_bytes: int = 0, lines: int = 10) -> list[str]:
    """Return the last lines, redacted, of what a log has beyond ``after_bytes``."""
    size = size_of(log_path)
    if size <= after_bytes:
        return []
    with log_path.open("rb") as log:
        log.seek(max(after_bytes, size - _TAIL_BYTES))
        text = log.read().decode(errors="replace")
    return [redact(line) for line in text.splitlines()[-lines:]]


def complaints(log_path: Path, *, after_bytes: int = 0) -> str:
    """Say in one line why a server did not start: its complaints, or else its last words."""
    lines = tail_of(log_path, after_bytes=after_bytes, lines=50)
    wrong = [line for line in lines if _COMPLAINT.search(line)]
    return " | ".join((wrong or lines)[-5:]) or "it said nothing"
