"""Who does what to which server when: overlapping lanes of faults and of daily work, in an order that a seed gives."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from time import monotonic

import psycopg

from benchmarks.benign import Benign
from benchmarks.faults import Fault
from benchmarks.shops import Shop
from tasks.errors import OneVaultError

_LINGER_SECONDS = 10.0
_LOOK_SECONDS = 1.0
_CLEAR_SECONDS = 90.0
_PAUSE_SECONDS = (4.0, 15.0)


@dataclass
class Event:
    """Something that was done to a server on purpose, from when to when."""

    server: str
    name: str
    begun_at: datetime
    ended_at: datetime | None = None
    fault: Fault | None = None
    trouble: str = ""

    def is_near(self, at: datetime, slack_seconds: float) -> bool:
        """Tell whether a moment lies within it or shortly after its end."""
        late = (at - self.ended_at).total_seconds() if self.ended_at else 0.0
        return self.begun_at <= at and late <= slack_seconds


class Gate:
    """Lets many in together, or one alone; who wants to be alone is not overtaken."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._inside = 0
        self._alone = 0

    @contextmanager
    def entered(self, *, alone: bool) -> Iterator[None]:
        """Wait to be let in, for the time of a block."""
        with self._change:
            if alone:
                self._change.wait_for(lambda: self._alone == 0)
                self._alone += 1
                self._change.wait_for(lambda: self._inside == 0)
            else:
                self._change.wait_for(lambda: self._alone == 0)
                self._inside += 1
        try:
            yield
        finally:
            with self._change:
                if alone:
                    self._alone -= 1
                else:
                    self._inside -= 1
                self._change.notify_all()


@dataclass
class Stage:
    """One server under treatment: its lanes take what may be done next from decks."""

    shop: Shop
    is_open: Callable[[str, str], bool]
    over: threading.Event
    dice: Random
    tell: Callable[[str], None]
    events: list[Event] = field(default_factory=list)
    busy: dict[str, int] = field(default_factory=dict)
    gate: Gate = field(default_factory=Gate)
    slow_sessions: int = 0
    outages: int = 0
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def fault_lane(self, deck: list[Fault], until: float) -> None:
        """Cause one fault after the other until the time is over; the deck is shared with other lanes."""
        while self._pause() and monotonic() < until:
            if (chosen := self._draw_fault(deck)) is None:
                continue
            self.cause(chosen)

    def slow_lane(self, pile: Sequence[Fault], until: float) -> None:
        """Cause these faults in turn, as far as the time allows."""
        for fault in pile:
            while self._pause() and not self._claim(fault):
                if monotonic() > until:
                    return
            if self.over.is_set() or monotonic() + fault.longest_seconds > until:
                self._release(fault.name)
                continue
            self.cause(fault)

    def benign_lane(self, deck: list[Benign], until: float) -> None:
        """Do daily work until the time is over."""
        while self._pause() and monotonic() < until:
            if (chosen := self._draw_benign(deck)) is None:
                continue
            with self.gate.entered(alone=chosen.exclusive):
                event = self._begin(chosen.name)
                try:
                    chosen.run(self.shop)
                except (OneVaultError, psycopg.Error, OSError) as error:
                    event.trouble = str(error).strip().partition("\n")[0]
                event.ended_at = datetime.now(UTC)
            self._release(chosen.name)

    def cause(self, fault: Fault) -> None:
        """Cause a fault that was chosen, alone or among others as it must be."""
        self._count(fault, 1)
        try:
            if fault.slow and not fault.holds_sessions:
                self._last(fault)
            else:
                with self.gate.entered(alone=fault.exclusive):
                    self._last(fault)
        finally:
            self._count(fault, -1)
            self.outages -= fault.exclusive
            self._release(fault.name)

    def _last(self, fault: Fault) -> None:
        """Let the fault last until a little after it is noticed, or for as long as it may."""
        patience = monotonic() + _CLEAR_SECONDS
        while self.is_noticed(fault) and monotonic() < patience:
            self.over.wait(_LOOK_SECONDS)  # the alert of another fault is still open
        event = self._begin(fault.name, fault)
        try:
            with fault.make(self.shop):
                deadline = monotonic() + fault.longest_seconds
                while monotonic() < deadline and not self.over.wait(_LOOK_SECONDS):
                    if self.is_noticed(fault):
                        self.over.wait(_LINGER_SECONDS)
                        break
        except (OneVaultError, psycopg.Error, OSError) as error:
            event.trouble = str(error).strip().partition("\n")[0]
        event.ended_at = datetime.now(UTC)
        lasted = (event.ended_at - event.begun_at).total_seconds()
        self.tell(f"{self.shop.name}: {fault.name}, {lasted:.0f} s {event.trouble}")

    def is_noticed(self, fault: Fault) -> bool:
        """Tell whether an alert that the fault must bring is open."""
        server = self.shop.standby_name if fault.on_standby else self.shop.name
        return any(self.is_open(server, rule) for rule in fault.rules)

    def _draw_fault(self, deck: list[Fault]) -> Fault | None:
        with self._turn:
            for fault in deck:
                if self._may(fault):
                    deck.remove(fault)
                    deck.append(fault)
                    self.outages += fault.exclusive
                    self.busy[fault.name] = self.busy.get(fault.name, 0) + 1
                    return fault
        return None

    def _draw_benign(self, deck: list[Benign]) -> Benign | None:
        with self._turn:
            for act in deck:
                stands_alone = act.exclusive and self.slow_sessions > 0
                if not stands_alone and not act.conflicts & self.busy.keys():
                    deck.remove(act)
                    deck.append(act)
                    self.busy[act.name] = self.busy.get(act.name, 0) + 1
                    return act
        return None

    def _claim(self, fault: Fault) -> bool:
        with self._turn:
            if not self._may(fault):
                return False
            self.busy[fault.name] = self.busy.get(fault.name, 0) + 1
            return True

    def _may(self, fault: Fault) -> bool:
        """Tell whether a fault can begin: nothing in its way, and the alert of its last time is over."""
        if fault.exclusive and (self.slow_sessions or self.outages):
            return False
        in_the_way = fault.conflicts | {fault.name}
        return not in_the_way & self.busy.keys() and not self.is_noticed(fault)

    def _count(self, fault: Fault, change: int) -> None:
        if fault.slow and fault.holds_sessions:
            with self._turn:
                self.slow_sessions += change

    def _release(self, name: str) -> None:
        with self._turn:
            left = self.busy.pop(name, 1) - 1
            if left > 0:
                self.busy[name] = left

    def _begin(self, name: str, fault: Fault | None = None) -> Event:
        event = Event(self.shop.name, name, datetime.now(UTC), fault=fault)
        self.events.append(event)
        return event

    def _pause(self) -> bool:
        """Wait a little; False when all is over."""
        return not self.over.wait(self.dice.uniform(*_PAUSE_SECONDS))
