"""What is deployed runs: a Prefect server, a worker, and runs that are skipped, cancelled and killed."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from deployments.demo import services
from tasks import processes, vault
from tasks.backup.catalog import CatalogEntry
from tasks.private_cluster import PrivateCluster
from tasks.programs import Installation
from tests.backups import entries, make_vault, programs_of, until
from tests.clusters import PASSWORD, SUPERUSER, Server, running_server, short_folder

AD_HOC = "backup-and-verify/ad-hoc"
NIGHTLY = "backup-and-verify/nightly"
COLLECT = "collect-metrics/every-five-minutes"
WATCH = "watch-servers/watch"
SHOP = """
create database shop;
\\connect shop
create table parts (id int primary key, name text not null);
insert into parts select i, 'part ' || i from generate_series(1, 2000) i;
create table orders (id bigint generated always as identity primary key, part int references parts);
insert into orders (part) select 1 + i % 2000 from generate_series(1, 5000) i;
"""


@dataclass(frozen=True, slots=True)
class Site:
    """A looked-after server with its vault and store, and a Prefect that runs its deployments."""

    source: Server
    vault_url: str
    store: Path
    prefect: services.Services
    client: SyncPrefectClient

    def begin(self, deployment: str, **parameters: object) -> UUID:
        """Ask for a run and return at once."""
        run = run_deployment(deployment, parameters=parameters, timeout=0, as_subflow=False)
        assert isinstance(run, FlowRun)
        return run.id

    def run(self, deployment: str, **parameters: object) -> FlowRun:
        """Ask for a run and wait for its end."""
        return self.end_of(self.begin(deployment, **parameters))

    def end_of(self, run_id: UUID) -> FlowRun:
        def ended() -> FlowRun | None:
            Event().wait(0.3)  # gentle with the server
            run = self.client.read_flow_run(run_id)
            return run if run.state and run.state.is_final() else None

        run: FlowRun = until(ended, 90)
        return run

    def backup_of(self, run_id: UUID) -> CatalogEntry | None:
        """Find what the vault holds of a run's backup."""
        found = [e for e in entries(self.vault_url) if e.prefect_flow_run_id == run_id]
        return found[0] if found else None

    def stored(self, backup_id: str) -> list[Path]:
        return [path for path in self.store.rglob("*") if backup_id in str(path)]

    def engine(self, run_id: UUID) -> psutil.Process:
        """Find the process in which a run's flow runs."""
        assert self.prefect.worker_pid
        for child in psutil.Process(self.prefect.worker_pid).children(recursive=True):
            if "prefect.engine" in " ".join(child.cmdline()):
                told = child.environ().get("PREFECT__FLOW_RUN_ID")
                if told and UUID(told) == run_id:
                    return child
        message = f"no engine of the run {run_id}"
        raise AssertionError(message)

    @contextmanager
    def dumping(self) -> Iterator[UUID]:
        """Have a logical backup in mid-dump: a locked table holds its pg_dump up."""
        with self.source.connect("shop") as connection, connection.transaction():
            connection.execute("lock table orders in access exclusive mode")
            run_id = self.begin(AD_HOC, kind="logical", database="shop")
            until(self._pg_dump_waits, 60)
            yield run_id

    def _pg_dump_waits(self) -> bool:
        query = (
            "select count(*) from pg_stat_activity"
            " where query like 'LOCK TABLE %ACCESS SHARE%' and wait_event_type = 'Lock'"
        )
        with self.source.connect() as connection:
            row = connection.execute(query).fetchone()
        return bool(row and row[0])


@pytest.fixture(scope="module")
def source(installation: Installation) -> Iterator[Server]:
    with short_folder() as folder:
        empty = PrivateCluster(folder, installation, superuser=SUPERUSER)
        empty.create(password=PASSWORD)
        with running_server(installation, empty.data) as server:
            yield server


@pytest.fixture(scope="module")
def site(source: Server) -> Iterator[Site]:
    with short_folder() as folder, pytest.MonkeyPatch.context() as patch:
        vault_url = make_vault(source)
        _fill(source)
        for name, value in {
            "ONEVAULT_HOME": str(folder),
            "ONEVAULT_VAULT_URL": vault_url,
            "ONEVAULT_STORE": str(folder / "store"),
            "ONEVAULT_KEYRING": str(folder / "keys"),
            "ONEVAULT_SERVER_URL": source.url("shop"),
        }.items():
            patch.setenv(name, value)
        try:
            running = services.start_server()
            services.wait_until_ready(running)
            environment = services.environment(running)
            onevault = Path(sys.executable).with_name("onevault")
            argv = [str(onevault), "register", "development"]
            processes.run(argv, env=environment, timeout_seconds=60)
            _deploy(environment)
            running = services.start_worker(running)
            with (
                temporary_settings({PREFECT_API_URL: running.api_url}),
                SyncPrefectClient(running.api_url) as client,
            ):
                yield Site(source, vault_url, folder / "store", running, client)
        finally:
            services.down(wipe=True)


def _fill(server: Server) -> None:
    psql = str(server.cluster.installation.program("psql"))
    argv = [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", server.conninfo()]
    processes.run(argv, input_bytes=SHOP.encode(), timeout_seconds=30)


def _deploy(environment: dict[str, str]) -> None:
    checkout = Path(__file__).parents[2]
    with processes.running(services.deploy_command(), env=environment, cwd=checkout) as deploying:
        assert deploying.wait(timeout=120) == 0


def test_a_run_on_demand_ends_with_a_certificate(site: Site):
    run = site.run(AD_HOC, kind="logical", database="shop")
    assert run.state
    assert run.state.name == "Completed", run.state.message
    made = site.backup_of(run.id)
    assert made
    assert made.backup_status == "VERIFIED"
    assert site.stored(made.backup_id)
    of_the_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    shown = site.client.read_artifacts(artifact_filter=of_the_run)
    certificate = next(a for a in shown if (a.key or "").startswith("certificate"))
    assert made.backup_id in str(certificate.data)
    assert "comparison" in {(artifact.key or "").split("-")[0] for artifact in shown}


def test_a_nightly_run_out_of_its_window_is_skipped(site: Site):
    soon = datetime.now(UTC) + timedelta(hours=2)
    window = f"daily {soon:%H}:00-{soon:%H}:30 UTC"
    run = site.run(NIGHTLY, server="default", kind="logical", options={"window": window})
    assert run.state
    assert run.state.type is StateType.COMPLETED
    assert run.state.name == "Skipped"
    assert f"opens at {soon:%Y-%m-%d %H}:00 UTC" in (run.state.message or "")
    assert site.backup_of(run.id) is None


def test_the_scheduler_has_planned_the_nights(site: Site):
    deployment = site.client.read_deployment_by_name(NIGHTLY)
    assert [s.schedule.model_dump().get("timezone") for s in deployment.schedules] == ["UTC"]
    planned = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
    )
    runs = until(lambda: site.client.read_flow_runs(flow_run_filter=planned), 60)
    nights = [run.expected_start_time for run in runs if run.auto_scheduled]
    assert {f"{night.astimezone(UTC):%H:%M}" for night in nights if night} == {"01:30"}
    assert len({night.date() for night in nights if night}) == len(nights) >= 3


def test_a_run_cancelled_in_mid_dump_leaves_nothing(site: Site):
    with site.dumping() as run_id:
        begun = site.backup_of(run_id)
        assert begun
        assert begun.backup_status == "RUNNING"
        site.client.set_flow_run_state(run_id, Cancelling())
        run = site.end_of(run_id)
        assert run.state
        assert run.state.type is StateType.CANCELLED
        until(lambda: not programs_of(site.source.port), 10)
        ended = site.backup_of(run_id)
        assert ended
        assert ended.backup_status == "CANCELLED"
        assert site.stored(begun.backup_id) == []


def test_the_run_after_a_killed_one_mends_what_it_left(site: Site):
    with site.dumping() as run_id:
        begun = site.backup_of(run_id)
        assert begun
        site.engine(run_id).kill()
        run = site.end_of(run_id)
        assert run.state
        assert run.state.type is StateType.CRASHED
        until(lambda: not programs_of(site.source.port), 10)
    cut_off = site.backup_of(run_id)
    assert cut_off
    assert cut_off.backup_status == "RUNNING"

    following = site.run(AD_HOC, kind="logical", database="shop")
    assert following.state
    assert following.state.name == "Completed", following.state.message
    mended = site.backup_of(run_id)
    assert mended
    assert mended.backup_status == "FAILED"
    assert site.stored(begun.backup_id) == []
    good = site.backup_of(following.id)
    assert good
    assert good.backup_status == "VERIFIED"


def test_the_five_minute_run_starts_the_collector_and_then_uses_its_samples(site: Site):
    _completed(site, COLLECT)
    process_id = until(lambda: _leader(site), 90)
    assert psutil.pid_exists(process_id)
    until(lambda: _moments(site) >= 2, 60)

    run = _completed(site, COLLECT)
    assert run.state
    assert "leads; it gave a sign of life" in (run.state.message or "")
    of_the_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    tables = site.client.read_artifacts(artifact_filter=of_the_run)
    assert [artifact.key for artifact in tables if "availability.up" in str(artifact.data)]

    deployment = site.client.read_deployment_by_name(WATCH)
    running = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])),
    )
    (collector,) = site.client.read_flow_runs(flow_run_filter=running)
    site.client.set_flow_run_state(collector.id, Cancelling())
    ended = site.end_of(collector.id)
    assert ended.state
    assert ended.state.type is StateType.CANCELLED
    until(lambda: not psutil.pid_exists(process_id), 30)


def _completed(site: Site, deployment: str) -> FlowRun:
    """Run it; the schedule may be running the same at this moment, and then ours is not begun."""

    def once() -> FlowRun | None:
        run = site.run(deployment)
        assert run.state
        assert run.state.type in {StateType.COMPLETED, StateType.CANCELLED}, run.state.message
        return run if run.state.type is StateType.COMPLETED else None

    run: FlowRun = until(once, 120)
    return run


def _leader(site: Site) -> int | None:
    """Return the process of a collector that was alive within the last seconds and has a flow run."""
    text = (
        "select process_id from monitoring.collector"
        " where heartbeat_at > now() - interval '20 s' and flow_run_id is not null and servers > 0"
    )
    with vault.connect(site.vault_url) as conn:
        row = conn.execute(text).fetchone()
    return int(row[0]) if row else None


def _moments(site: Site) -> int:
    text = (
        "select count(distinct sampled_at) from monitoring.metric_sample"
        " join monitoring.series using (series_id) where family = 'availability'"
    )
    with vault.connect(site.vault_url) as conn:
        row = conn.execute(text).fetchone()
    return int(row[0]) if row else 0


def test_nobody_else_can_talk_to_the_server_of_the_tests(site: Site):
    listening = psutil.Process(site.prefect.server_pid).net_connections("inet")
    hosts = {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN}
    assert hosts == {"127.0.0.1"}
    assert os.environ["ONEVAULT_HOME"].startswith("/tmp/")  # noqa: S108 - nobody's real home is touched
