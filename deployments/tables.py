"""What the command line prints: tables for people, plain values for --json."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks import embedded, vault
from tasks.backup import store
from tasks.backup.catalog import CatalogEntry
from tasks.home import home
from tasks.redaction import redact
from tasks.schema import migrator

_STYLE = {
    "VERIFIED": "green",
    "COMPLETED": "yellow",
    "PARTIAL": "yellow",
    "FAILED": "red",
    "CANCELLED": "dim",
}
_MEGABYTE = 1e6


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting in force and where it comes from."""

    name: str
    value: str
    source: str


def show(table: Table) -> None:
    """Print a table as wide as the terminal, or wide enough for a file."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def plain(values: Iterable[Any]) -> list[dict[str, Any]]:
    """Return dataclasses as dictionaries of JSON values; bytes as hex."""
    return [
        {
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in dataclasses.asdict(item).items()
        }
        for item in values
    ]


def catalog(server: str | None, limit: int) -> list[CatalogEntry]:
    """Read the catalog from the vault; an embedded vault that was never made is an empty catalog."""
    url = vault.vault_url() or _embedded_url()
    if url is None:
        return []
    with vault.connect(url) as connection:
        migrator.migrate(connection) if vault.vault_url() is None else None
        return store.catalog(connection, server, limit)


def catalog_table(entries: Sequence[CatalogEntry]) -> Table:
    """Return the catalog as a table."""
    table = Table(
        title=f"{len(entries)} backups, newest first",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("backup", "server", "database", "status", "re-read", "restored", "equal"):
        table.add_column(heading, no_wrap=True)
    for heading in ("MB", "took s", "RTO s"):
        table.add_column(heading, justify="right", no_wrap=True)
    if any(entry.error_message for entry in entries):
        table.add_column("what went wrong", overflow="fold", ratio=1)
    for entry in entries:
        table.add_row(*_cells(entry)[: len(table.columns)])
    return table


def settings() -> list[Setting]:
    """Return the settings in force, without secrets."""
    url = vault.vault_url()
    return [
        _setting("ONEVAULT_ENV", "not set (refused by flows)"),
        Setting(
            "ONEVAULT_HOME",
            str(home()),
            "environment" if "ONEVAULT_HOME" in os.environ else "default",
        ),
        Setting(
            "vault",
            redact(url) if url else "the embedded server",
            "ONEVAULT_VAULT_URL" if url else "default",
        ),
        _setting("ONEVAULT_RUN_AS", "postgres, else nobody (as root only)"),
        _setting("ONEVAULT_PG_BIN", "found by itself, see `onevault doctor`"),
        _setting("PREFECT_API_URL", "none: a temporary server per run"),
    ]


def settings_table(found: Iterable[Setting]) -> Table:
    """Return the settings as a table."""
    table = Table(title="settings in force", title_justify="left")
    for heading in ("setting", "value", "from"):
        table.add_column(heading, overflow="fold")
    for item in found:
        table.add_row(item.name, item.value, item.source)
    return table


def _setting(name: str, otherwise: str) -> Setting:
    given = os.environ.get(name)
    return Setting(
        name, redact(given) if given else otherwise, "environment" if given else "default"
    )


def _embedded_url() -> str | None:
    made = any(server.name == "vault" for server in embedded.status())
    return embedded.ensure("vault").url(vault.DATABASE) if made else None


def _cells(entry: CatalogEntry) -> list[str]:
    status = entry.backup_status.value
    style = _STYLE.get(status, "white")
    return [
        entry.backup_id,
        entry.server_name,
        entry.database_name or "(all)",
        f"[{style}]{status}[/{style}]",
        _yes(entry.checksum_verified),
        _yes(entry.restore_test_passed),
        _yes(entry.integrity_check_passed),
        f"{entry.stored_bytes / _MEGABYTE:.1f}" if entry.stored_bytes is not None else "",
        f"{entry.duration_seconds:.1f}" if entry.duration_seconds is not None else "",
        f"{entry.restore_seconds:.1f}" if entry.restore_seconds is not None else "",
        escape(entry.error_message or ""),
    ]


def _yes(value: bool | None) -> str:
    return {True: "[green]yes[/green]", False: "[red]NO[/red]", None: "-"}[value]
