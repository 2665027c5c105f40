"""Reading the connection strings that blocks are made from."""

from collections.abc import Collection

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from blocks.errors import Refused


def read_conninfo(
    conninfo: str | SecretStr, known: Collection[str], database: str
) -> dict[str, str | int | None]:
    """Return the parts of a connection string or URL, which names a host, a user and nothing but known parameters.

    Raises Refused, without repeating it, for one we cannot use; database stands in the sentence's example.
    """
    text = conninfo.get_secret_value() if isinstance(conninfo, SecretStr) else conninfo
    try:
        parts: dict[str, str | int | None] = dict(conninfo_to_dict(text))
    except psycopg.ProgrammingError:
        msg = f"The connection string is not valid. Write it as postgresql://user:password@host:port/{database}."
        raise Refused(msg) from None
    if unknown := sorted(parts.keys() - set(known)):
        msg = f"The connection string has parameters that are not supported: {', '.join(unknown)}. Remove them."
        raise Refused(msg)
    if not parts.get("host") or not parts.get("user"):
        msg = f"The connection string must name a host and a user. Write it as postgresql://user@host:port/{database}."
        raise Refused(msg)
    return parts
