"""One evaluation of the rules: read, decide, write, in one short transaction."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

import psycopg

from tasks.alerts import baselines, definitions, store
from tasks.alerts.deciding import Decisions, decide, no_longer_watched
from tasks.alerts.models import Alert, Evaluation, View
from tasks.alerts.rules import RuleSet

_SILENT = timedelta(minutes=15)


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
        decided = _annotated(conn, rules, found, decide(rules, found, now), now)
        store.write(conn, found, decided, servers, now)
    return Evaluation(
        evaluated_at=now,
        transitions=decided.transitions,
        servers=len(found.servers),
        open_alerts=decided.open_alerts,
        failures=decided.failures,
    )


def retire(conn: psycopg.Connection, watched: Collection[str], now: datetime) -> Evaluation:
    """Resolve the open alerts of servers that are not watched any more, and say so to whoever heard that they began.

    watched are all servers that anybody watches. One of which something was heard in the last 15 minutes is left alone:
    a list may be shorter on one host. It is skipped while an evaluation is at work. Needs an autocommit connection.
    """
    with conn.transaction():
        if not store.take_turn(conn):
            return Evaluation(now, skipped=True)
        servers = store.unwatched(conn, watched, now - _SILENT)
        alerts = store.open_alerts(conn, servers) if servers else ()
        ended = tuple(no_longer_watched(each, servers[each.server], now) for each in alerts)
        if servers:
            store.retire(conn, servers, ended)
    return Evaluation(now, transitions=ended, servers=len(servers))


def _annotated(
    conn: psycopg.Connection, rules: RuleSet, found: View, decided: Decisions, now: datetime
) -> Decisions:
    """Say beside the alerts that begin what is usual at this hour of the week."""
    begun = [
        alert
        for key, alert in decided.versions.items()
        if key not in found.alerts and _is_as_read(rules, alert)
    ]
    numbers = _series_of(found, begun)
    noted = baselines.annotate(conn, numbers, now)
    by_key = {alert.fingerprint: alert for alert in noted.values()}
    transitions = tuple(
        replace(each, alert=by_key.get(each.alert.fingerprint, each.alert))
        for each in decided.transitions
    )
    return replace(decided, versions={**decided.versions, **by_key}, transitions=transitions)


def _is_as_read(rules: RuleSet, alert: Alert) -> bool:
    """Tell whether an alert's value is that of one sample, as the bands are; a rate or a longer growth is not."""
    rule = rules.rules.get(alert.rule)
    return rule is not None and rule.over is None and not rule.per_second


def _series_of(found: View, alerts: Collection[Alert]) -> Mapping[int, Alert]:
    numbers: dict[int, Alert] = {}
    for alert in alerts:
        family = str(alert.details.get("metric", "")).partition(".")[0]
        for series in found.series.get((alert.server, family), ()):
            if series.labels == alert.labels and series.series_id is not None:
                numbers[series.series_id] = alert
    return numbers
