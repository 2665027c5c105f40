"""docs/reference/alert-rules.md says what the rules are."""

import re
from collections.abc import Iterator

import pytest

from tasks.alerts import rules
from tasks.alerts.models import Rule, show_duration
from tasks.metrics import catalog
from tests.markdown import ROOT

DOCUMENT = ROOT / rules.DOCUMENT
RULES = rules.load().rules


def documented(rule: Rule) -> str:
    """Write the section of a rule as it has to stand in the document."""
    return "\n".join(_lines(rule))


def _lines(rule: Rule) -> Iterator[str]:
    growth = ", growth a second" if rule.per_second else ""
    if rule.over:
        growth = f"{growth or ', growth'} over {show_duration(rule.over)}"
    yield f"### {rule.name}\n"
    yield f"{rule.description} `{rule.metric}`{growth}."
    for guard in rule.when:
        each = " a second" if guard.per_second else ""
        yield f"Only while `{rule.family}.{guard.metric}` {guard.operator} {guard.threshold:,.15g}{each}."
    for name, pattern in rule.where.items():
        yield f"Only where `{name}` is `{pattern}`."
    yield "\n| severity | when | for | ends when |\n|---|---|---|---|"
    for level in rule.levels:
        when = f"{rule.operator} {level.threshold:,.15g}"
        end = f"no longer {rule.operator} {level.clear_threshold:,.15g}"
        if rule.clear_for:
            end += f" for {show_duration(rule.clear_for)}"
        yield f"| {level.severity} | {when} | {show_duration(level.lasting)} | {end} |"
    yield f"\nNext: {rule.next_step}\n"


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_documented_as_it_is(name: str):
    assert documented(RULES[name]) in DOCUMENT.read_text()


def test_no_rule_is_documented_that_does_not_exist():
    assert re.findall(r"^### (\w+)$", DOCUMENT.read_text(), re.MULTILINE) == sorted(
        RULES, key=lambda name: (_category(name), list(RULES).index(name))
    )


def test_rules_stand_under_their_category():
    category = ""
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("## "):
            category = line.removeprefix("## ").upper()
        if line.startswith("### "):
            assert RULES[line.removeprefix("### ")].category == category


def _category(name: str) -> str:
    return RULES[name].category.value


def test_the_example_of_own_rules_is_one(tmp_path):
    example = re.search(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert example
    (tmp_path / "own.yaml").write_text(example[1])
    loaded = rules.load(overrides=tmp_path / "own.yaml")
    assert loaded.bound(catalog.load().families).rules.keys() > RULES.keys()
