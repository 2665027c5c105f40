"""A reader who owns nothing sees the rows of the tenant it acts for, and no others."""

from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_hex

import psycopg
import pytest
from psycopg import sql

from tasks import datavault
from tasks.backup import store
from tests.integration.vault.test_backup_store import entry, verified

ACME, BETA = datavault.hash_key("ACME"), datavault.hash_key("BETA")
TABLES = {
    "backup_mgmt.backup_execution_h": 1,
    "backup_mgmt.backup_execution_s": 4,
    "backup_mgmt.backup_verification": 1,
    "backup_mgmt.backup_catalog": 1,
    "backup_mgmt.latest_verified_backup": 1,
    "audit.audit_event_h": 4,
    "audit.audit_detail_s": 4,
    "auth.tenant_h": 1,
    "auth.tenant_definition_s": 1,
}


@pytest.fixture
def reader(migrated, vault) -> Iterator[psycopg.Connection]:
    """A connection that may read everything and owns nothing; two tenants have a backup each."""
    for number, (name, tenant) in enumerate([("ACME", ACME), ("BETA", BETA)], start=1):
        vault.execute(
            "INSERT INTO auth.tenant_h (tenant_hk, tenant_bk) VALUES (%s, %s)", [tenant, name]
        )
        datavault.append_version(
            vault, "auth.tenant_definition_s", "tenant_hk", tenant, {"tenant_name": name}
        )
        verified(vault, number, tenant_hk=tenant)
    role = sql.Identifier(f"reader_{token_hex(4)}")
    schemas = sql.SQL("backup_mgmt, audit, auth")
    vault.execute(sql.SQL("CREATE ROLE {}").format(role))
    vault.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schemas, role))
    vault.execute(
        sql.SQL("GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA {} TO {}").format(schemas, role)
    )
    with migrated.connect() as conn:
        conn.execute(sql.SQL("SET ROLE {}").format(role))
        yield conn
    vault.execute(sql.SQL("DROP OWNED BY {}").format(role))
    vault.execute(sql.SQL("DROP ROLE {}").format(role))


@contextmanager
def acting_for(conn: psycopg.Connection, tenant: str) -> Iterator[None]:
    with conn.transaction():
        conn.execute("SELECT set_config('app.current_tenant_id', %s, true)", [tenant])
        yield


def count(conn: psycopg.Connection, table: str) -> int:
    query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(*table.split(".")))
    ((number,),) = conn.execute(query).fetchall()
    return int(number)


def counts(conn: psycopg.Connection) -> dict[str, int]:
    return {table: count(conn, table) for table in TABLES}


@pytest.mark.parametrize("tenant", [ACME.hex(), BETA.hex().upper()])
def test_a_tenant_sees_its_own_rows(reader, tenant):
    with acting_for(reader, tenant):
        assert counts(reader) == TABLES


def test_without_a_tenant_there_is_nothing_to_see(reader):
    nothing = dict.fromkeys(TABLES, 0)
    assert counts(reader) == nothing
    for tenant in ("", "acme", "zz" * 32, datavault.hash_key("GAMMA").hex()):
        with acting_for(reader, tenant):
            assert counts(reader) == nothing
        # The setting is '' now, not unset, in this session.
        assert counts(reader) == nothing


def test_the_other_tenants_backup_is_not_found_by_its_id(reader, vault):
    mine, theirs = (entry.backup_id for entry in reversed(store.catalog(vault)))
    with acting_for(reader, ACME.hex()):
        assert entry(reader, mine).tenant_hk == ACME
        assert store.find(reader, theirs) is None


def test_a_tenant_cannot_write_into_another(reader):
    statement = "INSERT INTO backup_mgmt.backup_execution_h (backup_hk, backup_bk, tenant_hk) VALUES (%s, %s, %s)"
    with (
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
        acting_for(reader, ACME.hex()),
    ):
        reader.execute(statement, [b"x", "20260301T020000Z-logical-0000000f", BETA])


def test_the_owner_sees_all(reader, vault):
    assert count(vault, "backup_mgmt.backup_catalog") == 2
