"""The demo's second half: a collector, load, two faults that become alerts and end, and what the server was busy with."""

import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from deployments.demo import faults, services
from deployments.demo.services import Services
from deployments.monitoring import health, statements
from deployments.monitoring.vault_door import opened_vault
from tasks import embedded
from tasks.alerts import reading as alert_reading
from tasks.alerts.models import Alert
from tasks.embedded import EmbeddedServer
from tasks.errors import OneVaultError
from tasks.metrics import reading

ROLE = "onevault_metrics"
RULES = Path(__file__).with_name("rules.yaml")
_EXPECTED = ("blocked_sessions", "archive_failing")
_PATIENCE_SECONDS = 120.0
_WARM_UP_SECONDS = 15.0
_TOP = 5

Found = TypeVar("Found")


def prepare(server: EmbeddedServer) -> tuple[EmbeddedServer, str]:
    """Make the role that reads metrics, and restart the server with what monitoring needs; returns its password."""
    password = secrets.token_urlsafe(16)
    if faults.prepare(server, ROLE, password):
        embedded.stop(server.name)
        server = embedded.ensure(server.name)
    faults.install_statements(server)
    return server, password


def start(running: Services, server: str) -> Services:
    """Start the collector in the background, with the demo's impatient rules."""
    os.environ["ONEVAULT_RULES"] = str(RULES)
    return services.start_collector(running, server)


def show(console: Console, server: EmbeddedServer) -> bool:
    """Put load on the server, cause two faults, and show what the collector made of them; False when it missed one."""
    _wait(lambda: _is_collected(server.name), "the collector's first samples")
    with faults.load(server):
        threading.Event().wait(_WARM_UP_SECONDS)
        with ExitStack() as stack:
            begun = time.monotonic()
            for fault in (faults.blocked_chain, faults.failing_archiver):
                console.print(f"   caused: {stack.enter_context(fault(server))}")
            fired = _follow(console, server.name, begun, firing=True)
            console.print(health.alerts_table(_alerts(server.name)))
        console.print("   ended both")
        ended = _follow(console, server.name, time.monotonic(), firing=False)
        _wait(lambda: _has_statements(server.name), "the second reading of the statements")
    _show_what_it_read(console, server.name)
    return fired and ended


def _follow(console: Console, server: str, begun: float, *, firing: bool) -> bool:
    verb, style = ("fires", "red") if firing else ("is resolved", "green")
    waiting = list(_EXPECTED)
    deadline = begun + _PATIENCE_SECONDS
    while waiting and time.monotonic() < deadline:
        known = {alert.rule: alert for alert in _alerts(server)}
        for rule in [each for each in waiting if (each in known) is firing]:
            waiting.remove(rule)
            said = f": {known[rule].summary}" if firing else ""
            after = time.monotonic() - begun
            console.print(
                f"   [{style}]{rule} {verb}[/{style}] after {after:.0f} s{said}", soft_wrap=True
            )
        threading.Event().wait(0.5)
    for rule in waiting:
        console.print(f"   {rule}: NOT SEEN within {_PATIENCE_SECONDS:.0f} s")
    return not waiting


def _show_what_it_read(console: Console, server: str) -> None:
    with opened_vault() as conn:
        fleet = reading.fleet(conn)
        worst = reading.top_statements(conn, server, minutes=10, limit=_TOP)
    console.print(health.fleet_table(fleet))
    console.print(statements.table(worst, 10))


def _alerts(server: str) -> Sequence[Alert]:
    with opened_vault() as conn:
        return alert_reading.open_alerts(conn, server)


def _is_collected(server: str) -> bool:
    with opened_vault() as conn:
        return any(row.is_up for row in reading.fleet(conn, server))


def _has_statements(server: str) -> bool:
    with opened_vault() as conn:
        return bool(reading.top_statements(conn, server, minutes=10, limit=1))


def _wait(condition: Callable[[], Found], what: str) -> Found:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not (found := condition()):
        if time.monotonic() > deadline:
            message = f"{what} did not come within {_PATIENCE_SECONDS:.0f} s: see collector.log in the demo's folder"
            raise OneVaultError(message)
        threading.Event().wait(0.3)
    return found
