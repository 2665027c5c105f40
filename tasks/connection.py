"""Connecting to PostgreSQL politely: named, with time limits, and with errors a person can act on."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tasks.errors import OneVaultError, Refused, Unavailable

_Parts = dict[str, str | int | None]
_DEFAULTS: _Parts = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}
# A failed connection carries no SQLSTATE, only words; these are the ones that trying again will not change.
_NEVER = re.compile(
    r"authentication failed|no pg_hba\.conf entry|no password supplied|pg_hba\.conf rejects"
    r"|(?:role|database) .* does not exist|permission denied for database|is not permitted to log in"
    r"|not currently accepting connections|does not support SSL|server certificate|certificate verify failed"
    r"|certificate file|private key file|must be superuser|permission denied to start WAL sender",
)
# Connection lost, out of resources, deadlock or serialization, lock or statement timeout, server going down.
_MAY_PASS = ("08", "53", "40", "57", "58", "55P03")
# No such login, no such database or schema, no right, read only.
_WILL_NOT_PASS = ("28", "3D", "42501", "25006")


def connect(  # noqa: PLR0913 - each of these is a fact of the session
    conninfo: str,
    *,
    application_name: str = "onevault",
    statement_timeout_ms: int = 60_000,
    lock_timeout_ms: int = 5_000,
    idle_in_transaction_timeout_ms: int = 0,
    autocommit: bool = True,
    replication: bool = False,
) -> psycopg.Connection:
    """Open a session with time limits (0 means none).

    Raises Unavailable when the server does not answer and Refused when it says no; both sentences
    name host, port, database and user, and never the password.
    """
    parts = _parts_of(
        conninfo,
        application_name,
        statement_timeout=statement_timeout_ms,
        lock_timeout=lock_timeout_ms,
        idle_in_transaction_session_timeout=idle_in_transaction_timeout_ms,
    )
    if replication:
        parts["replication"] = "true"
    try:
        return psycopg.connect(make_conninfo("", **parts), autocommit=autocommit)
    except psycopg.OperationalError as error:
        raise _not_connected(error, parts) from None


async def connect_async(
    conninfo: str,
    *,
    application_name: str = "onevault",
    statement_timeout_ms: int = 60_000,
    lock_timeout_ms: int = 5_000,
    settings: Mapping[str, int | str] | None = None,
) -> psycopg.AsyncConnection:
    """Open an autocommit session for asyncio, under the rules and with the errors of connect().

    settings are further settings of the session; their values have no spaces.
    """
    parts = _parts_of(
        conninfo,
        application_name,
        statement_timeout=statement_timeout_ms,
        lock_timeout=lock_timeout_ms,
        **(settings or {}),
    )
    try:
        return await psycopg.AsyncConnection.connect(make_conninfo("", **parts), autocommit=True)
    except psycopg.OperationalError as error:
        raise _not_connected(error, parts) from None


def describe(conninfo: str) -> str:
    """Return host, port, database and user in words, without the password."""
    return _describe(_parse(conninfo))


@contextmanager
def translating(doing: str) -> Iterator[None]:
    """Turn the driver's errors into ours, as "Could not <doing>: ..."; mistakes in our own SQL pass unchanged."""
    try:
        yield
    except psycopg.Error as error:
        translated = translate(error, doing)
        if translated is None:
            raise
        raise translated from error


def translate(error: psycopg.Error, doing: str) -> OneVaultError | None:
    """Return the error a caller can act on, or None when the fault is in our own statement."""
    state = error.sqlstate or ""
    words = str(error).strip().partition("\n")[0] or "the connection was lost"
    if state.startswith(_WILL_NOT_PASS):
        return Refused(f"Could not {doing}: {words}.")
    lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and not state
    if lost or state.startswith(_MAY_PASS):
        return Unavailable(f"Could not {doing}: {words}. Try again.")
    return None


def server_major(conn: psycopg.Connection) -> int:
    """Return the server's major version."""
    return conn.info.server_version // 10_000


def fetch_value(conn: psycopg.Connection, query: LiteralString, **values: object) -> object:
    """Return the first column of the first row, or None without a row."""
    row = conn.execute(query, values).fetchone()
    return row[0] if row else None


def _parse(conninfo: str) -> _Parts:
    message = (
        "The connection string is not valid: write it as postgresql://user:password@host:port/database, "
        "with %40 for an @ in the password."
    )
    try:
        parts: _Parts = dict(conninfo_to_dict(conninfo))
    except psycopg.ProgrammingError:
        # The driver's words quote the string, and a password may stand in it.
        raise Refused(message) from None
    # An unescaped @ in the password leaves its rest in front of the host.
    if "@" in str(parts.get("host") or ""):
        raise Refused(message)
    return parts


def _parts_of(conninfo: str, application_name: str, **settings: int | str) -> _Parts:
    parts: _Parts = {**_DEFAULTS, **_parse(conninfo), "application_name": application_name}
    parts["options"] = _options(str(parts.get("options") or ""), **settings)
    return parts


def _options(given: str, **settings: int | str) -> str:
    return " ".join([given, *(f"-c {name}={value}" for name, value in settings.items())]).strip()


def _describe(parts: _Parts) -> str:
    host = parts.get("host") or parts.get("hostaddr") or "the local socket"
    port, user = parts.get("port") or 5432, parts.get("user") or "(default)"
    return f'{host} port {port}, database "{parts.get("dbname") or user}", user "{user}"'


def _not_connected(error: psycopg.OperationalError, parts: _Parts) -> OneVaultError:
    words = " ".join(str(error).split("failed: ")[-1].split())
    sentence = f"Could not connect to PostgreSQL at {_describe(parts)}: {words.rstrip('.')}."
    if _NEVER.search(words):
        return Refused(f"{sentence} Correct the connection settings or the server's access rules.")
    return Unavailable(f"{sentence} Check that the server runs and can be reached, then try again.")
