"""The kinds of faults, each with the shipped rules that must notice it and what those rules wait for."""

from collections.abc import Iterator
from typing import Any

from benchmarks import faults, storage_faults
from benchmarks.faults import Fault, Make
from tasks.alerts import rules
from tasks.metrics import catalog

_SHIPPED = rules.load()
_CATALOG = catalog.load()
# What a rule says whose threshold is an age of transactions, of every fault that keeps one open.
_HORIZON = frozenset({"xmin_horizon"})
# Statements that waited for a lock took long on average, and say so when they are done.
_WAITED = frozenset({"critical_statements", "slow_statements"})
# While nothing answers, what was read before grows old.
_BLIND = frozenset({"metrics_stale", "server_unwatched", "standby_disconnected"})
_STANDBY = frozenset({"standby_disconnected", "replication_lag_seconds"})
_FLOOD = frozenset({"connection flood"})
# What needs more sessions than a flood leaves.
_CROWDS = frozenset(
    {
        "blocked chain",
        "lock queue",
        "many idle in transaction",
        "pool exhausted",
        "deadlock storm",
        "long-running queries",
    }
)

OVERRIDES = {
    "xmin_horizon": "levels: [{severity: MEDIUM, threshold: 100000, clear: 60000}]",
    "invalid_indexes": "for: 0s",
    "pending_restart": "for: 0s",
}
"""Rules whose shipped form would need an hour, or ten million transactions, to speak."""


def _fault(name: str, make: Make, *named: str, ripens_seconds: float = 0.0, **more: Any) -> Fault:
    """Make a kind; the first rule named gives what is waited for: until its threshold, and its shortest `for`."""
    rule = _SHIPPED.rules[named[0]]
    lasting = min(level.lasting.total_seconds() for level in rule.levels)
    return Fault(
        name,
        frozenset(named),
        make,
        patience_seconds=ripens_seconds + (0.0 if rule.name in OVERRIDES else lasting),
        read_seconds=_CATALOG.families[rule.family].tier.seconds,
        **more,
    )


def _kinds() -> Iterator[Fault]:
    yield from _outages()
    yield from _locks()
    yield from _crowds()
    yield from _wal_and_disk()
    yield from _standbys()
    yield from _slow_sessions()
    yield from _slow_remains()


def _outages() -> Iterator[Fault]:
    for name, make in (
        ("server stopped", faults.stopped),
        ("server crashed", faults.crashed),
        ("server hangs (SIGSTOP)", faults.hung),
        ("collector locked out", faults.locked_out),
    ):
        yield _fault(name, make, "server_down", also=_BLIND, exclusive=True)


def _locks() -> Iterator[Fault]:
    also, chain, queue = _HORIZON | _WAITED, frozenset({"blocked chain"}), frozenset({"lock queue"})
    yield _fault(
        "blocked chain",
        faults.blocked_chain,
        "blocked_sessions",
        ripens_seconds=30,
        also=also,
        conflicts=_FLOOD | queue,
    )
    yield _fault(
        "lock queue",
        faults.lock_queue,
        "lock_queue",
        "blocked_sessions",
        also=also,
        conflicts=_FLOOD | chain,
    )
    yield _fault("deadlock storm", faults.deadlock_storm, "deadlocks", conflicts=_FLOOD)


def _crowds() -> Iterator[Fault]:
    yield _fault(
        "many idle in transaction",
        faults.idle_many,
        "idle_in_transaction",
        also=_HORIZON,
        conflicts=_FLOOD,
    )
    yield _fault("connection flood", faults.connection_flood, "connections_used", conflicts=_CROWDS)
    yield _fault(
        "pool exhausted",
        faults.pool_exhausted,
        "pool_wait_seconds",
        "pool_waiting",
        ripens_seconds=5,
        needs="pooler",
        conflicts=_FLOOD,
    )


def _wal_and_disk() -> Iterator[Fault]:
    yield _fault(
        "archive command fails",
        storage_faults.archive_failing,
        "archive_failing",
        "archive_failures",
        also=frozenset({"archive_backlog"}),
        conflicts=frozenset({"archive command hangs"}),
    )
    yield _fault(
        "archive command hangs",
        storage_faults.archive_stuck,
        "archive_backlog",
        also=frozenset({"archive_stale"}),
        conflicts=frozenset({"archive command fails"}),
        slow=True,
    )
    yield _fault(
        "slot lost",
        storage_faults.slot_lost,
        "replication_slot_lost",
        also=frozenset({"archive_backlog", "replication_slot_inactive"}),
        needs="no standby",
        conflicts=frozenset({"slot forgotten"}),
    )
    yield _fault("disk filled", storage_faults.disk_filled, "disk_used", needs="disk")


def _standbys() -> Iterator[Fault]:
    restart = frozenset({"standby restart"})
    more: dict[str, Any] = {"also": _STANDBY, "needs": "standby", "on_standby": True}
    yield _fault(
        "standby cut off",
        storage_faults.standby_cut_off,
        "standby_disconnected",
        conflicts=restart | {"replay paused"},
        **more,
    )
    yield _fault(
        "replay paused",
        storage_faults.replay_paused,
        "replication_lag_seconds",
        ripens_seconds=60,
        conflicts=restart | {"standby cut off"},
        **more,
    )


def _slow_sessions() -> Iterator[Fault]:
    yield _fault(
        "long-running queries",
        faults.long_queries,
        "long_running_queries",
        ripens_seconds=300,
        also=_HORIZON,
        conflicts=_FLOOD,
        slow=True,
    )
    yield _fault(
        "idle in transaction for long",
        faults.idle_long,
        "idle_in_transaction_long",
        ripens_seconds=300,
        also=_HORIZON,
        slow=True,
    )
    long = frozenset({"long_running_queries", "idle_in_transaction_long"})
    yield _fault("xmin horizon held", faults.horizon_held, "xmin_horizon", also=long, slow=True)


def _slow_remains() -> Iterator[Fault]:
    yield _fault(
        "prepared transaction forgotten",
        faults.prepared_forgotten,
        "prepared_transaction_old",
        ripens_seconds=300,
        also=_HORIZON,
        slow=True,
        holds_sessions=False,
    )
    yield _fault(
        "slot forgotten",
        storage_faults.slot_forgotten,
        "replication_slot_inactive",
        "replication_slot_lost",
        conflicts=frozenset({"slot lost"}),
        slow=True,
        holds_sessions=False,
    )
    yield _fault("invalid index", storage_faults.invalid_index, "invalid_indexes", slow=True)
    yield _fault("restart pending", storage_faults.restart_pending, "pending_restart", slow=True)


KINDS = tuple(_kinds())
LAST = Fault(
    "rights revoked",
    frozenset({"metrics_stale"}),
    faults.rights_revoked,
    patience_seconds=60,
    read_seconds=60,
)
"""What ends the watch of a server: what is refused is not asked for again for an hour."""


def overrides() -> str:
    """Return the file of rules that makes such rules speak."""
    lines = [f"  - {{rules: {rule}, {change}}}\n" for rule, change in OVERRIDES.items()]
    return "overrides:\n" + "".join(lines)
