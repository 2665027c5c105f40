"""The flows of metrics and alerts as Prefect and the vault see them: states, tables, events, and who leads."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.client.schemas.objects import State
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.events.schemas.events import ReceivedEvent
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from flows.alerts import evaluate_alerts
from flows.metrics import collect_metrics, roll_up_metrics, watch_servers
from tasks import vault
from tasks.errors import Refused
from tasks.metrics import store
from tasks.metrics import tasks as work
from tasks.metrics.collector import Collector
from tasks.metrics.models import Tier
from tasks.metrics.pace import Pace
from tasks.metrics.sink import FLEET
from tasks.metrics.store import Heartbeat
from tasks.programs import Installation
from tests.backups import until
from tests.clusters import PASSWORD
from tests.monitoring import SECRET, MonitoringSite, fresh_vault, monitoring_servers

QUICK = {Tier.LIGHT: 0.4, Tier.MINUTE: 0.8, Tier.FIVE_MINUTES: 1.6, Tier.HOURLY: 3.2}
DOWN_AT_ONCE = """
overrides:
  - {rules: server_down, for: 0s, clear_for: 0s}
"""


@pytest.fixture(scope="module")
def servers(installation: Installation) -> Iterator[MonitoringSite]:
    with monitoring_servers(installation) as made:
        yield made


@pytest.fixture
def site(servers: MonitoringSite, monkeypatch: pytest.MonkeyPatch) -> Iterator[MonitoringSite]:
    with fresh_vault(servers) as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("ONEVAULT_RULES", raising=False)
        made.save_block()
        yield made


def collect(*names: str, supervise: bool = False) -> "State[Any]":
    flow: Any = collect_metrics
    state: State[Any] = flow(list(names), supervise, return_state=True)
    return state


@contextmanager
def api_logs() -> Iterator[None]:
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: True}):
        yield
        APILogWorker.drain_all()


def run_id(state: "State[Any]") -> UUID:
    assert state.state_details.flow_run_id is not None
    return state.state_details.flow_run_id


def tables_of(state: "State[Any]") -> dict[str, list[dict[str, Any]]]:
    """Read the tables that a run left, by key."""
    of_the_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id(state)]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=of_the_run)
    return {
        str(each.key): json.loads(str(each.data)) for each in found if str(each.type) == "table"
    }


def everything_prefect_knows(state: "State[Any]") -> str:
    """Put together the run, its states, its tasks, its artifacts and its log."""
    chosen = run_id(state)
    with get_client(sync_client=True) as client:
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[chosen])), limit=200)
        of_the_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[chosen]))
        of_it = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[chosen]))
        known = [
            client.read_flow_run(chosen),
            *client.read_flow_run_states(chosen),
            *client.read_task_runs(task_run_filter=of_it),
            *client.read_artifacts(artifact_filter=of_the_run),
        ]
    assert logs
    return "\n".join([*(each.model_dump_json() for each in known), *(log.message for log in logs)])


def events_named(name: str, server: str) -> list[ReceivedEvent]:
    wanted = EventFilter(event=EventNameFilter(name=[name]))
    with get_client(sync_client=True) as client:
        page = client.read_events(wanted, limit=50)
    return [event for event in page.events if event.resource.get("onevault.server") == server]


def statuses(site: MonitoringSite) -> list[tuple[str, str]]:
    """Read rule and status of every alert, by name."""
    return [
        (str(rule), str(status))
        for rule, status in site.query(
            "select rule_name, alert_status from monitoring.alert_instance_s"
            " where load_end_date is null order by 1, 2"
        )
    ]


# One reading.


def test_a_run_reads_every_family_evaluates_the_rules_and_shows_health(site: MonitoringSite):
    state = collect(site.server)
    assert state.is_completed(), state.message
    report = state.result()
    assert report.sentence == state.message
    assert (state.message or "").startswith("read 1 servers; ")
    (read,) = report.collected
    assert (read.server, read.is_up, read.message) == (site.server, True, "")
    assert read.samples > 20
    for family in ("availability", "connections", "databases", "settings"):
        assert site.readings(family) == 1, family
    ((rules,),) = site.query("select count(*) from monitoring.system_health_metric_s")
    assert rules > 10
    (table,) = tables_of(state).values()
    shown = {row["metric"]: row for row in table}
    assert shown["availability.up"]["status"] == "NORMAL"
    assert shown["connections.used_percent"]["limits"] == "80.0 % / 95.0 %"


def test_a_second_run_reckons_growth_from_the_first(site: MonitoringSite):
    assert collect(site.server).is_completed()
    assert collect(site.server).is_completed()
    rows = site.query(
        "select m.interval_seconds, m.values ? 'xact_commit' from monitoring.metric_sample m"
        " join monitoring.series s using (series_id)"
        " where s.family = 'databases' and s.labels->>'database_name' = 'shop'"
        " order by m.sampled_at"
    )
    assert [(interval is None, grown) for interval, grown in rows] == [(True, False), (False, True)]


def test_a_server_that_is_down_is_a_finding_and_others_are_read(
    site: MonitoringSite, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ONEVAULT_RULES", site.overrides(DOWN_AT_ONCE))
    away = site.save_block(f"{site.server}-away", port=9)
    state = collect(site.server, away)
    assert state.is_completed(), state.message
    report = state.result()
    found = {each.server: each for each in report.collected}
    assert (found[site.server].is_up, found[away].is_up) == (True, False)
    assert "port 9" in found[away].message
    ups = site.query(
        "select h.server_bk, l.values->>'up' from monitoring.metric_latest l"
        " join monitoring.series s using (series_id) join monitoring.server_h h using (server_hk)"
        " where s.family = 'availability' order by 1"
    )
    assert [(server, float(up)) for server, up in ups] == [(site.server, 1.0), (away, 0.0)]
    assert ("server_down", "OPEN") in statuses(site)
    (event,) = until(lambda: events_named("onevault.alert.firing", away))
    assert event.resource["onevault.rule"] == "server_down"
    assert event.resource["onevault.severity"] == "CRITICAL"
    assert event.payload["summary"] == f"{away} does not answer."
    assert event.payload["notify"] == "first"
    assert [each.role for each in event.related if each.role == "server"] == ["server"]


def test_a_server_that_comes_back_resolves_its_alert(
    site: MonitoringSite, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ONEVAULT_RULES", site.overrides(DOWN_AT_ONCE))
    site.save_block(port=9)
    assert collect(site.server).is_completed()
    assert ("server_down", "OPEN") in statuses(site)
    site.save_block()
    assert collect(site.server).is_completed()
    assert ("server_down", "RESOLVED") in statuses(site)
    (event,) = until(lambda: events_named("onevault.alert.resolved", site.server))
    assert event.resource["onevault.rule"] == "server_down"
    assert (event.payload["status"], event.payload["notify"]) == ("RESOLVED", "resolved")


def test_while_a_collector_leads_its_samples_are_used(site: MonitoringSite):
    assert collect(site.server).is_completed()
    with vault.connect(site.vault_url) as other:
        assert store.try_lead(other, FLEET)
        ((now,),) = site.query("select now()")
        store.beat(other, Heartbeat(FLEET, "elsewhere", 4711, now))
        state = collect(site.server, supervise=True)
        skipped: State[Any] = watch_servers([site.server], 1, return_state=True)
    assert state.is_completed()
    assert state.result().collected == ()
    assert "the collector on elsewhere (process 4711) leads" in (state.message or "")
    assert site.readings("availability") == 1
    assert len(tables_of(state)) == 1
    assert (skipped.type.value, skipped.name) == ("COMPLETED", "Skipped")
    assert "the collector on elsewhere (process 4711) leads" in (skipped.message or "")


def test_without_the_collectors_deployment_a_supervising_run_still_completes(site: MonitoringSite):
    with api_logs():
        state = collect(site.server, supervise=True)
    assert state.is_completed(), state.message
    assert "there is no deployment watch-servers/watch" in everything_prefect_knows(state)


def test_an_unknown_server_is_a_sentence(site: MonitoringSite):
    for state in (
        collect("nobody"),
        watch_servers(["nobody"], 1, return_state=True),
    ):
        assert state.is_failed()
        assert "There is no server block named 'nobody': `onevault config` lists" in (
            state.message or ""
        )
        assert isinstance(state.result(raise_on_failure=False), Refused)
    assert site.readings("availability") == 0


def test_production_refuses_a_weak_connection(
    site: MonitoringSite, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ONEVAULT_ENV", "production")
    state = collect(site.server)
    assert state.is_failed()
    assert "sslmode" in (state.message or "")
    assert "verify-full" in (state.message or "")
    assert site.readings("availability") == 0


@pytest.mark.parametrize("rules", ["overrides: [{rules: no_such_rule, disable: true}]", "rules: 7"])
def test_rules_that_cannot_be_used_are_a_sentence(
    site: MonitoringSite, monkeypatch: pytest.MonkeyPatch, rules: str
):
    monkeypatch.setenv("ONEVAULT_RULES", site.overrides(rules))
    state = evaluate()
    assert state.is_failed()
    assert "cannot be used" in (state.message or "")
    assert len((state.message or "").splitlines()) == 1


@pytest.mark.usefixtures("quick")
def test_rules_that_cannot_be_used_do_not_stop_the_collection(
    site: MonitoringSite, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ONEVAULT_RULES", site.overrides("rules: 7"))
    assert watch_servers([site.server], 6, return_state=True).is_completed()
    assert site.readings("availability") > 0
    assert site.query("select from monitoring.alert_definition_h") == []


def test_passwords_are_nowhere(site: MonitoringSite):
    wrong = site.save_block(f"{site.server}-wrong", metrics_user="nobody_at_all")
    with api_logs():
        state = collect(site.server)
        failed = collect(wrong)
    assert state.is_completed(), state.message
    assert not failed.result().collected[0].is_up
    assert "nobody_at_all" in failed.result().collected[0].message
    for each in (state, failed):
        known = everything_prefect_knows(each)
        assert SECRET not in known
        assert PASSWORD not in known
    kept = site.query(
        "select string_agg(message, ' ') from monitoring.family_status"
        " union all select string_agg(texts::text, ' ') from monitoring.metric_latest"
    )
    assert SECRET not in str(kept)


# Watching.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collect twenty times as often."""
    pace = Pace(seconds=QUICK.__getitem__, write_seconds=0.1, beat_seconds=0.2)
    monkeypatch.setattr(work, "Collector", partial(Collector, pace=pace))


@pytest.mark.usefixtures("quick")
def test_watching_stores_a_sample_each_tier_and_evaluates_the_rules(site: MonitoringSite):
    state: State[Any] = watch_servers([site.server], 8, return_state=True)
    assert state.is_completed(), state.message
    report = state.result()
    assert report.sentence == state.message
    assert report.sentence.startswith("watched 1 servers for ")
    assert (report.servers, report.lost_rows, report.superseded) == (1, 0, False)
    assert site.readings("availability") >= 2
    assert site.readings("databases") >= 1
    ((rules,),) = site.query("select count(*) from monitoring.system_health_metric_s")
    assert rules > 10
    leaders = site.query("select collector_name, flow_run_id from monitoring.collector")
    assert leaders == [(FLEET, run_id(state))]
    until(lambda: lead_is_free(site), 10)


def lead_is_free(site: MonitoringSite) -> bool:
    with vault.connect(site.vault_url) as conn:
        return store.try_lead(conn, FLEET)


# What is made of samples.


def test_rolling_up_makes_partitions_and_says_what_it_did(site: MonitoringSite):
    assert collect(site.server).is_completed()
    flow: Any = roll_up_metrics
    state = flow(return_state=True)
    assert state.is_completed(), state.message
    assert (state.message or "").startswith("rolled up ")
    ahead = site.query(
        "select count(*) from pg_inherits where inhparent = 'monitoring.metric_sample'::regclass"
    )
    assert ahead[0][0] >= 4


def test_expired_partitions_are_dropped(site: MonitoringSite):
    assert collect(site.server).is_completed()
    with vault.connect(site.vault_url) as conn:
        conn.execute(
            "create table monitoring.metric_sample_20200101 partition of monitoring.metric_sample"
            " for values from ('2020-01-01 00:00+00') to ('2020-01-02 00:00+00')"
        )
    flow: Any = roll_up_metrics
    state = flow(return_state=True)
    assert state.is_completed(), state.message
    assert "dropped 1 partitions" in (state.message or "")
    assert site.readings("availability") == 1


def test_evaluating_alone_sees_what_was_stored_and_not_yet_evaluated(
    site: MonitoringSite, monkeypatch: pytest.MonkeyPatch
):
    site.save_block(port=9)
    monkeypatch.setenv("ONEVAULT_RULES", site.overrides(DOWN_AT_ONCE))
    with work.leading() as sink:
        assert sink
        (target,) = work.ServerList([site.server]).read()
        collector = Collector(lambda: [target], work.metrics_catalog(), sink)
        sink.write([asyncio.run(collector.collect_once(target, list(Tier)))])
    assert statuses(site) == []
    state = evaluate(site.server)
    assert state.is_completed(), state.message
    assert "alerts are open on 1 servers" in (state.message or "")
    assert ("server_down", "OPEN") in statuses(site)


def test_evaluating_alone_notices_that_no_collector_is_at_work(site: MonitoringSite):
    assert collect(site.server).is_completed()
    assert ("server_unwatched", "OPEN") not in statuses(site)
    with vault.connect(site.vault_url) as conn:
        conn.execute(
            "update monitoring.family_status set attempted_at = attempted_at - interval '10 min',"
            " collected_at = collected_at - interval '10 min'"
        )
    assert evaluate(site.server).is_completed()
    assert ("server_unwatched", "OPEN") in statuses(site)


def evaluate(*names: str) -> "State[Any]":
    flow: Any = evaluate_alerts
    state: State[Any] = flow(list(names) or None, return_state=True)
    return state
