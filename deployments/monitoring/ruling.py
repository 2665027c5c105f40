"""`onevault rules`: what would be an alert, and why one is or is not firing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deployments import tables
from deployments.monitoring.colours import styled
from deployments.monitoring.vault_door import opened_vault
from tasks.alerts import loading, reading
from tasks.alerts.models import Level, Rule, show_duration
from tasks.alerts.reading import Explanation
from tasks.errors import Refused
from tasks.metrics import catalog
from tasks.metrics.models import Family
from tasks.metrics.wording import amount, named

_RULE_COLUMNS = 30


@dataclass(frozen=True, slots=True)
class Found:
    """Rules, or how one of them stands on a server."""

    rules: Sequence[Rule] = ()
    explanations: Sequence[Explanation] = ()
    units: Mapping[str, str] = field(default_factory=dict)


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
    chosen = [each for each in ruleset.rules.values() if rule in {None, each.name}]
    return Found(chosen, units={each.name: _unit(each, ruleset.families) for each in chosen})


def plain(found: Found) -> list[Any]:
    """Return it as JSON values."""
    return [
        *(rule.model_dump(mode="json", by_alias=True) for rule in found.rules),
        *tables.plain(found.explanations),
    ]


def show(found: Found) -> None:
    """Print it."""
    if found.rules:
        tables.show(_rules_table(found))
        if len(found.rules) == 1:
            tables.show(Text(f"{found.rules[0].description}\n{found.rules[0].next_step}"))
        return
    parts = [part for each in found.explanations for part in _explained(each)]
    tables.show(Group(*parts) if parts else Text("the rule looks at nothing on this server now"))


def _rules_table(found: Found) -> Table:
    title = f"{len(found.rules)} alert rules"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("rule\n  metric", overflow="fold", min_width=_RULE_COLUMNS)
    for heading in ("severity", "when", "for", "clear at"):
        table.add_column(heading, no_wrap=True)
    for rule in found.rules:
        for number, level in enumerate(rule.levels):
            what = f"{rule.name}\n  [dim]{rule.metric}[/dim]" if number == 0 else ""
            table.add_row(what, *_level(rule, level, found.units[rule.name]))
    return table


def _level(rule: Rule, level: Level, unit: str) -> tuple[str, ...]:
    return (
        styled(level.severity.value),
        f"{rule.operator} {amount(level.threshold, unit)}",
        show_duration(level.lasting),
        amount(level.clear_threshold, unit),
    )


def _unit(rule: Rule, families: Mapping[str, Family]) -> str:
    family = families[rule.family]
    derived = {name: each.metric for name, each in family.derived.items()}
    unit = {**family.metrics, **derived}[rule.metric_name].unit
    return f"{unit} per second" if rule.per_second else unit


def _explained(each: Explanation) -> list[Text]:
    what = named(each.labels) or "the server"
    value = "unknown" if each.value is None else f"{each.value:,.6g}"
    lines = [Text(f"{what}: {value} at {each.read_at.astimezone(UTC):%H:%M:%S} UTC", style="bold")]
    lines += [Text(f"  {escape(line)}") for line in each.lines]
    if each.not_told_because:
        lines.append(Text(f"  nobody is told: {each.not_told_because}"))
    return lines
