"""The command line's manners: sentences instead of tracebacks, exit codes, tables that fit, a wipe that asks first."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from deployments import cli, sentences, tables
from deployments.demo import services
from tasks.backup.catalog import CatalogEntry
from tasks.backup.lifecycle import BackupStatus, VerificationStatus
from tasks.backup.live_restore import in_one_transaction, without_present
from tasks.errors import Damaged, OutsideWindow, Refused, Unavailable

AT = datetime(2026, 11, 22, 19, 39, 31, tzinfo=UTC)
NAMES = [f"20261122T193931Z-physical-3a305d7{number}" for number in range(4)]


def run(fault: BaseException, *options: str) -> Result:
    """Run a command that fails in this way."""

    @click.group()
    @click.option("-v", "--verbose", is_flag=True)
    def program(verbose: bool) -> None:
        pass

    @program.command()
    def fail() -> None:
        with sentences.sentences():
            raise fault

    return CliRunner().invoke(program, [*options, "fail"])


# What went wrong, in a sentence.


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Refused("no."), sentences.EXIT_FAILED),
        (OutsideWindow("no."), sentences.EXIT_FAILED),
        (Unavailable("no."), sentences.EXIT_TRY_AGAIN),
        (Damaged("no."), sentences.EXIT_DAMAGED),
    ],
)
def test_each_kind_of_error_has_its_exit_code(fault: Exception, code: int):
    fault.add_note("And this remains.")
    done = run(fault)
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr == "onevault: no.\nAnd this remains.\n"


def test_what_nobody_foresaw_is_a_sentence_too_and_a_traceback_on_request():
    fault = ZeroDivisionError("by zero, password=hunter2")
    plain, verbose = run(fault), run(fault, "--verbose")
    assert plain.exit_code == verbose.exit_code == sentences.EXIT_FAILED
    assert plain.stderr.startswith("onevault: ZeroDivisionError: by zero")
    assert "--verbose" in plain.stderr
    assert plain.stderr.count("\n") == 1
    assert "Traceback (most recent call last)" in verbose.stderr
    assert "hunter2" not in plain.stderr + verbose.stderr


def test_an_interruption_tells_what_remains():
    fault = KeyboardInterrupt()
    fault.add_note('Database "shop" is not whole.')
    done = run(fault)
    assert done.exit_code == sentences.EXIT_FAILED
    assert done.stderr == 'onevault: interrupted\nDatabase "shop" is not whole.\n'


def test_click_keeps_its_own_errors():
    assert run(click.UsageError("so not")).exit_code == sentences.EXIT_USAGE
    assert run(click.Abort()).stderr.strip() == "Aborted!"


def test_a_silent_prefect_is_worth_another_try(tmp_path: Path):
    argv = [sys.executable, "-c", "from deployments.cli import main; main()", "rotate-key"]
    environment = os.environ | {
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "PREFECT_HOME": str(tmp_path),
        "ONEVAULT_HOME": str(tmp_path),
    }
    root = Path(cli.__file__).parents[1]
    done = subprocess.run(
        argv, env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (sentences.EXIT_TRY_AGAIN, "")
    assert done.stderr.startswith("onevault: The Prefect API does not answer")
    assert len(done.stderr.splitlines()) == 1


# The catalog on the terminal.


def entry(backup_id: str, **proofs: bool | None) -> CatalogEntry:
    return CatalogEntry(
        **(_nothing() | {"backup_id": backup_id} | proofs),  # type: ignore[arg-type]
    )


def _nothing() -> dict[str, object]:
    given: dict[str, object] = {
        "backup_status": BackupStatus.VERIFIED,
        "verification_status": VerificationStatus.VERIFIED,
        "server_name": "production-eu-west",
        "database_name": "customers_and_orders",
        "stored_bytes": 123_456_700_000,
        "duration_seconds": 4321.5,
        "restore_seconds": 6543.2,
        "started_at": AT,
    }
    return dict.fromkeys(CatalogEntry.__dataclass_fields__) | given


def drawn(columns: int, entries: list[CatalogEntry], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    drawn = io.StringIO()
    monkeypatch.setattr(tables, "_console", lambda: Console(file=drawn, width=columns))
    tables.show_catalog(entries)
    return [line.strip() for line in drawn.getvalue().splitlines()]


def test_the_catalog_fits_eighty_columns_with_nothing_cut(monkeypatch: pytest.MonkeyPatch):
    entries = [
        entry(
            NAMES[0], checksum_verified=True, restore_test_passed=True, integrity_check_passed=True
        ),
        entry(
            NAMES[1], checksum_verified=True, restore_test_passed=True, integrity_check_passed=False
        ),
        entry(NAMES[2], checksum_verified=True, restore_test_passed=False),
        entry(NAMES[3]),
    ]
    lines = drawn(80, entries, monkeypatch)
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    proven = [next(line for line in lines if line.startswith(name)) for name in NAMES]
    for line, word in zip(proven, [" equal", "NOT equal", "NOT restored", " - "], strict=True):
        assert word in line
        assert line.endswith("6543.2")
        assert "123456.7" in line
    assert any(line.startswith("production-eu-west,") for line in lines)


@pytest.mark.parametrize("columns", [80, 100, 120, 130, 140, 160, 200])
def test_no_terminal_cuts_the_catalog(columns: int, monkeypatch: pytest.MonkeyPatch):
    told = dataclasses.replace(entry(NAMES[0]), error_message="the disk of /srv is full " * 5)
    for entries in ([entry(NAMES[0])], [told]):
        text = "\n".join(drawn(columns, entries, monkeypatch))
        assert "…" not in text
        assert "6543.2" in text


def test_what_went_wrong_stands_below_a_narrow_catalog_and_in_a_wide_one(
    monkeypatch: pytest.MonkeyPatch,
):
    told = dataclasses.replace(entry(NAMES[0]), error_message="the disk [of] /srv is full")
    for columns in (80, 200):
        assert any(
            "the disk [of] /srv is full" in line for line in drawn(columns, [told], monkeypatch)
        )


# The settings.


def test_settings_show_every_variable_and_no_secret(monkeypatch: pytest.MonkeyPatch):
    for name, value in {
        "ONEVAULT_SCRATCH": "/big/disk",
        "ONEVAULT_SERVER_URL": "postgresql://u:hunter2@h/d",
        "ONEVAULT_VAULT_URL": "postgresql://u:hunter2@h/vault",
        "ONEVAULT_STORAGE": "hunter2",
    }.items():
        monkeypatch.setenv(name, value)
    found = {item.name: item for item in tables.settings()}
    assert found["ONEVAULT_SCRATCH"].value == "/big/disk"
    assert found["ONEVAULT_SERVER_URL"].value == "postgresql://u:***@h/d"
    assert found["vault"].source == "ONEVAULT_VAULT_URL"
    assert "misspelt" in found["ONEVAULT_STORAGE"].value
    assert "hunter2" not in json.dumps(tables.plain(found.values()))


# The globals of a server that has some of them.


def test_roles_that_exist_are_left_out_to_the_end_of_each_statement():
    text = b"""CREATE ROLE clerk;
ALTER ROLE clerk WITH LOGIN PASSWORD 'a;
ALTER ROLE auditor';
CREATE ROLE auditor;
ALTER ROLE "the ""boss"" here" SET search_path TO 'x;y', "z;";
CREATE ROLE "the boss";
GRANT auditor TO clerk;
CREATE TABLESPACE fast OWNER clerk LOCATION '/a;b';
CREATE TABLESPACE slow OWNER clerk LOCATION '/c';
"""
    present = {"ROLE": {"clerk", 'the "boss" here'}, "TABLESPACE": {"fast", "auditor"}}
    left, kept = without_present(text, present)
    assert (
        left
        == b"""CREATE ROLE auditor;
CREATE ROLE "the boss";
GRANT auditor TO clerk;
CREATE TABLESPACE slow OWNER clerk LOCATION '/c';
"""
    )
    assert kept == {"ROLE": ["clerk", 'the "boss" here'], "TABLESPACE": ["fast"]}
    assert in_one_transaction(left).index(b"COMMIT") < left.index(b"CREATE TABLESPACE") + 20


# Wiping.


def fill(home: Path) -> None:
    for name in ("store/1/a", "store/1/b", "keys", "logins", "demo", "scratch"):
        (home / name).mkdir(parents=True)
    for name in ("store/1/a/manifest.json", "store/1/b/manifest.json", "keys/k.agekey", ".lock"):
        (home / name).touch()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "home"
    monkeypatch.setenv("ONEVAULT_HOME", str(place))
    monkeypatch.delenv("ONEVAULT_ENV", raising=False)
    fill(place)
    return place


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_nothing_is_wiped_where_data_are_real(
    home: Path, environment: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ONEVAULT_ENV", environment)
    before = sorted(home.rglob("*"))
    done = CliRunner().invoke(cli.cli, ["down", "--wipe"])
    assert done.exit_code == sentences.EXIT_FAILED
    assert environment in done.stderr
    assert sorted(home.rglob("*")) == before


def test_a_wipe_leaves_nothing_behind(home: Path):
    assert "2 backups" in services.loss_by_wiping()
    done = CliRunner().invoke(cli.cli, ["down", "--wipe"])
    assert done.exit_code == 0, done.stderr
    assert not home.exists()
    assert not services.loss_by_wiping()


def test_a_wipe_leaves_what_is_not_ours(home: Path):
    (home / "notes").touch()
    services.down(wipe=True)
    assert sorted(path.name for path in home.iterdir()) == [".lock", "notes"]


def test_down_alone_deletes_nothing(home: Path):
    CliRunner().invoke(cli.cli, ["down"])
    assert (home / "keys" / "k.agekey").exists()


def test_a_wipe_asks_on_a_terminal(home: Path, typed: Callable[[str], int]):
    assert typed("n\n") == sentences.EXIT_FAILED
    assert (home / "keys" / "k.agekey").exists()
    assert typed("y\n") == 0
    assert not home.exists()


@pytest.fixture
def typed(home: Path) -> Callable[[str], int]:
    """Run `onevault down --wipe` on a terminal and type an answer."""

    def run(answer: str) -> int:
        ours, theirs = os.openpty()
        try:
            argv = [
                sys.executable,
                "-c",
                "from deployments.cli import main; main()",
                "down",
                "--wipe",
            ]
            root = Path(cli.__file__).parents[1]
            with subprocess.Popen(
                argv, stdin=theirs, stdout=theirs, stderr=theirs, cwd=root
            ) as program:
                os.write(ours, answer.encode())
                return program.wait(timeout=60)
        finally:
            os.close(ours)
            os.close(theirs)

    return run
