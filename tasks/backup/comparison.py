"""Two inventories side by side: what a restored copy must have in common with its source."""

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks.backup.inventory import (
    DatabaseInventory,
    Inventory,
    NamedValue,
    SequenceFacts,
    TableFacts,
)
from tasks.backup.models import BackupKind, Outcome, Rung

_SHOWN_DIFFERENCES = 50


def compare(source: Inventory, restored: Inventory, kind: BackupKind) -> Rung:
    """Compare a restored server with its source; a physical copy of a server that was written to is PARTIAL at best."""
    findings = _roles(source, restored)
    by_name = {item.database: item for item in restored.databases}
    for database in source.databases:
        copy = by_name.get(database.database)
        if copy is None:
            findings.append(f"database {database.database} is missing from the restored server")
        else:
            findings += _database(database, copy, kind)
    outcome = _outcome(findings, moved=kind is BackupKind.PHYSICAL and _moved(source, restored))
    return Rung(
        outcome, _summary(source, findings, outcome), findings=tuple(findings[:_SHOWN_DIFFERENCES])
    )


@dataclass(frozen=True, slots=True)
class TableRow:
    """One line of the comparison table: a table in the source and in the restored copy."""

    database: str
    table: str
    source_rows: int
    restored_rows: int | None
    content: str


def table_rows(source: Inventory, restored: Inventory) -> list[TableRow]:
    """Return every table of the source beside its restored copy, the differing ones first."""
    copies = {
        (database.database, table.label): table
        for database in restored.databases
        for table in database.tables
    }
    rows = [
        _table_row(database.database, table, copies.get((database.database, table.label)))
        for database in source.databases
        for table in database.tables
    ]
    return sorted(rows, key=lambda row: (row.content.startswith("equal"), row.database, row.table))


def _table_row(database: str, table: TableFacts, copy: TableFacts | None) -> TableRow:
    if copy is None:
        return TableRow(database, table.label, table.rows, None, "MISSING")
    equal = (table.rows, table.fingerprint) == (copy.rows, copy.fingerprint)
    how = {"record": "equal", "text": "equal (as text)", "count": "equal count"}[table.method]
    unlogged = table.persistence == "u" and copy.rows == 0
    return TableRow(
        database,
        table.label,
        table.rows,
        copy.rows,
        how if equal else "emptied (UNLOGGED)" if unlogged else "DIFFERENT",
    )


def schema_lines(dump: str) -> tuple[str, ...]:
    r"""Return the meaningful lines of a schema dump: no comments, no blanks, no \restrict (it is random)."""
    return tuple(
        line
        for line in dump.splitlines()
        if line and not line.startswith(("--", "\\restrict ", "\\unrestrict "))
    )


def _moved(source: Inventory, restored: Inventory) -> bool:
    """Return whether transactions ended on the source between the copy's last WAL and the source's snapshot.

    The source's xmax is known only when its snapshots before and after the copy are the same: then nothing ended
    meanwhile, and both servers show exactly the committed transactions below xmax ("pg_snapshot Components").
    """
    return source.xmax != restored.xmax or bool(source.running)


def _outcome(findings: Sequence[str], *, moved: bool) -> Outcome:
    if not findings:
        return Outcome.PASS
    return Outcome.PARTIAL if moved else Outcome.FAIL


def _summary(source: Inventory, findings: Sequence[str], outcome: Outcome) -> str:
    what = f"{source.tables} tables with {source.rows:,} rows"
    if outcome is Outcome.PASS:
        return f"{what} are equal in the source and in the restored copy"
    if outcome is Outcome.PARTIAL:
        return (
            f"{what} compared; the source was written to while the copy was made, so {len(findings)} differences"
            " cannot be told from later writes (the copy itself is checked byte for byte by its manifest)"
        )
    return f"{len(findings)} differences between the source and the restored copy: {findings[0]}"


def _roles(source: Inventory, restored: Inventory) -> list[str]:
    return [
        *_named("role", source.roles, restored.roles),
        *_named("membership of", source.memberships, restored.memberships),
    ]


def _database(
    source: DatabaseInventory, restored: DatabaseInventory, kind: BackupKind
) -> list[str]:
    findings = [
        *_tables(source.tables, restored.tables, kind),
        *_sequences(source.sequences, restored.sequences, kind),
        *_named("extension", source.extensions, restored.extensions),
        *_schema(source.schema_lines, restored.schema_lines),
    ]
    if source.large_objects != restored.large_objects:
        findings.append(f"{source.large_objects} large objects became {restored.large_objects}")
    elif source.large_object_fingerprint != restored.large_object_fingerprint:
        findings.append("the content of large objects differs")
    findings += [
        f"{item} is not valid in the restored copy"
        for item in sorted(set(restored.invalid_objects) - set(source.invalid_objects))
    ]
    return [f"{source.database}: {finding}" for finding in findings]


def _tables(
    source: Iterable[TableFacts], restored: Iterable[TableFacts], kind: BackupKind
) -> list[str]:
    copies = {table.label: table for table in restored}
    findings = []
    for table in source:
        copy = copies.pop(table.label, None)
        if copy is None:
            findings.append(f"table {table.label} is missing")
        elif kind is BackupKind.PHYSICAL and table.persistence == "u":
            # An unlogged table is emptied by recovery: that is what UNLOGGED means.
            continue
        elif table.rows != copy.rows:
            findings.append(f"table {table.label} has {copy.rows:,} rows instead of {table.rows:,}")
        elif table.fingerprint != copy.fingerprint:
            findings.append(f"table {table.label} has other content in its {table.rows:,} rows")
    return findings + [f"table {name} is in the copy only" for name in sorted(copies)]


def _sequences(
    source: Iterable[SequenceFacts], restored: Iterable[SequenceFacts], kind: BackupKind
) -> list[str]:
    copies = {item.label: item for item in restored}
    findings = []
    for item in source:
        copy = copies.get(item.label)
        if copy is None:
            findings.append(f"sequence {item.label} is missing")
        elif kind is BackupKind.PHYSICAL and item.persistence == "u":
            # Recovery starts an unlogged sequence anew, as it empties an unlogged table.
            continue
        elif not _between(item, copy.before):
            findings.append(
                f"sequence {item.label} stands at {copy.before}, not between {item.before} and {item.after}"
            )
    return findings


def _between(item: SequenceFacts, value: int | None) -> bool:
    if value in (item.before, item.after):
        return True
    if value is None or item.before is None or item.after is None:
        return False
    return min(item.before, item.after) <= value <= max(item.before, item.after)


def _named(what: str, source: Iterable[NamedValue], restored: Iterable[NamedValue]) -> list[str]:
    missing = Counter((item.name, item.value) for item in source)
    missing.subtract(Counter((item.name, item.value) for item in restored))
    return [
        f"{what} {name} ({value}) is {'missing or different' if count > 0 else 'in the copy only'}"
        for (name, value), count in sorted(missing.items())
        if count
    ]


def _schema(source: Sequence[str], restored: Sequence[str]) -> list[str]:
    if sorted(source) == sorted(restored):
        return []
    changes = difflib.unified_diff(sorted(source), sorted(restored), lineterm="", n=0)
    return [f"schema: {line}" for line in changes if not line.startswith(("---", "+++", "@@"))]
