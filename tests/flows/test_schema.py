import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prefect import flow

from flows.schema import migrate_schema
from tasks.errors import Refused, Unavailable
from tasks.private_cluster import PrivateCluster
from tasks.programs import Installation
from tasks.schema.tasks import apply_migrations
from tests.clusters import short_folder

NAMES = [
    "0001_util_and_auth",
    "0002_audit",
    "0003_backup_mgmt",
    "0004_monitoring",
    "0005_alerts",
]


@flow
def migrate_without_waiting() -> list[str]:
    """As migrate_schema, with nothing between one attempt and the next."""
    return apply_migrations.with_options(retry_delay_seconds=0)()


@contextmanager
def server_that_answers(code: str, words: str) -> Iterator[tuple[str, list[bytes]]]:
    """Something on a port that refuses every login with one error; its address, and who came."""
    fields = f"SFATAL\0VFATAL\0C{code}\0M{words}\0\0".encode()
    came: list[bytes] = []

    class Refuse(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            came.append(self.request.recv(4096))
            self.request.sendall(b"E" + struct.pack("!i", len(fields) + 4) + fields)

    with socketserver.TCPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        login = f"host=127.0.0.1 port={server.server_address[1]} user=ann dbname=vault"
        yield f"{login} sslmode=disable gssencmode=disable", came
        server.shutdown()


@pytest.fixture
def server(installation: Installation) -> Iterator[PrivateCluster]:
    """A running server, gone after the test."""
    with short_folder() as folder:
        cluster = PrivateCluster(folder / "cluster", installation)
        cluster.create()
        with cluster.running():
            yield cluster
        cluster.remove()


def test_the_flow_brings_the_vault_up_to_date_and_says_what_it_did(server, monkeypatch):
    monkeypatch.setenv("ONEVAULT_VAULT_URL", server.conninfo())
    assert migrate_schema() == NAMES
    assert migrate_schema() == []


@pytest.mark.parametrize(
    ("code", "words", "error", "attempts"),
    [
        ("57P03", "the database system is starting up", Unavailable, 4),
        ("28P01", 'password authentication failed for user "ann"', Refused, 1),
    ],
)
def test_only_what_may_pass_is_tried_again(monkeypatch, code, words, error, attempts):
    with server_that_answers(code, words) as (url, came):
        monkeypatch.setenv("ONEVAULT_VAULT_URL", url)
        with pytest.raises(error, match=words):
            migrate_without_waiting()
        assert len(came) == attempts
