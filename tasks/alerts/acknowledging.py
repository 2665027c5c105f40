"""What a person does to an alert: takes it on, or says that it was none. Both leave audit rows."""

from dataclasses import replace
from datetime import datetime

import psycopg

from tasks import audit
from tasks.alerts import store
from tasks.alerts.models import Alert, AlertStatus, Transition
from tasks.errors import Refused

_SHORTEST = 6


def acknowledge(
    conn: psycopg.Connection, alert: str, *, by: str, note: str = "", now: datetime
) -> Alert:
    """Take an open alert on: it is not repeated until it gets worse or fires again.

    The alert is named by the beginning of its id or fingerprint. Refused when that is none, several, or resolved.
    """
    event = audit.Event("ALERT_ACKNOWLEDGED", alert, by)
    with audit.audited(conn, event, {"note": note}) as told, conn.transaction():
        store.wait_for_turn(conn)
        found = _the_one(conn, alert)
        told.update(_named(found))
        if found.status is AlertStatus.RESOLVED:
            message = f"The alert {alert} is resolved already; there is nothing to acknowledge."
            raise Refused(message)
        details = {**found.details, "note": note} if note else found.details
        taken = replace(
            found,
            status=AlertStatus.ACKNOWLEDGED,
            acknowledged_at=now,
            acknowledged_by=by,
            details=details,
        )
        store.append_versions(conn, [taken])
        store.add_transitions(conn, [_taken_on(found, taken, by, now)])
    return taken


def mark_false_positive(conn: psycopg.Connection, alert: str, *, by: str, note: str) -> Alert:
    """Say that an alert, open or resolved, was none; a note says why. Its state stays what it is."""
    if not note.strip():
        message = "Say in the note why the alert was false: rules are mended from these notes."
        raise Refused(message)
    event = audit.Event("ALERT_FALSE_POSITIVE", alert, by)
    with audit.audited(conn, event, {"note": note}) as told, conn.transaction():
        store.wait_for_turn(conn)
        found = _the_one(conn, alert)
        told.update(_named(found))
        details = {**found.details, "false_positive": note, "false_positive_by": by}
        marked = replace(found, false_positive=True, details=details)
        store.append_versions(conn, [marked])
    return marked


def _taken_on(before: Alert, taken: Alert, by: str, now: datetime) -> Transition:
    return Transition(
        alert=taken,
        from_status=before.status,
        happened_at=now,
        value=taken.trigger_value,
        notify=None,
        not_notified_because=f"{by} has acknowledged it",
    )


def _named(alert: Alert) -> dict[str, object]:
    """Return what an alert is called in full: the few characters that a person typed may mean another one later."""
    return {
        "alert": alert.alert_hk.hex(),
        "fingerprint": alert.fingerprint,
        "rule": alert.rule,
        "server": alert.server,
        "severity": alert.severity.value,
    }


def _the_one(conn: psycopg.Connection, prefix: str) -> Alert:
    is_hex = set(prefix.lower()) <= set("0123456789abcdef")
    if len(prefix) < _SHORTEST or not is_hex:
        message = (
            f"{prefix!r} names no alert: give at least six characters of its id or fingerprint."
        )
        raise Refused(message)
    found = store.find(conn, prefix)
    if len(found) != 1:
        what = "no alert" if not found else f"{len(found)} alerts"
        message = f"{prefix} is the beginning of {what}: give more characters of its id."
        raise Refused(message)
    return found[0]
