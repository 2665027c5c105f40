"""Which migrations are to be applied: files, the log of those applied, and what to refuse."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tasks.errors import Refused
from tasks.schema.models import Applied, Migration, Standing, State

MIGRATIONS = Path(__file__).parent / "migrations"
_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


def read_migrations(directory: Path = MIGRATIONS) -> tuple[Migration, ...]:
    """Read the migrations in order; refused when a name is odd or the numbers are not 1, 2, 3..."""
    migrations = sorted(
        (_read(path) for path in directory.glob("*.sql")), key=lambda item: item.number
    )
    for expected, migration in enumerate(migrations, start=1):
        if migration.number != expected:
            message = (
                f"The migrations in {directory.name}/ are not numbered without gaps: "
                f"{expected:04d} was expected where {migration} stands. Install OneVault Ops again."
            )
            raise Refused(message)
    if not migrations:
        message = f"There are no migrations in {directory}: install OneVault Ops again."
        raise Refused(message)
    return tuple(migrations)


def _read(path: Path) -> Migration:
    match = _FILE.fullmatch(path.name)
    if not match:
        message = f"{path.name} is not named like a migration (0001_what_it_does.sql): rename or remove it."
        raise Refused(message)
    # A checkout may have changed the line ends; the statements are the same.
    return Migration(int(match[1]), match[2], path.read_bytes().replace(b"\r\n", b"\n"))


def standing(migrations: Sequence[Migration], log: Iterable[Applied]) -> tuple[Standing, ...]:
    """Return the state of every migration that the code or the vault knows, in order."""
    applied = {row.number: row for row in log}
    known = tuple(_stand(item, applied.pop(item.number, None)) for item in migrations)
    unknown = (Standing(row.number, row.name, State.UNKNOWN, row) for row in applied.values())
    return tuple(sorted((*known, *unknown), key=lambda item: item.number))


def _stand(migration: Migration, applied: Applied | None) -> Standing:
    if applied is None:
        state = State.PENDING
    elif applied.checksum == migration.checksum:
        state = State.APPLIED
    else:
        state = State.CHANGED
    return Standing(migration.number, migration.name, state, applied)


def to_apply(migrations: Sequence[Migration], log: Sequence[Applied]) -> tuple[Migration, ...]:
    """Return what is to be applied, in order; refused when code and vault do not belong together."""
    states = standing(migrations, log)
    _refuse_newer(states, len(migrations))
    _refuse_changed(states)
    pending = tuple(migrations[item.number - 1] for item in states if item.state is State.PENDING)
    last = max((row.number for row in log), default=0)
    if pending and pending[0].number < last:
        message = (
            f"The vault's log util.schema_migration has {last:04d} but not {pending[0]}: "
            "its rows were deleted. Restore the log from a backup of the vault."
        )
        raise Refused(message)
    return pending


def _refuse_newer(states: Iterable[Standing], known: int) -> None:
    newer = [f"{item.number:04d}_{item.name}" for item in states if item.state is State.UNKNOWN]
    if newer:
        message = (
            f"The vault is newer than this program: it has {', '.join(newer)}, and the program ends at "
            f"{known:04d}. Upgrade OneVault Ops; the vault is never taken back."
        )
        raise Refused(message)


def _refuse_changed(states: Iterable[Standing]) -> None:
    changed = [f"{item.number:04d}_{item.name}" for item in states if item.state is State.CHANGED]
    if changed:
        message = (
            f"{', '.join(changed)} was changed after it was applied to the vault (its checksum differs). "
            "Put the released file back; a change belongs in a new migration."
        )
        raise Refused(message)
