"""The families of databases, read over a few connections at a time, none of which outlives its visit."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable
from time import monotonic

import psycopg
from psycopg.rows import DictRow, dict_row

from tasks.errors import OneVaultError, Refused
from tasks.metrics.batch import STATEMENTS, read_any_text
from tasks.metrics.link import Answers, Link, nothing
from tasks.metrics.models import Family, FamilyAnswer, FamilyState, Tier
from tasks.metrics.remembering import ASK_AGAIN_SECONDS, Memory
from tasks.metrics.rotation import Rotation

_LEAST_SHARE_OF_TIME = 0.25


class Databases:
    """Goes round the databases with at most so many connections at a time.

    Each visit ends its connection: one that stayed would stand in the way of DROP DATABASE, of renaming it, and of
    CREATE DATABASE ... TEMPLATE. known are the databases as they were listed last, None before.
    """

    def __init__(self, families: Collection[Family], make: Callable[[str, Memory], Link]) -> None:
        self._families = families
        self._make = make
        self._rotation = Rotation()
        self._links: dict[str, Link] = {}
        self._memories: dict[str, Memory] = {}
        self._refused: dict[str, tuple[str, float]] = {}
        self.known: tuple[str, ...] | None = None

    @property
    def links(self) -> tuple[Link, ...]:
        """Return the links of the databases that are being visited."""
        return tuple(self._links.values())

    def has_due(self, tiers: Collection[Tier]) -> bool:
        """Tell whether any family of databases is due, or was due when the time was up before its turn."""
        return bool(self._due(tiers)) or self._rotation.is_behind

    async def close(self) -> None:
        """Close every connection."""
        while self._links:
            await self._links.popitem()[1].close()

    async def order(self, maintenance: Link, tiers: Collection[Tier]) -> list[str]:
        """Return the databases that are owed a turn, the longest waiting first; those dropped are forgotten."""
        rows = await _listed(maintenance.connection)
        login = maintenance.knowledge.login
        for row in rows:
            self._note_right(row["name"], login, may_connect=row["may_connect"])
        names = [row["name"] for row in rows]
        self.known = tuple(names)
        self._forget(names)
        waiting = self._rotation.owe(names, self._due(tiers))
        return [name for name in waiting if self._rotation.is_owed(name)]

    async def visit_own(self, maintenance: Link, found: list[FamilyAnswer]) -> None:
        """Give the maintenance database its turn over the connection that is there."""
        answers: Answers = {}
        families = self._owed(maintenance.database)
        if not families:
            return
        try:
            await maintenance.ask(families, answers)
        finally:
            found.extend(answers.values())

    async def go_round(
        self, names: Iterable[str], slots: int, until: float, found: list[FamilyAnswer]
    ) -> None:
        """Visit one database after the other until the time is nearly up; `until` is of time.monotonic()."""
        queue = deque(names)
        last_start = until - (until - monotonic()) * _LEAST_SHARE_OF_TIME
        async with asyncio.TaskGroup() as group:
            for _ in range(min(slots, len(queue))):
                group.create_task(self._work(queue, last_start, found))

    async def _work(self, queue: deque[str], last_start: float, found: list[FamilyAnswer]) -> None:
        while queue and monotonic() < last_start:
            found.extend((await self._visit(queue.popleft())).values())

    async def _visit(self, name: str) -> Answers:
        families, answers = self._owed(name), dict[str, FamilyAnswer]()
        message, again_at = self._refused.get(name, ("", 0.0))
        if message and monotonic() < again_at:
            return {f.name: nothing(f, FamilyState.REFUSED, message, name) for f in families}
        link = self._links[name] = self._make(name, self._memories.setdefault(name, Memory()))
        try:
            await link.ask(families, answers)
        except OneVaultError as error:
            state = FamilyState.REFUSED if isinstance(error, Refused) else FamilyState.UNAVAILABLE
            if state is FamilyState.REFUSED:
                self._refused[name] = (str(error), monotonic() + ASK_AGAIN_SECONDS)
            missing = [family for family in families if family.name not in answers]
            answers |= {f.name: nothing(f, state, str(error), name) for f in missing}
        finally:
            self._links.pop(name, None)
            await link.close()
        return answers

    def _forget(self, names: Collection[str]) -> None:
        kept = set(names)
        self._refused = {name: each for name, each in self._refused.items() if name in kept}
        self._memories = {name: each for name, each in self._memories.items() if name in kept}

    def _note_right(self, name: str, login: str, *, may_connect: bool) -> None:
        """Remember what we may not connect to, and forget that as soon as we may."""
        message = (
            f'The login "{login}" may not connect to database "{name}": '
            f'GRANT CONNECT ON DATABASE "{name}" TO "{login}".'
        )
        if not may_connect:
            self._refused[name] = (message, monotonic() + ASK_AGAIN_SECONDS)
        elif self._refused.get(name, ("", 0.0))[0] == message:
            del self._refused[name]

    def _due(self, tiers: Collection[Tier]) -> frozenset[Tier]:
        return frozenset(family.tier for family in self._families if family.tier in tiers)

    def _owed(self, name: str) -> list[Family]:
        tiers = self._rotation.visit(name)
        return [family for family in self._families if family.tier in tiers]


async def _listed(conn: psycopg.AsyncConnection) -> list[DictRow]:
    try:
        return await _list(conn)
    except UnicodeDecodeError:  # one odd name must not hide the others
        read_any_text(conn)
        return await _list(conn)


async def _list(conn: psycopg.AsyncConnection) -> list[DictRow]:
    query = STATEMENTS.get("databases", conn.info.server_version // 10_000)
    async with conn.cursor(row_factory=dict_row) as cursor:
        return await (await cursor.execute(query)).fetchall()
