"""Faults on purpose, on private servers under load: each one begins, lasts for a block, and ends."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil
import psycopg

from benchmarks.shops import MAX_CONNECTIONS, RESERVED, Shop

_CHAIN = 3
_QUEUE = 13
_IDLE = 24
_LONG = 7
_POOLED = 12
_FREE_SLOTS = 3
_DEADLOCKS = 6
_JOIN_SECONDS = 15.0

Make = Callable[[Shop], AbstractContextManager[object]]


@dataclass(frozen=True)
class Fault:
    """A kind of fault, what is to say so, and how.

    rules are those of which one must fire, on the server itself or on its standby (`on_standby`); also are those that
    may fire because of it. patience_seconds is what the rule itself waits for before it speaks (the threshold of a
    time, and `for`); read_seconds how often its metric is read. An exclusive one ends whatever else goes on; a slow
    one is noticed after minutes by its rule, and holds_sessions tells whether an outage would end it.
    """

    name: str
    rules: frozenset[str]
    make: Make
    patience_seconds: float = 0.0
    read_seconds: float = 10.0
    also: frozenset[str] = frozenset()
    needs: str = ""
    conflicts: frozenset[str] = frozenset()
    on_standby: bool = False
    exclusive: bool = False
    slow: bool = False
    holds_sessions: bool = True

    @property
    def longest_seconds(self) -> float:
        """Return how long it lasts at most when nobody notices it: two readings more than it should take, and some."""
        return self.patience_seconds + 2 * self.read_seconds + 40

    def fits(self, shop: Shop) -> bool:
        """Tell whether the server has what the fault needs."""
        have = {
            "": True,
            "no standby": shop.standby is None,
            "standby": shop.standby is not None,
            "disk": shop.disk is not None,
            "pooler": shop.pooler_port is not None,
        }
        return have[self.needs]


@contextmanager
def stopped(shop: Shop) -> Iterator[None]:
    """Stop the server in order."""
    yield from _away(shop, "fast")


@contextmanager
def crashed(shop: Shop) -> Iterator[None]:
    """Let the server crash."""
    yield from _away(shop, "immediate")


def _away(shop: Shop, mode: str) -> Iterator[None]:
    shop.cluster.stop(mode)
    try:
        yield
    finally:
        shop.start()


@contextmanager
def hung(shop: Shop) -> Iterator[None]:
    """Stop all processes of the server where they are, as a hanging disk does."""
    if shop.cluster.process is None:
        return
    postmaster = psutil.Process(shop.cluster.process.pid)
    postmaster.suspend()
    children = postmaster.children()
    try:
        for child in children:
            with suppress(psutil.Error):
                child.suspend()
        yield
    finally:
        for each in (*children, postmaster):
            with suppress(psutil.Error):
                each.resume()


@contextmanager
def locked_out(shop: Shop) -> Iterator[None]:
    """Forbid the collector's role to log in, and end its sessions."""
    with shop.admin() as admin:
        admin.execute("ALTER ROLE onevault_metrics NOLOGIN")
        try:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'onevault_metrics'"
            )
            yield
        finally:
            admin.execute("ALTER ROLE onevault_metrics LOGIN")


@contextmanager
def rights_revoked(shop: Shop) -> Iterator[None]:
    """Take pg_monitor from the collector's role."""
    with shop.admin() as admin:
        admin.execute("REVOKE pg_monitor FROM onevault_metrics")
        try:
            yield
        finally:
            admin.execute("GRANT pg_monitor TO onevault_metrics")


@contextmanager
def blocked_chain(shop: Shop) -> Iterator[None]:
    """Let a few sessions wait for one that is idle in its transaction."""
    yield from _waiting_for(shop, 1, _CHAIN)


@contextmanager
def lock_queue(shop: Shop) -> Iterator[None]:
    """Let many sessions wait for one that is idle in its transaction."""
    yield from _waiting_for(shop, 2, _QUEUE)


def _waiting_for(shop: Shop, row: int, sessions: int) -> Iterator[None]:
    with ExitStack() as stack:
        holder = stack.enter_context(shop.session("checkout"))
        waiting = [stack.enter_context(shop.session("billing")) for _ in range(sessions)]
        holder.execute("BEGIN")
        holder.execute("UPDATE stock SET pieces = pieces WHERE id = %s", [row])
        words = "UPDATE stock SET pieces = pieces + 1 WHERE id = %s"
        threads = [in_background(each, words, row) for each in waiting]
        try:
            yield
        finally:
            holder.execute("ROLLBACK")
            _join(threads)


@contextmanager
def deadlock_storm(shop: Shop) -> Iterator[None]:
    """Let pairs of sessions take the same two locks in opposite order, again and again."""
    with ExitStack() as stack:
        pairs = [
            [stack.enter_context(shop.session("deadlocks")) for _ in range(2)]
            for _ in range(_DEADLOCKS)
        ]
        for _ in range(5):
            threads = [
                thread for number, pair in enumerate(pairs) for thread in _embrace(pair, number)
            ]
            _join(threads)
    yield


def _embrace(pair: list[psycopg.Connection[Any]], number: int) -> Iterator[threading.Thread]:
    met = threading.Barrier(2)
    first, second = 100 + 2 * number, 101 + 2 * number

    def take(session: psycopg.Connection[Any], one: int, other: int) -> None:
        words = "UPDATE stock SET pieces = pieces + 1 WHERE id = %s"
        with suppress(psycopg.Error, threading.BrokenBarrierError), session.transaction():
            session.execute(words, [one])
            met.wait(10)
            session.execute(words, [other])

    for session, one, other in ((pair[0], first, second), (pair[1], second, first)):
        thread = threading.Thread(target=take, args=[session, one, other], daemon=True)
        thread.start()
        yield thread


@contextmanager
def idle_many(shop: Shop) -> Iterator[None]:
    """Let many sessions sit idle in transactions."""
    with ExitStack() as stack:
        for _ in range(_IDLE):
            stack.enter_context(_idle(shop, "leaking pool"))
        yield


@contextmanager
def idle_long(shop: Shop) -> Iterator[None]:
    """Let one session sit idle in its transaction for long."""
    with _idle(shop, "forgotten"):
        yield


@contextmanager
def _idle(shop: Shop, application_name: str) -> Iterator[psycopg.Connection[Any]]:
    with shop.session(application_name) as session:
        session.execute("BEGIN")
        session.execute("SELECT count(*) FROM stock")
        try:
            yield session
        finally:
            with suppress(psycopg.Error):
                session.execute("ROLLBACK")


@contextmanager
def horizon_held(shop: Shop) -> Iterator[None]:
    """Let a forgotten snapshot hold the xmin horizon while others use up transaction ids."""
    with shop.session("report") as reader:
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM stock")
        with shop.session("burner") as burner:
            burner.execute(
                "DO $$ BEGIN FOR number IN 1..150000 LOOP BEGIN INSERT INTO numbers VALUES (number);"
                " EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$"
            )  # fmt: skip
        try:
            yield
        finally:
            with suppress(psycopg.Error):
                reader.execute("ROLLBACK")


@contextmanager
def connection_flood(shop: Shop) -> Iterator[None]:
    """Take nearly all connections."""
    with ExitStack() as stack:
        with shop.admin() as admin:
            there = admin.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            ).fetchall()[0][0]
        wanted = MAX_CONNECTIONS - RESERVED - there - _FREE_SLOTS + 1
        with suppress(psycopg.OperationalError):  # others came meanwhile: it is full indeed
            for _ in range(wanted):
                stack.enter_context(shop.session("flood"))
        yield


@contextmanager
def long_queries(shop: Shop) -> Iterator[None]:
    """Let several statements run for minutes."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(shop.session("report")) for _ in range(_LONG)]
        threads = [in_background(each, "SELECT pg_sleep(%s)", 900) for each in sessions]
        try:
            yield
        finally:
            for each in sessions:
                each.cancel()
            _join(threads)


@contextmanager
def prepared_forgotten(shop: Shop) -> Iterator[None]:
    """Leave a prepared transaction."""
    with shop.session("transaction manager") as session:
        session.execute("BEGIN")
        session.execute("UPDATE stock SET pieces = pieces WHERE id = 900")
        session.execute("PREPARE TRANSACTION 'forgotten'")
    try:
        yield
    finally:
        with shop.admin() as admin:
            admin.execute("ROLLBACK PREPARED 'forgotten'")


@contextmanager
def pool_exhausted(shop: Shop) -> Iterator[None]:
    """Let many clients wait for the few connections of a pool, which work on something long."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(shop.pooled()) for _ in range(_POOLED)]
        words = "SELECT pg_sleep(%s) /* pooled */"
        threads = [in_background(each, words, 120) for each in sessions]
        try:
            yield
        finally:
            with shop.admin() as admin:
                while waiting := [thread for thread in threads if thread.is_alive()]:
                    _cancel_pooled(admin)
                    waiting[0].join(0.3)


def _cancel_pooled(admin: psycopg.Connection[Any]) -> None:
    admin.execute(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
        " WHERE query LIKE '%/* pooled */' AND state = 'active'"
    )


def in_background(session: psycopg.Connection[Any], words: str, value: object) -> threading.Thread:
    """Run a statement in a thread; that it is cancelled or cut off is no fault."""

    def execute() -> None:
        with suppress(psycopg.Error):
            session.execute(words.encode(), [value])

    thread = threading.Thread(target=execute, daemon=True)
    thread.start()
    return thread


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(_JOIN_SECONDS)
