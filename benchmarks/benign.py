"""What looks like trouble and is none: a DBA's daily work, on servers under load."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import faults, storage_faults
from benchmarks.shops import Shop, environment
from tasks import processes
from tasks.folders import remove_tree

_TOOL_SECONDS = 120
_BURST = 25


@dataclass(frozen=True)
class Benign:
    """Something that no alert of MEDIUM or worse should speak of; an exclusive one interrupts the server."""

    name: str
    run: Callable[[Shop], None]
    exclusive: bool = False
    conflicts: frozenset[str] = frozenset()


def dump(shop: Shop) -> None:
    """Take a dump."""
    tool = shop.cluster.installation.program("pg_dump")
    processes.run([tool, "-Fc", "--no-sync", "-f", "/dev/null"], timeout_seconds=_TOOL_SECONDS, env=environment(shop))  # fmt: skip


def base_backup(shop: Shop) -> None:
    """Take a base backup."""
    place = shop.cluster.directory / "base-backup"
    tool = shop.cluster.installation.program("pg_basebackup")
    argv: list[str | Path] = [tool, "-D", place, "-Ft", "--wal-method=stream", "--checkpoint=fast"]
    try:
        processes.run(argv, timeout_seconds=_TOOL_SECONDS, env=environment(shop))
    finally:
        remove_tree(place)


def vacuum(shop: Shop) -> None:
    """Vacuum everything, and rewrite a small table."""
    _execute(shop, "VACUUM (ANALYZE)", "VACUUM (FULL) stock", "VACUUM (FREEZE) pgbench_accounts")


def bulk_load(shop: Shop) -> None:
    """Load a table in one transaction."""
    _execute(
        shop,
        "DROP TABLE IF EXISTS loaded",
        "CREATE TABLE loaded (id int, name text)",
        "INSERT INTO loaded SELECT i, md5(i::text) FROM generate_series(1, 150000) AS i",
        "DELETE FROM loaded WHERE id < 70000",
    )


def build_index(shop: Shop) -> None:
    """Build an index concurrently, and again."""
    _execute(
        shop,
        "DROP INDEX IF EXISTS wares_name",
        "CREATE INDEX CONCURRENTLY wares_name ON wares (name)",
        "REINDEX INDEX CONCURRENTLY wares_name",
    )


def deploy(shop: Shop) -> None:
    """Change a table that is in use."""
    with shop.admin() as admin, admin.transaction():
        admin.execute("SET LOCAL lock_timeout = '5s'")
        admin.execute("ALTER TABLE pgbench_tellers ADD COLUMN note text")
        admin.execute("ALTER TABLE pgbench_tellers DROP COLUMN note")
        admin.execute("DROP INDEX IF EXISTS numbers_id")
        admin.execute("CREATE INDEX numbers_id ON numbers (id)")
        admin.execute("TRUNCATE numbers")


def restart(shop: Shop) -> None:
    """Restart the server as planned."""
    shop.cluster.stop("fast")
    shop.start()


def restart_standby(shop: Shop) -> None:
    """Restart the standby as planned."""
    if shop.standby is not None:
        shop.standby.stop("fast")
        shop.standby.start(shop.standby_settings)


def idle_session(shop: Shop) -> None:
    """Leave psql open over a coffee."""
    with shop.session("psql") as session:
        session.execute("SELECT count(*) FROM wares")
        shop.stopping.wait(30)


def short_transaction(shop: Shop) -> None:
    """Think for a while inside a transaction."""
    with shop.session("psql") as session, session.transaction():
        session.execute("UPDATE stock SET pieces = pieces WHERE id = 500")
        shop.stopping.wait(20)


def short_lock_wait(shop: Shop) -> None:
    """Let a few sessions wait some seconds for a row."""
    words = "UPDATE stock SET pieces = pieces WHERE id = %s"
    with shop.session("psql") as holder, ExitStack() as stack:
        waiting = [stack.enter_context(shop.session("shop")) for _ in range(4)]
        with holder.transaction():
            holder.execute(words, [600])
            threads = [faults.in_background(each, words, 600) for each in waiting]
            shop.stopping.wait(12)
        for thread in threads:
            thread.join(10)


def reload(shop: Shop) -> None:
    """Read the settings again."""
    _execute(shop, "SELECT pg_reload_conf()")


def checkpoints(shop: Shop) -> None:
    """Make several checkpoints in a row."""
    for _ in range(3):
        storage_faults.write_wal(shop, 4)
        _execute(shop, "CHECKPOINT")


def analyze(shop: Shop) -> None:
    """Gather statistics, and let autovacuum find something to do."""
    _execute(shop, "UPDATE wares SET name = name WHERE id % 4 = 0", "ANALYZE")


def read_burst(shop: Shop) -> None:
    """Read everything several times, more than fits into shared buffers."""
    for _ in range(4):
        _execute(shop, "SELECT count(*), max(name) FROM wares", "SELECT sum(abalance) FROM pgbench_accounts")  # fmt: skip


def spill(shop: Shop) -> None:
    """Sort more than fits into work_mem."""
    _execute(shop, "SET work_mem = '64kB'", "SELECT count(*) FROM (SELECT name FROM wares ORDER BY name OFFSET 0) AS w")  # fmt: skip


def connection_burst(shop: Shop) -> None:
    """Open a pool's connections for some seconds."""
    with ExitStack() as stack:
        for _ in range(_BURST):
            stack.enter_context(shop.session("pool"))
        shop.stopping.wait(15)


def slow_report(shop: Shop) -> None:
    """Run one statement for a while."""
    _execute(shop, "SELECT pg_sleep(25)")


def _execute(shop: Shop, *statements: str) -> None:
    with shop.admin() as admin:
        for words in statements:
            admin.execute(words.encode())


def _kinds() -> tuple[Benign, ...]:
    daily = (
        dump, base_backup, vacuum, bulk_load, build_index, deploy, idle_session, short_transaction, short_lock_wait,
        reload, checkpoints, analyze, read_burst, spill, connection_burst, slow_report,
    )  # fmt: skip
    named = tuple(Benign(each.__name__.replace("_", " "), each) for each in daily)
    cut = frozenset({"standby cut off", "replay paused"})
    return (
        *named,
        Benign("planned restart", restart, exclusive=True),
        Benign("standby restart", restart_standby, conflicts=cut),
    )


KINDS = _kinds()
