"""Writing to Data Vault tables: hubs once, satellites as versions of which exactly one is open."""

from collections.abc import Mapping
from hashlib import sha256

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

SYSTEM_TENANT_HK = bytes(31) + b"\x01"
"""The tenant of everything that belongs to no customer."""

_STANDARD = frozenset({"load_date", "load_end_date", "hash_diff", "record_source"})


def hash_key(business_key: str) -> bytes:
    """Return the hub key of a business key, as util.hash_binary does."""
    return sha256(business_key.encode()).digest()


def link_key(*hub_keys: bytes) -> bytes:
    """Return the key of a link, as util.hash_concat does over the hub keys in hex."""
    return hash_key(" | ".join(key.hex() for key in hub_keys))


def insert_hub(
    conn: psycopg.Connection,
    table: str,
    entity: str,
    business_key: str,
    tenant_hk: bytes = SYSTEM_TENANT_HK,
) -> bytes:
    """Insert a hub row (columns `<entity>_hk`, `<entity>_bk`) unless it is there, and return its key."""
    statement = sql.SQL(
        "INSERT INTO {table} ({hk}, {bk}, tenant_hk) VALUES (%s, %s, %s) ON CONFLICT ({hk}) DO NOTHING"
    ).format(
        table=_table(table),
        hk=sql.Identifier(f"{entity}_hk"),
        bk=sql.Identifier(f"{entity}_bk"),
    )
    hub_key = hash_key(business_key)
    conn.execute(statement, (hub_key, business_key, tenant_hk))
    return hub_key


def open_version(
    conn: psycopg.Connection,
    table: str,
    hub_key_column: str,
    hub_key: bytes,
) -> dict[str, object] | None:
    """Return the open version, locked until the transaction ends, or None; needs a transaction.

    The lock is on the key, not only on the row: who waits for a row that is closed meanwhile would
    otherwise see no open version at all.
    """
    conn.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))",
        [f"onevault:version:{table}:{hub_key.hex()}"],
    )
    statement = sql.SQL(
        "SELECT * FROM {table} WHERE {key} = %s AND load_end_date IS NULL FOR UPDATE"
    ).format(table=_table(table), key=sql.Identifier(hub_key_column))
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, [hub_key]).fetchone()


def append_version(
    conn: psycopg.Connection,
    table: str,
    hub_key_column: str,
    hub_key: bytes,
    changes: Mapping[str, object],
) -> bool:
    """Close the open version and add one with the changes; say whether anything changed.

    Without an open version the changes are the first one. Values go by column name, a dict as jsonb.
    Needs READ COMMITTED, PostgreSQL's default, and waits for another writer of the same key.
    """
    values = {
        name: Jsonb(value) if isinstance(value, dict) else value for name, value in changes.items()
    }
    with conn.transaction():
        current = open_version(conn, table, hub_key_column, hub_key)
        if current is None:
            _insert_first(conn, table, {hub_key_column: hub_key, **values})
            return True
        changed = False
        with conn.transaction() as attempt:
            changed = _replace(conn, table, hub_key_column, current, values)
            if not changed:
                raise psycopg.Rollback(attempt)
        return changed


def _insert_first(conn: psycopg.Connection, table: str, values: Mapping[str, object]) -> None:
    statement = sql.SQL("INSERT INTO {table} ({columns}) VALUES ({values})").format(
        table=_table(table),
        columns=_names(values),
        values=sql.SQL(", ").join(map(sql.Placeholder, values)),
    )
    conn.execute(statement, values)


def _replace(
    conn: psycopg.Connection,
    table: str,
    hub_key_column: str,
    current: Mapping[str, object],
    values: Mapping[str, object],
) -> bool:
    """Copy the open row in SQL, where no value loses its type; the server's hash says whether it differs."""
    key = {"hub_key": current[hub_key_column], "loaded": current["load_date"]}
    statement = sql.SQL(
        "UPDATE {table} SET load_end_date = greatest(util.current_load_date(), load_date + interval '1 microsecond') "
        "WHERE {key} = %(hub_key)s AND load_date = %(loaded)s"
    )
    conn.execute(statement.format(table=_table(table), key=sql.Identifier(hub_key_column)), key)
    copied = [name for name in {**current, **values} if name not in _STANDARD or name in values]
    statement = sql.SQL(
        "INSERT INTO {table} (load_date, {columns}) SELECT load_end_date, {values} FROM {table} "
        "WHERE {key} = %(hub_key)s AND load_date = %(loaded)s RETURNING hash_diff"
    )
    places = {
        name: sql.Placeholder(f"new_{name}") if name in values else sql.Identifier(name)
        for name in copied
    }
    composed = statement.format(
        table=_table(table),
        columns=_names(places),
        values=sql.SQL(", ").join(places.values()),
        key=sql.Identifier(hub_key_column),
    )
    row = conn.execute(
        composed, {**key, **{f"new_{name}": value for name, value in values.items()}}
    ).fetchone()
    return row is not None and row[0] != current["hash_diff"]


def _table(name: str) -> sql.Identifier:
    return sql.Identifier(*name.split("."))


def _names(columns: Mapping[str, object]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))
