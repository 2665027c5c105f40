"""The catalogue of metrics: catalog.yaml read strictly, so that a mistake in it is a sentence at the start.

A family is a mapping with the keys
- description, tier (light, minute, five_minutes, hourly), timeout_ms
- source (postgres, host, pgbouncer, collector; postgres if absent), level (instance if absent, or database),
  runs (anywhere if absent, on_primary, on_standby), needs_right, needs_extension
  needs_right is a role that the login must have, without which the query would read only a part of it
- labels, texts: names of columns; epoch: the name of one
- metrics: by name, each with kind, unit, direction and description
- derived: by name, each with unit, direction, description, numerator, denominator and scale (1 if absent); a ratio of
  the growths of counters, absent while the denominator did not grow
- sql: by lowest major version of the server, a query of the columns labels + texts + epoch + metrics. A family of
  level database says nothing of which one: whoever asks knows.

A query for PostgreSQL names itself in a comment before it, and is sent without parameters. That of a family with
`needs_extension` holds `{<extension>}` where the schema of the extension belongs: fill it with psycopg.sql,
`SQL(text).format(pg_stat_statements=Identifier(schema))`.
"""

import re
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, LiteralString, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tasks.errors import Refused
from tasks.metrics.models import (
    AVAILABILITY,
    Derived,
    Direction,
    Family,
    Kind,
    Level,
    Metric,
    Runs,
    Source,
    Tier,
    Variant,
)

UNITS = (
    *("boolean", "count", "percent", "rows", "blocks", "transactions", "bytes"),
    *("epoch_seconds", "seconds", "milliseconds", "microseconds"),
)
"""What a number can be of."""

_Word = TypeVar("_Word", bound=StrEnum)


def _one_of(words: type[_Word]) -> BeforeValidator:
    """Take the word of an enumeration, which a strict model alone would not."""

    def read(value: object) -> _Word:
        if value not in list(words):
            message = f"must be one of {', '.join(words)}"
            raise ValueError(message)
        return words(str(value))

    return BeforeValidator(read)


_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=63)]
_Text = Annotated[str, Field(min_length=1)]
_Names = Annotated[list[_Name], Field(default_factory=list)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Number(_Entry):
    unit: str
    direction: Annotated[Direction, _one_of(Direction)]
    description: _Text

    @model_validator(mode="after")
    def _known_unit(self) -> "_Number":
        if self.unit not in UNITS:
            message = f"unit must be one of {', '.join(UNITS)}"
            raise ValueError(message)
        return self

    def metric(self, name: str, kind: Kind) -> Metric:
        return Metric(name, kind, self.unit, self.direction, self.description)


class _Metric(_Number):
    kind: Annotated[Kind, _one_of(Kind)]


class _Derived(_Number):
    numerator: Annotated[list[_Name], Field(min_length=1)]
    denominator: Annotated[list[_Name], Field(min_length=1)]
    scale: Annotated[float, Field(gt=0)] = 1.0

    def build(self, name: str) -> Derived:
        metric = self.metric(name, Kind.GAUGE)
        return Derived(metric, tuple(self.numerator), tuple(self.denominator), self.scale)


class _Family(_Entry):
    description: _Text
    tier: Annotated[Tier, _one_of(Tier)]
    timeout_ms: Annotated[int, Field(gt=0, le=60_000)]
    source: Annotated[Source, _one_of(Source)] = Source.POSTGRES
    level: Annotated[Level, _one_of(Level)] = Level.INSTANCE
    runs: Annotated[Runs, _one_of(Runs)] = Runs.ANYWHERE
    needs_right: _Text | None = None
    needs_extension: _Name | None = None
    labels: _Names
    texts: _Names
    epoch: _Name | None = None
    metrics: Annotated[dict[_Name, _Metric], Field(min_length=1)]
    derived: Annotated[dict[_Name, _Derived], Field(default_factory=dict)]
    sql: Annotated[dict[int, _Text], Field(default_factory=dict)]

    @model_validator(mode="after")
    def _consistent(self) -> "_Family":
        for complaint in (self._names_twice(), self._wrong_ratio(), self._wrong_query()):
            if complaint:
                raise ValueError(complaint)
        return self

    def _names_twice(self) -> str:
        columns = [*self.labels, *self.texts, *self.metrics, *self.derived]
        columns += [self.epoch] if self.epoch else []
        twice = sorted({name for name in columns if columns.count(name) > 1})
        return f"{', '.join(twice)} is named more than once" if twice else ""

    def _wrong_ratio(self) -> str:
        counters = {name for name, metric in self.metrics.items() if metric.kind is Kind.COUNTER}
        for name, ratio in self.derived.items():
            if strange := sorted({*ratio.numerator, *ratio.denominator} - counters):
                return f"derived {name} is made of {', '.join(strange)}, which is no counter here"
        return ""

    def _wrong_query(self) -> str:
        asks = self.source in {Source.POSTGRES, Source.PGBOUNCER}
        if asks is not bool(self.sql):
            return "metrics without a query in sql" if asks else f"{self.source} takes no sql"
        wanted = {self.needs_extension} if self.needs_extension else set()
        for text in self.sql.values():
            if _places(text) != wanted:
                shown = f"{{{self.needs_extension}}}" if wanted else "no {place}"
                return f"a query must hold {shown}, the schema of what needs_extension names"
        return ""

    def build(self, name: str) -> Family:
        metrics = {key: each.metric(key, each.kind) for key, each in self.metrics.items()}
        return Family(
            name=name,
            description=self.description,
            source=self.source,
            level=self.level,
            tier=self.tier,
            timeout_ms=self.timeout_ms,
            metrics=metrics,
            variants=_variants(name, self.source, self.sql),
            labels=tuple(self.labels),
            texts=tuple(self.texts),
            epoch=self.epoch,
            runs=self.runs,
            needs_right=self.needs_right,
            needs_extension=self.needs_extension,
            derived={key: each.build(key) for key, each in self.derived.items()},
        )


def _places(text: str) -> set[str]:
    try:
        return {place for _, place, _, _ in Formatter().parse(text) if place is not None}
    except ValueError:
        return {text}


def _variants(name: str, source: Source, sql: Mapping[int, str]) -> tuple[Variant, ...]:
    # PgBouncer's console takes no comment.
    comment = f"/* onevault:metrics.{name} */ " if source is Source.POSTGRES else ""
    return tuple(Variant(since, _trusted(comment + sql[since].strip())) for since in sorted(sql))


def _trusted(text: str) -> LiteralString:
    # The file ships with the code, so its text is as trusted as a literal in it.
    trusted: LiteralString = text
    return trusted


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every family of metrics there is, availability first."""

    families: Mapping[str, Family] = field(repr=False)

    def of(self, source: Source, level: Level, tiers: Collection[Tier]) -> tuple[Family, ...]:
        """Return the families of this source and level that belong to one of the tiers."""
        return tuple(
            family
            for family in self.families.values()
            if family.source is source and family.level is level and family.tier in tiers
        )

    def metric(self, full_name: str) -> Metric:
        """Return what `family.metric` is, a derived one too; LookupError without it."""
        family_name, _, name = full_name.partition(".")
        family = self.families.get(family_name)
        if family and name in family.metrics:
            return family.metrics[name]
        if family and name in family.derived:
            return family.derived[name].metric
        message = f"There is no metric {full_name!r}; tasks/metrics/catalog.yaml lists them all."
        raise LookupError(message)


def load(path: Path | None = None) -> Catalog:
    """Read a catalogue, ours without a path; Refused names the entry that is wrong."""
    return _shipped() if path is None else parse(path.read_text(encoding="utf-8"))


@cache
def _shipped() -> Catalog:
    return parse((files("tasks.metrics") / "catalog.yaml").read_text(encoding="utf-8"))


def parse(text: str) -> Catalog:
    """Read the text of a catalogue; Refused names the entry that is wrong."""
    entries = _entries(text)
    families = {name: _family(name, entry) for name, entry in entries.items()}
    if AVAILABILITY not in families:
        raise Refused(
            f"The catalogue of metrics lacks {AVAILABILITY}, which tells whether a server answers."
        )
    first: Callable[[str], bool] = lambda name: name != AVAILABILITY  # noqa: E731
    return Catalog({name: families[name] for name in sorted(families, key=first)})


def _entries(text: str) -> dict[Any, Any]:
    try:
        read = yaml.load(text, Loader=_OnceLoader)  # noqa: S506 - it is a SafeLoader
    except yaml.YAMLError as error:
        raise Refused(
            f"The catalogue of metrics is no valid YAML: {' '.join(str(error).split())}."
        ) from error
    if not isinstance(read, dict) or not read:
        message = "The catalogue of metrics must be a mapping of families by name."
        raise Refused(message)
    return read


def _family(name: object, entry: object) -> Family:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise Refused(
            f"The catalogue of metrics: {name!r} is no name of a family, use a-z, 0-9 and _."
        )
    try:
        return _Family.model_validate(entry).build(name)
    except ValidationError as error:
        raise Refused(f"The catalogue of metrics, {name}: {_told(error)}.") from None


def _told(error: ValidationError) -> str:
    sentences = []
    for each in error.errors(include_url=False, include_input=False):
        where = ".".join(map(str, each["loc"]))
        what = each["msg"].removeprefix("Value error, ")
        sentences.append(f"{where}: {what}" if where else what)
    return "; ".join(sentences)


class _OnceLoader(yaml.SafeLoader):
    """YAML in which no key may come twice; plain YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (key_node, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                message = f"the key {key!r} comes twice"
                raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
        return super().construct_mapping(node, deep=deep)
