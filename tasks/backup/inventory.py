"""What is in a database, counted and fingerprinted, so that two of them can be compared."""

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, LiteralString, NamedTuple, Self

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from pydantic import Field

from tasks import queries
from tasks.backup.models import Record
from tasks.processes import Process, stop_group

Connect = Callable[[], "psycopg.Connection[Any]"]
Depth = Literal["content", "counts", "none"]

_QUERIES = queries.load(Path(__file__).with_name("inventory.sql"))


class TableFacts(Record):
    """One table: its rows and an order-independent fingerprint of their content."""

    schema_name: str
    name: str
    kind: str
    persistence: str
    rows: int
    fingerprint: str | None
    method: Literal["record", "text", "count"]

    @property
    def label(self) -> str:
        """Return the table's name as a person reads it."""
        return f"{self.schema_name}.{self.name}"


class SequenceFacts(Record):
    """One sequence: sequences are outside snapshots, so it was read before and after."""

    schema_name: str
    name: str
    persistence: str = "p"
    increment: int
    before: int | None
    after: int | None

    @property
    def label(self) -> str:
        """Return the sequence's name as a person reads it."""
        return f"{self.schema_name}.{self.name}"


class NamedValue(Record):
    """A thing by name, and what is to be equal about it."""

    name: str
    value: str


class DatabaseInventory(Record):
    """One database as a snapshot shows it."""

    database: str
    tables: tuple[TableFacts, ...]
    sequences: tuple[SequenceFacts, ...]
    large_objects: int
    large_object_fingerprint: str | None
    extensions: tuple[NamedValue, ...]
    invalid_objects: tuple[str, ...]
    schema_lines: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Return the rows of all tables."""
        return sum(table.rows for table in self.tables)


class Inventory(Record):
    """The databases of a server that a backup covers, and its roles; all empty when nobody asked to compare."""

    databases: tuple[DatabaseInventory, ...]
    roles: tuple[NamedValue, ...]
    memberships: tuple[NamedValue, ...]
    xmax: str | None = Field(
        default=None, description="The first transaction this state does not show."
    )
    running: int | None = Field(
        default=None, description="Transactions in progress when it was taken."
    )

    @property
    def tables(self) -> int:
        """Return how many tables were counted."""
        return sum(len(database.tables) for database in self.databases)

    @property
    def rows(self) -> int:
        """Return the rows of all tables."""
        return sum(database.rows for database in self.databases)


class Sessions:
    """Connections that see one and the same snapshot; the first exports it when none is given."""

    def __init__(self, connect: Connect, jobs: int, snapshot: str | None = None) -> None:
        self._connect = connect
        self._jobs = jobs
        self.snapshot = snapshot or ""
        self.connections: list[psycopg.Connection[Any]] = []
        self._programs: list[Process] = []
        self._cancelled = False

    def __enter__(self) -> Self:
        try:
            for _ in range(self._jobs):
                connection = self._connect()
                self.connections.append(connection)
                self._enter_snapshot(connection)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.cancel()
        self.close()

    def _enter_snapshot(self, connection: "psycopg.Connection[Any]") -> None:
        connection.execute(_sql("session_settings"))
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        if self.snapshot:
            connection.execute(
                sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(self.snapshot))
            )
        else:
            row = connection.execute("SELECT pg_export_snapshot()").fetchone()
            self.snapshot = str(row[0]) if row else ""

    def limit(self, lock_wait_seconds: int, timeout_seconds: float) -> None:
        """Give every statement from now on these limits; the server stops what takes longer."""
        limits = {
            "lock_ms": str(lock_wait_seconds * 1000),
            # The server counts in an int4.
            "statement_ms": str(min(int(timeout_seconds * 1000) or 1, 2**31 - 1)),
        }
        for connection in self.connections:
            connection.execute(_sql("limits"), limits)

    def end_with_us(self, process: Process) -> None:
        """Have a program ended when the sessions are cancelled."""
        self._programs.append(process)
        if self._cancelled:  # meanwhile, by another thread
            stop_group(process)

    def cancel(self) -> None:
        """Cancel what runs on every connection, and end the programs that read the snapshot."""
        self._cancelled = True
        for process in self._programs:
            stop_group(process)
        for connection in self.connections:
            with suppress(psycopg.Error):
                connection.cancel_safe(timeout=5)

    def close(self) -> None:
        """Close every connection."""
        for connection in self.connections:
            connection.close()


def take_database(
    sessions: Sessions, depth: Depth, schema_lines: Sequence[str] = ()
) -> DatabaseInventory:
    """Count and fingerprint a database as the sessions' snapshot shows it."""
    first = sessions.connections[0]
    before = sequences(first)
    invalid = tuple(str(row["object"]) for row in _rows(first, "invalid_objects"))
    extensions = _named(first, "extensions", "version")
    large_objects, large_object_fingerprint = _large_objects(first, depth)
    tables = _tables(sessions, depth)
    return DatabaseInventory(
        database=first.info.dbname,
        tables=tuple(sorted(tables, key=lambda table: table.label)),
        sequences=before,
        large_objects=large_objects,
        large_object_fingerprint=large_object_fingerprint,
        extensions=extensions,
        invalid_objects=invalid,
        schema_lines=tuple(schema_lines),
    )


def with_sequences_after(
    inventory: DatabaseInventory, connection: "psycopg.Connection[Any]"
) -> DatabaseInventory:
    """Return the inventory with the sequences read once more, when the backup was over."""
    after = {item.label: item.before for item in sequences(connection)}
    moved = tuple(
        item.model_copy(update={"after": after.get(item.label, item.before)})
        for item in inventory.sequences
    )
    return inventory.model_copy(update={"sequences": moved})


def roles(
    connection: "psycopg.Connection[Any]",
) -> tuple[tuple[NamedValue, ...], tuple[NamedValue, ...]]:
    """Return the roles with their attributes, and their memberships."""
    return _named(connection, "roles", "attributes"), _named(
        connection, "memberships", "attributes"
    )


def database_names(connection: "psycopg.Connection[Any]") -> list[str]:
    """Return the databases that can be entered, largest first."""
    return [str(row["name"]) for row in _rows(connection, "databases")]


def bootstrap_superuser(connection: "psycopg.Connection[Any]") -> str:
    """Return the name of the role that initdb made on this server."""
    return str(_rows(connection, "bootstrap_superuser")[0]["rolname"])


class Moment(NamedTuple):
    """Which transactions a server shows now."""

    snapshot: str
    xmax: str
    running: int


def moment(connection: "psycopg.Connection[Any]") -> Moment:
    """Return the snapshot, the first transaction not visible, and how many are in progress and not prepared."""
    row = _rows(connection, "moment")[0]
    return Moment(str(row["snapshot"]), str(row["xmax"]), int(row["running"]))


def _tables(sessions: Sessions, depth: Depth) -> list[TableFacts]:
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    for row in _rows(sessions.connections[0], "tables"):
        waiting.put(row)

    def work(connection: "psycopg.Connection[Any]") -> list[TableFacts]:
        done = []
        with suppress(queue.Empty):
            while True:
                done.append(_table(connection, waiting.get_nowait(), depth))
        return done

    with ThreadPoolExecutor(len(sessions.connections)) as pool:
        try:
            return [facts for part in pool.map(work, sessions.connections) for facts in part]
        except BaseException:
            sessions.cancel()
            raise


def _table(connection: "psycopg.Connection[Any]", row: dict[str, Any], depth: Depth) -> TableFacts:
    method: Literal["record", "text", "count"] = "record" if row["hashed_as_record"] else "text"
    method = method if depth == "content" else "count"
    statement = _FINGERPRINTS[method].format(sql.Identifier(row["schema"], row["name"]))
    found = connection.execute(statement).fetchone()
    rows, fingerprint = found or (0, None)
    return TableFacts(
        schema_name=row["schema"],
        name=row["name"],
        kind=row["kind"],
        persistence=row["persistence"],
        rows=rows,
        fingerprint=fingerprint,
        method=method,
    )


# The sum of 64-bit hashes does not depend on the order of rows; `t.*` is the row even where a column is called t.
_FINGERPRINTS = {
    "record": sql.SQL(
        "/* onevault:backup.fingerprint */ SELECT count(*),"
        " coalesce(sum(hash_record_extended(t.*, 0)), 0)::text FROM ONLY {} AS t"
    ),
    "text": sql.SQL(
        "/* onevault:backup.fingerprint */ SELECT count(*),"
        " coalesce(sum(hashtextextended((t.*)::text, 0)), 0)::text FROM ONLY {} AS t"
    ),
    "count": sql.SQL("/* onevault:backup.count */ SELECT count(*), NULL::text FROM ONLY {} AS t"),
}


def sequences(connection: "psycopg.Connection[Any]") -> tuple[SequenceFacts, ...]:
    """Return the sequences as they stand now, whatever the snapshot."""
    facts = []
    for row in _rows(connection, "sequences"):
        statement = sql.SQL("SELECT CASE WHEN is_called THEN last_value END FROM {}")
        found = connection.execute(
            statement.format(sql.Identifier(row["schema"], row["name"]))
        ).fetchone()
        value = found[0] if found else None
        facts.append(
            SequenceFacts(
                schema_name=row["schema"],
                name=row["name"],
                persistence=row["persistence"],
                increment=row["increment"],
                before=value,
                after=value,
            )
        )
    return tuple(facts)


def _large_objects(connection: "psycopg.Connection[Any]", depth: Depth) -> tuple[int, str | None]:
    if depth == "counts":
        found = connection.execute("SELECT count(*) FROM pg_largeobject_metadata").fetchone()
        return (found[0] if found else 0), None
    row = _rows(connection, "large_objects")[0]
    return int(row["count"]), str(row["fingerprint"])


def _named(connection: "psycopg.Connection[Any]", query: str, value: str) -> tuple[NamedValue, ...]:
    return tuple(
        NamedValue(name=str(row["name"]), value=str(row[value])) for row in _rows(connection, query)
    )


def _rows(connection: "psycopg.Connection[Any]", name: str) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_sql(name)).fetchall()


def _sql(name: str) -> LiteralString:
    return _QUERIES.get(name, 15)
