"""The Prefect server, the worker and the collector of the demo: started in the background, stopped by `onevault down`."""

import json
import os
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from tasks import embedded
from tasks.cluster_settings import free_port
from tasks.errors import Refused, Unavailable
from tasks.folders import make_folder, remove_tree
from tasks.home import home, make_home
from tasks.processes import Process, start

_START_SECONDS = 180
_STOP_SECONDS = 15
_WIPED = ("demo", "store", "keys", "scratch", "logins")
_KEPT_ENVIRONMENTS = ("staging", "production")
# Prefect's own advice for many small runs; the lease storage survives a restart of the server.
_SERVER_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TRIGGERS_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_LOGGING_LEVEL": "WARNING",
}
# They may outlive us: kept, so that Python does not complain of children that nobody waited for.
_children: dict[int, Process] = {}


@dataclass(frozen=True, slots=True)
class Services:
    """What runs in the background, and where."""

    port: int
    server_pid: int
    worker_pid: int | None = None
    collector_pid: int | None = None

    @property
    def api_url(self) -> str:
        """Return the address of Prefect's API."""
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def ui_url(self) -> str:
        """Return the address of Prefect's pages."""
        return f"http://127.0.0.1:{self.port}"


def start_server() -> Services:
    """Start the Prefect server, or find the one that runs already; returns before it answers."""
    running = _read()
    if running and _is_ours(running.server_pid):
        return running
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = (
        _environment(url)
        | _SERVER_SETTINGS
        | {"PREFECT_SERVER_UI_API_URL": url, "PREFECT_UI_API_URL": url}
        # Prefect copies its pages before it shows them, by default into the environment, which others may share.
        | {"PREFECT_SERVER_UI_STATIC_DIRECTORY": str(_folder() / "pages")}
    )
    pid = _start(
        _prefect("server", "start", "--host", "127.0.0.1", "--port", str(port)),
        environment,
        "prefect-server",
    )
    services = Services(port, pid)
    _write(services)
    return services


def wait_until_ready(services: Services) -> None:
    """Wait until the server answers; Unavailable when it does not."""
    waiting = threading.Event()
    for _ in range(_START_SECONDS * 2):
        if _answers(services):
            return
        if not _is_ours(services.server_pid):
            break
        waiting.wait(0.5)
    message = f"the Prefect server did not start; see {_folder() / 'prefect-server.log'}"
    raise Unavailable(message)


def _answers(services: Services) -> bool:
    try:
        with urllib.request.urlopen(f"{services.api_url}/health", timeout=2):  # noqa: S310 - our own address
            return True
    except (urllib.error.URLError, OSError):
        return False


def start_worker(services: Services) -> Services:
    """Start a worker for the pool `onevault`, so that deployments run when somebody asks for them."""
    if services.worker_pid and _is_ours(services.worker_pid):
        return services
    argv = _prefect("worker", "start", "--pool", "onevault", "--type", "process", "--name", "demo")
    # Prefect's workers keep runs in one folder for all users, which only the first of them may write to.
    folder = {"TMPDIR": str(make_folder(_folder() / "worker", 0o700))}
    pid = _start(argv, _environment(services.api_url) | folder, "prefect-worker")
    started = replace(services, worker_pid=pid)
    _write(started)
    return started


def start_collector(services: Services, server: str) -> Services:
    """Start a collector that watches this server, in the background."""
    if services.collector_pid and _is_ours(services.collector_pid):
        return services
    argv = [sys.executable, "-m", "deployments.cli", "watch", server]
    pid = _start(argv, _environment(services.api_url), "collector")
    started = replace(services, collector_pid=pid)
    _write(started)
    return started


def point_here(services: Services) -> None:
    """Let flows of this process report to the demo's server; call it before anything imports Prefect."""
    os.environ.update(_environment(services.api_url))


def deploy_command() -> list[str]:
    """Return the command that registers every deployment of prefect.yaml."""
    return [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]


def down(*, wipe: bool) -> list[str]:
    """Stop everything the demo started, and say what was stopped; `wipe` deletes what `_WIPED` names, too.

    Refused, before anything is done, in an environment whose data nobody wipes.
    """
    if wipe and (environment := os.environ.get("ONEVAULT_ENV")) in _KEPT_ENVIRONMENTS:
        message = f"--wipe deletes backups and keys, and ONEVAULT_ENV is {environment}: stop without it, delete by hand"
        raise Refused(message)
    done = [*_stop_prefect(), *_stop_postgres()]
    if wipe:
        _wipe()
        done.append(f"deleted the embedded servers, and {', '.join(_WIPED)} in {home()}")
    return done or ["nothing was running"]


def loss_by_wiping() -> str:
    """Ask in a sentence whether the default store's backups may go; empty when it holds none."""
    store = home() / "store"
    backups = len(list(store.glob("*/*/manifest.json")))
    return f"Delete {backups} backups in {store} and the keys that open them?" if backups else ""


def _wipe() -> None:
    for server in embedded.status():
        embedded.wipe(server.name)
    for name in _WIPED:
        remove_tree(home() / name)
    # Nothing is left but the lock: it goes with the home directory that it guards.
    if [path.name for path in home().glob("*")] == [".lock"]:
        remove_tree(home())


def _stop_prefect() -> Iterator[str]:
    services = _read()
    if services is None:
        return
    for name, pid in (
        ("collector", services.collector_pid),
        ("Prefect worker", services.worker_pid),
        ("Prefect server", services.server_pid),
    ):
        if pid and _stop(pid):
            yield f"stopped the {name}"


def _stop_postgres() -> Iterator[str]:
    for server in embedded.status():
        if server.is_running and embedded.stop(server.name):
            yield f"stopped the embedded PostgreSQL {server.name!r}"


def environment(services: Services) -> dict[str, str]:
    """Return the variables of a program that works with the demo's server."""
    return _environment(services.api_url)


def _environment(api_url: str) -> dict[str, str]:
    passed = {name: value for name, value in os.environ.items() if name.startswith("ONEVAULT_")}
    return passed | {
        "ONEVAULT_ENV": "development",
        "ONEVAULT_HOME": str(home()),
        "PREFECT_API_URL": api_url,
        "PREFECT_HOME": str(_folder() / "prefect"),
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def _folder() -> Path:
    make_home()
    return make_folder(home() / "demo", 0o700)


def _prefect(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *arguments]


def _start(argv: list[str], environment: dict[str, str], name: str) -> int:
    with (_folder() / f"{name}.log").open("ab") as log:
        process = start(
            argv,
            env=environment,
            stdout=log,
            stderr=log,
            death_signal=None,
            cwd=Path(__file__).parents[2],
        )
    _children[process.pid] = process
    return process.pid


def _read() -> Services | None:
    with suppress(FileNotFoundError, ValueError, TypeError):
        return Services(**json.loads((_folder() / "services.json").read_text()))
    return None


def _write(services: Services) -> None:
    (_folder() / "services.json").write_text(json.dumps(asdict(services)))


def _is_ours(pid: int) -> bool:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and any(
            each in " ".join(process.cmdline()) for each in ("prefect", "deployments.cli")
        )
    return False


def _stop(pid: int) -> bool:
    if not _is_ours(pid):
        return False
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    if child := _children.pop(pid, None):
        child.wait()
    return True
