"""`onevault alerts` and `onevault acknowledge`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deployments import tables
from deployments.monitoring.colours import styled
from deployments.monitoring.health import alerts_table
from deployments.monitoring.vault_door import opened_vault
from tasks.alerts import acknowledging, reading
from tasks.alerts.models import Alert
from tasks.audit import default_actor


@dataclass(frozen=True, slots=True)
class Found:
    """Open alerts, or what happened to alerts."""

    alerts: Sequence[Alert] = ()
    events: Sequence[Mapping[str, Any]] = ()


def read(server: str | None, *, history: bool) -> Found:
    """Read the vault."""
    with opened_vault() as conn:
        if history:
            return Found(events=reading.history(conn, datetime.now(UTC), server=server))
        return Found(alerts=reading.open_alerts(conn, server))


def plain(found: Found) -> list[Any]:
    """Return it as JSON values."""
    return [*tables.plain(found.alerts), *found.events]


def show(found: Found, *, history: bool) -> None:
    """Print it."""
    if history:
        tables.show(_history_table(found.events))
        return
    steps = [_steps(alert) for alert in found.alerts]
    tables.show(Group(alerts_table(found.alerts), *steps))


def acknowledge(alert: str, note: str, *, false_positive: bool) -> str:
    """Take an alert on, or say that it was none; returns what was done in a sentence."""
    by = default_actor()
    with opened_vault() as conn:
        if false_positive:
            marked = acknowledging.mark_false_positive(conn, alert, by=by, note=note)
            return f"{marked.rule} on {marked.server} is marked as a false positive by {by}."
        taken = acknowledging.acknowledge(conn, alert, by=by, note=note, now=datetime.now(UTC))
        return f"{taken.rule} on {taken.server} is acknowledged by {by}: it is not repeated until it gets worse or comes back."


def _steps(alert: Alert) -> Text:
    details = alert.details
    said = Text(f"{alert.fingerprint[:8]}  {details.get('next_step', '')}")
    for name in ("usually", "runbook"):
        if details.get(name):
            said.append(f"\n          {details[name]}", style="dim")
    return said


def _history_table(events: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="what happened", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("when (UTC)", "server", "change", "severity", "alert", "told"):
        table.add_column(heading, overflow="fold")
    for event in events:
        before = event["from_status"] or "new"
        told = event["notify_reason"] or f"no: {event['not_notified_because'] or 'nothing new'}"
        table.add_row(
            f"{event['happened_at'].astimezone(UTC):%Y-%m-%d %H:%M:%S}",
            escape(event["server_name"]),
            f"{before} -> {event['to_status']}",
            styled(event["urgency_level"]),
            escape(event["summary"]),
            escape(told),
        )
    return table
