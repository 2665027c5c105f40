"""`onevault status`: the fleet on one screen, or one server in full."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deployments import tables
from deployments.monitoring.colours import styled
from deployments.monitoring.vault_door import opened_vault
from tasks.alerts import baselines
from tasks.alerts import reading as alert_reading
from tasks.alerts.baselines import Anomaly
from tasks.alerts.models import Alert, AlertStatus, Severity
from tasks.errors import Refused
from tasks.metrics import reading, store
from tasks.metrics.health import HealthLine, condensed, lines
from tasks.metrics.models import FamilyState, HealthStatus
from tasks.metrics.reading import FamilyRow, HealthRow, SeriesRow, ServerRow
from tasks.metrics.store import CollectorRow
from tasks.metrics.wording import ago, named

_STALE_SECONDS = 60.0
_UNWATCHED_SECONDS = 900.0
_METRIC_COLUMNS = 26
_LIMIT_COLUMNS = 9
_AGE_COLUMNS = 8
_URGENT = frozenset({Severity.HIGH, Severity.CRITICAL})


@dataclass(frozen=True, slots=True)
class Status:
    """What the vault knows of a server, or of all."""

    server: str | None
    fleet: Sequence[ServerRow]
    alerts: Sequence[Alert]
    collectors: Sequence[CollectorRow]
    health: Sequence[HealthRow] = ()
    metrics: Sequence[SeriesRow] = ()
    families: Sequence[FamilyRow] = ()
    anomalies: Sequence[Anomaly] = ()

    @property
    def is_firing(self) -> bool:
        """Tell whether an alert is open that cannot wait."""
        return any(alert.severity in _URGENT for alert in self.alerts)

    @property
    def is_watched(self) -> bool:
        """Tell whether a collector lives."""
        return any(row.age_seconds <= _STALE_SECONDS for row in self.collectors)

    @property
    def is_blind(self) -> bool:
        """Tell whether no collector lives, or a server that is watched has not been heard of for a while."""
        return not self.is_watched or any(_is_silent(row) for row in self.fleet)


def read(server: str | None) -> Status:
    """Read the vault; Refused for a server that was never collected from."""
    with opened_vault() as conn:
        fleet = reading.fleet(conn, server)
        if server and not fleet:
            message = f"Nothing was ever collected from a server named {server}: `onevault status` lists those that were."
            raise Refused(message)
        alerts = alert_reading.open_alerts(conn, server)
        beats = store.collectors(conn)
        if server is None:
            return Status(None, fleet, alerts, beats)
        return Status(
            server,
            fleet,
            alerts,
            beats,
            reading.health(conn, server),
            reading.server_metrics(conn, server),
            reading.families_not_ok(conn, server),
            baselines.anomalies(conn, server, datetime.now(UTC)),
        )


def plain(status: Status) -> dict[str, Any]:
    """Return it as JSON values; every part is there, empty or not."""
    parts = {field.name: getattr(status, field.name) for field in dataclasses.fields(status)}
    return {
        name: tables.plain(part) if isinstance(part, list | tuple) else part
        for name, part in parts.items()
    }


def show(status: Status) -> None:
    """Print it."""
    tables.show(Group(*_parts(status)))


def _parts(status: Status) -> Iterator[RenderableType]:
    yield fleet_table(status.fleet, watched=status.is_watched)
    yield from _collector_lines(status.collectors)
    yield alerts_table(status.alerts)
    if status.server is None:
        return
    yield health_table(status.health, status.metrics)
    if faults := [row for row in status.families if row.state is not FamilyState.NOT_APPLICABLE]:
        yield _families_table(faults)
    for family in (row for row in status.families if row.state is FamilyState.NOT_APPLICABLE):
        yield Text(f"unknown, {family.family}: {family.message}", style="dim")
    for each in status.anomalies:
        yield Text(
            f"unusual for this hour of the week: {each.metric} {named(each.labels)} is {each.value:,.4g},"
            f" usually {each.low:,.4g} to {each.high:,.4g}"
        )


def fleet_table(rows: Sequence[ServerRow], *, watched: bool = True) -> Table:
    """Return one line for each server."""
    table = _table(
        "servers", "server", "state", "role", "PostgreSQL", "last sample", "worst alert", "metrics"
    )
    for row in rows:
        counts = {"CRITICAL": row.critical, "WARNING": row.warning, "UNKNOWN": row.unknown}
        told = [f"{count} {styled(word)}" for word, count in counts.items() if count]
        worst = f"{styled(row.worst_alert)} of {row.open_alerts}" if row.worst_alert else "none"
        table.add_row(
            escape(row.server),
            _up(row, watched=watched),
            row.role,
            escape((row.server_version or "?").split(" ")[0]),
            f"{ago(row.age_seconds)} ago" if row.age_seconds is not None else "never",
            worst,
            ", ".join(told) or styled("NORMAL"),
        )
    return table


def _is_silent(row: ServerRow) -> bool:
    return row.age_seconds is None or _STALE_SECONDS < row.age_seconds <= _UNWATCHED_SECONDS


def _up(row: ServerRow, *, watched: bool) -> str:
    if row.age_seconds is None or row.age_seconds > _STALE_SECONDS:
        # A collector that lives leaves out what is no longer registered.
        gone = watched and not _is_silent(row)
        return "[dim]not watched[/dim]" if gone else "[magenta]unknown[/magenta]"
    return "[green]up[/green]" if row.is_up else "[bold red]DOWN[/bold red]"


def _collector_lines(collectors: Sequence[CollectorRow]) -> Iterator[Text]:
    for row in collectors:
        alive = row.age_seconds <= _STALE_SECONDS
        waiting = f", {row.buffered_rows:,} rows wait for the vault" if row.buffered_rows else ""
        lost = f", {row.lost_rows:,} rows lost" if row.lost_rows else ""
        said = f"collector on {row.host}: {row.servers} servers, alive {ago(row.age_seconds)} ago{waiting}{lost}"
        if not alive:
            said += (
                ": it is gone; `onevault watch`, or the deployment watch-servers/watch, starts one"
            )
        yield Text(said, style="dim" if alive and not lost else "yellow")


def alerts_table(alerts: Sequence[Alert]) -> RenderableType:
    """Return the open alerts, worst first."""
    if not alerts:
        return Text("no open alerts", style="green")
    table = _table("open alerts", "severity", "since (UTC)", "server", "alert", "id")
    for alert in alerts:
        about = alert.summary + (
            f" ({alert.suppression_reason})" if alert.suppression_reason else ""
        )
        # A worse severity opens it again: who acknowledged the lesser one did not acknowledge this.
        is_taken = alert.status is AlertStatus.ACKNOWLEDGED
        marks = [
            *(["acknowledged"] if is_taken else []),
            *(["flapping"] if alert.is_flapping else []),
        ]
        table.add_row(
            styled(alert.severity.value),
            f"{alert.triggered_at.astimezone(UTC):%m-%d %H:%M:%S}",
            escape(alert.server),
            escape(about) + "".join(f" [dim]{mark}[/dim]" for mark in marks),
            alert.fingerprint[:8],
        )
    return table


def health_table(rows: Sequence[HealthRow], metrics: Iterable[SeriesRow]) -> Table:
    """Return the health metrics, worst first, with the values as they are now.

    Of a metric that is normal on several objects only the one nearest to its threshold is shown.
    """
    table = _table("health")
    table.add_column("status", no_wrap=True)
    table.add_column("metric\n  object", overflow="fold", min_width=_METRIC_COLUMNS)
    table.add_column("now", justify="right", no_wrap=True)
    table.add_column("limits", justify="right", min_width=_LIMIT_COLUMNS)
    table.add_column("age", justify="right", no_wrap=True, min_width=_AGE_COLUMNS)
    for line, others in condensed(lines(rows, metrics)):
        table.add_row(*_cells(line, others))
    return table


def _cells(line: HealthLine, others: int) -> list[str]:
    row = line.row
    more = f" (worst of {others + 1})" if others else ""
    what = f"\n  [dim]{escape(named(row.labels))}{more}[/dim]" if row.labels else ""
    return [
        styled(row.status.value),
        row.metric + what,
        _coloured(line),
        line.limits,
        ago(line.series.age_seconds) if line.series else "",
    ]


def _coloured(line: HealthLine) -> str:
    """Mark a value that is past a limit already, though not yet for as long as the alert rule wants."""
    style = {HealthStatus.CRITICAL: "red", HealthStatus.WARNING: "yellow"}.get(line.stands)
    return f"[{style}]{line.shown}[/{style}]" if style else line.shown


def _families_table(rows: Sequence[FamilyRow]) -> Table:
    table = _table("cannot be read", "family", "database", "state", "why", "last answer")
    for row in rows:
        table.add_row(
            row.family,
            escape(row.database),
            row.state.value,
            escape(row.message),
            f"{ago(row.age_seconds)} ago" if row.age_seconds is not None else "never",
        )
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
