"""The backup flow as Prefect and the vault see it: its states, its artifacts, its refusals."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import State
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from blocks.postgres import PostgresServer
from flows import backup as flows
from tasks.backup import preflight, rehearsal
from tasks.backup import tasks as work
from tasks.backup.lifecycle import BackupStatus, VerificationStatus
from tasks.backup.models import Outcome
from tasks.backup.options import BackupOptions
from tasks.errors import OneVaultError, Refused, Unavailable
from tasks.programs import Installation
from tests.backups import FlowSite, InThread, flow_site, programs_of, sessions, until
from tests.clusters import PASSWORD

MARKER = "hunter2-marker"


@pytest.fixture(scope="module")
def shared_site(installation: Installation) -> Iterator[FlowSite]:
    with flow_site(installation) as made:
        save_server(made.server, made.source.url("shop"))
        yield made


@pytest.fixture
def site(shared_site: FlowSite, monkeypatch: pytest.MonkeyPatch) -> FlowSite:
    for name, value in shared_site.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ONEVAULT_SCRATCH", raising=False)
    patience(monkeypatch)
    shared_site.clear()
    return shared_site


def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once; everything else about the retries stays."""
    for name in ("check_preconditions", "take_backup", "reread_backup", "record_proof"):
        task = getattr(work, name)
        monkeypatch.setattr(work, name, task.with_options(retry_delay_seconds=0.01))


def save_server(name: str, url: str, **changes: Any) -> None:
    block = PostgresServer.from_conninfo(url)
    block.model_copy(update=changes).save(name, overwrite=True)


def run(
    site: FlowSite, kind: str = "logical", server: str | None = None, **options: Any
) -> "State[Any]":
    database = options.pop("database", None)
    chosen = BackupOptions(**(site.options | options))
    flow: Any = flows.backup_and_verify
    state: State[Any] = flow(server or site.server, kind, database, chosen, return_state=True)
    return state


def check_nothing_is_left(site: FlowSite) -> None:
    assert not [key for key in site.stored() if ".partial-" in key]
    assert {key.split("/")[1] for key in site.stored()} == site.committed()
    assert [path.name for path in site.scratch.glob("*") if path.name != ".lock"] == []
    assert programs_of(site.source.port) == []
    until(lambda: not sessions(site.source, "onevault|pg_dump"), 10)
    assert not {entry.backup_status for entry in site.entries()} & {
        BackupStatus.PENDING,
        BackupStatus.RUNNING,
    }


def flow_run_id(state: "State[Any]") -> UUID:
    assert state.state_details.flow_run_id is not None
    return state.state_details.flow_run_id


def artifacts_of(state: "State[Any]") -> dict[str, list[Any]]:
    run_filter = ArtifactFilterFlowRunId(any_=[flow_run_id(state)])
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=run_filter))
    by_type: dict[str, list[Any]] = {}
    for artifact in found:
        by_type.setdefault(str(artifact.type), []).append(artifact)
    return by_type


@pytest.mark.parametrize("kind", ["logical", "physical"])
def test_a_good_run_is_completed_shown_and_written_down(site: FlowSite, kind: str):
    state = run(site, kind)
    assert state.is_completed(), state.message
    report = state.result()
    assert report.outcome is Outcome.PASS
    assert {name: rung.outcome for name, rung in report.rungs.items()} == dict.fromkeys(
        ("re-read", "restore", "comparison", "structure"), Outcome.PASS
    )
    entry = site.entries()[0]
    assert (entry.backup_id, entry.backup_status, entry.verification_status) == (
        report.backup_id,
        BackupStatus.VERIFIED,
        VerificationStatus.VERIFIED,
    )
    assert entry.prefect_flow_run_id == flow_run_id(state)
    assert (entry.restore_seconds or 0) > 0
    assert site.committed() == {report.backup_id}
    check_audit(site.audit(report.backup_id))
    check_artifacts(artifacts_of(state), report)
    check_nothing_is_left(site)


def check_audit(rows: list[tuple[str, str, str]]) -> None:
    assert [row for row in rows if row[0] == "backup"] == [
        ("backup", "BEFORE", "INTENDED"),
        ("backup", "BEFORE", "STARTED"),
        ("backup", "AFTER", "SUCCEEDED"),
    ]
    checked = [row[1:] for row in rows if row[0] == "backup.verify"]
    assert checked == [("BEFORE", "STARTED"), ("AFTER", "SUCCEEDED")]


def check_artifacts(found: dict[str, list[Any]], report: Any) -> None:
    (certificate,) = found["markdown"]
    assert certificate.data.startswith("# ✅ PASS")
    assert report.backup_id in certificate.data
    (table,) = found["table"]
    rows = json.loads(table.data)
    item = next(row for row in rows if row["table"] == "public.item")
    assert (item["rows in source"], item["rows restored"], item["content"]) == (1000, 1000, "equal")
    assert {artifact.data for artifact in found["progress"]} == {100.0}
    assert len(found["progress"]) == 3


def test_a_run_without_a_restore_is_completed_and_not_verified(site: FlowSite):
    state = run(site, verify=False)
    # Development demands verification; what a profile demands cannot be switched off.
    assert state.is_failed()
    assert "Verification of backups is off. Turn it on" in (state.message or "")
    assert site.stored() == []


@contextmanager
def api_logs() -> Iterator[None]:
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: True}):
        yield
        APILogWorker.drain_all()


def everything_the_api_knows(state: "State[Any]") -> str:
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(flow_run_id(state))
        states = client.read_flow_run_states(flow_run.id)
        logs = client.read_logs(
            LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run.id])), limit=200
        )
    texts = [flow_run.model_dump_json(), *(each.model_dump_json() for each in states)]
    assert len(logs) > 0
    return "\n".join([*texts, *(log.message for log in logs)])


def wrong_host(url: str) -> str:
    return url.replace("127.0.0.1", "no-such-host.invalid")


def wrong_password(url: str) -> str:
    return url.partition("://ops:")[0] + f"://ops:{MARKER}@" + url.rpartition("@")[2]


def missing_database(url: str) -> str:
    return url.replace("/shop", "/absent")


def closed_port(url: str) -> str:
    return url.replace(f":{conninfo_to_dict(url)['port']}/", ":9/")


WRONG: dict[str, tuple[Callable[[str], str], str, int]] = {
    "wrong host": (wrong_host, "Could not connect to PostgreSQL at no-such-host.invalid port ", 3),
    "closed port": (
        closed_port,
        "Check that the server runs and can be reached, then try again.",
        3,
    ),
    "wrong password": (wrong_password, 'password authentication failed for user "ops"', 1),
    "missing database": (missing_database, 'database "absent" does not exist', 1),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_server_that_cannot_be_reached_is_one_sentence(
    site: FlowSite, monkeypatch: pytest.MonkeyPatch, name: str
):
    change, said, attempts = WRONG[name]
    save_server("wrong", change(site.source.url("shop")))
    counted = count(monkeypatch)
    before = len(site.entries())
    with api_logs():
        state = run(site, server="wrong")
    assert state.is_failed()
    sentence = state.message or ""
    assert said in sentence
    assert len(sentence.splitlines()) == 1
    assert len(counted) == attempts
    known = everything_the_api_knows(state)
    for secret in (MARKER, PASSWORD):
        assert secret not in known
    assert "Traceback" not in sentence
    assert len(site.entries()) == before
    check_nothing_is_left(site)


def count(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Count the attempts that reach the preflight."""
    attempts: list[None] = []
    check = preflight.check

    def counted(*arguments: Any) -> Any:
        attempts.append(None)
        return check(*arguments)

    monkeypatch.setattr(preflight, "check", counted)
    return attempts


def test_the_password_is_nowhere_after_a_good_run(site: FlowSite):
    with site.source.connect() as connection:
        connection.execute(
            sql.SQL("create role secretive superuser login password {}").format(sql.Literal(MARKER))
        )
    try:
        save_server("secretive", wrong_password(site.source.url("shop")), user="secretive")
        with api_logs():
            state = run(site, server="secretive")
        assert state.is_completed(), state.message
        assert MARKER not in everything_the_api_knows(state)
        shown = [artifact.data for found in artifacts_of(state).values() for artifact in found]
        assert MARKER not in json.dumps(shown)
        for path in site.store.rglob("*"):
            assert not path.is_file() or MARKER.encode() not in path.read_bytes()
        # Only the encrypted globals hold the hash of it, and no file of ours holds it in clear.
        assert list((site.folder / "home").rglob("pgpass")) == []
    finally:
        with site.source.connect() as connection:
            connection.execute("drop role secretive")


def test_an_unknown_server_says_what_to_do(site: FlowSite):
    state = run(site, server="nobody")
    assert state.is_failed()
    assert "There is no server block named 'nobody': `onevault config` lists" in (
        state.message or ""
    )


def test_callers_in_python_get_the_exception(site: FlowSite):
    with pytest.raises(Refused, match="There is no server block named 'nobody'"):
        flows.backup_and_verify("nobody", "logical", None, BackupOptions(**site.options))


def test_outside_its_window_a_run_is_skipped_and_says_when_it_may(site: FlowSite):
    other_day = datetime.now(UTC) + timedelta(days=3)
    window = f"{other_day:%a} 01:00-02:00 UTC"
    before = len(site.entries())
    state = run(site, window=window)
    assert (state.type.value, state.name) == ("COMPLETED", "Skipped")
    assert f"it opens at {other_day:%Y-%m-%d} 01:00 UTC. Nothing was done." in (state.message or "")
    assert site.stored() == []
    assert len(site.entries()) == before


def test_a_second_run_is_refused_and_hears_of_the_first(site: FlowSite):
    with site.source.connect("shop") as other:
        other.execute("begin")
        other.execute("lock table locked")
        first = InThread(lambda: run(site))
        until(lambda: programs_of(site.source.port))
        running = until(lambda: [e for e in site.entries() if e.backup_status == "RUNNING"])
        second = run(site)
        other.execute("rollback")
    assert second.is_failed()
    sentence = second.message or ""
    assert (
        f"Another backup of server {site.server} is running ({running[0].backup_id}, " in sentence
    )
    assert sentence.endswith("wait until it ends, or cancel it.")
    until(first.done, 60)
    assert [entry.backup_status for entry in site.entries()[:1]] == [BackupStatus.VERIFIED]
    assert site.committed() == {running[0].backup_id}
    check_nothing_is_left(site)


def test_a_lock_that_goes_away_is_waited_for_by_trying_again(
    site: FlowSite, monkeypatch: pytest.MonkeyPatch
):
    before = len(site.entries())
    with site.source.connect("shop") as other:
        other.execute("begin")
        other.execute("lock table locked")
        first = InThread(lambda: run(site, lock_wait_seconds=1))
        until(lambda: [entry for entry in site.entries_since(before) if entry.error_code])
        other.execute("rollback")
    until(first.done, 60)
    failed, good = (
        [entry for entry in site.entries_since(before) if entry.backup_status is status]
        for status in (BackupStatus.FAILED, BackupStatus.VERIFIED)
    )
    assert len(good) == 1
    assert 1 <= len(failed) <= 2
    assert site.committed() == {good[0].backup_id}
    check_nothing_is_left(site)


def test_after_three_attempts_a_lock_is_a_failure_that_names_it(site: FlowSite):
    before = len(site.entries())
    with site.source.connect("shop") as other:
        other.execute("begin")
        other.execute("lock table locked")
        state = run(site, lock_wait_seconds=1)
    assert state.is_failed()
    assert "waited 1 s for a lock on " in (state.message or "")
    new = site.entries_since(before)
    assert [entry.backup_status for entry in new] == [BackupStatus.FAILED] * 3
    assert {entry.error_code for entry in new} == {"UNAVAILABLE"}
    assert site.stored() == []
    check_nothing_is_left(site)


def test_a_time_limit_kills_pg_dump_and_is_not_tried_again(site: FlowSite):
    before = len(site.entries())
    with site.source.connect("shop") as other:
        other.execute("begin")
        other.execute("lock table locked")
        started = monotonic()
        state = run(site, timeout_seconds=6)
        assert monotonic() - started < 30
        assert programs_of(site.source.port) == []
        until(lambda: not sessions(site.source, "onevault|pg_dump"), 5)
    assert state.is_failed()
    assert "did not finish within 6 s and was stopped" in (state.message or "")
    assert len(site.entries()) == before + 1
    assert site.stored() == []
    check_nothing_is_left(site)


def test_a_copy_that_does_not_compare_equal_fails_and_says_so(
    site: FlowSite, monkeypatch: pytest.MonkeyPatch
):
    """Somebody who changes the restored copy stands for a restore that went wrong."""
    compare = rehearsal.compare_with_source

    def after_damage(backup: Any, server: Any, plan: Any) -> Any:
        with server.connect() as connection:
            connection.execute("delete from item where id = 7")
        return compare(backup, server, plan)

    monkeypatch.setattr(rehearsal, "compare_with_source", after_damage)
    state = run(site)
    assert state.is_failed()
    assert "is NOT proven: " in (state.message or "")
    assert "table public.item has 999 rows instead of 1,000" in (state.message or "")
    entry = site.entries()[0]
    assert (entry.backup_status, entry.verification_status) == (
        BackupStatus.FAILED,
        VerificationStatus.FAILED,
    )
    found = artifacts_of(state)
    assert found["markdown"][0].data.startswith("# ❌ FAIL")
    assert "DIFFERENT" in found["table"][0].data
    assert ("backup.verify", "AFTER", "FAILED") in site.audit(entry.backup_id)
    check_nothing_is_left(site)


def test_a_vault_that_is_away_stops_the_run_before_it_begins(
    site: FlowSite, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ONEVAULT_VAULT_URL", closed_port(site.vault_url))
    state = run(site)
    assert state.is_failed()
    assert isinstance(state.result(raise_on_failure=False), Unavailable)
    assert "port 9" in (state.message or "")
    assert site.stored() == []


def test_a_stored_backup_is_proven_again(site: FlowSite):
    report = run(site).result()
    chosen = BackupOptions(**site.options)
    again = flows.verify_backup(report.backup_id, True, chosen)
    assert again.outcome is Outcome.PASS
    with pytest.raises(OneVaultError, match="no backup 20200101T000000Z-logical-00000000 in"):
        flows.verify_backup("20200101T000000Z-logical-00000000", True, chosen)
    check_nothing_is_left(site)
