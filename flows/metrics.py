"""Metrics: a collector that runs for long, the same work once every five minutes, and what is made of the samples."""

from dataclasses import dataclass
from datetime import timedelta
from typing import cast

from prefect import flow
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from tasks.alerts import tasks as alerting
from tasks.errors import OneVaultError
from tasks.metrics import tasks as work
from tasks.metrics.partitions import Retention
from tasks.metrics.tasks import Collection, WatchReport

_AN_HOUR = 3600.0
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class CollectionReport:
    """What a run came to: the servers that were read (none when a collector is at work) and the alerts that are open."""

    collected: tuple[Collection, ...]
    open_alerts: int
    sentence: str


@flow(name="watch-servers", flow_run_name="collector", persist_result=False)
def watch_servers(
    servers: list[str] | None = None, run_for_seconds: float = _AN_HOUR
) -> WatchReport | None:
    """Collect from these servers, or from all that have a block, and evaluate the alert rules, for so long.

    One collector leads: while it lives, another run ends at once as Skipped. The next run goes on from the counters
    as they stood, so that nothing is missing in between.
    """
    try:
        ruleset = alerting.load_rules(work.metrics_catalog().families)
        with alerting.AlertWatch(ruleset) as evaluate:
            report = work.watch(servers, run_for_seconds, evaluate)
        if report is None:
            return cast("None", Completed(name="Skipped", message=work.living_collector()))
        return cast("WatchReport", Completed(message=report.sentence, data=report))
    except OneVaultError as error:
        return cast("None", Failed(message=str(error), data=error))


@flow(
    name="collect-metrics",
    flow_run_name="health of the servers",
    persist_result=False,
    task_runner=ThreadPoolTaskRunner(max_workers=_AT_ONCE),  # type: ignore[arg-type]
)
def collect_metrics(servers: list[str] | None = None, supervise: bool = False) -> CollectionReport:
    """Read every metric once, evaluate the rules, and leave a health table of each server.

    While a collector leads, its samples are used instead. With `supervise`, the collector's deployment is started
    when none leads.
    """
    try:
        targets = work.ServerList(servers).demand()
        with work.leading() as sink:
            waiting = [work.collect_from.submit(target, sink) for target in targets if sink]
            collected = tuple(each.result() for each in waiting)
        ruleset = alerting.load_rules(work.metrics_catalog().families)
        found = alerting.evaluate(ruleset, [target.name for target in targets])
        for target in targets:
            work.show_health(target.name)
        if supervise and sink is not None:
            work.start_collector()
    except OneVaultError as error:
        return cast("CollectionReport", Failed(message=str(error), data=error))
    read = f"read {len(collected)} servers" if sink else work.living_collector()
    report = CollectionReport(
        collected, found.open_alerts, f"{read}; {found.open_alerts} alerts are open"
    )
    return cast("CollectionReport", Completed(message=report.sentence, data=report))


@flow(name="roll-up-metrics", flow_run_name="roll up metrics", persist_result=False)
def roll_up_metrics(
    keep_samples_days: int = 14,
    keep_statements_days: int = 35,
    keep_hours_days: int = 400,
    keep_days_days: int = 2555,
) -> str:
    """Make partitions ahead, hourly and daily roll-ups, baselines, and drop what has been kept for long enough."""
    try:
        done = work.roll_up()
        bands = alerting.compute_baselines()
        kept = (keep_samples_days, keep_statements_days, keep_hours_days, keep_days_days)
        dropped = work.drop_expired(Retention(*(timedelta(days=days) for days in kept)))
    except OneVaultError as error:
        return cast("str", Failed(message=str(error), data=error))
    sentence = f"rolled up {done.hours} hours and {done.days} days; {bands} baselines; dropped {len(dropped.dropped)} partitions"
    return cast("str", Completed(message=sentence, data=sentence))
