"""`onevault top`: the statements that took most time, by what they grew."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deployments import tables
from deployments.monitoring.vault_door import opened_vault
from tasks.metrics import reading
from tasks.metrics.reading import StatementRow

_OTHERS = "(all other statements)"
_TEXT_COLUMNS = 300
_WIDE_COLUMNS = 110
_NUMBERS = ("share", "total s", "calls", "mean ms", "rows", "hit", "temp blks")


def read(server: str | None, minutes: int, limit: int) -> Sequence[StatementRow]:
    """Read the vault."""
    with opened_vault() as conn:
        return reading.top_statements(conn, server, minutes=minutes, limit=limit)


def plain(rows: Sequence[StatementRow]) -> list[dict[str, Any]]:
    """Return them as JSON values."""
    return tables.plain(rows)


def show(rows: Sequence[StatementRow], minutes: int) -> None:
    """Print them; on a narrow terminal the texts stand below the numbers."""
    if tables.columns() >= _WIDE_COLUMNS:
        tables.show(table(rows, minutes))
        return
    texts = [Text.from_markup(f"{n:>3}  {_statement(row)}\n") for n, row in enumerate(rows, 1)]
    tables.show(Group(_numbered(rows, minutes), *texts))


def table(rows: Sequence[StatementRow], minutes: int) -> Table:
    """Return them as a table; who ran a statement stands above its text."""
    made = _empty(minutes)
    for heading in _NUMBERS:
        made.add_column(heading, justify="right", no_wrap=True)
    made.add_column("statement", overflow="fold")
    for row in rows:
        made.add_row(*_numbers(row), _statement(row))
    return made


def _numbered(rows: Sequence[StatementRow], minutes: int) -> Table:
    made = _empty(minutes)
    for heading in ("", *_NUMBERS):
        made.add_column(heading, justify="right", overflow="fold")
    for number, row in enumerate(rows, 1):
        made.add_row(str(number), *_numbers(row))
    return made


def _empty(minutes: int) -> Table:
    title = f"statements by time spent, last {minutes} min"
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)


def _numbers(row: StatementRow) -> tuple[str, ...]:
    return (
        _percent(row.share_percent),
        f"{row.total_ms / 1000:,.2f}",
        f"{row.calls:,}",
        "" if row.mean_ms is None else f"{row.mean_ms:,.2f}",
        f"{row.rows:,}",
        _percent(row.hit_percent),
        f"{row.temp_blocks:,}",
    )


def _statement(row: StatementRow) -> str:
    if not row.query_id:
        return f"[dim]{escape(row.server)}[/dim]\n{_OTHERS}"
    text = " ".join((row.query or "?").split())[:_TEXT_COLUMNS]
    return f"[dim]{escape(f'{row.server}/{row.database} {row.role}')}[/dim]\n{escape(text)}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} %"
