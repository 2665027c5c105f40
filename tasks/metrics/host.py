"""What the server's own host says: processors, memory and the disks under the server's files.

Only there: a collector on another machine knows nothing of them, and says so.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import psutil

from tasks import connection, queries
from tasks.errors import OneVaultError
from tasks.metrics.models import Family, FamilyAnswer, FamilyState, Observation

MEMORY = "host_memory"
"""The family of memory; the one with paths is of disks, and the other one of processors."""

ELSEWHERE = "not on this server's host: run a collector there"
"""The sentence of a collector that runs on another machine."""

_SAME_START_SECONDS = 2.0
_LOCATE_AGAIN_SECONDS = 3600.0
_TRY_AGAIN_SECONDS = 60.0
_SQL = queries.load(Path(__file__).with_name("host.sql"))


@dataclass(frozen=True, slots=True)
class Place:
    """A directory of the server on this host, and what it is for: data, wal or the tablespace's name."""

    path: str
    purpose: str


@dataclass(slots=True)
class HostWatch:
    """Reads the host of one server, if that is this one. Its methods block: call them in a thread.

    Where the server is gets looked up by a connection of its own, again after an hour or a reconnection; known places
    are read on while the server is down, as a full disk may be the cause.
    """

    conninfo: Callable[[], str] = field(repr=False)
    _places: tuple[Place, ...] | None = None
    _is_located: bool = False
    _again_at: float = 0.0
    _trouble: str = "the server has not said yet where its files are"
    _cpu: tuple[float, ...] | None = None

    def forget(self) -> None:
        """Look the server up again next time: it may have moved."""
        self._again_at = 0.0

    def answers(self, families: Sequence[Family], *, is_up: bool) -> tuple[FamilyAnswer, ...]:
        """Read these families of Source.HOST; never raises for a fault of the server."""
        if is_up and monotonic() >= self._again_at:
            self._locate()
        return tuple(self._answer(family) for family in families)

    def _locate(self) -> None:
        try:
            self._places, self._is_located = places_here(self.conninfo()), True
            self._again_at = monotonic() + _LOCATE_AGAIN_SECONDS
        except OneVaultError as error:
            self._trouble, self._again_at = str(error), monotonic() + _TRY_AGAIN_SECONDS

    def _answer(self, family: Family) -> FamilyAnswer:
        begun = perf_counter()
        state, message, seen = self._read(family)
        return FamilyAnswer(
            family=family.name,
            state=state,
            read_at=datetime.now(UTC),
            monotonic=monotonic(),
            message=message,
            duration_ms=1000 * (perf_counter() - begun),
            observations=tuple(seen),
        )

    def _read(self, family: Family) -> tuple[FamilyState, str, Collection[Observation]]:
        if not self._is_located:
            return FamilyState.UNAVAILABLE, self._trouble, ()
        if self._places is None:
            return FamilyState.NOT_APPLICABLE, ELSEWHERE, ()
        if "path" not in family.labels:
            numbers = memory() if family.name == MEMORY else self._processors()
            return FamilyState.OK, "", [_chosen(family, {}, numbers)]
        seen, faults = read_disks(family, self._places)
        state = FamilyState.OK if seen else FamilyState.REFUSED
        return state, "; ".join(faults), seen

    def _processors(self) -> dict[str, float]:
        now = psutil.cpu_times()
        before, self._cpu = self._cpu, tuple(now)
        return {**cpu_percents(before, now), **load()}


def is_own_backend(pid: int, started_at: datetime) -> bool:
    """Tell whether a backend is a process of this host: PostgreSQL by name, and as old as it says.

    Process numbers are reused and names can be copied; the moment of its start proves it.
    """
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            words = [process.name(), *process.cmdline()[:1]]
            created = process.create_time()
    except psutil.Error:
        return False
    near = abs(created - started_at.timestamp()) <= _SAME_START_SECONDS
    return near and any("postgres" in word for word in words)


def places_here(conninfo: str) -> tuple[Place, ...] | None:
    """Return the server's directories, or None when it runs on another host.

    Raises Unavailable or Refused when the server does not let us ask.
    """
    with (
        connection.connect(
            conninfo, application_name="onevault collector", statement_timeout_ms=5_000
        ) as conn,
        connection.translating("ask where the server keeps its files"),
    ):
        statement = _SQL.get("host_facts", connection.server_major(conn))
        row = conn.execute(statement).fetchone()
        if row is None or not is_own_backend(row[0], row[1]):
            return None
        return places(row[2], row[3])


def places(data_directory: str | None, tablespaces: Mapping[str, str]) -> tuple[Place, ...]:
    """List the directories; the data directory's, when the server told it (that needs pg_read_all_settings)."""
    known = []
    if data_directory:
        wal = os.path.realpath(Path(data_directory, "pg_wal"))
        known = [Place(data_directory, "data"), Place(wal, "wal")]
    root = data_directory or "/"
    # A tablespace in place lies below the data directory, and its location is relative to that.
    others = [Place(str(Path(root, tablespaces[name])), name) for name in sorted(tablespaces)]
    return (*known, *others)


def read_disks(family: Family, known: Sequence[Place]) -> tuple[list[Observation], list[str]]:
    """Read the disk under each place; of those that cannot be read, a sentence each."""
    seen, faults = [], []
    if not any(place.purpose == "data" for place in known):
        faults.append(
            "the server does not tell its data_directory: grant the role pg_read_all_settings"
        )
    for place in known:
        try:
            numbers = disk(place.path)
        except OSError as error:
            faults.append(f"{place.path} cannot be looked at: {error.strerror}")
            continue
        seen.append(_chosen(family, {"path": place.path, "purpose": place.purpose}, numbers))
    return seen, faults


def disk(path: str) -> dict[str, float]:
    """Read the file system under a path; OSError when it may not be looked at.

    What is reserved for root counts as used, since PostgreSQL cannot have it.
    """
    found = os.statvfs(path)
    used = found.f_blocks - found.f_bavail
    numbers: dict[str, float] = {
        "total_bytes": found.f_blocks * found.f_frsize,
        "used_bytes": used * found.f_frsize,
        "available_bytes": found.f_bavail * found.f_frsize,
    }
    if found.f_blocks:
        numbers["used_percent"] = 100.0 * used / found.f_blocks
    if found.f_files:
        inodes_used = found.f_files - found.f_favail
        numbers["inodes_used_percent"] = 100.0 * inodes_used / found.f_files
    return numbers


def cpu_percents(before: Sequence[float] | None, now: Any) -> dict[str, float]:
    """Return how busy the processors were since the reading before; nothing without one or without time between."""
    if before is None:
        return {}
    spent = dict(zip(now._fields, (b - a for a, b in zip(before, now, strict=True)), strict=True))
    # Linux counts the time of guests within user and nice already.
    for counted_twice in ("guest", "guest_nice"):
        spent.pop(counted_twice, None)
    total = sum(spent.values())
    if total <= 0:
        return {}
    waited = spent.get("iowait", 0.0)
    shares = {
        "cpu_percent": total - spent["idle"] - waited,
        "cpu_iowait_percent": waited,
        "cpu_steal_percent": spent.get("steal", 0.0),
    }
    return {name: min(100.0, max(0.0, 100 * part / total)) for name, part in shares.items()}


def memory() -> dict[str, float]:
    """Return the use of memory and swap; what the kernel can give back at once counts as available."""
    ram, swap = psutil.virtual_memory(), psutil.swap_memory()
    return {
        "memory_total_bytes": ram.total,
        "memory_available_bytes": ram.available,
        "memory_used_percent": ram.percent,
        "swap_total_bytes": swap.total,
        "swap_used_bytes": swap.used,
    }


def load() -> dict[str, float]:
    """Return the load averages and the number of processors, which they are to be compared with."""
    found: dict[str, float] = {"cpus": psutil.cpu_count() or 1}
    with suppress(OSError):
        found |= dict(zip(("load1", "load5", "load15"), psutil.getloadavg(), strict=True))
    return found


def _chosen(family: Family, labels: Mapping[str, str], numbers: Mapping[str, float]) -> Observation:
    known = {name: float(number) for name, number in numbers.items() if name in family.metrics}
    return Observation(labels={name: labels[name] for name in family.labels}, numbers=known)
