"""Which failures of a backup may pass when it is tried again."""

import re

import psycopg

from tasks.errors import Unavailable
from tasks.processes import ProgramFailed, TimedOut

# What pg_dump says when a person must change something; anything else may be a moment's trouble.
_FINAL = re.compile(
    r"permission denied|authentication failed|(?:role|database) .* does not exist$|must be superuser|row-level security|row security"
    r"|version mismatch|no pg_hba\.conf entry|unrecognized|invalid option|out of memory"
)


def may_pass(error: BaseException | None) -> bool:
    """Return whether the same backup may succeed when it is tried again a little later."""
    if isinstance(error, TimedOut):
        return False
    if isinstance(error, ProgramFailed):
        return not any(_FINAL.search(line) for line in error.lines)
    return isinstance(error, Unavailable | psycopg.OperationalError | psycopg.errors.UndefinedTable)
