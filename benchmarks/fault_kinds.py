"""The kinds of faults, each with the shipped rules that must notice it and what those rules wait for."""

from collections.abc import Iterator

from benchmarks import faults
from benchmarks.faults import Fault

_MINUTE, _FIVE_MINUTES = 60.0, 300.0
# What a rule says whose threshold is an age of transactions, of every fault that keeps one open.
_HORIZON = frozenset({"xmin_horizon"})
# Statements that waited for a lock took long on average, and say so when they are done.
_WAITED = frozenset({"critical_statements", "slow_statements"})
# While nothing answers, what was read before grows old.
_BLIND = frozenset({"metrics_stale", "server_unwatched", "standby_disconnected"})
_STANDBY = frozenset({"standby_disconnected", "replication_lag_seconds"})

OVERRIDES = {
    "xmin_horizon": "levels: [{severity: MEDIUM, threshold: 100000, clear: 60000}]",
    "invalid_indexes": "for: 0s",
    "pending_restart": "for: 0s",
}
"""Rules whose shipped form would need an hour, or ten million transactions, to speak."""


def _rules(*names: str) -> frozenset[str]:
    return frozenset(names)


def _kinds() -> Iterator[Fault]:
    yield from _outages()
    yield from _quick()
    yield from _slow()


def _outages() -> Iterator[Fault]:
    down = _rules("server_down")
    for name, make in (
        ("server stopped", faults.stopped),
        ("server crashed", faults.crashed),
        ("server hangs (SIGSTOP)", faults.hung),
        ("collector locked out", faults.locked_out),
    ):
        yield Fault(name, down, make, patience_seconds=20, also=_BLIND, exclusive=True)


def _quick() -> Iterator[Fault]:
    many = _rules("connection flood")
    yield Fault(
        "blocked chain",
        _rules("blocked_sessions"),
        faults.blocked_chain,
        patience_seconds=30,
        also=_HORIZON | _WAITED,
    )
    yield Fault(
        "lock queue",
        _rules("lock_queue", "blocked_sessions"),
        faults.lock_queue,
        patience_seconds=30,
        also=_HORIZON | _WAITED,
        conflicts=many,
    )
    yield Fault(
        "deadlock storm", _rules("deadlocks"), faults.deadlock_storm, read_seconds=_MINUTE
    )
    yield Fault(
        "many idle in transaction",
        _rules("idle_in_transaction"),
        faults.idle_many,
        patience_seconds=30,
        also=_HORIZON,
        conflicts=many,
    )
    yield Fault(
        "connection flood",
        _rules("connections_used"),
        faults.connection_flood,
        patience_seconds=30,
        conflicts=_rules(
            "lock queue", "many idle in transaction", "pool exhausted", "deadlock storm"
        ),
    )
    yield Fault(
        "archive command fails",
        _rules("archive_failing", "archive_failures"),
        faults.archive_failing,
        read_seconds=_MINUTE,
        also=_rules("archive_backlog"),
        conflicts=_rules("archive command hangs"),
    )
    yield Fault(
        "slot lost",
        _rules("replication_slot_lost"),
        faults.slot_lost,
        read_seconds=_MINUTE,
        also=_rules("archive_backlog"),
    )
    yield Fault(
        "disk filled",
        _rules("disk_used"),
        faults.disk_filled,
        patience_seconds=60,
        read_seconds=_MINUTE,
        needs="disk",
    )
    yield Fault(
        "standby cut off",
        _rules("standby_disconnected"),
        faults.standby_cut_off,
        patience_seconds=60,
        also=_STANDBY,
        needs="standby",
        on_standby=True,
        conflicts=_rules("replay paused", "standby restart"),
    )
    yield Fault(
        "replay paused",
        _rules("replication_lag_seconds"),
        faults.replay_paused,
        patience_seconds=120,
        also=_STANDBY,
        needs="standby",
        on_standby=True,
        conflicts=_rules("standby cut off", "standby restart"),
    )
    yield Fault(
        "pool exhausted",
        _rules("pool_wait_seconds", "pool_waiting"),
        faults.pool_exhausted,
        patience_seconds=25,
        needs="pooler",
        conflicts=many,
    )


def _slow() -> Iterator[Fault]:
    long = _rules("long_running_queries", "idle_in_transaction_long")
    yield Fault(
        "long-running queries",
        _rules("long_running_queries"),
        faults.long_queries,
        patience_seconds=330,
        also=_HORIZON,
        slow=True,
    )
    yield Fault(
        "idle in transaction for long",
        _rules("idle_in_transaction_long"),
        faults.idle_long,
        patience_seconds=300,
        also=_HORIZON,
        slow=True,
    )
    yield Fault(
        "xmin horizon held",
        _HORIZON,
        faults.horizon_held,
        read_seconds=_MINUTE,
        also=long,
        slow=True,
    )
    yield Fault(
        "prepared transaction forgotten",
        _rules("prepared_transaction_old"),
        faults.prepared_forgotten,
        patience_seconds=300,
        read_seconds=_MINUTE,
        also=_HORIZON,
        slow=True,
        holds_sessions=False,
    )
    yield Fault(
        "slot forgotten",
        _rules("replication_slot_inactive", "replication_slot_lost"),
        faults.slot_forgotten,
        patience_seconds=600,
        read_seconds=_MINUTE,
        slow=True,
        holds_sessions=False,
    )
    yield Fault(
        "archive command hangs",
        _rules("archive_backlog"),
        faults.archive_stuck,
        patience_seconds=180,
        read_seconds=_MINUTE,
        also=_rules("archive_stale"),
        conflicts=_rules("archive command fails"),
        slow=True,
    )
    yield Fault(
        "invalid index",
        _rules("invalid_indexes"),
        faults.invalid_index,
        read_seconds=_FIVE_MINUTES,
        slow=True,
    )
    yield Fault(
        "restart pending",
        _rules("pending_restart"),
        faults.restart_pending,
        read_seconds=_FIVE_MINUTES,
        slow=True,
    )


KINDS = tuple(_kinds())
LAST = Fault(
    "rights revoked",
    _rules("metrics_stale"),
    faults.rights_revoked,
    patience_seconds=60,
    read_seconds=_MINUTE,
)
"""What ends the watch of a server: nothing is asked for again for an hour."""


def overrides() -> str:
    """Return the file of rules that makes such rules speak."""
    lines = [f"  - {{rules: {rule}, {change}}}\n" for rule, change in OVERRIDES.items()]
    return "overrides:\n" + "".join(lines)
