"""Rules, series and views as tests of alerts need them."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.alerts.flapping import FlapControl
from tasks.alerts.models import Alert, FamilyStatus, Rule, Series, View, Watched
from tasks.alerts.rules import RuleSet
from tasks.datavault import SYSTEM_TENANT_HK
from tasks.metrics.models import Direction, Family, Kind, Level, Metric, Source, Tier

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SHOP = Watched("shop", SYSTEM_TENANT_HK, "SYSTEM_OPERATIONS")


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def rule(**changes: Any) -> Rule:
    given = {
        "name": "disk_used",
        "description": "A file system is getting full.",
        "category": "CAPACITY",
        "metric": "disk.used_percent",
        "operator": ">",
        "levels": [
            {"severity": "HIGH", "threshold": 80, "clear": 75, "for": "1m"},
            {"severity": "CRITICAL", "threshold": 95, "clear": 90, "for": "20s"},
        ],
        "summary": "{path} of {server} is {value:percent} full",
        "next_step": "Extend the file system.",
    }
    return Rule.model_validate({**given, **changes})


def family(
    name: str = "disk",
    *metrics: str,
    tier: Tier = Tier.LIGHT,
    source: Source = Source.POSTGRES,
    kind: Kind = Kind.GAUGE,
) -> Family:
    names = metrics or ("used_percent", "writes")
    made = {
        each: Metric(each, kind, "percent", Direction.HIGHER_IS_WORSE, "A number.")
        for each in names
    }
    return Family(name, "A family.", source, Level.INSTANCE, tier, 100, made, labels=("path",))


def series(value: float | None, when: datetime, path: str = "/data", **changes: Any) -> Series:
    values = {} if value is None else {"used_percent": value}
    made = {"series_id": 1, "server": "shop", "family": "disk", "labels": {"path": path}}
    return Series(**{**made, "sampled_at": when, "values": values, **changes})


def status(when: datetime, state: str = "OK", name: str = "disk") -> FamilyStatus:
    return FamilyStatus("shop", name, "", state, when, when if state == "OK" else None)


def view(
    found: Iterable[Series],
    statuses: Iterable[FamilyStatus] = (),
    alerts: Mapping[str, Alert] | None = None,
    **others: Any,
) -> View:
    grouped: dict[tuple[str, str], tuple[Series, ...]] = {}
    for each in found:
        key = (each.server, each.family)
        grouped[key] = (*grouped.get(key, ()), each)
    listed: dict[tuple[str, str], tuple[FamilyStatus, ...]] = {}
    for one in statuses:
        place = (one.server, one.family)
        listed[place] = (*listed.get(place, ()), one)
    return View(
        **{
            "servers": {"shop": SHOP},
            "series": grouped,
            "statuses": listed,
            "alerts": alerts or {},
            "memories": {},
            **others,
        }
    )


def ruleset(*rules: Rule, families: Iterable[Family] = (), **others: Any) -> RuleSet:
    listed = rules or (rule(),)
    made = RuleSet({each.name: each for each in listed}, timedelta(minutes=60), **others)
    return made.bound({each.name: each for each in families or [family()]})


CONTROL = FlapControl()
