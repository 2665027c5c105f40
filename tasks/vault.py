"""The vault: our own PostgreSQL database, where what we know is kept."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg import sql

from tasks import connection, embedded
from tasks.errors import Refused

DATABASE = "onevault"
"""The vault's database on the embedded server."""


def vault_url(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the vault's connection string, or None when none is configured.

    It stands in ONEVAULT_VAULT_URL, or in the file that ONEVAULT_VAULT_URL_FILE names, which nobody
    but its owner may read. Raises Refused for a file that is missing, empty or open to others.
    """
    url, path = environ.get("ONEVAULT_VAULT_URL"), environ.get("ONEVAULT_VAULT_URL_FILE")
    if url and path:
        message = "ONEVAULT_VAULT_URL and ONEVAULT_VAULT_URL_FILE are both set: keep one of them."
        raise Refused(message)
    return _read_secret(Path(path)) if path else url or None


def _read_secret(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        message = f"ONEVAULT_VAULT_URL_FILE names {path}, which cannot be read: {error.strerror}."
        raise Refused(message) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        message = f"{path} holds a password and others may read it: run chmod 600 {path}."
        raise Refused(message)
    if not text:
        message = f"{path} is empty: write the vault's connection string into it."
        raise Refused(message)
    return text


def ensure_url(environ: Mapping[str, str] = os.environ) -> str:
    """Return the configured vault's connection string, or that of the embedded one, started and made if need be.

    Its schema is the migrator's business. Refused in production without a configured vault.
    """
    url = vault_url(environ)
    if url is not None:
        return url
    if environ.get("ONEVAULT_ENV") == "production":
        message = (
            "Production needs a vault of its own, and none is configured: set ONEVAULT_VAULT_URL, or "
            "ONEVAULT_VAULT_URL_FILE to a file with it. The embedded server is for trying out."
        )
        raise Refused(message)
    server = embedded.ensure()
    ensure_database(server.url())
    return server.url(DATABASE)


def connect(
    conninfo: str,
    *,
    application_name: str = "onevault",
    statement_timeout_ms: int = 30_000,
    lock_timeout_ms: int = 5_000,
    autocommit: bool = True,
) -> psycopg.Connection:
    """Open a session on the vault whose forgotten transactions end after a minute; errors as in connection.connect."""
    return connection.connect(
        conninfo,
        application_name=application_name,
        statement_timeout_ms=statement_timeout_ms,
        lock_timeout_ms=lock_timeout_ms,
        idle_in_transaction_timeout_ms=60_000,
        autocommit=autocommit,
    )


def ensure_database(server_conninfo: str, name: str = DATABASE) -> bool:
    """Make a database when the server has none of that name; say whether it was made now.

    Two callers at once are safe. Raises Unavailable or Refused with a sentence.
    """
    with (
        connection.connect(server_conninfo, statement_timeout_ms=120_000) as conn,
        connection.translating(f'make the database "{name}"'),
    ):
        if (
            conn.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone()
            is not None
        ):
            return False
        try:
            conn.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(
                    sql.Identifier(name)
                )
            )
        except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
            return False
        return True
