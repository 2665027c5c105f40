"""The tasks of alerting: they load the rules, evaluate them on what the vault holds, and tell Prefect what changed."""

import logging
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import psycopg
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.logging import get_run_logger

from tasks import opening
from tasks.alerts import baselines, evaluation, loading
from tasks.alerts.models import AlertStatus, Evaluation, Transition
from tasks.alerts.rules import RuleSet
from tasks.connection import translating
from tasks.errors import OneVaultError
from tasks.metrics.models import Family

log = logging.getLogger("onevault.alerts")


def load_rules(families: Mapping[str, Family]) -> RuleSet:
    """Load the rules in force for these families; Refused names everything in them that cannot be used."""
    return loading.load(families)


class AlertWatch:
    """Evaluates rules each time that samples were stored; a vault that is away is waited for, not a failure."""

    def __init__(self, ruleset: RuleSet) -> None:
        self._rules = ruleset
        self._conn: psycopg.Connection | None = None
        self._is_away = False

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
        try:
            self._conn = self._conn or opening.open_vault()
            with translating("evaluate the alert rules"):
                found = evaluation.evaluate(self._conn, self._rules, datetime.now(UTC), servers)
        except OneVaultError as error:
            self._note_away(error)
            return
        self._is_away = False
        announce(found)

    def _note_away(self, error: OneVaultError) -> None:
        if not self._is_away:
            log.warning("alerts are not evaluated: %s", error)
        self._is_away = True
        self._close()

    def _close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()


@task(name="evaluate alert rules", cache_policy=NO_CACHE, persist_result=False)
def evaluate(ruleset: RuleSet, servers: Collection[str] | None = None) -> Evaluation:
    """Evaluate the rules once on what the vault holds now; too old a reading is an alert of its own."""
    with opening.open_vault() as conn, translating("evaluate the alert rules"):
        found = evaluation.evaluate(conn, ruleset, datetime.now(UTC), servers)
    announce(found)
    get_run_logger().info("%d alerts are open on %d servers", found.open_alerts, found.servers)
    return found


@task(name="compute baselines", cache_policy=NO_CACHE, persist_result=False)
def compute_baselines() -> int:
    """Make the weekday-hour bands anew from the hourly roll-ups of four weeks."""
    with opening.open_vault() as conn, translating("compute the baselines"):
        made = baselines.compute(conn, datetime.now(UTC))
    get_run_logger().info("%d bands", made)
    return made


def announce(found: Evaluation) -> None:
    """Log what changed, and emit a Prefect event for each alert that began, got worse or ended."""
    for failure in found.failures:
        log.error("%s", failure)
    for transition in found.transitions:
        alert = transition.alert
        log.log(
            logging.INFO if alert.status is AlertStatus.RESOLVED else logging.WARNING,
            "%s %s on %s: %s",
            alert.severity.value,
            alert.status.value,
            alert.server,
            alert.summary,
        )
        if transition.from_status is not alert.status or transition.notify:
            _emit(transition)


def _emit(transition: Transition) -> None:
    alert = transition.alert
    resolved = alert.status is AlertStatus.RESOLVED
    emit_event(
        event="onevault.alert.resolved" if resolved else "onevault.alert.firing",
        resource={
            "prefect.resource.id": f"onevault.alert.{alert.fingerprint}",
            "prefect.resource.name": f"{alert.rule} on {alert.server}",
            "onevault.server": alert.server,
            "onevault.rule": alert.rule,
            "onevault.severity": alert.severity.value,
        },
        related=[
            {
                "prefect.resource.id": f"onevault.server.{alert.server}",
                "prefect.resource.role": "server",
            }
        ],
        payload={
            "summary": alert.summary,
            "status": alert.status.value,
            "category": alert.category,
            "labels": dict(alert.labels),
            "value": transition.value,
            "threshold": alert.threshold,
            "notify": transition.notify.value if transition.notify else None,
            "not_notified_because": transition.not_notified_because,
            "next_step": transition.next_step,
            "runbook": transition.runbook,
            "started_at": alert.started_at.isoformat(),
        },
    )
