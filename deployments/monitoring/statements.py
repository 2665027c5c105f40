"""`onevault top`: the statements that took most time, by what they grew."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from deployments import tables
from deployments.monitoring.vault_door import opened_vault
from tasks.metrics import reading
from tasks.metrics.reading import StatementRow

_OTHERS = "(all other statements)"
_TEXT_COLUMNS = 300


def read(server: str | None, minutes: int, limit: int) -> Sequence[StatementRow]:
    """Read the vault."""
    with opened_vault() as conn:
        return reading.top_statements(conn, server, minutes=minutes, limit=limit)


def plain(rows: Sequence[StatementRow]) -> list[dict[str, Any]]:
    """Return them as JSON values."""
    return tables.plain(rows)


def show(rows: Sequence[StatementRow], minutes: int) -> None:
    """Print them."""
    tables.show(table(rows, minutes))


def table(rows: Sequence[StatementRow], minutes: int) -> Table:
    """Return them as a table."""
    made = Table(
        title=f"statements by time spent, last {minutes} min",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("share", "total s", "calls", "mean ms", "rows", "hit", "temp blks"):
        made.add_column(heading, justify="right", no_wrap=True)
    for heading in ("server", "database", "role"):
        made.add_column(heading, overflow="fold")
    made.add_column("statement", overflow="fold", ratio=1, min_width=40)
    for row in rows:
        text = " ".join((row.query or "?").split()) if row.query_id else _OTHERS
        made.add_row(
            _percent(row.share_percent),
            f"{row.total_ms / 1000:,.2f}",
            f"{row.calls:,}",
            "" if row.mean_ms is None else f"{row.mean_ms:,.2f}",
            f"{row.rows:,}",
            _percent(row.hit_percent),
            f"{row.temp_blocks:,}",
            *(escape(each) for each in (row.server, row.database, row.role, text[:_TEXT_COLUMNS])),
        )
    return made


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} %"
