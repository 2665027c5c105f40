"""Taking a backup: the bytes go from the server to the store, and what the server held is written down."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from tasks.backup import inventory
from tasks.backup.base_backup import Archives, ArchiveStart, BaseBackup, ManifestStart
from tasks.backup.clients import as_conninfo, client_environment, naming_locks, read_schema
from tasks.backup.envelope import canonical
from tasks.backup.inventory import DatabaseInventory, Depth, Inventory, Sessions
from tasks.backup.models import RecoveryPoint, StoredObject
from tasks.backup.pipeline import Described, Destination, compress, counted, prefetch, store_object
from tasks.backup.ports import Server
from tasks.programs import Installation
from tasks.progress import Progress
from tasks.streaming import ProgramOutput


@dataclass(frozen=True, slots=True)
class Order:
    """How a backup is to be taken."""

    backup_id: str
    database: str | None
    level: int = 1
    threads: int = 2
    depth: Depth = "content"
    jobs: int = 2
    lock_wait_seconds: int = 60
    timeout_seconds: float = 4 * 3600.0


NOTHING = Inventory(databases=(), roles=(), memberships=())


@dataclass(frozen=True, slots=True)
class Taken:
    """What was stored, and the instant it shows."""

    objects: tuple[StoredObject, ...]
    point: RecoveryPoint
    tool: str
    compressed_by_server: bool
    tables: int = 0
    rows: int = 0


@dataclass(slots=True)
class _Counter:
    bytes: int = 0

    def add(self, size: int) -> None:
        self.bytes += size


def take_logical(
    server: Server, tools: Installation, to: Destination, order: Order, progress: Progress
) -> Taken:
    """Dump one database and the server's globals under one exported snapshot, and count its tables in that snapshot."""
    database = order.database or server.database
    connect = partial(server.connect, database)
    everything = NOTHING
    with (
        client_environment(server) as environment,
        ThreadPoolExecutor(1, "inventory") as pool,
        Sessions(connect, order.jobs) as sessions,
    ):
        environment |= {"PGDATABASE": database}
        lsn = _lsn(sessions.connections[0])
        compared = order.depth != "none"
        # Sequences move outside snapshots: what the dump will hold lies between their standing now and at its end.
        earlier = inventory.sequences(sessions.connections[0]) if compared else ()
        counting = pool.submit(_count, sessions, tools, environment, order) if compared else None
        globals_object = _store_globals(tools, environment, to, order, connect)
        dump = _store_dump(tools, environment, to, order, sessions.snapshot, progress)
        if counting:
            with connect() as connection:
                counted_now = counting.result().model_copy(update={"sequences": earlier})
                everything = _with_roles(connection, counted_now)
        point = RecoveryPoint(snapshot=sessions.snapshot, lsn=lsn)
    listed = _store_inventory(to, everything)
    return Taken(
        objects=(dump, globals_object, listed),
        point=point,
        tool=f"pg_dump {tools.version}",
        compressed_by_server=False,
        tables=everything.tables,
        rows=everything.rows,
    )


def take_physical(
    server: Server, tools: Installation, to: Destination, order: Order, progress: Progress
) -> Taken:
    """Copy the whole server by BASE_BACKUP, with the WAL that makes it consistent, and count what it holds right after."""
    before = _moment(server)
    with closing(server.replication_connection()) as connection:
        backup = BaseBackup(
            connection,
            label=order.backup_id,
            level=order.level,
            workers=order.threads,
            timeout_seconds=order.timeout_seconds,
        )
        backup.begin()
        progress.expect(backup.total_bytes)
        try:
            objects = [
                _store_archive(backup, start, chunks, to, order, progress)
                for start, chunks in Archives(prefetch(backup.items()))
            ]
        finally:
            backup.cancel()
    assert backup.start is not None  # noqa: S101 - set before the first item
    assert backup.stop is not None  # noqa: S101 - set after the last
    everything = take_inventory(server, tools, order, since=before)
    objects.append(_store_inventory(to, everything))
    return Taken(
        objects=tuple(objects),
        point=RecoveryPoint(
            start_lsn=backup.start.lsn, stop_lsn=backup.stop.lsn, timeline=backup.stop.timeline
        ),
        tool="BASE_BACKUP",
        compressed_by_server=backup.compressed_by_server,
        tables=everything.tables,
        rows=everything.rows,
    )


def take_inventory(
    server: Server, tools: Installation, order: Order, since: inventory.Moment | None = None
) -> Inventory:
    """Count every database of a server; `xmax` is known only when no transaction ended meanwhile, or since a moment."""
    if order.depth == "none":
        return NOTHING
    with server.connect() as connection, client_environment(server) as environment:
        before = inventory.moment(connection)
        databases = tuple(
            _count_database(server, tools, environment | {"PGDATABASE": name}, order, name)
            for name in inventory.database_names(connection)
        )
        roles, memberships = inventory.roles(connection)
        after = inventory.moment(connection)
    quiet = before == after == (since or after)
    return Inventory(
        databases=databases,
        roles=roles,
        memberships=memberships,
        xmax=after.xmax if quiet else None,
        running=before.running + after.running,
    )


def _moment(server: Server) -> inventory.Moment:
    with server.connect() as connection:
        return inventory.moment(connection)


def _with_roles(connection: "psycopg.Connection[Any]", found: DatabaseInventory) -> Inventory:
    roles, memberships = inventory.roles(connection)
    after = inventory.with_sequences_after(found, connection)
    return Inventory(databases=(after,), roles=roles, memberships=memberships)


def take_one_database(server: Server, tools: Installation, order: Order) -> Inventory:
    """Count one database of a server, and its roles."""
    name = order.database or server.database
    with server.connect(name) as connection, client_environment(server) as environment:
        found = _count_database(server, tools, environment | {"PGDATABASE": name}, order, name)
        roles, memberships = inventory.roles(connection)
    return Inventory(databases=(found,), roles=roles, memberships=memberships)


def _count_database(
    server: Server, tools: Installation, environment: dict[str, str], order: Order, name: str
) -> DatabaseInventory:
    with Sessions(partial(server.connect, name), order.jobs) as sessions:
        return _count(sessions, tools, environment, order)


def _count(
    sessions: Sessions, tools: Installation, environment: dict[str, str], order: Order
) -> DatabaseInventory:
    sessions.limit(order.lock_wait_seconds, order.timeout_seconds)
    lines = read_schema(
        tools,
        environment,
        snapshot=sessions.snapshot,
        lock_wait_seconds=order.lock_wait_seconds,
        timeout_seconds=order.timeout_seconds,
        on_start=sessions.end_with_us,
    )
    return inventory.take_database(sessions, order.depth, lines)


def _store_dump(
    tools: Installation,
    environment: dict[str, str],
    to: Destination,
    order: Order,
    snapshot: str,
    progress: Progress,
) -> StoredObject:
    argv: list[str | Path] = [
        tools.program("pg_dump"),
        "--format=custom",
        "--compress=0",
        "--no-password",
        f"--snapshot={snapshot}",
        f"--lock-wait-timeout={order.lock_wait_seconds * 1000}",
    ]
    source = _Counter()

    def on_bytes(size: int) -> None:
        source.add(size)
        progress.advance(source.bytes)

    with (
        naming_locks(order.lock_wait_seconds),
        ProgramOutput(argv, env=environment, timeout_seconds=order.timeout_seconds) as output,
    ):
        compressed = prefetch(compress(counted(prefetch(output), on_bytes), order.level))
        return store_object(
            to, Described("dump.pgdump.zst", "dump"), compressed, lambda: source.bytes
        )


def _store_globals(
    tools: Installation,
    environment: dict[str, str],
    to: Destination,
    order: Order,
    connect: inventory.Connect,
) -> StoredObject:
    argv: list[str | Path] = [
        tools.program("pg_dumpall"),
        "--globals-only",
        "--no-password",
        f"--database={as_conninfo(environment['PGDATABASE'])}",
    ]
    with connect() as connection:
        if not _may_read_passwords(connection):
            argv.append("--no-role-passwords")
    source = _Counter()
    with ProgramOutput(argv, env=environment, timeout_seconds=order.timeout_seconds) as output:
        compressed = compress(counted(output, source.add), order.level)
        return store_object(
            to, Described("globals.sql.zst", "globals"), compressed, lambda: source.bytes
        )


def _store_archive(
    backup: BaseBackup,
    start: ArchiveStart | ManifestStart,
    chunks: Iterator[bytes],
    to: Destination,
    order: Order,
    progress: Progress,
) -> StoredObject:
    if isinstance(start, ManifestStart):
        source = _Counter()
        compressed = compress(counted(chunks, source.add), order.level)
        return store_object(
            to,
            Described("backup_manifest.zst", "backup_manifest"),
            compressed,
            lambda: source.bytes,
        )
    described = Described(
        f"{start.name}.zst", "tablespace" if start.oid else "base", start.oid, start.path
    )
    watched = counted(chunks, lambda _: progress.advance(backup.done_bytes))
    if backup.compressed_by_server:
        return store_object(to, described, watched, lambda: None)
    source = _Counter()
    compressed = prefetch(compress(counted(watched, source.add), order.level))
    return store_object(to, described, compressed, lambda: source.bytes)


def _store_inventory(to: Destination, everything: Inventory) -> StoredObject:
    data = canonical(everything.model_dump(mode="json"))
    return store_object(
        to, Described("inventory.json.zst", "inventory"), compress([data], 3), lambda: len(data)
    )


def _lsn(connection: "psycopg.Connection[Any]") -> str:
    row = connection.execute(
        "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text"
    ).fetchone()
    return str(row[0]) if row else ""


def _may_read_passwords(connection: "psycopg.Connection[Any]") -> bool:
    row = connection.execute(
        "SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')"
    ).fetchone()
    return bool(row and row[0])
