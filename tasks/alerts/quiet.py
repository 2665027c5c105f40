"""Why nobody is to be told of an alert: a maintenance window, a silence, or another alert that explains it."""

from collections.abc import Iterable
from datetime import datetime

from tasks.alerts import inhibition
from tasks.alerts.models import Alert, View
from tasks.alerts.rules import RuleSet
from tasks.alerts.silences import silencing


def why(
    rules: RuleSet, view: View, alert: Alert, open_alerts: Iterable[Alert], now: datetime
) -> str | None:
    """Return the reason in words, or None when people may be told."""
    for window in rules.maintenance:
        if window.covers(alert.server, alert.rule, now):
            return f"maintenance window {window.window}: {window.comment}"
    tenant_hk = view.servers[alert.server].tenant_hk
    silence = silencing(view.silences, alert, tenant_hk, now)
    if silence is not None:
        return f"silenced by {silence.created_by} until {silence.ends_at:%Y-%m-%d %H:%M} UTC: {silence.comment}"
    source = inhibition.inhibitor(rules.inhibitions, alert, open_alerts)
    return f"inhibited by {source.rule} on {source.server}" if source else None
