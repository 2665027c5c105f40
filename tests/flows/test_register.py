"""Registration: what it saves, that it is idempotent, and that nothing weak is registered for production."""

from pathlib import Path
from secrets import token_hex
from typing import cast

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from blocks import x25519
from blocks.environment import EnvironmentProfile
from blocks.errors import Refused, Unavailable
from blocks.keyring import LocalKeyring
from blocks.postgres import PostgresServer
from blocks.storage.local import LocalStore
from deployments.register import Wishes, register, wishes_from

RECIPIENT = x25519.recipient_of(x25519.generate())
URL = "postgresql://ops:hunter2-marker@db.example.com/app?sslmode=verify-full"
SERVER = PostgresServer.from_conninfo(URL)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONEVAULT_HOME", str(tmp_path / "home"))
    for name in (
        "VAULT_URL",
        "VAULT_URL_FILE",
        "SERVER_URL",
        "STORE",
        "KEYRING",
        "RECOVERY_RECIPIENTS",
    ):
        monkeypatch.delenv(f"ONEVAULT_{name}", raising=False)
    return tmp_path / "home"


@pytest.fixture
def wishes(tmp_path: Path) -> Wishes:
    return Wishes(SERVER, tmp_path / "store", tmp_path / "keys", [RECIPIENT])


def test_everything_is_saved_and_a_second_time_nothing_changes(wishes: Wishes) -> None:
    name = f"test-{token_hex(4)}"
    first = register("development", wishes, name)
    assert [s for s in first if name in s and s.endswith(": made.")] == [
        f"OneVault Local Store {name}: made.",
        f"OneVault Local Keyring {name}: made.",
        f"OneVault PostgreSQL Server {name}: made.",
        f"Concurrency limit onevault-server-{name}: made.",
    ]
    assert all(sentence.endswith(": kept.") for sentence in register("development", wishes, name))
    store = cast("LocalStore", LocalStore.load(name))
    keyring = cast("LocalKeyring", LocalKeyring.load(name))
    store.check()
    assert keyring.recipients()[1:] == (RECIPIENT,)
    assert cast("PostgresServer", PostgresServer.load(name)).conninfo() == SERVER.conninfo()
    assert (
        cast("EnvironmentProfile", EnvironmentProfile.load("development")).backup_retention_days
        == 30
    )


def test_pool_and_limit_are_in_prefect(wishes: Wishes) -> None:
    name = f"test-{token_hex(4)}"
    register("development", wishes, name)
    with get_client(sync_client=True) as client:
        assert client.read_work_pool("onevault").type == "process"
        assert client.read_work_pool("onevault").base_job_template["variables"]
        assert client.read_global_concurrency_limit_by_name(f"onevault-server-{name}").limit == 1
        client.upsert_global_concurrency_limit_by_name(f"onevault-server-{name}", 5)
    assert f"Concurrency limit onevault-server-{name}: changed." in register(
        "development", wishes, name
    )


def test_what_is_not_wished_stays_as_it_was(wishes: Wishes) -> None:
    name = f"test-{token_hex(4)}"
    register("development", wishes, name)
    assert all(sentence.endswith(": kept.") for sentence in register("development", Wishes(), name))
    changed = register("development", Wishes(recovery_recipients=[]), name)
    assert [sentence for sentence in changed if "changed" in sentence] == [
        f"OneVault Local Keyring {name}: changed."
    ]


def test_without_a_server_it_says_what_to_do(own_home: Path) -> None:
    name = f"test-{token_hex(4)}"
    sentences = register("development", Wishes(), name)
    assert f"No server {name} yet. Set ONEVAULT_SERVER_URL and register again." in sentences
    assert (own_home / "store").is_dir()
    assert len(list((own_home / "keys").glob("*.agekey"))) == 1


def test_a_weak_setup_is_refused_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wishes: Wishes
) -> None:
    name = f"test-{token_hex(4)}"
    weak = Wishes(PostgresServer(host="db", user="ops"), tmp_path / "store", tmp_path / "keys")
    with pytest.raises(Refused, match="production environment does not start") as caught:
        register("production", weak, name)
    assert str(caught.value).count("\n- ") == 3
    assert not (tmp_path / "store").exists()
    with pytest.raises(ValueError, match=name):
        LocalStore.load(name)
    monkeypatch.setenv("ONEVAULT_VAULT_URL", "postgresql://vault@db/onevault")
    register("production", wishes, name)


def test_an_unknown_environment_is_refused() -> None:
    with pytest.raises(Refused, match="Set it to development, staging or production"):
        register("prod", Wishes())


def test_a_prefect_server_that_is_away_is_unavailable(wishes: Wishes) -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(Unavailable, match="Check PREFECT_API_URL"),
    ):
        register("development", wishes, "away")


def test_wishes_are_read_from_the_environment() -> None:
    environ = {
        "ONEVAULT_SERVER_URL": URL,
        "ONEVAULT_STORE": "/srv/backups",
        "ONEVAULT_KEYRING": "/etc/keys",
        "ONEVAULT_RECOVERY_RECIPIENTS": "age1a, age1b",
    }
    wishes = wishes_from(environ)
    assert wishes.server is not None
    assert wishes.server.conninfo() == SERVER.conninfo()
    assert (wishes.store_directory, wishes.keyring_directory) == (
        Path("/srv/backups"),
        Path("/etc/keys"),
    )
    assert wishes.recovery_recipients == ["age1a", "age1b"]
    assert wishes_from({}) == Wishes()
    assert "hunter2" not in repr(wishes)
