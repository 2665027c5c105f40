"""The servers of one collector: each in a task of its own, so that none waits for another."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic

from tasks.metrics.models import Batch, FamilyAnswer, Target, Tier
from tasks.metrics.pace import Pace, happened
from tasks.metrics.schedule import Schedule
from tasks.metrics.watch import Known, Watch, is_up, why_down

_LIGHT = frozenset([Tier.LIGHT])

log = logging.getLogger("onevault.collector")


@dataclass(slots=True)
class _Member:
    """A server, its task, and how it stood the last time."""

    watch: Watch
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None
    is_up: bool | None = None
    is_slow: bool = False
    missed: frozenset[Tier] = frozenset()
    blamed: set[str] = field(default_factory=set)


class Fleet:
    """Keeps each server's schedule. At most `concurrency` collections run at once, and as many of slow servers.

    A server that is away, or was slow the last time, waits in the lane of the slow ones: however many there are, the
    others find a free slot. While it is away only the light tier is tried; the other tiers follow when it is back.
    Its host and its pooler are read as ever: they may show why.
    """

    def __init__(
        self,
        make: Callable[[Target], Watch],
        accept: Callable[[Batch], None],
        latest: Callable[[str], Awaitable[Known | None]],
        own: Callable[[str], Mapping[str, float]],
        *,
        concurrency: int,
        pace: Pace,
    ) -> None:
        self._make = make
        self._accept = accept
        self._latest = latest
        self._own = own
        self._pace = pace
        self._lane = asyncio.Semaphore(concurrency)
        self._slow_lane = asyncio.Semaphore(concurrency)
        self._members: dict[str, _Member] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Return how many servers are watched; of a fleet that was stopped, how many were."""
        return len(self._members)

    def set_targets(self, targets: Sequence[Target]) -> None:
        """Watch these servers and no others; connection settings that changed are used from now on."""
        wanted = {target.name: target for target in targets}
        for name in self._members.keys() - wanted.keys():
            self._dismiss(name)
        for name, target in wanted.items():
            if name not in self._members:
                self._admit(target)
            elif _differ(self._members[name].watch.target, target):
                self._members[name].watch.renew(target)

    async def stop(self) -> None:
        """End all watches: what is in flight may finish within Pace.stop_seconds."""
        for name, member in self._members.items():
            self._end(name, member)
        if not self._leaving:
            return
        _, late = await asyncio.wait(self._leaving, timeout=self._pace.stop_seconds)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=self._pace.stop_seconds)

    def _admit(self, target: Target) -> None:
        member = _Member(self._make(target))
        member.task = asyncio.create_task(self._run(member), name=f"watch {target.name}")
        self._members[target.name] = member
        log.info("watching %s", target.name)

    def _dismiss(self, name: str) -> None:
        self._end(name, self._members.pop(name))

    def _end(self, name: str, member: _Member) -> None:
        member.ended.set()
        if member.task is not None:
            self._leaving.add(member.task)
            member.task.add_done_callback(self._leaving.discard)
        log.info("no longer watching %s", name)

    async def _run(self, member: _Member) -> None:
        name = member.watch.target.name
        schedule = Schedule(name, monotonic(), self._pace.seconds)
        try:
            if (known := await self._latest(name)) is not None:
                member.watch.go_on_from(known)
            while not await happened(member.ended, schedule.delay(monotonic())):
                async with self._slot(member):
                    await self._collect(member, schedule)
        except Exception:  # nobody waits for this task: its end would pass unseen
            log.exception("the watch of %s ended by a fault of the collector", name)
        finally:
            await member.watch.close()

    @asynccontextmanager
    async def _slot(self, member: _Member) -> AsyncIterator[None]:
        slow = member.is_slow or member.is_up is False
        async with self._slow_lane if slow else self._lane:
            yield

    async def _collect(self, member: _Member, schedule: Schedule) -> None:
        now = monotonic()
        due = schedule.due(now)
        if member.ended.is_set() or not due:
            return
        schedule.take(due, now)
        wanted = due | member.missed
        tiers = wanted & _LIGHT if member.is_up is False else wanted
        if tiers:
            await self._ask(member, tiers, due | tiers)
        member.missed = wanted - (tiers if member.is_up else _LIGHT)

    async def _ask(
        self, member: _Member, tiers: frozenset[Tier], elsewhere: frozenset[Tier]
    ) -> None:
        name, begun = member.watch.target.name, monotonic()
        try:
            batch = await member.watch.collect(tiers, self._own(name), elsewhere=elsewhere)
        except Exception as error:  # a fault of ours must not end the watch
            if (kind := type(error).__name__) not in member.blamed:
                log.exception("collecting from %s failed; more %s are not logged", name, kind)
            member.blamed.add(kind)
            return
        self._note(member, batch.answers, monotonic() - begun)
        self._accept(batch)

    def _note(self, member: _Member, answers: Sequence[FamilyAnswer], seconds: float) -> None:
        """Remember how a server stands, and log it when that changed."""
        name, before, now = member.watch.target.name, member.is_up, is_up(answers)
        if before is not False and not now:
            log.warning("%s is away: %s", name, why_down(answers))
        elif before is False and now:
            log.info("%s is back", name)
        member.is_up, member.is_slow = now, seconds > self._pace.slow_seconds


def _differ(old: Target, new: Target) -> bool:
    """Tell whether a server is reached in another way than before."""
    try:
        return _settings(old) != _settings(new)
    except Exception:  # a secret that cannot be read now: the session says so when it needs it
        log.debug("the settings of %s could not be compared", new.name)
        return False


def _settings(target: Target) -> tuple[str, str | None, str]:
    pooler = target.pgbouncer() if target.pgbouncer else None
    return target.conninfo(None), pooler, target.tenant
