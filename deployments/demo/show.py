"""`onevault demo`: from nothing to proven backups, a damaged copy that is caught, and faults that become alerts."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from deployments.demo import data, monitoring, services
from deployments.demo.services import Services
from tasks import embedded
from tasks.embedded import EmbeddedServer
from tasks.errors import OneVaultError
from tasks.home import home
from tasks.processes import Process, start, stop_group

if TYPE_CHECKING:
    from flows.backup import BackupReport

SERVER = "demo"
_CHECKOUT = Path(__file__).parents[2]


def run(scale: int, *, keep: bool) -> int:
    """Run the demo and return the exit code; with `keep` the servers stay up to look at."""
    console = (
        Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=120)
    )
    started = time.monotonic()
    try:
        passed = _scenes(console, scale)
        console.print(f"\nThe demo took {time.monotonic() - started:.0f} s.")
        return 0 if passed else 1
    finally:
        if not keep:
            services.down(wipe=False)


def _scenes(console: Console, scale: int) -> bool:
    with _scene(console, "Prefect server, starting in the background"):
        running = services.start_server()
    with _scene(console, "a private PostgreSQL as source, another as vault"):
        source, metrics_password = monitoring.prepare(embedded.ensure(SERVER))
        embedded.ensure("vault")
    with _scene(console, "a database that is awkward on purpose, plus pgbench"):
        console.print(f"   {data.load(source, scale)} on PostgreSQL {source.major}")
    with _scene(console, "waiting for Prefect"):
        services.wait_until_ready(running)
        services.point_here(running)
    with _scene(console, "blocks, work pool, schedules"):
        deploying = _register(source, metrics_password, running)
        running = monitoring.start(running, SERVER)
    reports = [
        _backup(console, "logical", data.DATABASE),
        _backup(console, "physical", None),
    ]
    caught = _damage(console, reports[0].backup_id)
    with _scene(console, "metrics under load, two faults on purpose, and the alerts they become"):
        seen = monitoring.show(console, source)
    with _scene(console, "schedules and worker"):
        _wait(deploying)
        running = services.start_worker(running)
    _summary(console, reports, running)
    return caught and seen and all(report.outcome.value == "PASS" for report in reports)


def _register(source: EmbeddedServer, metrics_password: str, running: Services) -> Process:
    from pydantic import SecretStr

    from blocks.postgres import PostgresServer
    from deployments.register import Wishes, register

    for name, database in ((SERVER, "postgres"), ("default", data.DATABASE)):
        address = PostgresServer.from_conninfo(source.url(database))
        login = {"user": monitoring.ROLE, "password": SecretStr(metrics_password)}
        wishes = Wishes(
            address,
            home() / "store",
            home() / "keys",
            metrics_login=address.model_copy(update=login),
        )
        register("development", wishes, name)
    return start(services.deploy_command(), env=services.environment(running), cwd=_CHECKOUT)


def _wait(deploying: Process) -> None:
    try:
        if deploying.wait(timeout=120) != 0:
            message = "the deployments of prefect.yaml could not be registered: try `./ops run prefect --no-prompt deploy --all`"
            raise OneVaultError(message)
    finally:
        stop_group(deploying)


def _backup(console: Console, kind: str, database: str | None) -> "BackupReport":
    from deployments import running

    with _scene(console, f"{kind} backup: taken, encrypted, stored, re-read, restored, compared"):
        report = running.backup(SERVER, kind, database, {}, quiet=False)
        assert report is not None  # noqa: S101 - the window is always open here
        console.print(running.rungs_table(report))
    return report


def _damage(console: Console, backup_id: str) -> bool:
    from deployments.demo.damage import damage_a_copy, forge_a_manifest
    from tasks.backup.tasks import open_backup
    from tasks.opening import open_keyring, open_store

    with _scene(console, "a copy with one flipped bit, and one with a forged manifest"):
        backup = open_backup(open_store("default"), open_keyring("default"), backup_id)
        into = home() / "demo" / "damaged"
        damage = damage_a_copy(backup, into)
        forged = forge_a_manifest(backup, into)
        for what, sentence in (
            (f"bit flipped at byte {damage.offset:,}", damage.sentence),
            ("manifest edited", forged),
        ):
            console.print(
                f"   {what}: [red]refused[/red], {sentence}"
                if sentence
                else f"   {what}: NOT CAUGHT",
                soft_wrap=True,
            )
    return damage.caught and bool(forged)


def _summary(console: Console, reports: "list[BackupReport]", running: Services) -> None:
    from deployments import tables

    console.print()
    console.print(tables.catalog_table(tables.catalog(SERVER, len(reports))))
    addresses = Table.grid(padding=(0, 2))
    for what, where in (
        ("runs, certificates, schedules", f"{running.ui_url}/runs"),
        ("certificates as artifacts", f"{running.ui_url}/artifacts"),
        ("deployments and their schedules", f"{running.ui_url}/deployments"),
        ("the catalog again", "./ops run onevault backups"),
        ("the server's health, alerts", f"./ops run onevault status {SERVER}"),
        ("its worst statements", f"./ops run onevault top {SERVER}"),
        ("the keys (copy them elsewhere)", str(home() / "keys")),
        ("the backups", str(home() / "store")),
        ("stop everything", "./ops down      (and ./ops down --wipe to delete the data)"),
    ):
        addresses.add_row(what, where)
    console.print(Panel(addresses, title="look at it", title_align="left", expand=False))


@contextmanager
def _scene(console: Console, title: str) -> Iterator[None]:
    started = time.monotonic()
    console.print(f"[bold]·[/bold] {title}")
    yield
    console.print(f"   [dim]{time.monotonic() - started:.1f} s[/dim]")
