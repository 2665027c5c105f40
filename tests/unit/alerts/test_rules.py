from pathlib import Path

import pytest
import yaml

from tasks.alerts import rules, wording
from tasks.alerts.models import Reading, Severity, Watched, parse_duration, show_duration
from tasks.datavault import SYSTEM_TENANT_HK
from tasks.errors import Refused
from tasks.metrics import catalog
from tests.unit.alerts.making import SHOP, at, rule, series

BANK = Watched("bank-1", SYSTEM_TENANT_HK, "ACME")
RULE = {
    "name": "odd_number",
    "description": "A number is odd.",
    "category": "MONITORING",
    "metric": "connections.total",
    "operator": ">",
    "levels": [{"severity": "LOW", "threshold": 1}],
    "summary": "{server} has {value}",
    "next_step": "Make it even again.",
    "health": False,
}


def write(path: Path, **content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def overrides(tmp_path):
    return lambda **content: rules.load(overrides=write(tmp_path / "own.yaml", **content))


# What ships


def test_every_metric_of_the_shipped_rules_exists():
    listed = catalog.load()
    bound = rules.load().bound(listed.families)
    assert len(bound.rules) >= 40
    assert bound.families.keys() > listed.families.keys()


def test_the_thresholds_of_old_are_the_defaults():
    shipped = rules.load().rules

    def thresholds(name: str) -> dict[Severity, float]:
        return {level.severity: level.threshold for level in shipped[name].levels}

    assert thresholds("disk_used") == {Severity.HIGH: 80, Severity.CRITICAL: 95}
    assert thresholds("connections_used") == {Severity.HIGH: 80, Severity.CRITICAL: 95}
    assert thresholds("cache_hit") == {Severity.LOW: 95, Severity.MEDIUM: 90}
    assert thresholds("long_running_queries") == {Severity.MEDIUM: 5, Severity.HIGH: 10}
    assert thresholds("idle_in_transaction")[Severity.MEDIUM] == 20
    assert thresholds("pool_waiting") == {Severity.HIGH: 50}
    assert thresholds("sequence_used") == {Severity.MEDIUM: 80, Severity.CRITICAL: 95}
    assert thresholds("slow_statements") == {Severity.MEDIUM: 20, Severity.HIGH: 50}
    assert thresholds("archive_failures") == {Severity.MEDIUM: 0}


def test_a_level_of_the_shipped_rules_can_be_reached_by_its_tier():
    """What must last shorter than two readings lie apart would be decided by one reading."""
    bound = rules.load().bound(catalog.load().families)
    for each in bound.rules.values():
        every = bound.families[each.family].tier.seconds
        for level in each.levels:
            lasting = level.lasting.total_seconds()
            assert lasting == 0 or lasting >= every, f"{each.name} {level.severity}"


def test_shipped_rules_on_counters_say_over_which_time():
    bound = rules.load().bound(catalog.load().families)
    counters = [
        each.name
        for each in bound.rules.values()
        if each.metric_name in bound.families[each.family].counters
    ]
    assert len(counters) >= 6
    assert [name for name in counters if bound.rules[name].over is None] == []


# What people write


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric": "nonsense"}, "rule odd_number, metric"),
        ({"operator": "=>"}, "rule odd_number, operator"),
        ({"category": "OTHER"}, "rule odd_number, category"),
        ({"levels": []}, "rule odd_number, levels"),
        ({"levels": [{"severity": "BAD", "threshold": 1}]}, "rule odd_number, levels, 0, severity"),
        (
            {"levels": [{"severity": "LOW", "threshold": 1, "for": "soon"}]},
            "'soon' is not a duration",
        ),
        (
            {"levels": [{"severity": "LOW", "threshold": 1, "clear": 2}]},
            "odd_number: LOW clears at 2",
        ),
        (
            {"levels": [{"severity": "LOW", "threshold": 5}, {"severity": "HIGH", "threshold": 1}]},
            "HIGH is reached before LOW",
        ),
        (
            {"levels": [{"severity": "LOW", "threshold": 1}, {"severity": "LOW", "threshold": 2}]},
            "stands in two of its levels",
        ),
        ({"summary": "{server.__class__} is odd"}, "no plain field"),
        ({"summary": "{value!r} of {server}"}, "no plain field"),
        ({"summary": "{value:>99999999}"}, "no plain field"),
        ({"treshold": 5}, "rule odd_number, treshold"),
        ({"name": "disk_used"}, "two rules named disk_used"),
        (
            {"metric": "filesystem.used_percent", "health": True},
            "only one rule can say how healthy",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_named_with_its_rule(overrides, changes, said):
    with pytest.raises(Refused, match=said.replace("{", r"\{")):
        overrides(rules=[{**RULE, **changes}])


def test_every_mistake_is_in_one_message(overrides):
    bad = {**RULE, "category": "OTHER", "operator": "=>"}
    with pytest.raises(Refused, match=r"category.*operator|operator.*category"):
        overrides(rules=[bad])


@pytest.mark.parametrize("text", ["rules: [", "just words", "rules: 5"])
def test_a_file_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(Refused, match=r"own\.yaml"):
        rules.load(overrides=tmp_path / "own.yaml")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(Refused, match="cannot be read"):
        rules.load(overrides=tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"over": "10m"}, "over is for counters, and connections.total is none"),
        ({"metric": "databases.deadlocks", "over": "0s"}, "over is to be longer than 0s"),
        ({"summary": "{server} in the last {over}"}, "uses over, which connections does not have"),
    ],
    ids=str,
)
def test_over_is_for_counters(overrides, changes, said):
    with pytest.raises(Refused, match=said):
        overrides(rules=[{**RULE, **changes}]).bound(catalog.load().families)


@pytest.mark.parametrize(
    ("over", "shown"),
    [
        ("10m", "10 minutes"),
        ("1d", "day"),
        ("90s", "90 seconds"),
        ("2h", "2 hours"),
        ("1h", "hour"),
    ],
)
def test_a_time_stands_in_a_summary_as_people_say_it(over, shown):
    assert wording.span(parse_duration(over)) == shown


def test_a_rule_on_a_metric_that_does_not_exist_is_refused(overrides):
    loaded = overrides(rules=[{**RULE, "metric": "connections.nonsense"}])
    with pytest.raises(Refused, match=r"rule odd_number: there is no metric connections\.nonsense"):
        loaded.bound(catalog.load().families)


def test_a_sentence_that_its_family_cannot_fill_is_refused(overrides):
    loaded = overrides(rules=[{**RULE, "summary": "{table} of {server}"}])
    with pytest.raises(Refused, match="odd_number uses table"):
        loaded.bound(catalog.load().families)


# Overrides


def test_a_rule_is_disabled_on_some_servers(overrides):
    loaded = overrides(overrides=[{"rules": "disk_*", "server": "bank-*", "disable": True}])
    assert "disk_used" in {each.name for each in loaded.of(SHOP)}
    assert "disk_used" not in {each.name for each in loaded.of(BANK)}


def test_levels_and_times_are_changed_for_a_tenant(overrides):
    loaded = overrides(
        overrides=[
            {
                "rules": "disk_used",
                "tenant": "ACME",
                "levels": [{"severity": "HIGH", "threshold": 60}],
                "for": "10m",
                "clear_for": "1h",
            }
        ]
    )
    own = next(each for each in loaded.of(BANK) if each.name == "disk_used")
    assert [(level.threshold, show_duration(level.lasting)) for level in own.levels] == [
        (60, "10m")
    ]
    assert show_duration(own.clear_for) == "1h"
    others = next(each for each in loaded.of(SHOP) if each.name == "disk_used")
    assert others == rules.load().rules["disk_used"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"overrides": [{"rules": "dsik_used", "disable": True}]}, "no rule is named dsik_used"),
        (
            {"overrides": [{"rules": "*", "disable": True, "enable": True}]},
            "either disabled or enabled",
        ),
        (
            {
                "overrides": [
                    {
                        "rules": "disk_used",
                        "levels": [{"severity": "LOW", "threshold": 1, "clear": 9}],
                    }
                ]
            },
            "LOW clears at 9",
        ),
        ({"maintenance": [{"window": "sometimes", "comment": "why"}]}, "not a maintenance window"),
        (
            {"maintenance": [{"window": "always", "comment": "why", "rules": "nope"}]},
            "no rule is named nope",
        ),
        ({"inhibitions": [{"source": "nope", "targets": ["*"]}]}, "no rule is named nope"),
    ],
    ids=str,
)
def test_a_mistake_in_overrides_is_named(overrides, content, said):
    with pytest.raises(Refused, match=said):
        overrides(**content)


def test_the_suppression_window_is_the_environments_unless_the_rule_has_its_own(overrides):
    loaded = overrides(rules=[{**RULE, "suppression": "3h"}])
    assert show_duration(loaded.window(loaded.rules["odd_number"])) == "3h"
    assert show_duration(loaded.window(loaded.rules["disk_used"])) == "1h"


# Words and durations


@pytest.mark.parametrize("text", ["0s", "30s", "5m", "2h", "1d", "1h30m"])
def test_a_duration_is_read_and_written(text):
    assert show_duration(parse_duration(text)) == text


@pytest.mark.parametrize("text", ["", "5", "5 m", "m", "-5m", "5m!", "1.5h"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (0, "bytes", "0 B"),
        (53687091200, "bytes", "50.0 GB"),
        (2.5e20, "bytes", "222044.6 PB"),
        (45, "seconds", "45 s"),
        (7300, "seconds", "2 h"),
        (200000, "seconds", "2 d"),
        (94.99, "percent", "95.0 %"),
        (12345, "number", "12,345"),
        (0.125, "", "0.12"),
    ],
)
def test_numbers_are_written_as_people_read_them(number, unit, text):
    assert wording.shown(number, unit) == text


def test_labels_are_never_templates():
    one, found = rule(), series(85, at(0), "{value} {server.__class__}")
    text = wording.sentence(one, one.levels[0], found, Reading(at(0), 85))
    assert text == "{value} {server.__class__} of shop is 85.0 % full"


def test_what_is_not_known_is_a_question_mark():
    one = rule(summary="{holder} of {server} holds {value}")
    text = wording.sentence(one, one.levels[0], series(None, at(0)), Reading(at(0), None))
    assert text == "? of shop holds ?"
