from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import windows
from tasks.alerts.deciding import Decisions, decide
from tasks.alerts.inhibition import Inhibition
from tasks.alerts.models import (
    Alert,
    AlertStatus,
    FamilyStatus,
    Growth,
    Memory,
    Notify,
    Series,
    Severity,
    Silence,
    Transition,
)
from tasks.alerts.overrides import Maintenance
from tasks.alerts.rules import RuleSet
from tasks.datavault import SYSTEM_TENANT_HK, hash_key
from tasks.metrics.models import HealthStatus, Kind, Source
from tests.unit.alerts.making import at, family, rule, ruleset, series, status, view

QUICK = rule(levels=[{"severity": "HIGH", "threshold": 80, "clear": 75}])


class Vault:
    """What the tables would hold from one evaluation to the next."""

    def __init__(self, rules: RuleSet | None = None, **others: Any) -> None:
        self.rules, self.others = rules or ruleset(QUICK), others
        self.alerts: dict[str, Alert] = {}
        self.memories: dict[str, Memory] = {}
        self.seen: list[Transition] = []

    def evaluate(
        self, *found: Series, statuses: Sequence[FamilyStatus] = (), now: datetime
    ) -> Decisions:
        seen = view(found, statuses, dict(self.alerts), memories=dict(self.memories), **self.others)
        decided = decide(self.rules, seen, now)
        self.write(decided)
        return decided

    def write(self, decided: Decisions) -> None:
        self.seen += decided.transitions
        for key, alert in decided.versions.items():
            self.alerts[key] = alert
            if alert.status is AlertStatus.RESOLVED:
                del self.alerts[key]
        for key, memory in decided.memories.items():
            self.memories.pop(key, None)
            if memory is not None:
                self.memories[key] = memory

    @property
    def told(self) -> list[Notify | None]:
        return [transition.notify for transition in self.seen]


def test_an_alert_begins_and_ends():
    vault = Vault()
    vault.evaluate(series(90, at(0)), now=at(1))
    vault.evaluate(series(70, at(10)), now=at(11))
    first, last = vault.seen
    assert (first.from_status, first.alert.status, first.notify) == (
        None,
        AlertStatus.OPEN,
        Notify.FIRST,
    )
    assert first.alert.summary == "/data of shop is 90.0 % full"
    assert (last.from_status, last.alert.status, last.notify) == (
        AlertStatus.OPEN,
        AlertStatus.RESOLVED,
        Notify.RESOLVED,
    )
    assert vault.alerts == {}


def test_the_same_readings_again_change_nothing():
    vault = Vault()
    vault.evaluate(series(90, at(0)), now=at(1))
    again = vault.evaluate(series(90, at(0)), now=at(2))
    assert (again.transitions, again.versions, again.memories) == ((), {}, {})


def test_nothing_is_remembered_of_what_is_clear():
    vault = Vault()
    vault.evaluate(series(10, at(0)), now=at(1))
    assert vault.memories == {}


def test_a_stale_value_is_unknown_and_ends_nothing():
    vault = Vault()
    vault.evaluate(series(90, at(0)), now=at(1))
    decided = vault.evaluate(series(10, at(10)), now=at(3600))
    assert decided.transitions == ()
    assert decided.health[0].status is HealthStatus.UNKNOWN
    assert len(vault.alerts) == 1


def test_an_object_that_is_gone_ends_its_alert_and_says_so():
    vault = Vault()
    vault.evaluate(series(90, at(0)), statuses=[status(at(0))], now=at(1))
    vault.evaluate(series(90, at(0)), statuses=[status(at(10))], now=at(11))
    assert vault.seen[-1].alert.resolution_notes == "the object is gone"
    assert vault.alerts == {}


def test_a_series_that_is_not_there_ends_nothing_until_its_family_answers():
    vault = Vault()
    vault.evaluate(series(90, at(0)), statuses=[status(at(0))], now=at(1))
    vault.evaluate(statuses=[status(at(20), "UNAVAILABLE")], now=at(21))
    vault.evaluate(now=at(22))
    assert len(vault.alerts) == 1
    vault.evaluate(statuses=[status(at(30))], now=at(31))
    assert vault.alerts == {}


def test_what_makes_no_sense_any_more_ends():
    vault = Vault()
    vault.evaluate(series(90, at(0)), statuses=[status(at(0))], now=at(1))
    vault.evaluate(series(90, at(0)), statuses=[status(at(20), "NOT_APPLICABLE")], now=at(21))
    assert vault.alerts == {}


def test_what_another_host_cannot_see_does_not_end():
    vault = Vault(ruleset(QUICK, families=[family(source=Source.HOST)]))
    vault.evaluate(series(90, at(0)), statuses=[status(at(0))], now=at(1))
    for seconds in (21, 7200):
        elsewhere = status(at(seconds - 1), "NOT_APPLICABLE")
        decided = vault.evaluate(series(90, at(0)), statuses=[elsewhere], now=at(seconds))
    vault.evaluate(statuses=[status(at(7210), "NOT_APPLICABLE")], now=at(7211))
    assert len(vault.alerts) == 1
    assert [each.status for each in decided.health] == [HealthStatus.UNKNOWN]


def test_a_rule_says_in_its_own_words_that_an_object_is_gone():
    lag = rule(levels=[{"severity": "HIGH", "threshold": 80}], gone="no longer connected")
    vault = Vault(ruleset(lag))
    vault.evaluate(series(90, at(0)), statuses=[status(at(0))], now=at(1))
    vault.evaluate(series(90, at(0)), statuses=[status(at(20))], now=at(21))
    assert vault.seen[-1].alert.resolution_notes == "no longer connected"


def test_a_rule_looks_at_the_growth_of_its_time():
    growing = rule(over="10m", levels=[{"severity": "HIGH", "threshold": 80}])
    rules = ruleset(growing, families=[family(kind=Kind.COUNTER)])
    span = timedelta(minutes=10)
    vault = Vault(rules)
    vault.evaluate(series(90, at(0)), now=at(1))
    assert vault.seen == []
    grown = {("used_percent", span): Growth(85, 120)}
    vault.evaluate(series(0, at(10), grown=grown), now=at(11))
    assert [each.value for each in vault.seen] == [85]
    rate = ruleset(
        growing.model_copy(update={"per_second": True}), families=[family(kind=Kind.COUNTER)]
    )
    seen = Vault(rate).evaluate(series(0, at(10), grown=grown), now=at(11))
    assert seen.health[0].value == 85 / 120
    nothing = {("used_percent", span): Growth(0, 0)}
    seen = Vault(rate).evaluate(series(0, at(10), grown=nothing), now=at(11))
    assert seen.health[0].status is HealthStatus.UNKNOWN


def test_a_rule_may_look_at_a_text():
    vault = Vault(
        ruleset(
            rule(where={"kind": "physical"}, levels=[{"severity": "HIGH", "threshold": 80}]),
            families=[replace(family(), texts=("kind",))],
        )
    )
    logical = series(91, at(0), "/log", texts={"kind": "logical"})
    vault.evaluate(series(90, at(0), texts={"kind": "physical"}), logical, now=at(1))
    assert [alert.labels["path"] for alert in vault.alerts.values()] == ["/data"]


def test_a_rule_that_was_taken_out_ends_its_alerts():
    vault = Vault()
    vault.evaluate(series(90, at(0)), now=at(1))
    vault.rules = ruleset(rule(name="another_rule"))
    vault.evaluate(series(90, at(10)), now=at(11))
    assert vault.seen[-1].alert.resolution_notes == "the rule is no longer in force"


def test_a_worse_severity_reopens_what_someone_has_acknowledged():
    vault = Vault(
        ruleset(
            rule(
                levels=[
                    {"severity": "HIGH", "threshold": 80},
                    {"severity": "CRITICAL", "threshold": 95},
                ]
            )
        )
    )
    vault.evaluate(series(90, at(0)), now=at(1))
    key = next(iter(vault.alerts))
    vault.alerts[key] = replace(vault.alerts[key], status=AlertStatus.ACKNOWLEDGED)
    vault.evaluate(series(97, at(10)), now=at(11))
    assert vault.alerts[key].status is AlertStatus.OPEN
    assert vault.alerts[key].severity is Severity.CRITICAL
    assert vault.told == [Notify.FIRST, Notify.WORSE]


def test_each_object_has_its_own_alert():
    vault = Vault()
    vault.evaluate(
        series(90, at(0)), series(91, at(0), "/wal"), series(10, at(0), "/log"), now=at(1)
    )
    assert sorted(alert.labels["path"] for alert in vault.alerts.values()) == ["/data", "/wal"]


def test_a_rule_looks_only_where_it_says():
    vault = Vault(
        ruleset(rule(where={"path": "!/log*"}, levels=[{"severity": "HIGH", "threshold": 80}]))
    )
    vault.evaluate(series(90, at(0)), series(91, at(0), "/log1"), now=at(1))
    assert [alert.labels["path"] for alert in vault.alerts.values()] == ["/data"]


def test_a_guard_keeps_a_rule_from_firing_without_traffic():
    guarded = rule(
        levels=[{"severity": "HIGH", "threshold": 80}],
        when=[{"metric": "writes", "operator": ">", "threshold": 100, "per_second": True}],
    )
    vault = Vault(ruleset(guarded))
    idle = {"used_percent": 90.0, "writes": 500.0}
    busy = {"used_percent": 90.0, "writes": 50000.0}
    vault.evaluate(series(90, at(0), values=idle, interval_seconds=10.0), now=at(1))
    vault.evaluate(series(90, at(10), values=busy), now=at(11))
    assert vault.alerts == {}
    vault.evaluate(series(90, at(20), values=busy, interval_seconds=10.0), now=at(21))
    assert len(vault.alerts) == 1


# Who is not told, and why


def test_a_maintenance_window_records_and_tells_after_it():
    window = Maintenance(window=windows.parse("mon 11:00-13:00 UTC"), comment="the upgrade")
    vault = Vault(ruleset(QUICK, maintenance=(window,)))
    vault.evaluate(series(90, at(0)), now=at(1))
    assert vault.told == [None]
    assert (
        vault.seen[0].not_notified_because == "maintenance window mon 11:00-13:00 UTC: the upgrade"
    )
    vault.evaluate(series(90, at(3610)), now=at(3611))
    assert vault.told == [None, Notify.FIRST]


def silence(**changes) -> Silence:
    given = Silence(
        "1",
        {"rule": "disk_*", "labels": {"path": "/d*"}},
        at(-60),
        at(60),
        "ann",
        "known",
        SYSTEM_TENANT_HK,
    )
    return replace(given, **changes)


@pytest.mark.parametrize(
    ("changes", "is_told"),
    [
        ({}, False),
        ({"matchers": {"server": "other"}}, True),
        ({"matchers": {"labels": {"path": "/wal"}}}, True),
        ({"matchers": {"severity": "HIGH", "category": "CAPACITY"}}, False),
        ({"ends_at": at(0)}, True),
        ({"starts_at": at(30)}, True),
        ({"tenant_hk": hash_key("ACME")}, True),
    ],
    ids=str,
)
def test_a_silence_holds_back_what_it_matches(changes, is_told):
    vault = Vault(silences=(silence(**changes),))
    vault.evaluate(series(90, at(0)), now=at(1))
    assert vault.told == [Notify.FIRST if is_told else None]


def test_why_nobody_is_told_is_kept_as_it_is_now():
    vault = Vault()
    vault.evaluate(series(90, at(0)), now=at(1))
    vault.others = {"silences": (silence(starts_at=at(5)),)}
    for now, reason in ((11, "silenced by ann until 2026-03-02 12:01 UTC: known"), (71, None)):
        decided = vault.evaluate(series(90, at(now - 1)), now=at(now))
        assert decided.transitions == ()
        (alert,) = vault.alerts.values()
        assert alert.suppression_reason == reason
        assert vault.evaluate(series(90, at(now - 1)), now=at(now)).versions == {}


def test_one_alert_keeps_another_quiet_but_never_itself():
    source = rule(
        name="server_down",
        metric="up.up",
        operator="=",
        levels=[{"severity": "CRITICAL", "threshold": 0}],
        summary="{server} is down",
        health=True,
    )
    rules = ruleset(
        QUICK,
        source,
        families=[family(), family("up", "up")],
        inhibitions=(Inhibition(source="server_down", targets=("*",)),),
    )
    vault = Vault(rules)
    down = series(None, at(0), family="up", labels={}, values={"up": 0.0})
    vault.evaluate(series(90, at(0)), down, now=at(1))
    told = {each.alert.rule: (each.notify, each.not_notified_because) for each in vault.seen}
    assert told == {
        "disk_used": (None, "inhibited by server_down on shop"),
        "server_down": (Notify.FIRST, None),
    }


# The evaluation itself


def test_a_rule_that_cannot_be_evaluated_is_an_alert_and_stops_no_other():
    failed = rule(
        name="rule_evaluation_failed",
        metric="evaluation.failed_rules",
        levels=[{"severity": "HIGH", "threshold": 0}],
        summary="{rules} failed on {server}",
    )
    rules = ruleset(QUICK, rule(name="broken", health=False), failed)
    rules = replace(
        rules,
        rules={
            **rules.rules,
            "broken": rules.rules["broken"].model_copy(update={"metric": "nowhere.x"}),
        },
    )
    vault = Vault(rules)
    decided = vault.evaluate(series(90, at(0)), now=at(1))
    assert {each.alert.rule for each in vault.seen} == {"disk_used", "rule_evaluation_failed"}
    assert "broken" in decided.failures[0]
    assert any("broken failed on shop" in each.alert.summary for each in vault.seen)


def test_readings_that_stopped_are_an_alert():
    stale = rule(
        name="metrics_stale",
        metric="evaluation.stale_families",
        levels=[{"severity": "MEDIUM", "threshold": 0}],
        summary="{families} of {server} are stale",
    )
    vault = Vault(ruleset(QUICK, stale))
    vault.evaluate(series(10, at(0)), statuses=[status(at(0))], now=at(40))
    assert vault.seen == []
    vault.evaluate(series(10, at(0)), statuses=[status(at(0))], now=at(50))
    assert vault.seen[0].alert.summary == "disk of shop are stale"


def test_what_is_refused_or_makes_no_sense_is_not_stale():
    stale = rule(
        name="metrics_stale",
        metric="evaluation.stale_families",
        levels=[{"severity": "MEDIUM", "threshold": 0}],
        summary="{families} of {server} are stale",
    )
    vault = Vault(ruleset(QUICK, stale))
    vault.evaluate(
        statuses=[status(at(0), "REFUSED"), status(at(0), "NOT_APPLICABLE")], now=at(5000)
    )
    assert vault.seen == []


def test_health_says_how_it_stands_to_its_thresholds():
    rules = ruleset(
        rule(
            levels=[
                {"severity": "MEDIUM", "threshold": 80},
                {"severity": "CRITICAL", "threshold": 95},
            ]
        )
    )
    vault = Vault(rules)
    found = [
        vault.evaluate(series(value, at(ten)), now=at(ten + 1)).health[0]
        for ten, value in [(0, 10), (10, 85), (20, 99), (30, None)]
    ]
    assert [each.status for each in found] == [
        HealthStatus.NORMAL,
        HealthStatus.WARNING,
        HealthStatus.CRITICAL,
        HealthStatus.UNKNOWN,
    ]
    assert (found[0].warning, found[0].critical) == (80, 95)


@given(
    st.lists(
        st.tuples(st.sampled_from(["/data", "/wal"]), st.one_of(st.none(), st.floats(0, 100))),
        max_size=60,
    )
)
def test_there_is_one_open_alert_for_an_object_and_an_end_follows_a_beginning(steps):
    vault = Vault()
    for number, (path, value) in enumerate(steps):
        vault.evaluate(series(value, at(number * 10), path), now=at(number * 10 + 1))
    for key in {each.alert.fingerprint for each in vault.seen}:
        own = [each for each in vault.seen if each.alert.fingerprint == key]
        assert own[0].from_status is None
        for before, later in pairwise(own):
            ended = before.alert.status is AlertStatus.RESOLVED
            assert (later.from_status is None) == ended
            assert (later.alert.alert_hk != before.alert.alert_hk) == ended


def test_a_reading_from_a_clock_that_is_ahead_starts_nothing_in_the_future():
    vault = Vault()
    vault.evaluate(series(90, at(30)), now=at(0))
    (alert,) = vault.alerts.values()
    assert alert.started_at == alert.triggered_at == at(0)
