"""What the command line prints: tables for people, plain values for --json."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
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
_URL_FILE = "ONEVAULT_VAULT_URL_FILE"
_KNOWN_SETTINGS = (
    "KEYRING",
    "METRICS_URL",
    "NO_PROGRESS",
    "PYTHON",
    "RECOVERY_RECIPIENTS",
    "RULES",
    "SERVER_URL",
    "STORE",
    "TEST_PG",
)
_FILE_COLUMNS = 200
_WRONG_COLUMNS = 30
_ID_COLUMNS = 34


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting in force and where it comes from."""

    name: str
    value: str
    source: str


def show(shown: RenderableType) -> None:
    """Print as wide as the terminal (or COLUMNS says), or wide enough for a file."""
    _console().print(shown)


def columns() -> int:
    """Return how wide it is that show prints."""
    return _console().width


def show_catalog(entries: Sequence[CatalogEntry]) -> None:
    """Print the catalog, in a short form where the terminal is narrow."""
    console = _console()
    if _fits(entries, console):
        console.print(catalog_table(entries))
        return
    console.print(narrow_catalog_table(entries))
    for entry in entries:
        if entry.error_message:
            console.print(f"{entry.backup_id}: {entry.error_message}", markup=False)


def _fits(entries: Sequence[CatalogEntry], console: Console) -> bool:
    told = [dataclasses.replace(entry, error_message=None) for entry in entries]
    boundless = console.options.update(max_width=_FILE_COLUMNS)
    needed = console.measure(catalog_table(told), options=boundless).maximum
    more = _WRONG_COLUMNS if any(entry.error_message for entry in entries) else 0
    return needed + more <= console.width


def _console() -> Console:
    console = Console()
    known = console.is_terminal or "COLUMNS" in os.environ
    return console if known else Console(width=_FILE_COLUMNS)


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
    url = existing_vault_url()
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


def narrow_catalog_table(entries: Sequence[CatalogEntry]) -> Table:
    """Return the catalog for 80 columns: two lines for each backup, and the last proof instead of all three."""
    table = Table(
        title=f"{len(entries)} backups, newest first",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("backup\nserver, database, duration", overflow="fold", min_width=_ID_COLUMNS)
    for heading in ("status", "proven"):
        table.add_column(heading, no_wrap=True)
    for heading in ("MB", "RTO s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in entries:
        backup, server, database, status, *_, size, took, rto, _ = _cells(entry)
        below = ", ".join([server, database, *([f"{took} s"] if took else [])])
        table.add_row(f"{backup}\n{below}", status, _proven(entry), size, rto)
    return table


def settings() -> list[Setting]:
    """Return the settings in force, without secrets."""
    url = vault.vault_url()
    return [
        _setting("ONEVAULT_ENV", "not set (refused by flows)"),
        _setting("ONEVAULT_HOME", str(home())),
        _setting("ONEVAULT_SCRATCH", str(home() / "scratch")),
        Setting(
            "vault",
            redact(url) if url else "the embedded server",
            ("ONEVAULT_VAULT_URL" if os.environ.get("ONEVAULT_VAULT_URL") else _URL_FILE)
            if url
            else "default",
        ),
        _setting("ONEVAULT_RUN_AS", "postgres, else nobody (as root only)"),
        _setting("ONEVAULT_PG_BIN", "found by itself, see `onevault doctor`"),
        *_other_settings(),
        _setting("PREFECT_API_URL", "none: a temporary server per run"),
    ]


def _other_settings() -> Iterator[Setting]:
    listed = ("ENV", "HOME", "SCRATCH", "VAULT_URL", "VAULT_URL_FILE", "RUN_AS", "PG_BIN")
    for name in sorted(os.environ):
        short = name.removeprefix("ONEVAULT_")
        if short == name or short in listed:
            continue
        if short in _KNOWN_SETTINGS:
            yield _setting(name, "")
        else:
            yield Setting(name, "(not a setting of OneVault: misspelt?)", "environment")


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


def existing_vault_url() -> str | None:
    """Return where the vault is; None when none is configured and the embedded one was never made."""
    return vault.vault_url() or _embedded_url()


def _embedded_url() -> str | None:
    made = any(server.name == "vault" for server in embedded.status())
    return embedded.ensure("vault").url(vault.DATABASE) if made else None


def _cells(entry: CatalogEntry) -> list[str]:
    status = entry.backup_status.value
    style = _STYLE.get(status, "white")
    return [
        entry.backup_id,
        escape(entry.server_name),
        escape(entry.database_name or "(all)"),
        f"[{style}]{status}[/{style}]",
        _yes(entry.checksum_verified),
        _yes(entry.restore_test_passed),
        _yes(entry.integrity_check_passed),
        f"{entry.stored_bytes / _MEGABYTE:.1f}" if entry.stored_bytes is not None else "",
        f"{entry.duration_seconds:.1f}" if entry.duration_seconds is not None else "",
        f"{entry.restore_seconds:.1f}" if entry.restore_seconds is not None else "",
        escape(entry.error_message or ""),
    ]


def _proven(entry: CatalogEntry) -> str:
    rungs = {
        "equal": entry.integrity_check_passed,
        "restored": entry.restore_test_passed,
        "re-read": entry.checksum_verified,
    }
    failed = [name for name, passed in rungs.items() if passed is False]
    passed = [name for name, passed in rungs.items() if passed]
    if failed:
        return f"[red]NOT {failed[-1]}[/red]"
    return f"[green]{passed[0]}[/green]" if passed else "-"


def _yes(value: bool | None) -> str:
    return {True: "[green]yes[/green]", False: "[red]NO[/red]", None: "-"}[value]
