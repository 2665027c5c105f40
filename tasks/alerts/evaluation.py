"""One evaluation of the rules: read, decide, write, in one short transaction."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime

import psycopg

from tasks.alerts import baselines, definitions, store
from tasks.alerts.deciding import Decisions, decide
from tasks.alerts.models import Alert, Evaluation, View
from tasks.alerts.rules import RuleSet


def evaluate(
    conn: psycopg.Connection,
    rules: RuleSet,
    now: datetime,
    servers: Collection[str] | None = None,
) -> Evaluation:
    """Evaluate the rules on these servers, or on all, and say what happened.

    The rules must be bound to a catalogue. It is skipped while another evaluation is at work: the next one sees the
    same readings. The same readings again change nothing. Needs an autocommit connection.
    """
    if not rules.families:
        message = (
            "The rules are not bound to a catalogue: call RuleSet.bound(catalog.families) first."
        )
        raise ValueError(message)
    with conn.transaction():
        if not store.take_turn(conn):
            return Evaluation(now, skipped=True)
        definitions.keep(conn, rules)
        found = store.view(conn, rules, now, servers)
        decided = _annotated(conn, found, decide(rules, found, now), now)
        store.write(conn, found, decided, servers, now)
    return Evaluation(
        evaluated_at=now,
        transitions=decided.transitions,
        servers=len(found.servers),
        open_alerts=decided.open_alerts,
        failures=decided.failures,
    )


def _annotated(
    conn: psycopg.Connection, found: View, decided: Decisions, now: datetime
) -> Decisions:
    """Say beside the alerts that begin what is usual at this hour of the week."""
    begun = [alert for key, alert in decided.versions.items() if key not in found.alerts]
    numbers = _series_of(found, begun)
    noted = baselines.annotate(conn, numbers, now)
    by_key = {alert.fingerprint: alert for alert in noted.values()}
    transitions = tuple(
        replace(each, alert=by_key.get(each.alert.fingerprint, each.alert))
        for each in decided.transitions
    )
    return replace(decided, versions={**decided.versions, **by_key}, transitions=transitions)


def _series_of(found: View, alerts: Collection[Alert]) -> Mapping[int, Alert]:
    numbers: dict[int, Alert] = {}
    for alert in alerts:
        family = str(alert.details.get("metric", "")).partition(".")[0]
        for series in found.series.get((alert.server, family), ()):
            if series.labels == alert.labels and series.series_id is not None:
                numbers[series.series_id] = alert
    return numbers
