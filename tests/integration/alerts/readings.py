"""Readings written by hand, as the collector's store leaves them."""

from collections.abc import Mapping
from datetime import datetime

import psycopg
from psycopg.types.json import Jsonb

from tasks.datavault import hash_key

SERVER = "shop"


class Readings:
    """Writes readings as the collector's store does: the newest of a series, and how the family was answered."""

    def __init__(self, conn: psycopg.Connection) -> None:
        self.conn = conn

    def add(
        self,
        metric: str,
        value: float | None,
        at: datetime,
        *,
        labels: Mapping[str, str] | None = None,
        server: str = SERVER,
        texts: Mapping[str, str] | None = None,
        interval: float | None = 10.0,
    ) -> int:
        family, _, name = metric.partition(".")
        self.answer(family, at, server=server)
        series = self.series(family, labels or {}, server)
        values = {} if value is None else {name: value}
        self.conn.execute(
            'INSERT INTO monitoring.metric_latest (series_id, sampled_at, interval_seconds, "values", texts) '
            "VALUES (%s, %s, %s, %s, %s) ON CONFLICT (series_id) DO UPDATE SET sampled_at = excluded.sampled_at, "
            'interval_seconds = excluded.interval_seconds, "values" = excluded."values", texts = excluded.texts',
            [series, at, interval, Jsonb(values), Jsonb(dict(texts or {}))],
        )
        return series

    def grow(
        self,
        metric: str,
        value: float | None,
        at: datetime,
        *,
        labels: Mapping[str, str] | None = None,
        server: str = SERVER,
        texts: Mapping[str, str] | None = None,
        interval: float | None = 60.0,
    ) -> int:
        """Write a sample of a counter, which is the newest one too."""
        series = self.add(
            metric, value, at, labels=labels, server=server, texts=texts, interval=interval
        )
        self.conn.execute(
            "CREATE TABLE IF NOT EXISTS monitoring.metric_sample_test PARTITION OF monitoring.metric_sample DEFAULT"
        )
        self.conn.execute(
            'INSERT INTO monitoring.metric_sample (series_id, sampled_at, interval_seconds, "values") '
            'SELECT series_id, sampled_at, interval_seconds, "values" FROM monitoring.metric_latest WHERE series_id = %s',
            [series],
        )
        return series

    def server(self, name: str = SERVER) -> bytes:
        """Add a server unless it is there."""
        self.conn.execute(
            "INSERT INTO monitoring.server_h (server_hk, server_bk) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            [hash_key(name), name],
        )
        return hash_key(name)

    def series(self, family: str, labels: Mapping[str, str], server: str = SERVER) -> int:
        """Return the number of a series, added unless it is there."""
        row = self.conn.execute(
            "WITH made AS (INSERT INTO monitoring.series (server_hk, family, labels) VALUES (%(hk)s, %(family)s, %(labels)s) "
            "ON CONFLICT DO NOTHING RETURNING series_id) SELECT series_id FROM made UNION ALL SELECT series_id "
            "FROM monitoring.series WHERE server_hk = %(hk)s AND family = %(family)s AND labels = %(labels)s",
            {"hk": self.server(server), "family": family, "labels": Jsonb(dict(labels))},
        ).fetchone()
        assert row is not None
        number: int = row[0]
        return number

    def answer(self, family: str, at: datetime, state: str = "OK", *, server: str = SERVER) -> None:
        """Say that a family was asked for."""
        self.conn.execute(
            "INSERT INTO monitoring.family_status AS old (server_hk, family, state, attempted_at, collected_at) "
            "VALUES (%(hk)s, %(family)s, %(state)s, %(at)s, CASE WHEN %(state)s = 'OK' THEN %(at)s::timestamptz END) "
            "ON CONFLICT (server_hk, family, database_name) DO UPDATE SET state = excluded.state, "
            "attempted_at = excluded.attempted_at, collected_at = coalesce(excluded.collected_at, old.collected_at)",
            {"hk": self.server(server), "family": family, "state": state, "at": at},
        )
