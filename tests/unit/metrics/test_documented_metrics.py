"""docs/reference/metrics.md says what is read, how often and in which units."""

import re
from collections.abc import Iterator

import pytest

from tasks.metrics import catalog
from tasks.metrics.models import Direction, Family, Metric, Runs, Tier
from tests.markdown import ROOT

DOCUMENT = ROOT / "docs" / "reference" / "metrics.md"
FAMILIES = catalog.load().families
_WORSE = {
    Direction.HIGHER_IS_WORSE: "higher",
    Direction.LOWER_IS_WORSE: "lower",
    Direction.NEUTRAL: "",
}
_WHERE = {Runs.ANYWHERE: "", Runs.ON_PRIMARY: "primary only", Runs.ON_STANDBY: "standby only"}


def overview(family: Family) -> str:
    """Write the row of a family in the table of families."""
    by = f"{family.source}, each database" if family.level == "database" else str(family.source)
    needs = [each for each in (family.needs_right, family.needs_extension) if each]
    needs += [_WHERE[family.runs]] if _WHERE[family.runs] else []
    cells = (f"[`{family.name}`](#{family.name})", family.tier, by, ", ".join(needs))
    return f"| {' | '.join(cells)} |"


def documented(family: Family) -> str:
    """Write the section of a family as it has to stand in the document."""
    return "\n".join(_lines(family))


def _lines(family: Family) -> Iterator[str]:
    yield f"### {family.name}\n"
    yield family.description
    if family.labels:
        yield f"\nLabels: {', '.join(f'`{label}`' for label in family.labels)}."
    yield "\n| metric | kind | unit | worse | what |\n|---|---|---|---|---|"
    for metric in family.metrics.values():
        yield _row(metric, metric.kind)
    for derived in family.derived.values():
        yield _row(derived.metric, "ratio")
    yield ""


def _row(metric: Metric, kind: str) -> str:
    cells = (f"`{metric.name}`", kind, metric.unit, _WORSE[metric.direction], metric.description)
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_family_is_documented_as_it_is(family: Family):
    text = DOCUMENT.read_text()
    assert overview(family) in text.splitlines(), overview(family)
    assert documented(family) in text, f"it should be:\n\n{documented(family)}"


def test_no_family_is_documented_that_does_not_exist():
    written = re.findall(r"^### (\w+)$", DOCUMENT.read_text(), re.MULTILINE)
    assert written == list(FAMILIES)


def test_the_tiers_are_documented_with_their_intervals_and_ages():
    text = DOCUMENT.read_text()
    for tier in Tier:
        family = next(each for each in FAMILIES.values() if each.tier is tier)
        row = f"| `{tier}` | {tier.seconds:,} | {family.stale_after_seconds:,.0f} |"
        assert row in text, row
