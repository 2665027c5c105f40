"""Registration: what the Prefect server must know before flows can run here. Doing it twice changes nothing."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import httpx
from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.workers.process import ProcessWorker

from blocks.environment import EnvironmentProfile
from blocks.keyring import LocalKeyring
from blocks.postgres import PostgresServer
from blocks.storage.local import LocalStore
from tasks import vault
from tasks.environment import Profile, Setup, load_profile, refuse_weaknesses
from tasks.errors import Unavailable
from tasks.home import home
from tasks.slots import LIMIT_PREFIX

WORK_POOL = "onevault"


BlockT = TypeVar("BlockT", bound=Block)

_BESIDES_THE_URL = ("metrics_user", "metrics_password", "tenant", "pooled_host", "pooled_port")

_KINDS: tuple[type[Block], ...] = (EnvironmentProfile, LocalKeyring, LocalStore, PostgresServer)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the blocks shall hold; what is None stays as it is, or gets its default when it is new."""

    server: PostgresServer | None = None
    store_directory: Path | None = None
    keyring_directory: Path | None = None
    recovery_recipients: Sequence[str] | None = None
    metrics_login: PostgresServer | None = None


def wishes_from(environ: Mapping[str, str] = os.environ) -> Wishes:
    """Read ONEVAULT_SERVER_URL, ONEVAULT_METRICS_URL, ONEVAULT_STORE, ONEVAULT_KEYRING and ONEVAULT_RECOVERY_RECIPIENTS.

    The first two are connection strings (of the second, user and password count), then come two directories, and
    age1... keys, separated by commas.
    """

    def path(name: str) -> Path | None:
        return Path(environ[name]) if environ.get(name) else None

    url, recipients = (
        environ.get("ONEVAULT_SERVER_URL"),
        environ.get("ONEVAULT_RECOVERY_RECIPIENTS"),
    )
    metrics = environ.get("ONEVAULT_METRICS_URL")
    return Wishes(
        PostgresServer.from_conninfo(url) if url else None,
        path("ONEVAULT_STORE"),
        path("ONEVAULT_KEYRING"),
        recipients.replace(",", " ").split() if recipients else None,
        PostgresServer.from_conninfo(metrics) if metrics else None,
    )


def register(environment: str, wishes: Wishes | None = None, name: str = "default") -> list[str]:
    """Save the blocks under this name, the environment's profile, the work pool and the server's limit of one.

    Without wishes, the environment variables tell them. Makes the store's directory and the first keys when they are
    missing. Returns a sentence for each thing. Raises Refused, before anything is saved, when the setup is weaker
    than the environment demands; and Unavailable when the Prefect server does not answer.
    """
    profile = load_profile(environment)
    with _answering(), get_client(sync_client=True) as client:
        store, keyring, server = _wanted(wishes or wishes_from(), name)
        if server is not None:
            refuse_weaknesses(profile, _setup(server, keyring))
        store.prepare()
        keyring.create()
        for kind in _KINDS:
            kind.register_type_and_schema()
        saved = [_save(block, name) for block in (store, keyring, server) if block is not None]
        if server is None:
            saved.append(f"No server {name} yet. Set ONEVAULT_SERVER_URL and register again.")
        return [
            *saved,
            _save(_profile_block(profile), environment),
            _make_pool(client),
            _limit(client, name),
        ]


def _wanted(wishes: Wishes, name: str) -> tuple[LocalStore, LocalKeyring, PostgresServer | None]:
    store, keyring = _saved(LocalStore, name), _saved(LocalKeyring, name)
    store_directory = wishes.store_directory or (store.directory if store else home() / "store")
    keyring_directory = wishes.keyring_directory or (
        keyring.directory if keyring else home() / "keys"
    )
    recipients = wishes.recovery_recipients
    if recipients is None:
        recipients = keyring.recovery_recipients if keyring else []
    return (
        LocalStore(directory=store_directory),
        LocalKeyring(directory=keyring_directory, recovery_recipients=list(recipients)),
        _server(wishes, _saved(PostgresServer, name)),
    )


def _server(wishes: Wishes, saved: PostgresServer | None) -> PostgresServer | None:
    server = wishes.server or saved
    if server is None:
        return None
    # A new connection string says nothing of what else the block holds.
    kept = {name: getattr(saved or server, name) for name in _BESIDES_THE_URL}
    if login := wishes.metrics_login:
        kept |= {"metrics_user": login.user, "metrics_password": login.password}
    return server.model_copy(update=kept)


def _setup(server: PostgresServer, keyring: LocalKeyring) -> Setup:
    return Setup(
        recovery_recipients=len(keyring.recovery_recipients),
        server_host=server.host,
        server_sslmode=server.sslmode,
        vault_is_embedded=vault.vault_url() is None,
    )


def _profile_block(profile: Profile) -> EnvironmentProfile:
    return EnvironmentProfile.model_validate(profile.model_dump())


def _saved(kind: type[BlockT], name: str) -> BlockT | None:
    try:
        return cast("BlockT", kind.load(name))
    except ValueError:  # Prefect's word for a block that is not there, or no longer fits its class
        return None


def _save(block: Block, name: str) -> str:
    before = _saved(type(block), name)
    if before is not None and _fields(before) == _fields(block):
        return _sentence("kept", f"{block.get_block_type_name()} {name}")
    block.save(name, overwrite=True)
    return _sentence(
        "made" if before is None else "changed", f"{block.get_block_type_name()} {name}"
    )


def _fields(block: Block) -> dict[str, object]:
    return {field: getattr(block, field) for field in type(block).model_fields}


def _make_pool(client: SyncPrefectClient) -> str:
    if _present(lambda: client.read_work_pool(WORK_POOL)):
        return _sentence("kept", f"Work pool {WORK_POOL}")
    template = ProcessWorker.get_default_base_job_template()
    client.create_work_pool(
        WorkPoolCreate(name=WORK_POOL, type="process", base_job_template=template)
    )
    return _sentence("made", f"Work pool {WORK_POOL}")


def _limit(client: SyncPrefectClient, server_name: str) -> str:
    name = f"{LIMIT_PREFIX}{server_name}"
    before = _present(lambda: client.read_global_concurrency_limit_by_name(name))
    if before is not None and before.limit == 1:
        return _sentence("kept", f"Concurrency limit {name}")
    client.upsert_global_concurrency_limit_by_name(name, 1)
    return _sentence("made" if before is None else "changed", f"Concurrency limit {name}")


Found = TypeVar("Found")


def _present(read: Callable[[], Found]) -> Found | None:
    try:
        return read()
    except ObjectNotFound:
        return None


def _sentence(verb: str, what: str) -> str:
    return f"{what}: {verb}."


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except (PrefectException, httpx.HTTPError, RuntimeError) as error:
        msg = f"The Prefect server does not answer ({error}). Check PREFECT_API_URL, start it, then register again."
        raise Unavailable(msg) from error
