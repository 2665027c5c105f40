"""What may not be read by others, taken out of text that will be."""

import re

_MASK = "***"
_URL = re.compile(r"(?P<before>[a-z][a-z0-9+.-]*://[^\s:/@]*:)\S*@", re.IGNORECASE)
_WORD = re.compile(
    r"""(?P<before>pass(?:word|wd|phrase)["']?(?:\s*[=:]\s*|\s+(?=(?:e|u&)?'|\$\w*\$)))"""
    r"""(?:(?:e|u&)?'(?:\\.|''|[^'\\])*'?|\$(?P<tag>\w*)\$.*?(?:\$(?P=tag)\$|\Z)|"(?:\\.|[^"\\])*"?|(?:\\.|[^\s\\])+)""",
    re.IGNORECASE | re.DOTALL,
)
_AGE_KEY = re.compile(r"AGE-SECRET-KEY-[0-9A-Z-]+", re.IGNORECASE)


def redact(text: str) -> str:
    """Hide passwords in addresses, ``password=`` words and age secret keys.

    It rather hides too much than too little: the rest of a word after a password goes too.
    """
    text = _URL.sub(rf"\g<before>{_MASK}@", text)
    text = _WORD.sub(rf"\g<before>{_MASK}", text)
    return _AGE_KEY.sub(_MASK, text)
