"""Batches as columns: what the vault's statements take, one array a column."""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from tasks.metrics.models import FamilyAnswer, Sample, StatementSample
from tasks.metrics.ports import SeriesKey

Columns = dict[str, object]

_STATEMENT_COLUMNS = (
    "sampled_at",
    "database_name",
    "role_name",
    "query_id",
    "toplevel",
    "interval_seconds",
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


def key_of(sample: Sample) -> SeriesKey:
    """Return the series that a sample belongs to."""
    return sample.family, tuple(sorted(sample.labels.items()))


def series(keys: Sequence[SeriesKey]) -> Columns:
    """Return families and labels."""
    return {
        "families": [family for family, _ in keys],
        "labels": [_texts(dict(labels)) for _, labels in keys],
    }


def samples(numbered: Iterable[tuple[int, Sample]]) -> Columns:
    """Return samples with the numbers of their series."""
    rows = list(numbered)
    return {
        "series_ids": [series_id for series_id, _ in rows],
        "sampled_at": [sample.sampled_at for _, sample in rows],
        "intervals": [sample.interval_seconds for _, sample in rows],
        "values": [_numbers(sample.values) for _, sample in rows],
    }


def latest(numbered: Iterable[tuple[int, Sample]]) -> Columns:
    """Return the newest sample of each series."""
    newest: dict[int, Sample] = {}
    for series_id, sample in numbered:
        known = newest.get(series_id)
        if known is None or known.sampled_at <= sample.sampled_at:
            newest[series_id] = sample
    found = newest.values()
    return {
        **samples(newest.items()),
        "raw": [_numbers(sample.raw) for sample in found],
        "texts": [_texts(sample.texts) for sample in found],
        "epochs": [_clean(sample.epoch) for sample in found],
    }


def answers(of: Iterable[FamilyAnswer]) -> Columns:
    """Return the newest answer of each family and database."""
    ordered = sorted(of, key=lambda answer: answer.read_at)
    newest = list({(each.family, each.database): each for each in ordered}.values())
    return {
        "families": [each.family for each in newest],
        "databases": [_clean(each.database) for each in newest],
        "states": [each.state.value for each in newest],
        "attempted_at": [each.read_at for each in newest],
        "durations": [each.duration_ms for each in newest],
        "messages": [_clean(each.message) for each in newest],
    }


def statements(of: Sequence[StatementSample]) -> Columns:
    """Return the growth of statements."""
    made: Columns = {name: [getattr(each, name) for each in of] for name in _STATEMENT_COLUMNS}
    made["database_name"] = [_clean(each.database_name) for each in of]
    made["role_name"] = [_clean(each.role_name) for each in of]
    return made


def statement_texts(of: Mapping[int, str]) -> Columns:
    """Return the texts of statements by query id."""
    return {"query_ids": list(of), "texts": [_clean(text) for text in of.values()]}


def used_statements(of: Iterable[StatementSample]) -> Columns:
    """Return the query ids that there are samples of."""
    return {"query_ids": sorted({each.query_id for each in of} - {0})}


def databases(of: Iterable[str]) -> list[str]:
    """Return names as they are kept."""
    return [_clean(name) for name in of]


def hours(of: Iterable[Sample]) -> set[datetime]:
    """Return the beginnings, in UTC, of the hours that samples lie in."""
    return {
        each.sampled_at.astimezone(UTC).replace(minute=0, second=0, microsecond=0) for each in of
    }


def is_empty(columns: Mapping[str, object]) -> bool:
    """Tell whether there is no row in them."""
    first = next(iter(columns.values()))
    return isinstance(first, Collection) and not first


def _numbers(values: Mapping[str, float]) -> str:
    # JSON knows neither infinity nor NaN, and neither is a measurement.
    known = {name: value for name, value in values.items() if math.isfinite(value)}
    return json.dumps(known, separators=(",", ":"))


def _texts(values: Mapping[str, str]) -> str:
    cleaned = {name: _clean(value) for name, value in values.items()}
    return json.dumps(cleaned, separators=(",", ":"), ensure_ascii=False)


def _clean(text: str) -> str:
    """Leave out what PostgreSQL cannot keep as text: NUL, and bytes that never were UTF-8."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()
