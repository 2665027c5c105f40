"""A run that is killed at any instant, and a Prefect server that goes away: nothing is lost, nothing is half-done."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import psutil
import pytest
from prefect.settings import PREFECT_API_URL

from blocks.postgres import PostgresServer
from flows import backup as flows
from tasks.backup.lifecycle import BackupStatus, VerificationStatus
from tasks.backup.models import Outcome
from tasks.backup.options import BackupOptions
from tasks.cluster_settings import free_port
from tasks.programs import Installation
from tests.backups import FlowSite, flow_site, programs_of, sessions, until

ROOT = Path(__file__).parents[2]

# Runs one backup as a worker would, and stops for good where it is told to.
CHILD = """
import importlib, json, sys, threading

wish = json.loads(sys.stdin.readline())

def say(word):
    print(word, flush=True)

def stop_at(place, times):
    module_name, _, path = place.partition(":")
    owner = importlib.import_module(module_name)
    *between, name = path.split(".")
    for each in between:
        owner = getattr(owner, each)
    real, left = getattr(owner, name), [times]

    def stopped(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            say("REACHED")
            threading.Event().wait()
        return real(*arguments, **options)

    setattr(owner, name, stopped)

from blocks.postgres import PostgresServer
from flows.backup import backup_and_verify
from tasks.backup import pipeline
from tasks.backup.options import BackupOptions

PostgresServer.from_conninfo(wish["url"]).save("source", overwrite=True)
if wish["part_bytes"]:
    pipeline.PART_BYTES = wish["part_bytes"]
if wish["place"]:
    stop_at(wish["place"], wish["times"])
say("BEGINS")
state = backup_and_verify("source", wish["kind"], None, BackupOptions(**wish["options"]), return_state=True)
say(json.dumps([state.type.value, state.name, state.message]))
"""


class Child:
    """A run in a process of its own."""

    def __init__(
        self, site: FlowSite, log: IO[str], environment: dict[str, str], wish: dict[str, Any]
    ):
        clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        quiet = {
            "PREFECT_HOME": str(site.folder / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env=clean | quiet | site.environment | {"PYTHONPATH": str(ROOT)} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        self._log = log
        asked = {"url": site.source.url("shop"), "options": site.options, "kind": "logical"}
        empty = {"place": "", "times": 1, "part_bytes": 0}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked | empty | wish) + "\n")
        self.process.stdin.flush()

    def said(self, word: str) -> str:
        """Wait for a line that holds a word."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if word in line:
                return line.strip()
        self._log.flush()
        message = Path(self._log.name).read_text()[-4000:]
        raise AssertionError(f"the run ended without saying {word}: {message}")

    def kill(self) -> None:
        """Kill it as the kernel does when memory runs out; whatever it had started ends by itself."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait(10)
        _, alive = psutil.wait_procs(family, timeout=15)
        assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def child(site: FlowSite, environment: dict[str, str], **wish: Any) -> Iterator[Child]:
    with (site.folder / "child.log").open("w") as log:
        started = Child(site, log, environment, wish)
        try:
            yield started
        finally:
            started.close()


@pytest.fixture(scope="module")
def shared_site(installation: Installation) -> Iterator[FlowSite]:
    with flow_site(installation) as made:
        yield made


@pytest.fixture
def site(shared_site: FlowSite, monkeypatch: pytest.MonkeyPatch) -> FlowSite:
    for name, value in shared_site.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ONEVAULT_SCRATCH", raising=False)
    shared_site.clear()
    PostgresServer.from_conninfo(shared_site.source.url("shop")).save("source", overwrite=True)
    return shared_site


@pytest.fixture
def api() -> dict[str, str]:
    return {"PREFECT_API_URL": str(PREFECT_API_URL.value())}


@dataclass(frozen=True)
class Stage:
    """Where a run is killed, and what the next run makes of its backup."""

    place: str
    becomes: str
    times: int = 1
    part_bytes: int = 0
    kind: str = "logical"
    leaves: str = ""


WRITE = "blocks.storage.local:_FileWriter.write"
STAGES = {
    "registered": Stage("tasks.backup.store:mark_running", "FAILED"),
    "between parts": Stage(WRITE, "FAILED", 8, 16 * 1024, leaves=".partial-"),
    "between parts of a base backup": Stage(
        WRITE, "FAILED", 8, 16 * 1024, kind="physical", leaves=".partial-"
    ),
    "all stored but the manifest": Stage("tasks.backup.manifest:seal", "FAILED", leaves="payload"),
    "committed": Stage("tasks.backup.store:mark_completed", "COMPLETED", leaves="manifest.json"),
    "re-read": Stage("tasks.backup.rehearsal:check_listing", "COMPLETED"),
    "restore": Stage("tasks.backup.rehearsal:restore_dump", "COMPLETED"),
    "comparison": Stage("tasks.backup.rehearsal:_inventory", "COMPLETED"),
    "comparison of a whole server": Stage(
        "tasks.backup.rehearsal:_inventory", "COMPLETED", kind="physical"
    ),
    "proof": Stage("tasks.backup.store:record_verification", "COMPLETED"),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_run_may_be_killed_at_any_stage(site: FlowSite, api: dict[str, str], name: str):
    stage = STAGES[name]
    wish = {"place": stage.place, "times": stage.times, "part_bytes": stage.part_bytes}
    with child(site, api, kind=stage.kind, **wish) as run:
        run.said("REACHED")
        if name in ("restore", "comparison", "comparison of a whole server"):
            assert list(site.scratch.rglob("postmaster.pid"))
        run.kill()
    dead = site.entries()[0]
    assert any(stage.leaves in key for key in site.stored()) or not stage.leaves
    check_after_a_kill(site, dead.backup_id)
    check_the_next_run(site, dead.backup_id, stage.becomes, stage.kind)


def test_a_run_may_be_killed_in_mid_dump(site: FlowSite, api: dict[str, str]):
    with site.source.connect("shop") as other:
        other.execute("begin")
        other.execute("lock table locked")
        with child(site, api) as run:
            until(lambda: programs_of(site.source.port), 60)
            dead = until(lambda: [e for e in site.entries() if e.backup_status == "RUNNING"])[0]
            until(lambda: [key for key in site.stored() if "globals" in key])
            run.kill()
        assert programs_of(site.source.port) == []
    check_after_a_kill(site, dead.backup_id)
    check_the_next_run(site, dead.backup_id, "FAILED", "logical")


def check_after_a_kill(site: FlowSite, dead: str) -> None:
    """Nothing that the dead run left counts as good, and its sessions end."""
    entry = next(each for each in site.entries() if each.backup_id == dead)
    assert entry.backup_status is not BackupStatus.VERIFIED
    if entry.backup_status is BackupStatus.COMPLETED:
        assert dead in site.committed()
    assert entry.verification_status is not VerificationStatus.VERIFIED
    until(lambda: not sessions(site.source, "onevault|pg_dump"), 15)
    until(lambda: not postmasters(site), 15)


def postmasters(site: FlowSite) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(word.startswith(str(site.scratch)) for word in process.info["cmdline"] or ())
    ]


def check_the_next_run(site: FlowSite, dead: str, becomes: str, kind: str) -> None:
    """It succeeds, finds what was left, and finishes or removes it."""
    flow: Any = flows.backup_and_verify
    report = flow("source", kind, None, BackupOptions(**site.options))
    assert report is not None
    assert report.outcome is Outcome.PASS
    by_id = {entry.backup_id: entry for entry in site.entries()}
    assert by_id[report.backup_id].backup_status is BackupStatus.VERIFIED
    assert by_id[dead].backup_status == becomes
    committed = {report.backup_id} | ({dead} if becomes == "COMPLETED" else set())
    assert site.committed() == committed
    assert {key.split("/")[1] for key in site.stored()} == committed
    assert not [key for key in site.stored() if ".partial-" in key]
    assert [path.name for path in site.scratch.glob("*") if path.name != ".lock"] == []
    assert list((site.folder / "home").rglob("pgpass")) == []
    unfinished = {BackupStatus.PENDING, BackupStatus.RUNNING}
    assert not {entry.backup_status for entry in by_id.values()} & unfinished
    assert VerificationStatus.RUNNING not in {e.verification_status for e in by_id.values()}


def test_a_run_that_is_asked_to_end_cleans_up_itself(site: FlowSite, api: dict[str, str]):
    """A cancel in Prefect's UI reaches the run as SIGTERM."""
    with site.source.connect("shop") as other:
        other.execute("begin")
        other.execute("lock table locked")
        with child(site, api) as run:
            until(lambda: programs_of(site.source.port), 60)
            until(lambda: [key for key in site.stored() if "globals" in key])
            run.process.terminate()
            run.process.wait(30)
        assert programs_of(site.source.port) == []
    assert site.entries()[0].backup_status is BackupStatus.CANCELLED
    assert site.stored() == []
    until(lambda: not sessions(site.source, "onevault|pg_dump"), 15)
    check_the_next_run(site, site.entries()[0].backup_id, "CANCELLED", "logical")


@contextmanager
def prefect_server(folder: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A Prefect server that may be killed."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PREFECT_HOME": str(folder / "prefect-server"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    argv = [sys.executable, "-m", "prefect", "server", "start", "--no-services", "--no-ui"]
    with ExitStack() as ends:
        log = ends.enter_context((folder / "server.log").open("wb"))
        process = subprocess.Popen(
            [*argv, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        ends.callback(end, process)
        until(lambda: answers(f"{url}/health"), 120)
        yield url, process


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def test_a_prefect_server_that_goes_away_costs_no_backup(site: FlowSite):
    with prefect_server(site.folder) as (url, server), site.source.connect("shop") as other:
        other.execute("begin")
        other.execute("lock table locked")
        # Prefect's own patience at its end is minutes; here it is cut short, ours is not.
        impatient = {"PREFECT_CLIENT_MAX_RETRIES": "1", "PREFECT_EVENTS_WORKER_MAX_QUEUE_SIZE": "1"}
        with child(site, {"PREFECT_API_URL": url} | impatient) as run:
            until(lambda: programs_of(site.source.port), 60)
            end(server)
            other.execute("rollback")
            until(lambda: site.entries()[0].backup_status is BackupStatus.VERIFIED)
            run.process.wait(60)
    entry = site.entries()[0]
    assert entry.verification_status is VerificationStatus.VERIFIED
    assert site.committed() == {entry.backup_id}
    assert {key.split("/")[1] for key in site.stored()} == {entry.backup_id}
    assert [path.name for path in site.scratch.glob("*") if path.name != ".lock"] == []
    assert programs_of(site.source.port) == []
    assert postmasters(site) == []
