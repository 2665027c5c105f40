"""Writing what was collected into the vault, and reading back what a restarted collector goes on from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import LiteralString
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from tasks import connection, datavault, queries
from tasks.errors import Refused
from tasks.metrics import columns, partitions
from tasks.metrics.columns import key_of
from tasks.metrics.models import Batch, Sample, ServerFacts, StatementSnapshot
from tasks.metrics.ports import SeriesKey

OLDEST = timedelta(days=2)
"""How old a sample may be when it is written."""
NEWEST = timedelta(days=1)
"""How far a sample may lie in the vault's future when it is written."""
_MOST_CACHED = 500_000
_SERIES_AT_ONCE = 5_000
# A partition, a series or a server is not there, which was: the vault was restored, or nobody made partitions.
_OUTDATED = (psycopg.errors.CheckViolation, psycopg.errors.ForeignKeyViolation)


@dataclass(frozen=True, slots=True)
class Written:
    """How many samples, statements and answers of a batch are stored, and how many had an impossible time."""

    stored: int
    refused: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A collector's sign of life; lost_rows are counted since its start."""

    name: str
    host: str
    process_id: int
    started_at: datetime
    servers: int = 0
    buffered_rows: int = 0
    lost_rows: int = 0
    flow_run_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class CollectorRow(Heartbeat):
    """A collector as the vault knows it; the age is that of its last sign of life, by the vault's clock."""

    heartbeat_at: datetime = field(kw_only=True)
    age_seconds: float = field(kw_only=True)


@dataclass(slots=True)
class SeriesCache:
    """What one process knows of the vault: numbers of series, and servers whose facts are written.

    It is learned only from what was committed, and forgotten when the vault turns out to be another one. One thread
    uses it at a time. partitioned_on is the day on which its partitions were last looked after.
    """

    partitioned_on: date | None = None
    _vault: object = None
    _series: dict[tuple[str, SeriesKey], int] = field(default_factory=dict)
    _facts: dict[str, ServerFacts | None] = field(default_factory=dict)
    _absent: dict[str, frozenset[str]] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget everything."""
        self._vault = self.partitioned_on = None
        self._series.clear()
        self._facts.clear()
        self._absent.clear()

    def meet(self, vault: object) -> None:
        """Forget everything unless this is the vault that it was learned from."""
        if vault != self._vault or len(self._series) > _MOST_CACHED:
            self.clear()
            self._vault = vault

    def knows(self, server: str, facts: ServerFacts | None) -> bool:
        """Tell whether the server is written with these facts; without facts, whether it is written at all."""
        return server in self._facts and facts in (None, self._facts[server])

    def series(self, server: str, keys: Iterable[SeriesKey]) -> dict[SeriesKey, int]:
        """Return the numbers that are known."""
        known = self._series
        return {key: known[server, key] for key in keys if (server, key) in known}

    def knows_absent(self, batch: Batch) -> bool:
        """Tell whether it is written which families of this server nobody answers for."""
        return batch.absent == self._absent.get(batch.server, frozenset())

    def learn(self, batch: Batch, ids: dict[SeriesKey, int]) -> None:
        """Remember what was committed."""
        self._series.update({(batch.server, key): number for key, number in ids.items()})
        if batch.facts is not None or batch.server not in self._facts:
            self._facts[batch.server] = batch.facts
        if batch.answers:
            self._absent[batch.server] = batch.absent


def write(conn: psycopg.Connection, batch: Batch, cache: SeriesCache) -> Written:
    """Write one batch in one transaction; writing it again changes nothing.

    What is dated more than two days before or one day after the vault's clock is not stored, and counted. Needs an
    autocommit connection. Raises Unavailable when the vault may be back later, Refused for a tenant it does not know
    or a server that belongs to another one.
    """
    with connection.translating(f"store the metrics of {batch.server}"):
        try:
            return _write(conn, batch, cache)
        except _OUTDATED:
            cache.clear()
            return _write(conn, batch, cache)


def latest(
    conn: psycopg.Connection, server: str
) -> tuple[dict[SeriesKey, Sample], StatementSnapshot | None]:
    """Return a server's counters as they last stood and its clock, by series, and the snapshot of its statements."""
    known = {"server_hk": datavault.hash_key(server)}
    with connection.translating(f"read the last counters of {server}"):
        rows = conn.execute(_query("latest_counters"), known).fetchall()
        shot = conn.execute(_query("latest_snapshot"), known).fetchone()
    samples = [
        Sample(family, labels, at, values, interval, raw, epoch)
        for family, labels, at, values, interval, raw, epoch in rows
    ]
    return {key_of(each): each for each in samples}, StatementSnapshot(*shot) if shot else None


def beat(conn: psycopg.Connection, heartbeat: Heartbeat) -> None:
    """Write down that a collector lives, at the vault's time."""
    values = {name: getattr(heartbeat, name) for name in Heartbeat.__slots__}
    with connection.translating("write the collector's heartbeat"):
        conn.execute(_query("beat"), values)


def collectors(conn: psycopg.Connection) -> tuple[CollectorRow, ...]:
    """Return every collector that ever lived, by name."""
    with (
        connection.translating("read the collectors"),
        conn.cursor(row_factory=class_row(CollectorRow)) as cursor,
    ):
        return tuple(cursor.execute(_query("collectors")).fetchall())


def forget_gone(
    conn: psycopg.Connection, now: datetime, days: int = 30, statement_days: int = 35
) -> int:
    """Forget objects that were not seen for so long, and return how many newest samples went.

    With them go the states of families that nobody asks for, the texts of statements of which no sample
    is left after statement_days, and, of the series that have neither samples nor roll-ups, at most 5,000 a call.
    Needs an autocommit connection.
    """
    values = {"now": now, "days": days}
    with connection.translating("forget objects that are gone"):
        gone = conn.execute(_query("forget_gone"), values).rowcount
        conn.execute(_query("forget_statuses"), values)
        conn.execute(_query("forget_texts"), {"now": now, "days": statement_days + 1})
        conn.execute(_query("forget_baselines"), values)
        conn.execute(_query("forget_series"), {**values, "limit": _SERIES_AT_ONCE})
    return gone


def try_lead(conn: psycopg.Connection, name: str) -> bool:
    """Become the one collector that leads under this name, until the session ends; False when another one does."""
    with connection.translating(f"take the lead of collector {name}"):
        conn.execute(_query("end_when_gone"))
        return connection.fetch_value(conn, _query("try_lead"), name=name) is True


def stop_leading(conn: psycopg.Connection, name: str) -> None:
    """Give the lead back before the session ends."""
    with connection.translating(f"give back the lead of collector {name}"):
        conn.execute(_query("stop_leading"), {"name": name})


def _write(conn: psycopg.Connection, batch: Batch, cache: SeriesCache) -> Written:
    now, vault = _vault_now(conn)
    cache.meet(vault)
    if cache.partitioned_on != now.date():
        partitions.ensure(conn, now)
        cache.partitioned_on = now.date()
    kept = _within(batch, now)
    server_hk = datavault.hash_key(batch.server)
    with conn.transaction():
        if not cache.knows(batch.server, batch.facts):
            _write_server(conn, server_hk, batch)
        ids = _series_ids(conn, server_hk, kept, cache)
        with conn.pipeline():
            _write_samples(conn, server_hk, kept, ids, now)
            _write_statements(conn, server_hk, kept)
            _run(conn, "upsert_family_status", server_hk, columns.answers(kept.answers))
            _write_ends(conn, server_hk, kept, cache)
    cache.learn(kept, ids)
    return Written(kept.size, batch.size - kept.size)


def _vault_now(conn: psycopg.Connection) -> tuple[datetime, object]:
    now, *vault = conn.execute(_query("vault_now")).fetchall()[0]
    return now, vault


def _within(batch: Batch, now: datetime) -> Batch:
    first, last = now - OLDEST, now + NEWEST
    return replace(
        batch,
        samples=tuple(each for each in batch.samples if first <= each.sampled_at <= last),
        statements=tuple(each for each in batch.statements if first <= each.sampled_at <= last),
        answers=tuple(each for each in batch.answers if first <= each.read_at <= last),
    )


def _write_server(conn: psycopg.Connection, server_hk: bytes, batch: Batch) -> None:
    facts = batch.facts
    tenant_hk = _tenant_hk(conn, facts) if facts else datavault.SYSTEM_TENANT_HK
    datavault.insert_hub(conn, "monitoring.server_h", "server", batch.server, tenant_hk)
    if facts is None:
        return
    conn.execute(_query("adopt_server"), {"server_hk": server_hk, "tenant_hk": tenant_hk})
    tenant = connection.fetch_value(conn, _query("tenant_of_server"), server_hk=server_hk)
    if tenant != facts.tenant:
        message = (
            f'Server "{batch.server}" belongs to tenant "{tenant}" in the vault and to "{facts.tenant}" by its '
            "configuration: a server does not change its tenant, so give it a new name or its old tenant."
        )
        raise Refused(message)
    datavault.append_version(
        conn, "monitoring.server_s", "server_hk", server_hk, _fact_columns(facts)
    )


def _tenant_hk(conn: psycopg.Connection, facts: ServerFacts) -> bytes:
    found = connection.fetch_value(conn, _query("tenant"), tenant=facts.tenant)
    if not isinstance(found, bytes):
        message = (
            f'Server "{facts.name}" belongs to tenant "{facts.tenant}", which the vault does not know: '
            "add the tenant, or correct it in the server's block."
        )
        raise Refused(message)
    return found


def _fact_columns(facts: ServerFacts) -> dict[str, object]:
    return {
        "host": facts.host,
        "port": facts.port,
        "database_name": facts.database,
        "server_version": facts.server_version,
        "system_identifier": facts.system_identifier,
        "is_in_recovery": facts.is_in_recovery,
        "postmaster_started_at": facts.postmaster_started_at,
    }


def _series_ids(
    conn: psycopg.Connection, server_hk: bytes, batch: Batch, cache: SeriesCache
) -> dict[SeriesKey, int]:
    keys = list(dict.fromkeys(key_of(each) for each in batch.samples))
    ids = cache.series(batch.server, keys)
    for step in ("find", "add", "find"):
        missing = [key for key in keys if key not in ids]
        if not missing:
            break
        values = {"server_hk": server_hk, **columns.series(missing)}
        if step == "add":
            conn.execute(_query("add_series"), values)
        else:
            ids |= _find_series(conn, missing, values)
    return ids


def _find_series(
    conn: psycopg.Connection, keys: Sequence[SeriesKey], values: dict[str, object]
) -> dict[SeriesKey, int]:
    rows = conn.execute(_query("find_series"), values).fetchall()
    return {keys[place - 1]: number for place, number in rows}


def _write_samples(
    conn: psycopg.Connection,
    server_hk: bytes,
    batch: Batch,
    ids: dict[SeriesKey, int],
    now: datetime,
) -> None:
    # In one order for all writers, so that no two wait for each other.
    numbered = sorted(
        ((ids[key_of(each)], each) for each in batch.samples), key=lambda pair: pair[0]
    )
    ended = [hour for hour in columns.hours(batch.samples) if hour + timedelta(hours=1) <= now]
    _run(conn, "mark_late", server_hk, {"buckets": ended})
    _run(conn, "add_samples", server_hk, columns.samples(numbered))
    _run(conn, "upsert_latest", server_hk, columns.latest(numbered))


def _write_statements(conn: psycopg.Connection, server_hk: bytes, batch: Batch) -> None:
    _run(conn, "add_statement_texts", server_hk, columns.statement_texts(batch.texts))
    _run(conn, "use_statement_texts", server_hk, columns.used_statements(batch.statements))
    _run(conn, "add_statement_samples", server_hk, columns.statements(batch.statements))
    if shot := batch.snapshot:
        values = {"taken_at": shot.taken_at, "epoch": shot.epoch, "snapshot": shot.data}
        conn.execute(_query("upsert_statement_snapshot"), {"server_hk": server_hk, **values})


def _write_ends(
    conn: psycopg.Connection, server_hk: bytes, batch: Batch, cache: SeriesCache
) -> None:
    if not batch.answers:  # there were none, or the clock that dated them is wrong
        return
    at = {"server_hk": server_hk, "listed_at": batch.collected_at}
    if batch.databases is not None:
        names = columns.databases(batch.databases)
        conn.execute(_query("end_databases"), {**at, "databases": names})
    if not cache.knows_absent(batch):
        conn.execute(_query("end_families"), {**at, "families": sorted(batch.absent)})


def _run(conn: psycopg.Connection, name: str, server_hk: bytes, values: dict[str, object]) -> None:
    if not columns.is_empty(values):
        conn.execute(_query(name), {"server_hk": server_hk, **values})


def _query(name: str) -> LiteralString:
    return queries.load("tasks.metrics").get(name, 15)
