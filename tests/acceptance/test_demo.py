"""The demo, from nothing to a damaged copy that is refused, and away again without a trace."""

import json
import os
import pwd
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.backups import until
from tests.clusters import short_folder

CHECKOUT = Path(__file__).parents[2]
ONEVAULT = Path(sys.executable).with_name("onevault")


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with a home of their own, who starts the program."""

    home: Path
    account: pwd.struct_passwd | None

    def run(self, *words: str, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
        """Run a program as this person, with nothing of our environment."""
        who = self.account
        return subprocess.run(
            words,
            env={"PATH": os.environ["PATH"], "HOME": str(self.home), "LC_ALL": "C.UTF-8"},
            cwd=self.home,
            user=who.pw_uid if who else None,
            group=who.pw_gid if who else None,
            extra_groups=[] if who else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def onevault(self, *words: str, timeout: float = 60) -> str:
        """Run the command line; its exit code must be 0."""
        home = f"ONEVAULT_HOME={self.home / 'onevault'}"
        done = self.run("/usr/bin/env", home, str(ONEVAULT), *words, timeout=timeout)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def processes(self) -> list[str]:
        """List what runs with this person's home in its environment or on its command line."""
        found = []
        for process in psutil.process_iter():
            try:
                told = [*process.cmdline(), *process.environ().values()]
            except psutil.Error:
                continue
            if any(str(self.home) in word for word in told):
                found.append(process.name())
        return found

    def data(self) -> list[str]:
        """List the files in the home, but for the locks, which are empty and stay."""
        files = (path for path in self.home.rglob("*") if path.is_file())
        return sorted(str(path) for path in files if path.stat().st_size)


def _ordinary_user() -> pwd.struct_passwd:
    if os.geteuid() != 0:
        pytest.skip("the tests run as an ordinary user already")
    account = pwd.getpwnam("nobody")
    probe = Person(Path("/"), account).run
    try:
        allowed = probe(sys.executable, "-c", f"open({str(CHECKOUT / 'prefect.yaml')!r})")
    except PermissionError:
        pytest.skip(f"{account.pw_name} may not execute {sys.executable}")
    if allowed.returncode != 0:
        pytest.skip(f"{account.pw_name} may not read {CHECKOUT} or what {sys.executable} needs")
    return account


@pytest.fixture(params=["we ourselves", "an ordinary user"])
def person(request: pytest.FixtureRequest) -> Iterator[Person]:
    account = _ordinary_user() if request.param == "an ordinary user" else None
    with short_folder() as folder:
        home = folder / "home"
        home.mkdir(0o711 if account is None else 0o700)
        if account:
            os.chown(home, account.pw_uid, account.pw_gid)
        someone = Person(home, account)
        try:
            yield someone
        finally:
            someone.onevault("down", "--wipe")


def _get(url: str, body: bytes | None = None) -> str:
    wanted = {"Accept": "text/html, application/json", "Content-Type": "application/json"}
    asked = urllib.request.Request(url, body, wanted)  # noqa: S310 - our own
    with urllib.request.urlopen(asked, timeout=20) as answer:  # noqa: S310
        assert answer.status == 200
        return str(answer.read().decode())


def _check_alerts(shown: str) -> None:
    begun, _, ended = shown.partition("ended both")
    for rule in ("blocked_sessions", "archive_failing"):
        assert re.search(rf"^ *{rule} fires after \d+ s: ", begun, re.MULTILINE), rule
        assert re.search(rf"^ *{rule} is resolved after \d+ s", ended, re.MULTILINE), rule
    assert "UPDATE pgbench_branches" in ended


def _check_monitoring(person: Person) -> None:
    status = json.loads(person.onevault("status", "demo", "--json"))
    assert [(row["server"], row["is_up"]) for row in status["fleet"]] == [("demo", True)]
    assert {alert["rule"] for alert in status["alerts"]}.isdisjoint(
        {"blocked_sessions", "archive_failing"}
    )
    assert "availability.up" in {row["metric"] for row in status["health"]}
    assert "UPDATE" in person.onevault("top", "demo")
    assert "CRITICAL" in person.onevault("alerts", "--history")


@pytest.mark.timeout(500)
def test_the_demo_proves_two_backups_catches_damage_and_leaves_nothing(person: Person):
    shown = person.onevault("demo", "--scale", "1", timeout=360)

    catalog = re.findall(
        r"^ *(\S+-(?:logical|physical)-\w{8}) .* VERIFIED +yes +yes +yes", shown, re.MULTILINE
    )
    assert [name.split("-")[1] for name in catalog] == ["physical", "logical"]
    assert re.search(r"bit flipped at byte [\d,]+: refused, .* is damaged in part 1", shown)
    assert re.search(r"manifest edited: refused, The signature .* is wrong", shown)
    _check_alerts(shown)
    assert str(person.home / "onevault" / "keys") in shown
    assert str(person.home / "onevault" / "store") in shown
    _check_monitoring(person)
    listed = json.loads(person.onevault("backups", "--json"))
    assert {entry["backup_id"] for entry in listed} == set(catalog)

    address = re.search(r"http://127\.0\.0\.1:\d+", shown)
    assert address
    for page in re.findall(rf"{address[0]}/\w+", shown):
        assert "<!doctype html>" in _get(page).lower()
    assert _get(f"{address[0]}/api/health") == "true"
    assert address[0] in _get(f"{address[0]}/ui-settings")
    assert "postgres" in person.processes()
    workers = f"{address[0]}/api/work_pools/onevault/workers/filter"
    until(lambda: '"status":"ONLINE"' in _get(workers, b"{}"), 30)

    stopped = person.onevault("down", "--wipe")
    assert "stopped the collector" in stopped
    assert "stopped the Prefect server" in stopped
    until(lambda: person.processes() == [], 10)
    assert person.data() == []
    assert person.onevault("down").strip() == "nothing was running"
