import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from deployments.doctor import Check, State, diagnose, render, worst

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quiet_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEVAULT_HOME", str(tmp_path))
    for name in ("ONEVAULT_ENV", "ONEVAULT_PG_BIN", "ONEVAULT_SCRATCH", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)


def about(subject: str) -> Check:
    (check,) = [check for check in diagnose() if check.subject == subject]
    return check


class Api(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_every_part_is_looked_at_and_nothing_fails_here():
    checks = diagnose()
    subjects = " ".join(check.subject for check in checks)
    for part in ("Python", "environment", "account", "PostgreSQL", "client tools for PostgreSQL 15",
                 "home directory", "scratch space", "embedded PostgreSQL", "Prefect", "Prefect API"):  # fmt: skip
        assert part in subjects
    assert [check for check in checks if check.state is State.FAIL] == []
    assert all(check.advice for check in checks if check.state is not State.OK)


def test_an_unknown_environment_fails_with_the_names_that_are_known(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("ONEVAULT_ENV", "prod")
    check = about("environment")
    assert check.state is State.FAIL
    assert check.advice == "set ONEVAULT_ENV to development, staging or production"


def test_a_broken_installation_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "postgres").write_text("#!/bin/sh\necho 'no such library' >&2; exit 1\n")
    for name in ("postgres", "initdb", "pg_ctl"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("ONEVAULT_PG_BIN", str(tmp_path))
    check = about(f"PostgreSQL in {tmp_path}")
    assert check.state is State.WARN
    assert "no such library" in check.found


def test_without_any_postgresql_it_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tasks.programs._candidates", lambda *_: iter(()))
    monkeypatch.setenv("ONEVAULT_PG_BIN", "nothing here")
    assert about("PostgreSQL server programs").state is State.FAIL


def test_left_over_scratch_folders_are_told_and_not_touched(tmp_path: Path):
    left_over = tmp_path / "scratch" / "scratch-crashed"
    left_over.mkdir(parents=True)
    assert "1 left by a crash" in about("scratch folders").found
    assert left_over.exists()


def test_the_prefect_api_is_asked(api: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PREFECT_API_URL", f"http://user:hidden@{api}/api/")
    check = about("Prefect API")
    assert (check.state, check.found) == (State.OK, f"http://user:***@{api}/api/ answers")
    monkeypatch.setenv("PREFECT_API_URL", f"http://{api}/other")
    assert about("Prefect API").state is State.WARN


@pytest.mark.parametrize("url", ["http://u:hidden@127.0.0.1:9/api", "ftp://x/api", "nonsense"])
def test_an_api_that_does_not_answer_fails_and_hides_the_password(
    url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PREFECT_API_URL", url)
    check = about("Prefect API")
    assert check.state is State.FAIL
    assert "hidden" not in repr(check)


def test_the_table_shows_states_and_takes_brackets_as_they_are():
    checks = [Check("a", State.OK, "[b]"), Check("c", State.FAIL, "d", "do [this]")]
    console = Console(width=100)
    with console.capture() as capture:
        console.print(render(checks))
    shown = capture.get()
    for text in ("OK", "FAIL", "[b]", "do [this]"):
        assert text in shown
    assert worst(checks) is State.FAIL
    assert worst([]) is State.OK


def test_looking_needs_no_prefect():
    script = "import sys, deployments.doctor as d; d.diagnose(); print('prefect' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, check=True)
    assert shown.stdout.strip() == b"False"


def test_the_alert_rules_are_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("ONEVAULT_ENV", "development")
    assert about("alert rules").state is State.OK
    own = tmp_path / "rules.yaml"
    own.write_text("overrides: [{rules: no_such_rule, disable: true}]")
    monkeypatch.setenv("ONEVAULT_RULES", str(own))
    check = about("alert rules")
    assert check.state is State.FAIL
    assert "no_such_rule" in check.advice
