"""`onevault rules`: what would be an alert, and why one is or is not firing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deployments import tables
from deployments.monitoring.vault_door import opened_vault
from deployments.monitoring.wording import named, styled
from tasks.alerts import loading, reading
from tasks.alerts.models import Rule, show_duration
from tasks.alerts.reading import Explanation
from tasks.errors import Refused
from tasks.metrics import catalog

_RULE_COLUMNS = 28


@dataclass(frozen=True, slots=True)
class Found:
    """Rules, or how one of them stands on a server."""

    rules: Sequence[Rule] = ()
    explanations: Sequence[Explanation] = ()


def read(rule: str | None, server: str | None) -> Found:
    """Load the rules; with a server, read how the rule stands there. Refused for one that does not exist."""
    known = catalog.load()
    ruleset = loading.load(known.families)
    if server is not None:
        if rule is None:
            message = "Name the rule as well: `onevault rules RULE --server NAME`."
            raise Refused(message)
        with opened_vault() as conn:
            found = reading.explain(conn, ruleset, server, rule, datetime.now(UTC))
        return Found(explanations=found)
    if rule is not None and rule not in ruleset.rules:
        message = f"There is no rule {rule}: `onevault rules` lists them."
        raise Refused(message)
    return Found([each for each in ruleset.rules.values() if rule in {None, each.name}])


def plain(found: Found) -> list[Any]:
    """Return it as JSON values."""
    return [
        *(rule.model_dump(mode="json", by_alias=True) for rule in found.rules),
        *tables.plain(found.explanations),
    ]


def show(found: Found) -> None:
    """Print it."""
    if found.rules:
        tables.show(_rules_table(found.rules))
        if len(found.rules) == 1:
            tables.show(Text(f"{found.rules[0].description}\n{found.rules[0].next_step}"))
        return
    parts = [part for each in found.explanations for part in _explained(each)]
    tables.show(Group(*parts) if parts else Text("the rule looks at nothing on this server now"))


def _rules_table(rules: Sequence[Rule]) -> Table:
    table = Table(
        title=f"{len(rules)} alert rules", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("rule\n  category, metric", overflow="fold", min_width=_RULE_COLUMNS)
    table.add_column("severity", no_wrap=True)
    for heading in ("when", "for", "clear"):
        table.add_column(heading, justify="right", overflow="fold")
    for rule in rules:
        lines = (rule.name, f"  [dim]{rule.category.value}, {_metric(rule)}[/dim]")
        for number, level in enumerate(rule.levels):
            first = "\n".join(lines[number:]) if number + 1 == len(rule.levels) else lines[number]
            table.add_row(
                first if number < len(lines) else "",
                styled(level.severity.value),
                f"{rule.operator} {level.threshold:,.15g}",
                show_duration(level.lasting),
                f"{level.clear_threshold:,.15g}",
            )
    return table


def _metric(rule: Rule) -> str:
    return f"{rule.metric} per second" if rule.per_second else rule.metric


def _explained(each: Explanation) -> list[Text]:
    what = named(each.labels) or "the server"
    value = "unknown" if each.value is None else f"{each.value:,.6g}"
    lines = [Text(f"{what}: {value} at {each.read_at.astimezone(UTC):%H:%M:%S} UTC", style="bold")]
    lines += [Text(f"  {escape(line)}") for line in each.lines]
    if each.not_told_because:
        lines.append(Text(f"  nobody is told: {each.not_told_because}"))
    return lines
