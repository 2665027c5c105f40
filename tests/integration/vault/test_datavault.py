import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tasks import datavault
from tasks import vault as vaults

TABLE = "auth.tenant_definition_s"


@pytest.fixture
def tenant(vault):
    vault.execute(
        "INSERT INTO auth.tenant_h (tenant_hk, tenant_bk) VALUES (%s, 'ACME')",
        [datavault.hash_key("ACME")],
    )
    return datavault.hash_key("ACME")


def versions(conn: psycopg.Connection, tenant: bytes) -> list[tuple[Any, ...]]:
    return conn.execute(
        "SELECT tenant_name, load_date, load_end_date FROM auth.tenant_definition_s WHERE tenant_hk = %s ORDER BY load_date",
        [tenant],
    ).fetchall()


def append(conn: psycopg.Connection, tenant: bytes, **changes: object) -> bool:
    return datavault.append_version(conn, TABLE, "tenant_hk", tenant, changes)


def test_keys_are_those_of_the_database(vault):
    odd = "Zoë | 'quoted' \n€"
    row = vault.execute(
        "SELECT util.hash_binary(%(odd)s), util.hash_concat(%(one)s, %(two)s), util.get_system_operations_tenant_hk()",
        {"odd": odd, "one": b"\x01\x02".hex(), "two": b"\x03".hex()},
    ).fetchone()
    assert row == (
        datavault.hash_key(odd),
        datavault.link_key(b"\x01\x02", b"\x03"),
        datavault.SYSTEM_TENANT_HK,
    )


def test_a_hub_is_inserted_once(vault):
    table = "backup_mgmt.backup_schedule_h"
    key = datavault.insert_hub(vault, table, "schedule", "nightly")
    assert (
        datavault.insert_hub(vault, table, "schedule", "nightly")
        == key
        == datavault.hash_key("nightly")
    )
    rows = vault.execute(
        "SELECT schedule_bk, tenant_hk FROM backup_mgmt.backup_schedule_h"
    ).fetchall()
    assert rows == [("nightly", datavault.SYSTEM_TENANT_HK)]


def test_a_change_closes_one_version_and_opens_the_next(vault, tenant):
    assert append(vault, tenant, tenant_name="Acme", tenant_settings={"a": [1, None]}) is True
    assert append(vault, tenant, tenant_name="Acme Ltd") is True
    first, second = versions(vault, tenant)
    assert (first[0], second[0]) == ("Acme", "Acme Ltd")
    assert first[1] < first[2] == second[1]
    assert second[2] is None


def test_what_is_not_named_is_kept_and_defaults_apply_to_the_first_only(vault, tenant):
    append(vault, tenant, tenant_name="Acme", max_users=7, tenant_settings={"a": [1, None]})
    append(vault, tenant, contact_email="dba@acme.example", max_storage_gb=11)
    row = open_row(vault, tenant)
    assert (row["max_users"], row["max_storage_gb"], row["tenant_settings"]) == (
        7,
        11,
        {"a": [1, None]},
    )
    assert row["tenant_status"] == "ACTIVE"


def open_row(conn: psycopg.Connection, tenant: bytes) -> dict[str, Any]:
    with conn.transaction():
        row = datavault.open_version(conn, TABLE, "tenant_hk", tenant)
    assert row is not None
    return row


@pytest.mark.parametrize(
    "changes", [{}, {"tenant_name": "Acme"}, {"tenant_settings": {"b": 2, "a": 1}}]
)
def test_nothing_changed_writes_nothing(vault, tenant, changes):
    append(vault, tenant, tenant_name="Acme", tenant_settings={"a": 1, "b": 2})
    before = versions(vault, tenant)
    assert append(vault, tenant, **changes) is False
    assert versions(vault, tenant) == before


def test_a_null_is_a_change(vault, tenant):
    append(vault, tenant, tenant_name="Acme", contact_phone="1")
    assert append(vault, tenant, contact_phone=None) is True
    assert open_row(vault, tenant)["contact_phone"] is None


def test_two_versions_fit_in_one_transaction(vault, tenant):
    with vault.transaction():
        for name in ("one", "two", "three"):
            append(vault, tenant, tenant_name=name)
    assert [row[0] for row in versions(vault, tenant)] == ["one", "two", "three"]


def test_a_load_date_ahead_of_the_clock_is_still_followed(vault, tenant):
    append(vault, tenant, tenant_name="one", load_date="2999-01-01T00:00:00Z")
    append(vault, tenant, tenant_name="two")
    (_, began, ended), (_, next_began, _) = versions(vault, tenant)
    assert began < ended == next_began


def test_many_writers_leave_one_chain(migrated, vault, tenant):
    append(vault, tenant, tenant_name="start", max_users=1)
    start = threading.Barrier(4)

    def write(writer: int) -> int:
        with vaults.connect(migrated.conninfo) as conn:
            start.wait(timeout=10)
            return sum(append(conn, tenant, tenant_name=f"{writer}-{turn}") for turn in range(10))

    with ThreadPoolExecutor(4) as pool:
        written = [
            future.result() for future in [pool.submit(write, writer) for writer in range(4)]
        ]
    chain = versions(vault, tenant)
    assert written == [10, 10, 10, 10]
    assert len(chain) == 41
    assert all(before[2] == after[1] for before, after in itertools.pairwise(chain))
    assert [row[2] for row in chain].count(None) == 1


def test_two_first_writers_leave_one_open_version(migrated, tenant):
    start = threading.Barrier(2)

    def write(name: str) -> bool:
        with vaults.connect(migrated.conninfo) as conn:
            start.wait(timeout=10)
            return append(conn, tenant, tenant_name=name)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(write, ["one", "two"])) == [True, True]
    with migrated.connect() as conn:
        assert len(versions(conn, tenant)) == 2


def test_the_database_itself_holds_one_open_version(vault, tenant):
    append(vault, tenant, tenant_name="Acme")
    with pytest.raises(psycopg.errors.UniqueViolation, match="tenant_definition_s_one_open"):
        vault.execute(
            "INSERT INTO auth.tenant_definition_s (tenant_hk, tenant_name) VALUES (%s, 'Other')",
            [tenant],
        )


def test_the_hash_depends_on_the_values_alone(vault, tenant):
    hashes = set()
    for zone, style in (("UTC", "postgres"), ("Asia/Tokyo", "sql_standard")):
        vault.execute(
            "SELECT set_config('timezone', %s, false), set_config('intervalstyle', %s, false)",
            [zone, style],
        )
        append(vault, tenant, tenant_name="Acme", subscription_start_date="2026-01-01T00:00:00Z")
        hashes.add(open_row(vault, tenant)["hash_diff"])
    assert len(hashes) == 1
    assert len(versions(vault, tenant)) == 1


def test_a_column_added_later_changes_no_hash(vault, tenant):
    append(vault, tenant, tenant_name="Acme")
    vault.execute("ALTER TABLE auth.tenant_definition_s ADD COLUMN added text")
    assert append(vault, tenant, tenant_name="Acme") is False
    assert append(vault, tenant, added="now") is True


def test_an_interval_of_years_stays_one(vault):
    key = datavault.insert_hub(vault, "backup_mgmt.backup_schedule_h", "schedule", "nightly")
    row = {"schedule_name": "nightly", "backup_type": "LOGICAL", "schedule_expression": "0 2 * * *"}
    datavault.append_version(vault, "backup_mgmt.backup_schedule_s", "schedule_hk", key, row)
    datavault.append_version(
        vault, "backup_mgmt.backup_schedule_s", "schedule_hk", key, {"max_backup_count": 3}
    )
    kept = vault.execute(
        "SELECT retention_period::text FROM backup_mgmt.backup_schedule_s"
    ).fetchall()
    assert kept == [("7 years",), ("7 years",)]
