"""`onevault watch` as a supervisor runs it: stopped, killed, begun again, and with a vault that goes away."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.settings import PREFECT_API_URL

from tasks import vault
from tasks.metrics import store
from tasks.metrics.sink import FLEET
from tasks.programs import Installation
from tests.backups import until
from tests.monitoring import MonitoringSite, fresh_vault, monitoring_servers

ROOT = Path(__file__).parents[2]

# The command itself, twenty times as often; how often it writes is the test's choice.
CHILD = """
import json, sys
from functools import partial

wish = json.loads(sys.argv.pop())
from tasks.metrics import tasks as work
from tasks.metrics.pace import Pace

every = {"light": 0.4, "minute": 0.8, "five_minutes": 1.6, "hourly": 3.2}
pace = Pace(
    seconds=lambda tier: every[tier.value],
    write_seconds=wish["write_seconds"],
    beat_seconds=0.2,
    backoff_seconds=0.5,
)
work.Collector = partial(work.Collector, pace=pace)

from deployments.cli import main
main()
"""


class Collector:
    """A collector in a process of its own."""

    def __init__(self, site: MonitoringSite, write_seconds: float) -> None:
        self.log = site.folder / f"{site.server}.log"
        clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        told = {
            "PREFECT_API_URL": str(PREFECT_API_URL.value()),
            "PREFECT_HOME": str(site.folder / "prefect"),
            "PYTHONPATH": str(ROOT),
        }
        wish = json.dumps({"write_seconds": write_seconds})
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CHILD, "watch", site.server, "--for", "1h", wish],
                env=clean | told | site.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
            )

    def terminate(self) -> None:
        """Stop it as systemd does."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(40)

    def kill(self) -> None:
        """Kill it as the kernel does when memory runs out."""
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


@contextmanager
def collector(site: MonitoringSite, write_seconds: float = 0.1) -> Iterator[Collector]:
    started = Collector(site, write_seconds)
    try:
        yield started
    except AssertionError as error:
        error.add_note(started.log.read_text()[-3000:])
        raise
    finally:
        started.close()


@pytest.fixture(scope="module")
def servers(installation: Installation) -> Iterator[MonitoringSite]:
    with monitoring_servers(installation) as made:
        yield made


@pytest.fixture
def site(servers: MonitoringSite) -> Iterator[MonitoringSite]:
    with fresh_vault(servers) as made:
        made.save_block()
        yield made


def beats(site: MonitoringSite) -> tuple[int, int]:
    """Read the newest heartbeat: rows that wait, rows that were lost."""
    rows = site.query("select buffered_rows, lost_rows from monitoring.collector")
    return rows[0] if rows else (0, 0)


def stored(site: MonitoringSite, family: str, count: int) -> None:
    until(lambda: site.readings(family) >= count, 60)


def lead_is_free(site: MonitoringSite) -> bool:
    with vault.connect(site.vault_url) as conn:
        return store.try_lead(conn, FLEET)


def test_sigterm_writes_what_waits_and_gives_the_lead_back(site: MonitoringSite):
    with collector(site, write_seconds=3600) as running:
        until(lambda: beats(site)[0] > 0, 60)
        assert site.readings("availability") == 0
        running.terminate()
        assert "Traceback" not in running.log.read_text()
    assert site.readings("availability") >= 1
    until(lambda: lead_is_free(site), 10)


def test_a_second_collector_waits_and_takes_over_when_the_first_is_killed(site: MonitoringSite):
    with collector(site) as first:
        stored(site, "availability", 1)
        with collector(site) as second:
            until(lambda: "another collector leads: waiting" in second.log.read_text(), 60)
            ((process,),) = site.query("select process_id from monitoring.collector")
            assert process == first.process.pid
            first.kill()
            leader = "select 1 from monitoring.collector where process_id = %s"
            until(lambda: site.query(leader, second.process.pid), 60)
            before = site.readings("availability")
            until(lambda: site.readings("availability") > before, 30)


def counters(site: MonitoringSite) -> tuple[Any, float] | None:
    """Read the commits of the database shop as they last stood, and when."""
    rows = site.query(
        "select l.sampled_at, (l.raw->>'xact_commit')::float8 from monitoring.metric_latest l"
        " join monitoring.series s using (series_id)"
        " where s.family = 'databases' and s.labels->>'database_name' = 'shop'"
    )
    return rows[0] if rows else None


def server_commits(site: MonitoringSite) -> float:
    with site.source.connect() as conn:
        row = conn.execute(
            "select xact_commit from pg_stat_database where datname = 'shop'"
        ).fetchone()
    assert row
    return float(row[0])


def test_after_a_kill_the_counters_go_on_without_a_gap(site: MonitoringSite):
    at_first = server_commits(site)
    with collector(site) as first:
        begun_at, begun = until(lambda: counters(site), 60)
        stored(site, "databases", 2)
        first.kill()
    killed_at, killed = until(lambda: counters(site))
    with site.source.connect("shop") as conn:
        for _ in range(57):
            conn.execute("select 1")
    until(
        lambda: server_commits(site) >= killed + 57, 30
    )  # the session has told the server of them
    with collector(site) as second:
        count = site.readings("databases")
        stored(site, "databases", count + 2)
        second.terminate()
    ended_at, ended = until(lambda: counters(site))
    assert ended_at > killed_at >= begun_at
    assert ended - killed >= 57
    assert at_first <= begun <= ended <= server_commits(site)
    grown = site.query(
        "select (m.values->>'xact_commit')::float8, m.interval_seconds, m.sampled_at"
        " from monitoring.metric_sample m join monitoring.series s using (series_id)"
        " where s.family = 'databases' and s.labels->>'database_name' = 'shop'"
        " and m.sampled_at > %s and m.sampled_at <= %s order by m.sampled_at",
        begun_at,
        ended_at,
    )
    assert None not in [growth for growth, _, _ in grown]
    assert sum(growth for growth, _, _ in grown) == ended - begun
    covered = sum(interval for _, interval, _ in grown)
    assert covered == pytest.approx((ended_at - begun_at).total_seconds(), abs=1.0)


def test_while_the_vault_is_away_samples_wait_and_are_written_after(site: MonitoringSite):
    with collector(site) as running:
        stored(site, "availability", 2)
        ((stopped_at,),) = site.query("select clock_timestamp()")
        site.stop_vault()
        try:
            threading.Event().wait(3)
            assert running.process.poll() is None, running.log.read_text()
        finally:
            site.start_vault()
        ((started_at,),) = site.query("select clock_timestamp()")
        text = (
            "select count(distinct m.sampled_at) from monitoring.metric_sample m"
            " join monitoring.series s using (series_id) where s.family = 'availability'"
            " and m.sampled_at > %s and m.sampled_at < %s"
        )
        until(lambda: site.query(text, stopped_at, started_at)[0][0] >= 3, 60)
        until(lambda: beats(site) == (0, 0), 60)
        before = site.readings("availability")
        until(lambda: site.readings("availability") > before, 30)
        running.terminate()
        log = running.log.read_text()
    assert "the vault takes no samples now, they are kept" in log
    assert "the vault takes samples again" in log
    assert "Traceback" not in log


def test_nothing_of_a_collector_is_left_on_the_server(site: MonitoringSite):
    with collector(site) as running:
        stored(site, "availability", 1)
        family = psutil.Process(running.process.pid).children(recursive=True)
        running.terminate()
        _, alive = psutil.wait_procs(family, timeout=15)
        assert alive == []
    text = "select count(*) from pg_stat_activity where usename = 'onevault_monitor'"
    with site.source.connect() as conn:
        until(lambda: conn.execute(text).fetchone() == (0,), 15)
