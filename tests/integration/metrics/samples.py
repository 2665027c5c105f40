"""Batches as a collector makes them, for tests of what the vault does with them."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.metrics.models import (
    Batch,
    FamilyAnswer,
    FamilyState,
    Sample,
    ServerFacts,
    StatementSample,
)

NOW = datetime.now(UTC)
"""The samples must be fresh by the vault's clock."""
STARTED = datetime(2026, 1, 1, tzinfo=UTC)


def sample(
    family: str = "database", labels: Mapping[str, str] | None = None, **changes: Any
) -> Sample:
    made: dict[str, Any] = {
        "sampled_at": NOW,
        "values": {"commits": 120.0, "backends": 7.0},
        "interval_seconds": 60.0,
        "raw": {"commits": 1_000_120.0},
        "epoch": "e1",
    }
    return Sample(family, {"datname": "shop"} if labels is None else labels, **(made | changes))


def availability(at: datetime = NOW, up: float = 1.0) -> Sample:
    return Sample("availability", {}, at, {"up": up})


def answer(
    family: str = "database", state: FamilyState = FamilyState.OK, at: datetime = NOW, **other: Any
) -> FamilyAnswer:
    return FamilyAnswer(family, state, at, 0.0, **other)


def statement(query_id: int = 1, at: datetime = NOW, **changes: Any) -> StatementSample:
    made: dict[str, Any] = {
        "database_name": "shop",
        "role_name": "app",
        "query_id": query_id,
        "toplevel": True,
        "sampled_at": at,
        "interval_seconds": 60.0,
        "calls": 100,
        "total_exec_ms": 50.0,
        "rows": 200,
        "shared_blks_hit": 990,
        "shared_blks_read": 10,
        "shared_blks_dirtied": 1,
        "temp_blks_read": 0,
        "temp_blks_written": 0,
        "wal_bytes": 8192,
    }
    return StatementSample(**(made | changes))


def facts(name: str = "shop-1", **changes: Any) -> ServerFacts:
    made: dict[str, Any] = {
        "host": "db.example",
        "port": 5432,
        "database": "postgres",
        "server_version": "17.6",
        "server_major": 17,
        "system_identifier": "7000000000000000001",
        "is_in_recovery": False,
        "postmaster_started_at": STARTED,
    }
    return ServerFacts(name, **(made | changes))


def batch(*samples: Sample, server: str = "shop-1", **other: Any) -> Batch:
    texts = {each.query_id: f"select {each.query_id}" for each in other.get("statements", ())}
    texts.pop(0, None)
    made: dict[str, Any] = {"answers": (), "facts": facts(server), "texts": texts}
    return Batch(server, NOW, samples=samples, **(made | other))


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)
