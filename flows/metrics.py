"""Metrics: a collector that runs for long, the same work once every five minutes, and what is made of the samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

from prefect import flow
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from tasks.alerts import loading
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
    servers: list[str] | None = None,
    run_for_seconds: float = _AN_HOUR,
    wait_for_lead_seconds: float = 0.0,
) -> WatchReport | None:
    """Collect from these servers, or from all that have a block, and evaluate the alert rules, for so long.

    One collector leads: a run that finds another one waits for it as long as it is told, and ends as Skipped. The
    next run goes on from the counters as they stood, so that nothing is missing in between. Rules that cannot be used
    stop the alerts (the five-minute flow fails because of them), not the collection.
    """
    order = work.Watch(servers, run_for_seconds, wait_for_lead_seconds)
    try:
        with alerting.AlertWatch(work.metrics_catalog().families) as evaluate:
            report = work.watch(order, evaluate)
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
    when none leads, and that there was none is noticed before anything is read.
    """
    try:
        targets = work.ServerList(servers).demand()
        names = [target.name for target in targets]
        ruleset = loading.load(work.metrics_catalog().families)
        if supervise:
            alerting.evaluate(ruleset, names)
        with work.leading() as sink:
            if supervise and sink:
                work.start_collector()
            waiting = [work.collect_from.submit(target, sink) for target in targets if sink]
            results = [each.result(raise_on_failure=False) for each in waiting]
        found = alerting.evaluate(ruleset, names)
        if servers is None:
            alerting.retire(names)
        for name in names:
            work.show_health(name)
    except OneVaultError as error:
        return cast("CollectionReport", Failed(message=str(error), data=error))
    return _reported(results, found.open_alerts, work.living_collector() if not sink else "")


def _reported(results: Sequence[object], open_alerts: int, others: str) -> CollectionReport:
    collected = tuple(each for each in results if isinstance(each, Collection))
    faults = [str(each) for each in results if isinstance(each, BaseException)]
    sentence = f"{others or f'read {len(collected)} servers'}; {open_alerts} alerts are open"
    if faults:
        message = f"{sentence}; {len(faults)} servers could not be read: {faults[0]}"
        return cast("CollectionReport", Failed(message=message))
    report = CollectionReport(collected, open_alerts, sentence)
    return cast("CollectionReport", Completed(message=sentence, data=report))


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
        alerting.forget()
        kept = (keep_samples_days, keep_statements_days, keep_hours_days, keep_days_days)
        dropped = work.drop_expired(Retention(*(timedelta(days=days) for days in kept)))
    except OneVaultError as error:
        return cast("str", Failed(message=str(error), data=error))
    sentence = f"rolled up {done.hours} hours and {done.days} days; {bands} baselines; dropped {len(dropped.dropped)} partitions"
    return cast("str", Completed(message=sentence, data=sentence))
