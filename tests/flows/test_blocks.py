"""The blocks as Prefect sees them."""

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from prefect.blocks.core import Block
from prefect.settings import PREFECT_API_URL, get_current_settings
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from pydantic import SecretStr

import blocks
from blocks import x25519
from blocks.environment import EnvironmentProfile
from blocks.keyring import LocalKeyring
from blocks.pgbouncer import PgBouncerConsole
from blocks.postgres import PostgresServer
from blocks.storage.local import LocalStore
from tasks.environment import NAMES, Profile, load_profile

MARKER = "hunter2-marker"
BLOCKS: dict[str, Block] = {
    "store": LocalStore(directory=Path("/srv/backups")),
    "keyring": LocalKeyring(
        directory=Path("/etc/onevault/keys"),
        recovery_recipients=[x25519.recipient_of(x25519.generate())],
    ),
    "server": PostgresServer(
        host="db.example.com",
        user="ops",
        password=SecretStr(MARKER),
        role="dba",
        sslmode="verify-full",
    ),
    "console": PgBouncerConsole(
        host="pooler.example.com", user="stats", password=SecretStr(MARKER), sslmode="verify-full"
    ),
    "profile": EnvironmentProfile(**load_profile("production").model_dump()),
}


def fields(block: Block) -> dict[str, Any]:
    return {name: getattr(block, name) for name in type(block).model_fields}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS, indirect=True)
class TestStandard(BlockStandardTestSuite):
    @pytest.fixture
    def block(self, request: pytest.FixtureRequest) -> type[Block]:
        return type(cast("Block", request.param))

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        # The suite would fetch the picture from the internet.
        assert str(block._logo_url).startswith("https://")


@pytest.mark.parametrize("name", BLOCKS)
def test_a_saved_block_comes_back_as_it_was(name: str) -> None:
    block = BLOCKS[name]
    block.model_copy().save(f"{name}-saved", overwrite=True)
    loaded = cast("Block", type(block).load(f"{name}-saved"))
    assert fields(loaded) == fields(block)


@pytest.mark.parametrize("name", BLOCKS)
def test_no_secret_shows(name: str) -> None:
    block = BLOCKS[name]
    shown = [
        repr(block),
        str(block),
        repr(block.model_dump()),
        block.model_dump_json(),
        repr(vars(block)),
    ]
    assert not [text for text in shown if MARKER in text or "SECRET-KEY" in text]


def test_a_loaded_server_still_hides_its_password() -> None:
    BLOCKS["server"].model_copy().save("hidden", overwrite=True)
    loaded = cast("PostgresServer", PostgresServer.load("hidden"))
    assert MARKER not in f"{loaded!r}{loaded}{loaded.model_dump()}{loaded.model_dump_json()}"
    assert f"password={MARKER}" in loaded.conninfo().get_secret_value()


def test_a_bad_value_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="port") as caught:
        PostgresServer.model_validate(
            {"host": "h", "user": "u", "port": MARKER, "password": {"a": MARKER}}
        )
    assert MARKER not in f"{caught.value}{caught.value!r}"


@pytest.mark.parametrize("name", NAMES)
def test_the_profile_block_wraps_the_profile(name: str) -> None:
    profile = load_profile(name)
    block = EnvironmentProfile(**profile.model_dump())
    assert Profile.model_validate(block.settings()) == profile
    assert set(EnvironmentProfile.model_fields) == set(Profile.model_fields)


def test_the_package_names_every_block() -> None:
    assert sorted({type(block).__name__ for block in BLOCKS.values()}) == blocks.__all__
    for name in blocks.__all__:
        assert issubclass(getattr(blocks, name), Block)
    with pytest.raises(AttributeError, match="nothing"):
        blocks.nothing  # noqa: B018 - the lookup is the test


def test_errors_cost_no_import_of_prefect() -> None:
    program = "import sys, tasks.errors, blocks; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_prefect_registers_the_package() -> None:
    environment = {**get_current_settings().to_environment_variables(exclude_unset=True)}
    argv = [sys.executable, "-m", "prefect", "block", "register", "-m", "blocks"]
    done = subprocess.run(
        argv,
        env={
            **environment,
            "PREFECT_API_URL": str(PREFECT_API_URL.value()),
            "PATH": "/usr/bin:/bin",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Successfully registered 5 blocks" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", BLOCKS)
def test_a_misspelt_field_is_refused(name: str) -> None:
    block = BLOCKS[name]
    with pytest.raises(ValueError, match="recovery_recipent"):
        type(block).model_validate({**fields(block), "recovery_recipent": "age1"})


def test_a_block_fits_into_another_one_and_comes_back() -> None:
    class Holder(Block):
        store: LocalStore
        server: PostgresServer

    for name in ("store", "server"):
        BLOCKS[name].model_copy().save(f"{name}-inner", overwrite=True)
    store, server = LocalStore.load("store-inner"), PostgresServer.load("server-inner")
    Holder(store=store, server=server).save("holder", overwrite=True)
    held = cast("Holder", Holder.load("holder"))
    assert fields(held.store) == fields(BLOCKS["store"])
    assert fields(held.server) == fields(BLOCKS["server"])
