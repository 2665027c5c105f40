"""Opens the vault for commands that only read or note something; without Prefect."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from deployments.tables import existing_vault_url
from tasks import vault
from tasks.errors import Refused
from tasks.schema import migrator


@contextmanager
def opened_vault() -> Iterator[psycopg.Connection]:
    """Connect to the vault for the time of a block; Refused when there is none yet, or its schema is older."""
    url = existing_vault_url()
    if url is None:
        message = "There is no vault yet: run `onevault collect`, or set ONEVAULT_VAULT_URL."
        raise Refused(message)
    with vault.connect(url) as conn:
        if vault.vault_url() is None:
            migrator.migrate(conn)
        elif migrator.pending(conn):
            message = "The vault lacks migrations: run `onevault migrate`, then try again."
            raise Refused(message)
        yield conn
