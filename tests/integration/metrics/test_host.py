"""The host of a real server: proven to be ours, and its disks, processors and memory."""

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg import sql

from tasks.accounts import Account, unprivileged_account
from tasks.metrics import catalog, host
from tasks.metrics.host import HostWatch, Place
from tasks.metrics.models import Family, FamilyAnswer, FamilyState, Source
from tasks.metrics.process_usage import process_usage
from tests.clusters import Database, Server

FAMILIES = tuple(f for f in catalog.load().families.values() if f.source is Source.HOST)
DISKS = next(family for family in FAMILIES if "path" in family.labels)


def asked(watch: HostWatch, *, is_up: bool = True) -> dict[str, FamilyAnswer]:
    return {answer.family: answer for answer in watch.answers(FAMILIES, is_up=is_up)}


def own_backend(connection: psycopg.Connection) -> tuple[int, datetime]:
    row = connection.execute(
        "select pid, backend_start from pg_stat_activity where pid = pg_backend_pid()"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def test_the_catalogue_has_families_of_the_host():
    assert len(FAMILIES) >= 3
    assert set(DISKS.labels) == {"path", "purpose"}


def test_our_own_backend_is_known_by_its_start(pg_cluster: Server):
    with pg_cluster.connect() as connection:
        pid, started_at = own_backend(connection)
        assert host.is_own_backend(pid, started_at)
        assert not host.is_own_backend(pid, started_at + timedelta(seconds=30))
        assert not host.is_own_backend(pid, started_at - timedelta(seconds=30))
        # Another program of that age, and nothing at all.
        mine = psutil.Process(os.getpid())
        assert not host.is_own_backend(mine.pid, datetime.fromtimestamp(mine.create_time(), UTC))
        assert not host.is_own_backend(2**22 + 1, started_at)


def test_the_disks_of_the_server_are_read(pg_cluster: Server):
    answers = asked(HostWatch(pg_cluster.conninfo))
    assert {answer.state for answer in answers.values()} == {FamilyState.OK}
    seen = {o.labels["purpose"]: o for o in answers[DISKS.name].observations}
    data = pg_cluster.cluster.data
    assert seen["data"].labels["path"] == str(data)
    assert seen["wal"].labels["path"] == str((data / "pg_wal").resolve())
    found = os.statvfs(data)
    assert seen["data"].numbers["total_bytes"] == found.f_blocks * found.f_frsize
    assert 0 < seen["data"].numbers["used_percent"] <= 100
    assert 0 < seen["data"].numbers["available_bytes"] < seen["data"].numbers["total_bytes"]


def test_wal_on_a_disk_of_its_own_and_tablespaces_are_found(
    other_cluster: Callable[..., Server], short_path: Path
):
    server = other_cluster()
    account = server.cluster.account
    wal, space = owned(short_path / "wal", account), owned(short_path / "wide space ü", account)
    server.cluster.stop()
    move_wal(server.cluster.data / "pg_wal", wal / "pg_wal")
    with server.cluster.running({"listen_addresses": "", "port": str(server.port)}):
        with server.connect() as connection:
            connection.execute(
                sql.SQL("create tablespace odd location {}").format(sql.Literal(str(space)))
            )
        answers = asked(HostWatch(server.conninfo))
    found = {(o.labels["purpose"], o.labels["path"]) for o in answers[DISKS.name].observations}
    assert found == {
        ("data", str(server.cluster.data)),
        ("wal", str(wal / "pg_wal")),
        ("odd", str(space)),
    }


def owned(path: Path, account: Account | None) -> Path:
    path.mkdir()
    if account:
        os.chown(path, account.uid, account.gid)
    return path


def move_wal(old: Path, new: Path) -> None:
    old.rename(new)
    old.symlink_to(new)


def test_the_processors_need_two_readings(pg_cluster: Server):
    watch = HostWatch(pg_cluster.conninfo)
    first = asked(watch)["host_cpu"].observations[0].numbers
    assert "cpu_percent" not in first
    assert first["cpus"] == psutil.cpu_count()
    before = psutil.cpu_times()
    while psutil.cpu_times() == before:
        sum(range(10_000))
    second = asked(watch)["host_cpu"].observations[0].numbers
    assert 0 <= second["cpu_percent"] <= 100


def test_memory_is_read_at_once(pg_cluster: Server):
    numbers = asked(HostWatch(pg_cluster.conninfo))["host_memory"].observations[0].numbers
    assert numbers["memory_total_bytes"] == psutil.virtual_memory().total
    assert 0 < numbers["memory_available_bytes"] <= numbers["memory_total_bytes"]


def test_another_host_is_unknown_and_not_normal(
    pg_cluster: Server, monkeypatch: pytest.MonkeyPatch
):
    # There is one machine: its list of processes is what tells hosts apart.
    monkeypatch.setattr(
        psutil, "Process", lambda pid: (_ for _ in ()).throw(psutil.NoSuchProcess(pid))
    )
    answers = asked(HostWatch(pg_cluster.conninfo))
    assert {answer.state for answer in answers.values()} == {FamilyState.NOT_APPLICABLE}
    assert {answer.message for answer in answers.values()} == {host.ELSEWHERE}
    assert not any(answer.observations for answer in answers.values())


def test_a_server_that_never_answered_is_nowhere(pg_cluster: Server):
    answers = asked(HostWatch(pg_cluster.conninfo), is_up=False)
    assert {answer.state for answer in answers.values()} == {FamilyState.UNAVAILABLE}
    refused = HostWatch(lambda: f"host=127.0.0.1 port={pg_cluster.port} user=ops password=wrong")
    answers = asked(refused)
    assert {answer.state for answer in answers.values()} == {FamilyState.UNAVAILABLE}
    assert all("password authentication failed" in a.message for a in answers.values())


def test_the_disks_are_read_on_while_the_server_is_down(other_cluster: Callable[..., Server]):
    server = other_cluster()
    watch = HostWatch(server.conninfo)
    assert asked(watch)[DISKS.name].state is FamilyState.OK
    server.cluster.stop()
    assert asked(watch, is_up=False)[DISKS.name].state is FamilyState.OK


def test_a_role_without_rights_learns_of_no_path_and_is_told_so(database: Database):
    role = sql.Identifier(f"poor_{database.name}")
    with database.connect() as connection:
        connection.execute(sql.SQL("create role {} login password 'x y'").format(role))
    try:
        conninfo = (
            f"host=127.0.0.1 port={database.server.port} dbname={database.name}"
            f" user=poor_{database.name} password='x y'"
        )
        answers = asked(HostWatch(lambda: conninfo))
    finally:
        with database.connect() as connection:
            connection.execute(sql.SQL("drop role {}").format(role))
    assert answers["host_memory"].state is FamilyState.OK
    assert answers[DISKS.name].state is FamilyState.REFUSED
    assert "pg_read_all_settings" in answers[DISKS.name].message


def test_a_path_that_cannot_be_looked_at_is_absent_and_said(pg_cluster: Server, tmp_path: Path):
    data = str(pg_cluster.cluster.data)
    gone = str(tmp_path / "gone")
    seen, faults = host.read_disks(DISKS, [Place(data, "data"), Place(gone, "wal")])
    assert [each.labels["purpose"] for each in seen] == ["data"]
    assert faults == [f"{gone} cannot be looked at: No such file or directory"]


def test_a_family_with_less_metrics_gets_less(pg_cluster: Server):
    few: Family = replace(DISKS, metrics={"used_percent": DISKS.metrics["used_percent"]})
    seen, faults = host.read_disks(few, [Place(str(pg_cluster.cluster.data), "data")])
    assert [set(each.numbers) for each in seen] == [{"used_percent"}]
    assert faults == []


def test_what_a_backend_used_is_measured(database: Database):
    with database.connect() as connection:
        pid, _ = own_backend(connection)
        before = process_usage(pid)
        assert before is not None
        connection.execute(
            "create table t as select repeat('x', 500) x from generate_series(1, 60000)"
        )
        after = process_usage(pid)
        assert after is not None
        spent = after.since(before)
        assert spent is not None
        assert spent.cpu_seconds > 0
        assert after.rss_bytes > 0
        assert spent.written_bytes is None or spent.written_bytes >= 0
        assert after.private_bytes is None or 0 < after.private_bytes <= after.rss_bytes
        other = process_usage(os.getpid())
        assert other is not None
        assert other.since(before) is None
    assert process_usage(2**22 + 1) is None


@pytest.mark.skipif(unprivileged_account() is not None, reason="root may enter every folder")
def test_a_closed_folder_is_told_apart_from_a_missing_one(tmp_path: Path):
    closed = tmp_path / "closed"
    (closed / "data").mkdir(parents=True)
    closed.chmod(0)
    try:
        _, faults = host.read_disks(DISKS, [Place(str(closed / "data"), "data")])
    finally:
        closed.chmod(stat.S_IRWXU)
    assert faults == [f"{closed / 'data'} cannot be looked at: Permission denied"]
