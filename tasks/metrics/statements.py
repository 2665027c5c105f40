"""How much each statement grew by pg_stat_statements, which evicts and resets its entries as it likes."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import starmap
from operator import add, itemgetter, sub
from typing import Any, NamedTuple

import zstandard

from tasks.metrics.models import (
    FamilyAnswer,
    FamilyState,
    Observation,
    StatementSample,
    StatementSnapshot,
)

TOP = 100
"""How many statements are kept of each interval, by growth of their time; the others become one row."""

_NUMBERS = (
    "calls",
    "total_exec_ms",
    "rows",
    "shared_blks_hit",
    "shared_blks_read",
    "shared_blks_dirtied",
    "temp_blks_read",
    "temp_blks_written",
    "wal_bytes",
)
_TIME = _NUMBERS.index("total_exec_ms")
_in_order = itemgetter(*_NUMBERS)
_LARGEST_SNAPSHOT_BYTES = 256 * 1024 * 1024
_VERSION = 1

_Key = tuple[str, str, int, bool]
_Numbers = tuple[float, ...]


class _Entry(NamedTuple):
    """One statement's counters; began is when they began, in seconds since 1970 by the server's clock, 0 if unknown.

    From PostgreSQL 17 on that is the entry's own stats_since; before, the reset of all entries, the same for each.
    """

    database_name: str
    role_name: str
    began: float
    numbers: _Numbers


@dataclass(frozen=True, slots=True)
class _Reading:
    """All entries at one moment; monotonic is None for a reading of another process."""

    read_at: datetime
    monotonic: float | None
    epoch: str
    entries: Mapping[_Key, _Entry]

    @property
    def newest(self) -> float:
        return max((entry.began for entry in self.entries.values()), default=0.0)

    @property
    def oldest(self) -> float:
        return min((entry.began for entry in self.entries.values()), default=0.0)


class StatementDeltas:
    """Turns answers of the family `statements` into growths, holding the last full reading.

    A statement that was not in the last reading counts whole, because an entry begins at zero; from PostgreSQL 17 on
    only if its stats_since is later than all of that reading's, so that one which only became visible does not count.
    One that began anew in between, by its stats_since, counts whole too. One whose counters fell is left out, and so is
    everything after a restart of the server: whatever cannot be told is left out, never guessed.
    """

    def __init__(self, snapshot: StatementSnapshot | None) -> None:
        self._last = _load(snapshot) if snapshot else None
        self._has_changed = False

    @property
    def has_changed(self) -> bool:
        """Tell whether any counter of the last answer stood otherwise than in the one before."""
        return self._has_changed

    def grow(self, answer: FamilyAnswer, shift_seconds: float = 0.0) -> tuple[StatementSample, ...]:
        """Return the 100 statements whose time grew most, and the growth of all others as query id 0.

        The sums over all rows are those over all statements. Empty on the first answer, on one that is not OK, and
        when the interval is not positive. shift_seconds are added to the interval since a snapshot by the wall clock.
        """
        if answer.state is not FamilyState.OK:
            return ()
        now = _reading(answer)
        before, self._last = self._last, now
        self._has_changed = _differ(before, now)
        seconds = _interval(before, now, shift_seconds)
        if before is None or seconds is None or before.epoch != now.epoch:
            return ()
        grown = _merged(_growths(before, now))
        ranked = sorted(grown, key=lambda each: (-each[1].numbers[_TIME], each[0]))
        samples = [_sample(key, entry, now, seconds) for key, entry in ranked[:TOP]]
        return (*samples, *_others([entry for _, entry in ranked[TOP:]], now, seconds))

    def snapshot(self) -> StatementSnapshot | None:
        """Return the last reading, compressed, to go on from after a restart; None before the first."""
        return _dump(self._last) if self._last else None


def _reading(answer: FamilyAnswer) -> _Reading:
    epoch = next((each.epoch.rpartition("|")[0] for each in answer.observations), "")
    entries: dict[_Key, _Entry] = {}
    for seen in answer.observations:
        key, entry = _key(seen.labels), _entry(seen)
        if key is not None and entry is not None:
            entries[key] = entry
    return _Reading(answer.read_at, answer.monotonic, epoch, entries)


def _key(labels: Mapping[str, str]) -> _Key | None:
    try:
        query_id = int(labels["queryid"])
        return labels["dbid"], labels["userid"], query_id, labels["toplevel"].startswith(("t", "T"))
    except (KeyError, ValueError):
        return None


def _entry(seen: Observation) -> _Entry | None:
    try:
        numbers = _in_order(seen.numbers)
    except KeyError:
        return None
    return _Entry(
        database_name=_named(seen, "database_name"),
        role_name=_named(seen, "role_name"),
        began=_seconds(seen.epoch.rpartition("|")[2]),
        numbers=numbers,
    )


def _named(seen: Observation, name: str) -> str:
    return seen.labels.get(name) or seen.texts.get(name, "")


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _differ(before: _Reading | None, now: _Reading) -> bool:
    return before is None or before.epoch != now.epoch or before.entries != now.entries


def _interval(before: _Reading | None, now: _Reading, shift_seconds: float) -> float | None:
    if before is None or now.monotonic is None:
        return None
    if before.monotonic is not None:
        seconds = now.monotonic - before.monotonic
    else:
        seconds = (now.read_at - before.read_at).total_seconds() + shift_seconds
    return seconds if seconds > 0 else None


def _growths(before: _Reading, now: _Reading) -> list[tuple[_Key, _Entry]]:
    newest, oldest = before.newest, before.oldest
    has_times_of_its_own = newest != oldest
    grown = []
    for key, entry in now.entries.items():
        known = before.entries.get(key)
        if known == entry:  # most of them did not run in between
            continue
        if known is not None:
            growth = _growth(known, entry)
        elif entry.began > newest or (not has_times_of_its_own and entry.began == newest):
            growth = entry.numbers
        else:
            growth = None
        if growth is not None and any(growth):
            grown.append((key, _grown(entry, growth)))
    return grown


def _merged(grown: Iterable[tuple[_Key, _Entry]]) -> list[tuple[_Key, _Entry]]:
    """Join what bears the same names: the roles and databases that were dropped have none."""
    merged: dict[_Key, _Entry] = {}
    for (_, _, query_id, toplevel), entry in grown:
        key = (entry.database_name, entry.role_name, query_id, toplevel)
        numbers = entry.numbers
        if key in merged:
            numbers = tuple(map(add, numbers, merged[key].numbers))
        merged[key] = _grown(entry, numbers)
    return list(merged.items())


def _growth(known: _Entry, entry: _Entry) -> _Numbers | None:
    """Return how much an entry grew, or None when its counters fell and nothing tells why."""
    if entry.began > known.began:
        return entry.numbers
    growth = tuple(map(sub, entry.numbers, known.numbers))
    return None if min(growth) < 0 else growth


def _grown(entry: _Entry, growth: _Numbers) -> _Entry:
    return _Entry(entry.database_name, entry.role_name, entry.began, growth)


def _others(rest: list[_Entry], now: _Reading, seconds: float) -> Iterable[StatementSample]:
    """Return one row for all the others, or none without any."""
    if not rest:
        return ()
    total = rest[0].numbers
    for entry in rest[1:]:
        total = tuple(map(add, total, entry.numbers))
    return (_sample(("", "", 0, True), _Entry("", "", 0.0, total), now, seconds),)


def _sample(key: _Key, entry: _Entry, now: _Reading, seconds: float) -> StatementSample:
    numbers: dict[str, Any] = {
        name: value if name == "total_exec_ms" else round(value)
        for name, value in zip(_NUMBERS, entry.numbers, strict=True)
    }
    return StatementSample(
        database_name=entry.database_name,
        role_name=entry.role_name,
        query_id=key[2],
        toplevel=key[3],
        sampled_at=now.read_at,
        interval_seconds=seconds,
        **numbers,
    )


def _dump(reading: _Reading) -> StatementSnapshot:
    """Write entries column by column, where they compress best."""
    rows = [
        (*key, entry.database_name, entry.role_name, entry.began, *entry.numbers)
        for key, entry in reading.entries.items()
    ]
    columns = list(zip(*rows, strict=True))
    text = json.dumps({"version": _VERSION, "columns": columns}, separators=(",", ":"))
    data = zstandard.ZstdCompressor(level=3).compress(text.encode())
    return StatementSnapshot(reading.read_at, reading.epoch, data)


def _load(snapshot: StatementSnapshot) -> _Reading | None:
    """Read a snapshot; None when it is damaged or of another version, so that we begin anew."""
    try:
        plain = zstandard.ZstdDecompressor().decompress(
            snapshot.data, max_output_size=_LARGEST_SNAPSHOT_BYTES
        )
        read = json.loads(plain)
        if read["version"] != _VERSION:
            return None
        entries = dict(starmap(_loaded, zip(*read["columns"], strict=True)))
    except (zstandard.ZstdError, ValueError, TypeError, KeyError, MemoryError):
        return None
    return _Reading(snapshot.taken_at, None, snapshot.epoch, entries)


def _loaded(*row: Any) -> tuple[_Key, _Entry]:
    dbid, userid, query_id, toplevel, database_name, role_name, began, *numbers = row
    if len(numbers) != len(_NUMBERS):
        message = "a row has another number of columns"
        raise ValueError(message)
    key = (str(dbid), str(userid), int(query_id), bool(toplevel))
    entry = _Entry(str(database_name), str(role_name), float(began), tuple(map(float, numbers)))
    return key, entry
