"""The tasks of alerting: they load the rules, evaluate them on what the vault holds, and tell Prefect what changed."""

import logging
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from time import monotonic
from types import TracebackType
from typing import Any, Self

import psycopg
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.logging import get_run_logger

from tasks import opening
from tasks.alerts import baselines, evaluation, loading, store
from tasks.alerts.models import AlertStatus, Evaluation
from tasks.alerts.rules import RuleSet
from tasks.connection import translating
from tasks.errors import OneVaultError
from tasks.metrics.models import Family

_AGAIN_SECONDS = 60.0
_EVENTS = {
    AlertStatus.RESOLVED: "onevault.alert.resolved",
    AlertStatus.ACKNOWLEDGED: "onevault.alert.acknowledged",
}

log = logging.getLogger("onevault.alerts")


class AlertWatch:
    """Evaluates rules each time that samples were stored; whatever keeps it from that is said and tried again.

    Rules that cannot be used, or a vault that is away, never stop the collection of metrics.
    """

    def __init__(self, families: Mapping[str, Family]) -> None:
        self._families = families
        self._rules: RuleSet | None = None
        self._conn: psycopg.Connection | None = None
        self._said: dict[str, float] = {}
        self._load_at = 0.0
        self._load()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def __call__(self, servers: Collection[str]) -> None:
        """Evaluate the rules on these servers, and emit an event for whatever began or ended."""
        if self._rules is None and monotonic() >= self._load_at:
            self._load()
        if self._rules is None:
            return
        try:
            self._conn = self._conn or opening.open_vault()
            with translating("evaluate the alert rules"):
                found = evaluation.evaluate(self._conn, self._rules, datetime.now(UTC), servers)
                announce(self._conn, found)
        except Exception as error:
            self._say(error)
            self._close()
        else:
            self._said.clear()

    def _load(self) -> None:
        self._load_at = monotonic() + _AGAIN_SECONDS
        try:
            self._rules = loading.load(self._families)
        except OneVaultError as error:
            self._say(error)

    def _say(self, error: Exception) -> None:
        """Log that nothing is evaluated, for each cause once a minute."""
        cause, now = type(error).__name__, monotonic()
        if now < self._said.get(cause, 0.0):
            return
        self._said[cause] = now + _AGAIN_SECONDS
        traceback = None if isinstance(error, OneVaultError) else error
        log.error("alerts are not evaluated: %s", error, exc_info=traceback)

    def _close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()


@task(name="evaluate alert rules", cache_policy=NO_CACHE, persist_result=False)
def evaluate(ruleset: RuleSet, servers: Collection[str] | None = None) -> Evaluation:
    """Evaluate the rules once on what the vault holds now; too old a reading is an alert of its own."""
    with opening.open_vault() as conn, translating("evaluate the alert rules"):
        found = evaluation.evaluate(conn, ruleset, datetime.now(UTC), servers)
        announce(conn, found)
    get_run_logger().info("%d alerts are open on %d servers", found.open_alerts, found.servers)
    return found


@task(name="retire servers", cache_policy=NO_CACHE, persist_result=False)
def retire(watched: Collection[str]) -> Evaluation:
    """Resolve the alerts of servers that are registered no more."""
    with opening.open_vault() as conn, translating("retire the alerts of servers that are gone"):
        found = evaluation.retire(conn, watched, datetime.now(UTC))
        announce(conn, found)
    return found


@task(name="forget old alerts", cache_policy=NO_CACHE, persist_result=False)
def forget() -> int:
    """Delete what happened to alerts that were resolved long ago."""
    with opening.open_vault() as conn, translating("forget old alerts"):
        return store.forget(conn, datetime.now(UTC))


@task(name="compute baselines", cache_policy=NO_CACHE, persist_result=False)
def compute_baselines() -> int:
    """Make the weekday-hour bands anew from the hourly roll-ups of four weeks."""
    with opening.open_vault() as conn, translating("compute the baselines"):
        made = baselines.compute(conn, datetime.now(UTC))
    get_run_logger().info("%d bands", made)
    return made


def announce(conn: psycopg.Connection, found: Evaluation) -> None:
    """Log what changed, and emit a Prefect event for each alert that began, changed or ended.

    An event counts as emitted only when Prefect's client has taken it: what was cut off is emitted the next time.
    """
    for failure in found.failures:
        log.error("%s", failure)
    for transition in found.transitions:
        alert = transition.alert
        level = logging.INFO if alert.status is AlertStatus.RESOLVED else logging.WARNING
        words = (alert.severity.value, alert.status.value, alert.server, alert.summary)
        log.log(level, "%s %s on %s: %s", *words)
    # Also without a change now: the last one may have been cut off before its event.
    while rows := store.not_emitted(conn):
        for row in rows:
            emit_event(**event_of(row))
        store.mark_emitted(conn, [row["transition_id"] for row in rows], datetime.now(UTC))


def event_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the event of a transition: its name, the alert as resource, the server beside it, and what happened."""
    server = row["server_name"]
    return {
        "event": _EVENTS.get(row["to_status"], "onevault.alert.firing"),
        "occurred": row["happened_at"],
        "resource": {
            "prefect.resource.id": f"onevault.alert.{row['fingerprint']}",
            "prefect.resource.name": f"{row['rule_name']} on {server}",
            "onevault.server": server,
            "onevault.rule": row["rule_name"],
            "onevault.severity": row["urgency_level"],
        },
        "related": [
            {
                "prefect.resource.id": f"onevault.server.{server}",
                "prefect.resource.name": server,
                "prefect.resource.role": "server",
            }
        ],
        "payload": {
            "summary": row["summary"],
            "status": row["to_status"],
            "category": row["alert_category"],
            "labels": row["labels"],
            "value": row["metric_value"],
            "threshold": row["threshold_value"],
            "notify": row["notify_reason"],
            "not_notified_because": row["not_notified_because"],
            "next_step": row["next_step"],
            "runbook": row["runbook"],
            "started_at": row["started_timestamp"].isoformat(),
            "resolution_notes": row["resolution_notes"],
            "acknowledged_by": row["acknowledged_by"],
            "is_flapping": row["is_flapping"],
        },
    }
