"""Opens what a flow names: servers, stores and keyrings from their blocks, and the vault.

Only tasks.py modules and the command line may use it: it knows Prefect and the blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx
import psycopg
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectException

from blocks.keyring import Keyring, LocalKeyring
from blocks.postgres import PostgresServer
from blocks.storage.base import BackupStore
from blocks.storage.local import LocalStore
from tasks import connection, vault
from tasks.environment import Setup, current_environment, load_profile, refuse_weaknesses
from tasks.errors import Refused, Unavailable
from tasks.home import make_home
from tasks.schema import migrator

DEFAULT = "default"
STORES: Sequence[type[BackupStore]] = (LocalStore,)
KEYRINGS: Sequence[type[Keyring]] = (LocalKeyring,)

BlockT = TypeVar("BlockT", bound=Block)


@dataclass(frozen=True, slots=True)
class NamedServer:
    """A looked-after server under its block's name."""

    name: str
    block: PostgresServer

    @property
    def database(self) -> str:
        """Return the maintenance database."""
        return self.block.database

    def connect(self, database: str | None = None) -> "psycopg.Connection[Any]":
        """Open a direct connection in autocommit mode, without a time limit on statements."""
        return connection.connect(
            self.block.conninfo(database).get_secret_value(),
            application_name="onevault backup",
            statement_timeout_ms=0,
            lock_timeout_ms=0,
        )

    def replication_connection(self) -> "psycopg.Connection[Any]":
        """Open a connection that speaks the replication protocol."""
        return connection.connect(
            self.block.conninfo().get_secret_value(),
            application_name="onevault backup",
            statement_timeout_ms=0,
            lock_timeout_ms=0,
            replication=True,
        )

    def libpq_environment(self, passfile: Path) -> dict[str, str]:
        """Return the PG* variables for client programs; the password stands in the passfile."""
        return self.block.libpq_environment(passfile)

    def write_passfile(self, path: Path) -> None:
        """Write the password file, readable by its owner only."""
        self.block.write_passfile(path)


def open_server(name: str) -> NamedServer:
    """Open a server by the name of its PostgresServer block."""
    return NamedServer(name, _load(name, (PostgresServer,), "server"))


def saved(kind: type[BlockT]) -> dict[str, BlockT]:
    """Read every block of a kind in one request, by name; Unavailable when the Prefect API does not answer.

    Unlike loading them one by one it leaves no event for each in Prefect, so it may be done every minute.
    """
    try:
        with get_client(sync_client=True) as client:
            documents = client.read_block_documents_by_type(
                kind.get_block_type_slug(), include_secrets=True
            )
    except ObjectNotFound:
        return {}
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.NOT_FOUND:
            return {}
        raise _silent(error) from error
    except (PrefectException, httpx.HTTPError, OSError) as error:
        raise _silent(error) from error
    return {each.name: kind.model_validate(each.data) for each in documents if each.name}


def open_store(name: str) -> BackupStore:
    """Open a store by its directory or its block; `default` without a block is a directory in the home directory."""
    if directory := _directory(name):
        return LocalStore(directory=directory)
    if name == DEFAULT and not _saved(name, STORES):
        return local_store(make_home() / "store")
    return _load(name, STORES, "store")


def open_keyring(name: str) -> Keyring:
    """Open a keyring by its directory or its block; `default` without a block is a directory in the home directory."""
    if directory := _directory(name):
        return LocalKeyring(directory=directory)
    if name == DEFAULT and not _saved(name, KEYRINGS):
        return local_keyring(make_home() / "keys")
    return _load(name, KEYRINGS, "keyring")


def local_store(directory: Path) -> LocalStore:
    """Open a directory as a store, made when it is missing."""
    store = LocalStore(directory=directory)
    store.prepare()
    return store


def local_keyring(directory: Path) -> LocalKeyring:
    """Open a directory as a keyring, made with a first key when it is missing."""
    keyring = LocalKeyring(directory=directory)
    keyring.create()
    return keyring


def open_vault() -> "psycopg.Connection[Any]":
    """Connect to the vault: the configured one, or the embedded default, which is made and migrated as needed."""
    url = vault.ensure_url()
    if vault.vault_url() is None:
        migrator.migrate(url)
    opened = vault.connect(url)
    try:
        waiting = migrator.pending(opened)
    except BaseException:
        opened.close()
        raise
    if waiting:
        opened.close()
        message = (
            f"The vault lacks {len(waiting)} migrations: run `onevault migrate`, then try again."
        )
        raise Refused(message)
    return opened


def demand_connection(block: PostgresServer) -> None:
    """Refuse a connection, or an embedded vault, that is weaker than the environment demands."""
    profile = load_profile(current_environment())
    setup = Setup(
        recovery_recipients=None,
        server_host=block.host,
        server_sslmode=block.sslmode,
        vault_is_embedded=vault.vault_url() is None,
    )
    refuse_weaknesses(profile, setup)


def demand_environment(server: NamedServer, keyring: Keyring, *, verification: bool) -> int:
    """Refuse what the environment does not allow, all of it in one message; return its retention in days."""
    profile = load_profile(current_environment())
    setup = Setup(
        recovery_recipients=len(keyring.recovery_recipients),
        server_host=server.block.host,
        server_sslmode=server.block.sslmode,
        vault_is_embedded=vault.vault_url() is None,
        verification=verification,
    )
    refuse_weaknesses(profile, setup)
    return profile.backup_retention_days


def _directory(name: str) -> Path | None:
    return Path(name).expanduser().resolve() if "/" in name else None


def _saved(name: str, kinds: Sequence[type[Block]]) -> bool:
    return any(_found(name, kind) is not None for kind in kinds)


def _load(name: str, kinds: Sequence[type[BlockT]], what: str) -> BlockT:
    for kind in kinds:
        if block := _found(name, kind):
            return block
    message = f"There is no {what} block named {name!r}: `onevault config` lists what there is, `onevault register` makes the defaults."
    raise Refused(message)


def _found(name: str, kind: type[BlockT]) -> BlockT | None:
    try:
        return cast("BlockT", kind.load(name, _sync=True))  # type: ignore[call-arg]
    except ValueError:  # Prefect's word for "no such block"
        return None
    except (PrefectException, httpx.HTTPError, OSError) as error:
        raise _silent(error) from error


def _silent(error: Exception) -> Unavailable:
    return Unavailable(
        f"The Prefect API does not answer ({type(error).__name__}): check PREFECT_API_URL and `prefect server start`."
    )
