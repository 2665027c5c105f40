from datetime import UTC, datetime
from pathlib import Path

import pytest

from tasks.errors import Refused
from tasks.schema import plan
from tasks.schema.models import Applied, Migration, State

MIGRATIONS = tuple(
    Migration(number, f"step_{number}", b"SELECT %d" % number) for number in (1, 2, 3)
)


def applied(*migrations: Migration) -> list[Applied]:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return [Applied(item.number, item.name, item.checksum, now, "dba", 5) for item in migrations]


def write(folder: Path, **files: bytes) -> Path:
    for name, text in files.items():
        (folder / f"{name}.sql").write_bytes(text)
    return folder


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_what_is_missing_is_applied_in_order(done):
    assert plan.to_apply(MIGRATIONS, applied(*MIGRATIONS[:done])) == MIGRATIONS[done:]


def test_a_changed_migration_is_refused_by_name():
    changed = Migration(2, "step_2", b"SELECT 'something else'")
    with pytest.raises(Refused, match="0002_step_2 was changed after it was applied"):
        plan.to_apply(MIGRATIONS, applied(MIGRATIONS[0], changed))


def test_a_newer_vault_is_refused():
    newer = Migration(4, "tomorrow", b"")
    with pytest.raises(
        Refused, match="newer than this program: it has 0004_tomorrow, and the program ends at 0003"
    ):
        plan.to_apply(MIGRATIONS, applied(*MIGRATIONS, newer))


def test_a_hole_in_the_log_is_refused():
    with pytest.raises(Refused, match="has 0003 but not 0002_step_2"):
        plan.to_apply(MIGRATIONS, applied(MIGRATIONS[0], MIGRATIONS[2]))


def test_standing_tells_every_state():
    log = applied(MIGRATIONS[0], Migration(2, "step_2", b"changed"), Migration(9, "later", b""))
    states = [(item.number, item.state) for item in plan.standing(MIGRATIONS, log)]
    assert states == [
        (1, State.APPLIED),
        (2, State.CHANGED),
        (3, State.PENDING),
        (9, State.UNKNOWN),
    ]


def test_files_are_read_in_order_and_line_ends_do_not_count(tmp_path):
    write(tmp_path, **{"0002_b": b"SELECT 2;\r\n", "0001_a": b"SELECT 1;\n"})
    first, second = plan.read_migrations(tmp_path)
    assert (first.number, first.name, str(second)) == (1, "a", "0002_b")
    write(tmp_path, **{"0002_b": b"SELECT 2;\n"})
    assert plan.read_migrations(tmp_path)[1].checksum == second.checksum


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"0001_a": b"", "0003_c": b""}, "0002 was expected where 0003_c stands"),
        ({"0001_a": b"", "0001_b": b""}, "0002 was expected where 0001_"),
        ({"0002_b": b""}, "0001 was expected where 0002_b stands"),
        ({"0001-a": b""}, "0001-a.sql is not named like a migration"),
        ({}, "There are no migrations"),
    ],
)
def test_odd_files_are_refused(tmp_path, files, words):
    with pytest.raises(Refused, match=words):
        plan.read_migrations(write(tmp_path, **files))


@pytest.mark.parametrize("migration", plan.read_migrations(), ids=str)
def test_a_migration_leaves_transactions_to_the_migrator(migration):
    words = {
        line.split()[0].strip(b";").upper()
        for line in migration.sql.splitlines()
        if line and line[:1].isalpha()
    }
    assert words
    assert not words & {b"COMMIT", b"ROLLBACK", b"SAVEPOINT", b"START", b"VACUUM"}
