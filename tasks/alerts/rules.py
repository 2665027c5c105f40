"""The rules: read from YAML, changed by the user's own file, and checked against the metrics that exist."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from fnmatch import fnmatchcase
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from tasks.alerts import wording
from tasks.alerts.conditions import is_ordered
from tasks.alerts.flapping import FlapControl
from tasks.alerts.inhibition import Inhibition
from tasks.alerts.models import Rule, Watched
from tasks.alerts.overrides import Maintenance, Override, OverridesFile, RulesFile
from tasks.alerts.watching import FAMILIES as OWN_FAMILIES
from tasks.errors import Refused
from tasks.metrics.models import Family, Metric

SHIPPED = Path(__file__).with_name("rules.yaml")
DOCUMENT = "docs/reference/alert-rules.md"
File = TypeVar("File", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The rules in force, and everything that bends them. families are there once it is bound to a catalogue."""

    rules: Mapping[str, Rule]
    suppression: timedelta
    overrides: tuple[Override, ...] = ()
    inhibitions: tuple[Inhibition, ...] = ()
    maintenance: tuple[Maintenance, ...] = ()
    flapping: FlapControl = field(default_factory=FlapControl)
    families: Mapping[str, Family] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    def of(self, server: Watched) -> tuple[Rule, ...]:
        """Return the enabled rules as they are for one server."""
        rules = (self._overridden(rule, server) for rule in self.rules.values())
        return tuple(rule for rule in rules if rule.enabled)

    def window(self, rule: Rule) -> timedelta:
        """Return how long an alert of this rule is not told again."""
        return self.suppression if rule.suppression is None else rule.suppression

    def bound(self, families: Mapping[str, Family]) -> "RuleSet":
        """Return the set with the catalogue's families, every metric checked; Refused names the rule at fault."""
        known = {**families, **OWN_FAMILIES}
        check(self, {name: metric for each in known.values() for name, metric in _metrics(each)})
        _refuse(list(_wrongly_grown(self, known)))
        for rule in self.rules.values():
            wording.check(rule, known[rule.family])
        digests = {name: self._digest(rule) for name, rule in self.rules.items()}
        return replace(self, families=known, digests=digests)

    def condition(self, rule: Rule) -> dict[str, Any]:
        """Return a rule and what is changed of it for some servers, as plain JSON values."""
        changes = [
            override.model_dump(mode="json", by_alias=True, exclude_none=True)
            for override in self.overrides
            if override.names(rule.name)
        ]
        return {**rule.model_dump(mode="json", by_alias=True), "overrides": changes}

    def _digest(self, rule: Rule) -> str:
        window = self.window(rule).total_seconds()
        text = json.dumps([self.condition(rule), window], sort_keys=True)
        return sha256(text.encode()).hexdigest()

    def _overridden(self, rule: Rule, server: Watched) -> Rule:
        for override in self.overrides:
            if override.reaches(rule.name, server):
                rule = override.apply(rule)
        return rule


def load(
    path: Path | None = None, overrides: Path | None = None, *, suppression_minutes: int = 60
) -> RuleSet:
    """Read the shipped rules (or those of path) and a user's overrides; Refused names every rule at fault."""
    shipped = _read(path or SHIPPED, RulesFile)
    own = _read(overrides, OverridesFile) if overrides else OverridesFile()
    documented = shipped.rules if path else tuple(map(_documented, shipped.rules))
    rules = _by_name((*documented, *own.rules))
    ruleset = RuleSet(
        rules=rules,
        suppression=timedelta(minutes=suppression_minutes),
        overrides=own.overrides,
        inhibitions=(*shipped.inhibitions, *own.inhibitions),
        maintenance=own.maintenance,
        flapping=own.flapping or shipped.flapping or FlapControl(),
    )
    _refuse([*_faults_of_rules(ruleset), *_unknown_names(ruleset)])
    return ruleset


def check(ruleset: RuleSet, known_metrics: Mapping[str, Metric]) -> None:
    """Refuse rules on metrics that the catalogue does not have, all of them in one message."""
    faults = []
    for rule in ruleset.rules.values():
        named = [rule.metric, *(f"{rule.family}.{guard.metric}" for guard in rule.when)]
        faults += [
            f"rule {rule.name}: there is no metric {name}"
            for name in named
            if name not in known_metrics and not _is_own(name)
        ]
    _refuse(faults)


def _documented(rule: Rule) -> Rule:
    """Point a shipped rule to its own place in the documents."""
    return rule.model_copy(update={"runbook": rule.runbook or f"{DOCUMENT}#{rule.name}"})


def _metrics(family: Family) -> Iterator[tuple[str, Metric]]:
    for metric in (*family.metrics.values(), *(each.metric for each in family.derived.values())):
        yield f"{family.name}.{metric.name}", metric


def _wrongly_grown(ruleset: RuleSet, families: Mapping[str, Family]) -> Iterator[str]:
    for rule in ruleset.rules.values():
        if rule.over is not None and not rule.over:
            yield f"rule {rule.name}: over is to be longer than 0s"
        if rule.over is not None and rule.metric_name not in families[rule.family].counters:
            yield f"rule {rule.name}: over is for counters, and {rule.metric} is none"


def _is_own(name: str) -> bool:
    family, _, metric = name.partition(".")
    return family in OWN_FAMILIES and metric in OWN_FAMILIES[family].metrics


def _read(path: Path, form: type[File]) -> File:
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        message = f"The alert rules in {path} cannot be read: {error}."
        raise Refused(message) from None
    except yaml.YAMLError as error:
        message = f"{path} is not YAML: {' '.join(str(error).split())}."
        raise Refused(message) from None
    try:
        return form.model_validate(content or {})
    except ValidationError as error:
        faults = [_fault(content, fault["loc"], fault["msg"]) for fault in error.errors()]
        message = f"{path} cannot be used: " + "; ".join(faults) + "."
        raise Refused(message) from None


def _fault(content: Any, place: tuple[int | str, ...], text: str) -> str:
    """Name the rule rather than its number: rules.3.metric says little to a person."""
    where = [str(part) for part in place]
    try:
        named = content[place[0]][place[1]]["name"]
        where[:2] = [f"rule {named}"]
    except (IndexError, KeyError, TypeError):
        pass
    return f"{', '.join(where)}: {text.removeprefix('Value error, ')}"


def _by_name(rules: tuple[Rule, ...]) -> dict[str, Rule]:
    named: dict[str, Rule] = {}
    for rule in rules:
        if rule.name in named:
            message = f"There are two rules named {rule.name}: change the levels of a shipped rule under overrides."
            raise Refused(message)
        named[rule.name] = rule
    return named


def _faults_of_rules(ruleset: RuleSet) -> Iterator[str]:
    for rule in ruleset.rules.values():
        yield from _faults(rule)
        for override in ruleset.overrides:
            if override.names(rule.name):
                yield from _faults(override.apply(rule))
    kept = [rule.metric for rule in ruleset.rules.values() if rule.health]
    for metric in sorted({metric for metric in kept if kept.count(metric) > 1}):
        yield f"metric {metric}: only one rule can say how healthy it is; the others need `health: false`"


def _faults(rule: Rule) -> Iterator[str]:
    levels = sorted(rule.levels, key=lambda level: level.severity.rank)
    if len({level.severity for level in levels}) < len(levels):
        yield f"rule {rule.name}: a severity stands in two of its levels"
    for milder, graver in pairwise(levels):
        if not is_ordered(rule.operator, milder.threshold, graver.threshold):
            yield f"rule {rule.name}: {graver.severity} is reached before {milder.severity}"
    for level in levels:
        if not is_ordered(rule.operator, level.clear_threshold, level.threshold):
            yield f"rule {rule.name}: {level.severity} clears at {level.clear:g}, where it already holds"
    for field_name in wording.bad_fields(rule.summary):
        yield f"rule {rule.name}: {field_name!r} is no plain field of a summary"


def _unknown_names(ruleset: RuleSet) -> Iterator[str]:
    patterns = [override.rules for override in ruleset.overrides]
    patterns += [window.rules for window in ruleset.maintenance]
    for inhibition in ruleset.inhibitions:
        patterns += [inhibition.source, *inhibition.targets]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in ruleset.rules):
            yield f"no rule is named {pattern}"


def _refuse(faults: list[str]) -> None:
    if faults:
        message = "The alert rules cannot be used: " + "; ".join(dict.fromkeys(faults)) + "."
        raise Refused(message)
