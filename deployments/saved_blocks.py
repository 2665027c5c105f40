"""What Prefect holds for us: the servers, stores and keyrings by name, without their secrets."""

from collections.abc import Iterator, Mapping
from typing import Any

import httpx
from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound, PrefectException

from blocks.postgres import PostgresServer
from deployments.tables import Setting
from tasks import opening

_SOURCE = "Prefect block"


def listed() -> list[Setting]:
    """List the blocks; one line says so when the Prefect API does not answer, or holds none."""
    kinds: dict[str, tuple[type[Block], ...]] = {
        "server": (PostgresServer,),
        "store": tuple(opening.STORES),
        "keyring": tuple(opening.KEYRINGS),
    }
    try:
        with get_client(sync_client=True) as client:
            found = [
                Setting(f"{what} {name}", f"{kind.get_block_type_name()}: {place}", _SOURCE)
                for what, each in kinds.items()
                for kind in each
                for name, place in _blocks(client, kind)
            ]
    except (PrefectException, httpx.HTTPError, OSError, RuntimeError) as error:
        silence = f"unknown: the Prefect API does not answer ({type(error).__name__})"
        return [Setting("servers, stores, keyrings", silence, _SOURCE)]
    none = Setting("servers, stores, keyrings", "none: `onevault register` makes them", _SOURCE)
    return found or [none]


def _blocks(client: SyncPrefectClient, kind: type[Block]) -> Iterator[tuple[str, str]]:
    try:
        documents = client.read_block_documents_by_type(
            kind.get_block_type_slug(), include_secrets=False
        )
    except (ObjectNotFound, httpx.HTTPStatusError) as error:
        if (
            isinstance(error, httpx.HTTPStatusError)
            and error.response.status_code != httpx.codes.NOT_FOUND
        ):
            raise
        return
    for document in documents:
        yield document.name or "", _place(document.data)


def _place(data: Mapping[str, Any]) -> str:
    if "host" in data:
        place = f"{data['host']} port {data.get('port')}, database {data.get('database')}, user {data.get('user')}"
        return f"{place}, sslmode {data.get('sslmode')}"
    recipients = len(data.get("recovery_recipients") or ())
    more = f", {recipients} recovery recipients" if "recovery_recipients" in data else ""
    return f"{data.get('directory', '')}{more}"
