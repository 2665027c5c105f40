"""Silences: for some time, nobody is told of the alerts that match. They are audited and end by themselves."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tasks import audit, datavault, queries
from tasks.alerts.models import Alert, Silence
from tasks.errors import Refused

LONGEST = timedelta(days=30)
FIELDS = ("server", "rule", "category", "severity")
_QUERIES = queries.load("tasks.alerts")
_NEWEST = 99


def matches(matchers: Mapping[str, Any], alert: Alert) -> bool:
    """Tell whether every matcher fits: globs on server, rule, category, severity, and on labels by name."""
    texts = {
        "server": alert.server,
        "rule": alert.rule,
        "category": alert.category,
        "severity": alert.severity.value,
    }
    labels = matchers.get("labels", {})
    return all(
        fnmatchcase(texts[name], str(matchers[name])) for name in FIELDS if name in matchers
    ) and all(fnmatchcase(alert.labels.get(name, ""), glob) for name, glob in labels.items())


def silencing(
    silences: Iterable[Silence], alert: Alert, tenant_hk: bytes, now: datetime
) -> Silence | None:
    """Return a silence that holds this alert back now; a tenant's silence reaches its own servers only."""
    for silence in silences:
        is_own = silence.tenant_hk in {tenant_hk, datavault.SYSTEM_TENANT_HK}
        if (
            is_own
            and silence.starts_at <= now < silence.ends_at
            and matches(silence.matchers, alert)
        ):
            return silence
    return None


def add(
    conn: psycopg.Connection,
    matchers: Mapping[str, Any],
    *,
    ends_at: datetime,
    comment: str,
    by: str,
    starts_at: datetime,
) -> Silence:
    """Write a silence and its audit rows; Refused without a comment, a known matcher, or for more than 30 days."""
    _check(matchers, starts_at, ends_at, comment)
    silence = Silence(
        str(uuid4()),
        dict(matchers),
        starts_at,
        ends_at,
        by,
        comment.strip(),
        datavault.SYSTEM_TENANT_HK,
    )
    row = {
        "silence_id": silence.silence_id,
        "matchers": Jsonb(dict(matchers)),
        "starts_at": starts_at,
        "ends_at": ends_at,
        "by": by,
        "comment": silence.comment,
    }
    event = audit.Event("ALERT_SILENCE_ADDED", silence.silence_id, by)
    details = {"matchers": dict(matchers), "ends_at": ends_at.isoformat(), "comment": comment}
    with audit.audited(conn, event, details):
        conn.execute(_QUERIES.get("insert_silence", _NEWEST), row)
    return silence


def current(conn: psycopg.Connection, now: datetime) -> tuple[Silence, ...]:
    """Return the silences that have not ended, those to come as well, the one that ends first first."""
    with conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(_QUERIES.get("silences", _NEWEST), {"now": now}).fetchall()
    return tuple(Silence(**{**row, "silence_id": str(row["silence_id"])}) for row in rows)


def expire(conn: psycopg.Connection, silence_id: str, *, by: str, now: datetime) -> bool:
    """End a silence now; say whether it was still to hold. The audit trail keeps who ended it."""
    try:
        known = UUID(silence_id)
    except ValueError:
        message = f"{silence_id!r} is not the id of a silence: list them to see their ids."
        raise Refused(message) from None
    with audit.audited(conn, audit.Event("ALERT_SILENCE_ENDED", silence_id, by)) as found:
        done = conn.execute(_QUERIES.get("end_silence", _NEWEST), {"id": known, "now": now})
        found["ended"] = done.rowcount > 0
    return done.rowcount > 0


def _check(
    matchers: Mapping[str, Any], starts_at: datetime, ends_at: datetime, comment: str
) -> None:
    unknown = sorted(set(matchers) - {*FIELDS, "labels"})
    if unknown or not matchers:
        message = f"A silence needs to say what it matches, by {', '.join(FIELDS)} or labels" + (
            f"; {', '.join(unknown)} is none of them." if unknown else "."
        )
        raise Refused(message)
    if not isinstance(matchers.get("labels", {}), Mapping):
        message = "The labels of a silence are names with their globs."
        raise Refused(message)
    if not comment.strip():
        message = "A silence needs a comment that says why."
        raise Refused(message)
    if ends_at <= starts_at:
        message = "A silence must end after it starts."
        raise Refused(message)
    if ends_at - starts_at > LONGEST:
        message = "A silence may last 30 days at most: change or disable the rule instead."
        raise Refused(message)
