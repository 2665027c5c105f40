"""What `onevault config` says of the blocks: all there is but the secrets."""

import dataclasses
from pathlib import Path

from blocks.keyring import LocalKeyring
from blocks.postgres import PostgresServer
from blocks.storage.local import LocalStore
from deployments import saved_blocks


def test_blocks_are_listed_by_name_without_secrets(tmp_path: Path):
    url = "postgresql://clerk:hunter2@db.example.com:5433/shop?sslmode=require"
    PostgresServer.from_conninfo(url).save("listed", overwrite=True)
    LocalStore(directory=tmp_path / "store").save("listed", overwrite=True)
    LocalKeyring(directory=tmp_path / "keys").save("listed-too", overwrite=True)
    found = {item.name: item.value for item in saved_blocks.listed()}
    where = "db.example.com port 5433, database shop, user clerk, sslmode require"
    assert found["server listed"] == f"OneVault PostgreSQL Server: {where}"
    assert found["store listed"].endswith(f": {tmp_path / 'store'}")
    assert found["keyring listed-too"].endswith(f": {tmp_path / 'keys'}, 0 recovery recipients")
    assert "hunter2" not in str([dataclasses.asdict(item) for item in saved_blocks.listed()])
