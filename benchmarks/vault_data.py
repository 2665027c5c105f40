"""A vault full of samples, as a fleet of ten servers would have left it: written by the server itself, not through us."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import LiteralString

import psycopg

from tasks.metrics import partitions, store
from tasks.metrics.models import Batch, FamilyAnswer, FamilyState, Sample, ServerFacts

SERVERS = 10
FAMILIES = tuple(f"family-{number}" for number in range(20))
OBJECTS = 10
METRICS = tuple(f"metric_{letter}" for letter in "abcdefghij")
SERVER = "server-1"
INTERVAL = timedelta(minutes=5)
_HOURS_BACK = timedelta(days=8)
_SERIES = SERVERS * len(FAMILIES) * OBJECTS
_INGESTED_ROWS = 200
_STATEMENTS = 50

_SAMPLES: LiteralString = """
INSERT INTO monitoring.metric_sample (series_id, sampled_at, interval_seconds, "values")
SELECT series_id, at, 300, jsonb_build_object(
    'metric_a', (1e6 * random())::int, 'metric_b', (1e4 * random())::int, 'metric_c', round((100 * random())::numeric, 2),
    'metric_d', (1e9 * random())::bigint, 'metric_e', (10 * random())::int, 'metric_f', 0,
    'metric_g', (1e5 * random())::int, 'metric_h', (1e3 * random())::int, 'metric_i', round(random()::numeric, 4),
    'metric_j', (1e7 * random())::int)
FROM generate_series(%(since)s::timestamptz, %(until)s::timestamptz, '5 minutes') AS at,
     (SELECT series_id FROM monitoring.series JOIN monitoring.server_h USING (server_hk)
      WHERE server_bk = ANY (%(servers)s) ORDER BY series_id) AS series
ON CONFLICT (series_id, sampled_at) DO NOTHING
"""
_HOURS: LiteralString = """
INSERT INTO monitoring.metric_hourly (series_id, bucket_at, samples, covered_seconds, stats)
SELECT series_id, at, 12, 3600, (
    SELECT jsonb_object_agg('metric_' || letter, jsonb_build_object('n', 12, 'sum', 1e6 * random(), 'min', random(), 'max', 1e5 * random()))
    FROM unnest(ARRAY['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j']) AS letter WHERE series_id IS NOT NULL AND at IS NOT NULL)
FROM generate_series(date_trunc('hour', %(since)s::timestamptz, 'UTC'), %(until)s::timestamptz, '1 hour') AS at,
     (SELECT series_id FROM monitoring.series JOIN monitoring.server_h USING (server_hk)
      WHERE server_bk = ANY (%(servers)s) ORDER BY series_id) AS series
ON CONFLICT (series_id, bucket_at) DO NOTHING
"""
_STATEMENT_SAMPLES: LiteralString = """
INSERT INTO monitoring.statement_sample (
    server_hk, sampled_at, database_name, role_name, query_id, toplevel, interval_seconds, calls, total_exec_ms, rows,
    shared_blks_hit, shared_blks_read, shared_blks_dirtied, temp_blks_read, temp_blks_written, wal_bytes)
SELECT server_hk, at, 'shop', 'app', query_id, true, 60, 100, 1e3 * random(), 1000, 900, 10, 5, 0, 0, 8192
FROM generate_series(%(until)s::timestamptz - interval '1 day', %(until)s::timestamptz, '1 minute') AS at,
     monitoring.server_h, generate_series(1, %(statements)s) AS query_id
ON CONFLICT DO NOTHING
"""
_TEXTS: LiteralString = """
INSERT INTO monitoring.statement_text (server_hk, query_id, query)
SELECT server_hk, query_id, 'select ' || repeat('column, ', 20) || query_id
FROM monitoring.server_h, generate_series(1, %(statements)s) AS query_id
ON CONFLICT DO NOTHING
"""
_SIZE: LiteralString = """
SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint, (SELECT count(*) FROM monitoring.metric_sample)
FROM pg_inherits WHERE inhparent = 'monitoring.metric_sample'::regclass
"""


class Fill:
    """Fills a vault backwards in time, the newest day first; hours reach back eight days at once."""

    def __init__(self, conn: psycopg.Connection, now: datetime) -> None:
        """Fill up to this moment."""
        self._conn = conn
        self._now = now
        self._ticks = count(1)
        self.rows = 0

    @property
    def samples(self) -> int:
        """Return how many metric values there are."""
        return self.rows * len(METRICS)

    def prepare(self) -> None:
        """Make the servers, their series, latest samples and statements."""
        for number in range(1, SERVERS + 1):
            store.write(self._conn, self._batch(f"server-{number}", FAMILIES), store.SeriesCache())
        values = {"until": self._now, "statements": _STATEMENTS}
        partitions.ensure(self._conn, self._now - timedelta(days=1))
        self._conn.execute(_TEXTS, values)
        self._conn.execute(_STATEMENT_SAMPLES, values)
        self._conn.execute("VACUUM ANALYZE")

    def grow(self, samples: int, servers: int) -> None:
        """Fill the first servers until there are so many metric values, a day at a time, and their hourly roll-ups."""
        chosen = [f"server-{number}" for number in range(1, servers + 1)]
        reached = self._now
        self._fill_hours(chosen)
        while (missing := samples - self.samples) > 0:
            steps = max(1, min(288, round(missing / len(METRICS) / _SERIES * SERVERS / servers)))
            since = reached - steps * INTERVAL
            partitions.ensure_span(self._conn, "metric_sample", since, self._now)
            span = {"since": since, "until": reached - INTERVAL, "servers": chosen}
            self.rows += self._conn.execute(_SAMPLES, span).rowcount
            reached = since
        self._conn.execute("VACUUM (FREEZE, ANALYZE)")
        self._conn.execute("CHECKPOINT")

    def _fill_hours(self, servers: list[str]) -> None:
        since = self._now - _HOURS_BACK
        partitions.ensure_span(self._conn, "metric_hourly", since, self._now)
        self._conn.execute(_HOURS, {"since": since, "until": self._now, "servers": servers})

    def bytes(self) -> tuple[int, int]:
        """Return the bytes of all samples, indexes included, and how many rows they are."""
        size, rows = self._conn.execute(_SIZE).fetchall()[0]
        return int(size), int(rows)

    def batch(self) -> Batch:
        """Return the next batch of one server: 200 rows of ten values each."""
        return self._batch(SERVER, FAMILIES)

    def _batch(self, server: str, families: tuple[str, ...]) -> Batch:
        at = datetime.now(UTC)
        answers = [FamilyAnswer(family, FamilyState.OK, at, 0.0) for family in families]
        return Batch(server, at, tuple(answers), tuple(self._samples(at)), facts=_facts(server))

    def _samples(self, at: datetime) -> Iterator[Sample]:
        tick = next(self._ticks)
        for row in range(_INGESTED_ROWS):
            labels = {"object": f"object-{row % OBJECTS}"}
            values = {name: float(tick * place) for place, name in enumerate(METRICS)}
            yield Sample(FAMILIES[row // OBJECTS], labels, at, values, 60.0, values, "epoch")


def _facts(server: str) -> ServerFacts:
    return ServerFacts(
        server,
        "localhost",
        5432,
        "postgres",
        "17.0",
        17,
        "7",
        False,
        datetime(2026, 1, 1, tzinfo=UTC),
    )
