"""Faults of what is stored and sent: WAL and its archive, slots, disks, standbys, indexes and settings."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from benchmarks.shops import Shop

_SEGMENTS = 80
_BALLAST_BYTES = 62 << 20


@contextmanager
def archive_failing(shop: Shop) -> Iterator[None]:
    """Let the archive command fail."""
    yield from _archiving(shop, shop.failing, segments=1)


@contextmanager
def archive_stuck(shop: Shop) -> Iterator[None]:
    """Let the archive command hang while WAL is written."""
    yield from _archiving(shop, shop.hanging, segments=30)


def _archiving(shop: Shop, flag: Path, segments: int) -> Iterator[None]:
    flag.touch()
    try:
        write_wal(shop, segments)
        yield
    finally:
        flag.unlink()
        # A new segment wakes the archiver, who waits up to a minute otherwise.
        write_wal(shop, 1)


@contextmanager
def slot_lost(shop: Shop) -> Iterator[None]:
    """Let a slot fall so far behind that its WAL is removed."""
    with _slot(shop, "too_slow"):
        write_wal(shop, _SEGMENTS)
        with shop.admin() as admin:
            admin.execute("CHECKPOINT")
        yield


@contextmanager
def slot_forgotten(shop: Shop) -> Iterator[None]:
    """Leave a slot that nobody reads."""
    with _slot(shop, "forgotten"):
        yield


@contextmanager
def _slot(shop: Shop, name: str) -> Iterator[None]:
    with shop.admin() as admin:
        admin.execute("SELECT pg_create_physical_replication_slot(%s, true)", [name])
    try:
        yield
    finally:
        with shop.admin() as admin:
            admin.execute("SELECT pg_drop_replication_slot(%s)", [name])


def write_wal(shop: Shop, segments: int) -> None:
    """Fill so many segments of WAL, as far as anybody can tell."""
    with shop.admin() as admin:
        for _ in range(segments):
            admin.execute("SELECT pg_logical_emit_message(false, 'benchmark', 'a word')")
            admin.execute("SELECT pg_switch_wal()")


@contextmanager
def disk_filled(shop: Shop) -> Iterator[None]:
    """Fill the small disk of a tablespace."""
    assert shop.disk is not None  # noqa: S101
    ballast = shop.disk / "ballast"
    try:
        with ballast.open("wb") as file:
            for _ in range(_BALLAST_BYTES >> 20):
                file.write(b"\0" * (1 << 20))
        yield
    finally:
        ballast.unlink()


@contextmanager
def standby_cut_off(shop: Shop) -> Iterator[None]:
    """Forbid the standby's role to log in, and end its connection."""
    with shop.admin() as admin:
        admin.execute("ALTER ROLE replicator NOLOGIN")
        try:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name LIKE '%-standby'"
            )
            yield
        finally:
            admin.execute("ALTER ROLE replicator LOGIN")


@contextmanager
def replay_paused(shop: Shop) -> Iterator[None]:
    """Let the standby receive WAL and not replay it."""
    assert shop.standby is not None  # noqa: S101
    with psycopg.connect(shop.standby.conninfo(), autocommit=True) as standby:
        standby.execute("SELECT pg_wal_replay_pause()")
        try:
            yield
        finally:
            standby.execute("SELECT pg_wal_replay_resume()")


@contextmanager
def invalid_index(shop: Shop) -> Iterator[None]:
    """Leave an index whose build failed."""
    with shop.admin("postgres") as admin:
        admin.execute("CREATE TABLE twins AS SELECT 1 AS id FROM generate_series(1, 2)")
        with suppress(psycopg.errors.UniqueViolation):
            admin.execute("CREATE UNIQUE INDEX CONCURRENTLY twins_id ON twins (id)")
        try:
            yield
        finally:
            admin.execute("DROP TABLE twins")


@contextmanager
def restart_pending(shop: Shop) -> Iterator[None]:
    """Change a setting that takes effect only after a restart."""
    with shop.admin() as admin:
        admin.execute("ALTER SYSTEM SET max_locks_per_transaction = 128")
        admin.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            admin.execute("ALTER SYSTEM RESET max_locks_per_transaction")
            admin.execute("SELECT pg_reload_conf()")
