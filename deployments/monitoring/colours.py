"""The colours of statuses and severities."""

_STYLE = {
    "CRITICAL": "bold red",
    "HIGH": "red",
    "WARNING": "yellow",
    "MEDIUM": "yellow",
    "UNKNOWN": "magenta",
    "LOW": "cyan",
    "NORMAL": "green",
}


def styled(word: str | None) -> str:
    """Colour a status or a severity."""
    if word is None:
        return "-"
    style = _STYLE.get(word)
    return f"[{style}]{word}[/{style}]" if style else word
