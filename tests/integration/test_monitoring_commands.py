"""The commands that read metrics and handle alerts, on a vault that a collector wrote to."""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from click.testing import CliRunner, Result
from psycopg.conninfo import make_conninfo

from deployments.cli import cli
from deployments.sentences import EXIT_FAILED, EXIT_FIRING
from tasks import vault
from tasks.alerts import evaluation, loading
from tasks.metrics import catalog, store
from tasks.metrics.collector import Collector
from tasks.metrics.models import Target, Tier
from tasks.metrics.sink import FLEET, VaultSink
from tasks.metrics.store import Heartbeat
from tasks.programs import Installation
from tests.monitoring import ROLE, SECRET, MonitoringSite, fresh_vault, monitoring_servers

RULES = """
overrides:
  - {rules: server_down, for: 0s}
"""
SLOW = "select count(*) as sevens from generate_series(1, 20000) as number where number % 7 = 3"
BUSY = "shop"
AWAY = "billing"
WIDE, NARROW = "200", "80"


@dataclass(frozen=True)
class Installed:
    """A vault with a server that answers and one that does not, and the command line on it."""

    site: MonitoringSite
    environment: dict[str, str]

    def run(self, *words: str, columns: str = WIDE, code: int = 0) -> Result:
        """Run a command; its exit code must be this."""
        told = self.environment | {"COLUMNS": columns}
        result = CliRunner().invoke(cli, list(words), env=told)
        assert result.exit_code == code, result.output + result.stderr
        return result

    def said(self, *words: str, columns: str = WIDE) -> str:
        return self.run(*words, columns=columns).stdout

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.run(*words, "--json", code=code).stdout)

    def refused(self, *words: str) -> str:
        """Run a command that is refused, and return its one sentence."""
        result = self.run(*words, code=EXIT_FAILED)
        assert result.stdout == ""
        (sentence,) = result.stderr.splitlines()
        return sentence

    def collect(self, *targets: Target) -> None:
        """Read these servers, store it and evaluate the rules, as the flow does."""
        families = catalog.load()
        identity = Heartbeat(FLEET, "this-host", 4711, datetime.now(UTC))
        sink = VaultSink(lambda: vault.connect(self.site.vault_url), identity, lambda: None)
        assert sink.lead()
        for target in targets:
            collector = Collector(lambda: targets, families, sink)
            sink.write([asyncio.run(collector.collect_once(target, list(Tier)))])
        sink.beat(len(targets), 0, 0)
        sink.close()
        ruleset = loading.load(families.families, self.environment)
        with vault.connect(self.site.vault_url) as conn:
            evaluation.evaluate(conn, ruleset, datetime.now(UTC))

    def target(self, name: str, **changes: Any) -> Target:
        def conninfo(database: str | None) -> str:
            login = {"user": ROLE, "password": SECRET, "dbname": database or "postgres"}
            return make_conninfo(self.site.source.url(), **{**login, **changes})

        return Target(name, conninfo)

    def alert_id(self, server: str = AWAY) -> str:
        (found,) = self.json("alerts", "--server", server)
        return str(found["fingerprint"])[:8]


@pytest.fixture(scope="module")
def servers(installation: Installation) -> Iterator[MonitoringSite]:
    with monitoring_servers(installation) as made:
        yield made


@pytest.fixture
def empty(servers: MonitoringSite) -> Iterator[Installed]:
    with fresh_vault(servers) as site:
        environment = site.environment | {"ONEVAULT_RULES": site.overrides(RULES)}
        yield Installed(site, environment)


@pytest.fixture
def installed(empty: Installed) -> Installed:
    shop, billing = empty.target(BUSY), empty.target(AWAY, port=9)
    empty.collect(shop, billing)
    with empty.site.source.connect("shop") as conn:
        for _ in range(5):
            conn.execute(SLOW)
    empty.collect(shop, billing)
    return empty


# status


def test_the_fleet_is_one_line_a_server(installed: Installed):
    shown = installed.said("status")
    assert re.search(r"^ *shop +up +primary +1\d\.\d+ ", shown, re.MULTILINE)
    assert re.search(r"^ *billing +DOWN ", shown, re.MULTILINE)
    assert "collector on this-host: 2 servers, alive " in shown
    assert "billing does not answer." in shown
    assert "availability.up" not in shown


def test_one_server_is_shown_in_full(installed: Installed):
    shown = installed.said("status", BUSY)
    assert "billing" not in shown
    assert re.search(r"NORMAL +availability\.up +1 ", shown)
    assert re.search(r"NORMAL +connections\.used_percent +[\d.]+ % +80\.0 % / 95\.0 % ", shown)
    assert re.search(r"unknown, standby: .* primary", shown)


def test_status_as_json(installed: Installed):
    fleet = installed.json("status")
    assert {row["server"]: row["is_up"] for row in fleet["fleet"]} == {BUSY: True, AWAY: False}
    assert [alert["rule"] for alert in fleet["alerts"] if alert["server"] == AWAY] == [
        "server_down"
    ]
    one = installed.json("status", BUSY)
    assert one["server"] == BUSY
    assert {row["family"] for row in one["metrics"]} >= {"availability", "connections"}
    assert {row["status"] for row in one["health"]} <= {"NORMAL", "WARNING", "CRITICAL", "UNKNOWN"}


def test_check_tells_scripts_of_alerts_that_cannot_wait(installed: Installed):
    assert "server_down" in {
        a["rule"] for a in installed.json("status", "--check", code=6)["alerts"]
    }
    assert EXIT_FIRING == 6
    installed.run("status", AWAY, "--check", code=EXIT_FIRING)
    installed.run("status", BUSY, "--check", code=0)


def test_a_server_that_was_never_collected(installed: Installed):
    assert "Nothing was ever collected from a server named nobody" in installed.refused(
        "status", "nobody"
    )


@pytest.mark.parametrize("words", [["status", BUSY], ["status"], ["top"], ["alerts"], ["rules"]])
def test_a_narrow_terminal_loses_no_number(installed: Installed, words: list[str]):
    narrow = installed.said(*words, columns=NARROW)
    assert max(len(line) for line in narrow.splitlines()) <= int(NARROW)
    assert "…" not in narrow
    numbers = re.compile(r"\d[\d,.]*")
    told = {_without_ages(each) for each in numbers.findall(installed.said(*words))}
    assert told
    joined = re.sub(r"\s+", "", narrow)
    assert [each for each in told if each not in joined] == []


def _without_ages(number: str) -> str:
    """Ages go on between two readings: of them only the first digit's presence is no proof, so leave them out."""
    return "" if re.fullmatch(r"\d{1,2}", number) else number.rstrip(".,")


# top


def test_top_shows_what_statements_grew_by(installed: Installed):
    rows = installed.json("top", BUSY)
    (mine,) = [row for row in rows if "sevens" in (row["query"] or "")]
    assert (mine["calls"], mine["rows"], mine["database"]) == (5, 5, "shop")
    assert mine["total_ms"] > 0
    wide, narrow = installed.said("top"), installed.said("top", columns=NARROW)
    for shown in (wide, narrow):
        assert "statements by time spent, last 60 min" in shown
        assert f"{BUSY}/shop ops" in shown
        assert "as sevens" in shown
    assert len(installed.json("top", "--limit", "2", "--minutes", "5")) == 2
    assert installed.json("top", AWAY) == []


# alerts


def test_alerts_say_what_to_do(installed: Installed):
    shown = installed.said("alerts", "--server", AWAY)
    assert re.search(r"CRITICAL +\d\d-\d\d [\d:]{8} +billing +billing does not answer\.", shown)
    assert "Look whether the host is up and the postmaster runs" in shown
    assert re.search(
        r"new -> OPEN +CRITICAL +billing does not answer\. +first",
        installed.said("alerts", "--history"),
    )
    (event,) = installed.json("alerts", "--history", "--server", AWAY)
    assert (event["to_status"], event["notify_reason"]) == ("OPEN", "first")


def test_an_alert_is_acknowledged_and_stays_in_sight(installed: Installed):
    said = installed.said("acknowledge", installed.alert_id(), "--note", "the disk is on its way")
    assert said.startswith("server_down on billing is acknowledged by ")
    (alert,) = installed.json("alerts", "--server", AWAY)
    assert alert["status"] == "ACKNOWLEDGED"
    assert alert["details"]["note"] == "the disk is on its way"
    assert "acknowledged" in installed.said("status")
    ((written,),) = installed.site.query(
        "select count(*) from audit.audit_detail_s where event_type = 'ALERT_ACKNOWLEDGED'"
        " and outcome = 'SUCCEEDED'"
    )
    assert written == 1


def test_a_false_positive_needs_its_reason(installed: Installed):
    alert = installed.alert_id()
    assert "Say in the note why" in installed.refused("acknowledge", alert, "--false-positive")
    said = installed.said("acknowledge", alert, "--false-positive", "--note", "it was moved")
    assert "marked as a false positive" in said
    (found,) = installed.json("alerts", "--server", AWAY)
    assert (found["false_positive"], found["status"]) == (True, "OPEN")


@pytest.mark.parametrize("alert", ["abc", "zzzzzzzz", "00000000"])
def test_an_alert_that_is_none_is_refused(installed: Installed, alert: str):
    assert "alert" in installed.refused("acknowledge", alert)


# silence


def test_a_silence_is_added_listed_and_ended(installed: Installed):
    assert installed.said("silence", "--list").strip() == "no silences"
    said = installed.said(
        "silence", "--server", "bill*", "--rule", "server_down", "--label", "database=x*",
        "--for", "2h", "--comment", "moved to new hardware",
    )  # fmt: skip
    (found,) = installed.json("silence", "--list")
    assert found["silence_id"] in said
    assert found["matchers"] == {
        "server": "bill*", "rule": "server_down", "labels": {"database": "x*"},
    }  # fmt: skip
    assert "moved to new hardware" in installed.said("silence", "--list")
    assert "has ended" in installed.said("silence", "--end", found["silence_id"])
    assert installed.json("silence", "--list") == []


def test_a_silence_holds_people_back_and_status_says_why(empty: Installed):
    billing = empty.target(AWAY, port=9)
    empty.run("silence", "--server", AWAY, "--for", "1h", "--comment", "a planned move")
    empty.collect(billing)
    (event,) = empty.json("alerts", "--history")
    assert event["notify_reason"] is None
    assert "a planned move" in event["not_notified_because"]
    assert "a planned move" in empty.said("status")
    assert "nobody is told: silenced by" in empty.said("rules", "server_down", "--server", AWAY)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--server", "x", "--for", "2h"], "needs --for"),
        (["--server", "x", "--comment", "why"], "needs --for"),
        (["--for", "2h", "--comment", "why"], "needs to say what it matches"),
        (["--server", "x", "--for", "soon", "--comment", "why"], "is not a duration"),
        (["--server", "x", "--for", "60d", "--comment", "why"], "30 days at most"),
        (["--label", "database", "--for", "2h", "--comment", "why"], "write it as NAME=VALUE"),
        (["--end", "never"], "is not the id of a silence"),
    ],
)
def test_a_silence_that_says_too_little_is_refused(
    empty: Installed, words: list[str], sentence: str
):
    assert sentence in empty.refused("silence", *words)


# rules


def test_the_rules_in_force_are_listed(empty: Installed):
    rules = {rule["name"]: rule for rule in empty.json("rules")}
    assert len(rules) >= 40
    high, critical = rules["disk_used"]["levels"]
    assert (high["threshold"], critical["threshold"]) == (80, 95)
    shown = empty.said("rules")
    assert f"{len(rules)} alert rules" in shown
    first = rf"disk_used +HIGH +> 80\.0 % +\w+ +{high['clear']} % *$"
    assert re.search(first, shown, re.MULTILINE)
    second = rf"^ +CRITICAL +> 95\.0 % +\w+ +{critical['clear']} % *$"
    assert re.search(second, shown, re.MULTILINE)
    one = empty.said("rules", "disk_used")
    assert "Never delete in pg_wal." in one
    assert "There is no rule nothing" in empty.refused("rules", "nothing")
    assert "Name the rule as well" in empty.refused("rules", "--server", BUSY)


def test_a_rule_says_why_it_is_or_is_not_firing(installed: Installed):
    firing = installed.said("rules", "server_down", "--server", AWAY)
    assert re.search(r"the server: 0 at [\d:]{8} UTC", firing)
    assert "CRITICAL: firing, until it is no longer = 0 for 20s" in firing
    waiting = installed.said("rules", "connections_used", "--server", BUSY)
    assert "HIGH: not firing; it needs > 80 for 30s" in waiting
    (explained,) = installed.json("rules", "connections_used", "--server", BUSY)
    assert explained["rule"] == "connections_used"
    assert "No server named nobody" in installed.refused(
        "rules", "server_down", "--server", "nobody"
    )


def test_rules_that_cannot_be_used_are_one_sentence(empty: Installed):
    path = empty.site.overrides("overrides: [{rules: no_such_rule, disable: true}]")
    broken = replace(empty, environment=empty.environment | {"ONEVAULT_RULES": path})
    assert "no rule is named no_such_rule" in broken.refused("rules")


# Without anything to read.


@pytest.mark.parametrize(
    "words",
    [["status"], ["top"], ["alerts"], ["alerts", "--history"], ["silence", "--list"]],
)
def test_an_empty_vault_is_no_fault(empty: Installed, words: list[str]):
    empty.run(*words)
    found = empty.json(*words)
    assert found == [] or (found["fleet"], found["alerts"]) == ([], [])


@pytest.mark.parametrize(
    "words",
    [
        ["status"], ["top"], ["alerts"], ["acknowledge", "abcdef12"], ["silence", "--list"],
        ["rules", "server_down", "--server", BUSY],
    ],
)  # fmt: skip
def test_no_vault_yet_is_one_sentence(empty: Installed, words: list[str]):
    home = str(empty.site.folder / "nothing-here")
    elsewhere = {"ONEVAULT_VAULT_URL": "", "ONEVAULT_HOME": home}
    bare = replace(empty, environment=empty.environment | elsewhere)
    assert "There is no vault yet: run `onevault collect`" in bare.refused(*words)


def test_a_vault_that_lacks_migrations_says_so(empty: Installed):
    url = empty.site.keeper.url("postgres")
    older = replace(empty, environment=empty.environment | {"ONEVAULT_VAULT_URL": url})
    assert "run `onevault migrate`" in older.refused("status")


def test_a_collector_that_is_gone_is_pointed_out(installed: Installed):
    with vault.connect(installed.site.vault_url) as conn:
        assert store.try_lead(conn, FLEET), "nobody collects now"
        conn.execute("update monitoring.collector set heartbeat_at = heartbeat_at - interval '1 h'")
        conn.execute("update monitoring.metric_latest set sampled_at = sampled_at - interval '1 h'")
    shown = installed.said("status")
    assert "it is gone; `onevault watch`" in shown
    assert re.search(r"^ *shop +unknown ", shown, re.MULTILINE), "an old reading is not up"
