"""The source: a private PostgreSQL with mixed data of a chosen size."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

import psycopg

from tasks import processes
from tasks.cluster_settings import SOCKET_PORT
from tasks.private_cluster import PrivateCluster
from tasks.programs import Installation

DATABASE = "benchmark"
SUPERUSER = "postgres"

# A server as it stands in the field: it waits for the disk and can be replicated from.
_SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "autovacuum": "on",
    "wal_level": "replica",
    "max_wal_senders": "10",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "5min",
    "shared_buffers": "512MB",
    "huge_pages": "try",
    "jit": "on",
}

# So much of each makes 2.5 GB.
_FULL_GIGABYTES = 2.5
_PGBENCH_SCALE = 70
_ORDERS = 5_000_000
_EVENTS = 1_500_000
_CUSTOMERS = 200_000
_BLOBS = 48

_TABLES: LiteralString = """
CREATE TABLE customers (
    id integer PRIMARY KEY, name text NOT NULL, email text NOT NULL UNIQUE, city text, since date NOT NULL);
CREATE TABLE orders (
    id bigint NOT NULL, reference uuid NOT NULL, customer integer NOT NULL, status text NOT NULL,
    amount numeric(12, 2) NOT NULL, note text, placed_at timestamptz NOT NULL);
CREATE TABLE events (id bigint NOT NULL, at timestamptz NOT NULL, body jsonb NOT NULL);
CREATE TABLE blobs (id integer PRIMARY KEY, data bytea NOT NULL);
ALTER TABLE blobs ALTER data SET STORAGE EXTERNAL;
"""
_FILL: dict[str, LiteralString] = {
    "customers": """
INSERT INTO customers
SELECT i, 'Customer ' || md5(i::text), 'c' || i || '@example.org',
       (ARRAY['Berlin', 'Lyon', 'Oslo', 'Porto', 'Graz'])[1 + i %% 5], date '2015-01-01' + i %% 3000
  FROM generate_series(1, %(rows)s) AS i""",
    "orders": """
INSERT INTO orders
SELECT i, md5(i::text)::uuid, 1 + i * 7919 %% 200000, (ARRAY['new', 'paid', 'shipped', 'returned'])[1 + i %% 4],
       (i * 37 %% 100000) / 100.0, 'order ' || i || ' ' || left(md5((i * 3)::text), 12),
       timestamptz '2020-01-01 UTC' + i * interval '17 seconds'
  FROM generate_series(1::bigint, %(rows)s) AS i""",
    "events": """
INSERT INTO events
SELECT i, timestamptz '2023-01-01 UTC' + i * interval '3 seconds',
       jsonb_build_object('kind', (ARRAY['click', 'view', 'buy'])[1 + i %% 3], 'user', i * 31 %% 90000,
                          'session', md5((i / 20)::text), 'path', '/shop/' || i %% 977, 'ms', i * 13 %% 5000)
  FROM generate_series(1::bigint, %(rows)s) AS i""",
    "blobs": """
INSERT INTO blobs
SELECT i, (SELECT string_agg(sha512((i::text || ' ' || j)::bytea), '') FROM generate_series(1, 16384) AS j)
  FROM generate_series(1, %(rows)s) AS i""",
}
_INDEXES: LiteralString = """
ALTER TABLE orders ADD PRIMARY KEY (id);
CREATE UNIQUE INDEX ON orders (reference);
CREATE INDEX ON orders (note);
CREATE INDEX ON orders (customer, placed_at);
ALTER TABLE events ADD PRIMARY KEY (id);
"""


@dataclass(frozen=True)
class Source:
    """A running source cluster with its data."""

    cluster: PrivateCluster
    database_bytes: int

    @property
    def installation(self) -> Installation:
        """Return the programs it runs on."""
        return self.cluster.installation

    @property
    def conninfo(self) -> str:
        """Return how to reach the database: over the socket, without a password."""
        return self.cluster.conninfo(DATABASE)

    @property
    def environment(self) -> dict[str, str]:
        """Return the PG* variables that lead client programs to it."""
        return {
            "PGHOST": str(self.cluster.socket_dir),
            "PGPORT": str(SOCKET_PORT),
            "PGUSER": SUPERUSER,
            "PGDATABASE": DATABASE,
            "PGPASSFILE": os.devnull,
        }

    @property
    def pid(self) -> int:
        """Return the postmaster's process id."""
        assert self.cluster.process is not None  # noqa: S101 - it runs as long as the source is there
        return self.cluster.process.pid

    @property
    def name(self) -> str:
        """Return what it is, for the report."""
        return f"PostgreSQL {self.installation.version}, {self.database_bytes / 1e9:.2f} GB"


@contextmanager
def source(folder: Path, installation: Installation, gigabytes: float) -> Iterator[Source]:
    """Make, fill and run a source for the time of a block; it is removed afterwards."""
    cluster = PrivateCluster(folder, installation, superuser=SUPERUSER)
    cluster.create(durable=True, checksums=True)
    try:
        with cluster.running(_SETTINGS):
            yield Source(cluster, _fill(Source(cluster, 0), gigabytes / _FULL_GIGABYTES))
    finally:
        cluster.remove()


def _fill(empty: Source, share: float) -> int:
    with psycopg.connect(empty.cluster.conninfo(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE benchmark")
    _fill_pgbench(empty, max(1, round(_PGBENCH_SCALE * share)))
    rows = {"customers": _CUSTOMERS, "orders": _ORDERS, "events": _EVENTS, "blobs": _BLOBS}
    with psycopg.connect(empty.conninfo, autocommit=True) as session:
        session.execute("SET maintenance_work_mem = '512MB'")
        session.execute(_TABLES)
        for table, statement in _FILL.items():
            session.execute(statement, {"rows": max(1, round(rows[table] * share))})
        session.execute(_INDEXES)
        session.execute("VACUUM (ANALYZE, FREEZE)")
        session.execute("CHECKPOINT")
        found = session.execute("SELECT pg_database_size(current_database())").fetchone()
        return int(found[0]) if found else 0


def _fill_pgbench(empty: Source, scale: int) -> None:
    tool = empty.installation.program("pgbench")
    argv: list[str | Path] = [tool, "--initialize", f"--scale={scale}", "--quiet"]
    processes.run(argv, env=empty.environment, timeout_seconds=3600)
