import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import psycopg
import pytest

from tasks.errors import Refused
from tasks.folders import make_folder
from tasks.postmaster import find_postmaster, stop_postmaster
from tasks.private_cluster import ClusterDidNotStart, PrivateCluster
from tasks.processes import TimedOut, death_signal_tool, run
from tasks.programs import Installation
from tasks.scratch import scratch_folder, sweep
from tests.clusters import make_cluster

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster(installation: Installation, short_path: Path, empty_data: Path) -> PrivateCluster:
    return make_cluster(short_path / "cluster", installation, empty_data)


def value(cluster: PrivateCluster, setting: str) -> str:
    with psycopg.connect(cluster.conninfo()) as connection:
        row = connection.execute("select current_setting(%s)", [setting]).fetchone()
    assert row is not None
    return str(row[0])


def wait_for(condition, seconds: float = 20):
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.02)
    return answer


def test_a_scratch_cluster_answers_to_us_without_a_password_and_to_nobody_else(
    cluster: PrivateCluster,
):
    with cluster.running():
        with psycopg.connect(cluster.conninfo()) as connection:
            row = connection.execute(
                "select current_user, rolsuper, current_setting('server_version_num')::int / 10000"
                " from pg_roles where rolname = current_user"
            ).fetchone()
            connection.execute("create role other login")
        assert row == ("ops", True, cluster.installation.major)
        assert value(cluster, "listen_addresses") == ""
        assert value(cluster, "fsync") == "off"
        assert value(cluster, "data_checksums") == "on"
        assert value(cluster, "hba_file") == str(cluster.conf / "pg_hba.conf")
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(cluster.conninfo(user="other"))
    assert cluster.socket_dir.stat().st_mode & 0o777 == 0o700
    assert cluster.data.stat().st_mode & 0o777 == 0o700
    assert cluster.log_path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs everything itself")
def test_root_gives_the_data_away_and_keeps_the_rest(cluster: PrivateCluster):
    assert cluster.account is not None
    assert cluster.data.stat().st_uid == cluster.account.uid
    assert cluster.directory.stat().st_uid == cluster.conf.stat().st_uid == 0
    with cluster.running():
        assert cluster.process is not None
        assert psutil.Process(cluster.process.pid).uids().real == cluster.account.uid


def test_settings_win_over_ours_and_the_cluster_starts_again(cluster: PrivateCluster):
    with cluster.running({"wal_level": "logical", "max_wal_senders": "3", "port": "6543"}):
        assert value(cluster, "wal_level") == "logical"
        with psycopg.connect(cluster.conninfo()) as connection:
            connection.execute("create table kept as select 1")
    with cluster.running(), psycopg.connect(cluster.conninfo()) as connection:
        assert connection.execute("table kept").fetchone() == (1,)


def test_initdb_takes_arguments_and_can_leave_checksums_out(
    installation: Installation, short_path: Path
):
    made = PrivateCluster(short_path / "cluster", installation, superuser="postgres")
    made.create(checksums=False, arguments=["--wal-segsize=1"])
    with made.running():
        assert value(made, "data_checksums") == "off"
        assert value(made, "wal_segment_size") == "1MB"


def test_a_failed_initdb_leaves_no_data_folder(installation: Installation, short_path: Path):
    made = PrivateCluster(short_path / "cluster", installation)
    with pytest.raises(Exception, match="initdb failed"):
        made.create(arguments=["--wal-segsize=3"])
    assert not made.data.exists()
    made.create()
    assert made.data.is_dir()
    assert not list(made.directory.glob(".initdb-*"))


def test_a_wrong_setting_is_told_in_postgresqls_words_and_nothing_runs(cluster: PrivateCluster):
    with cluster.running():
        pass
    with pytest.raises(ClusterDidNotStart, match='"shared_buffers": "many"') as caught:
        cluster.start({"shared_buffers": "many"})
    assert "shut down" not in str(caught.value)
    assert cluster.process is None
    assert find_postmaster(cluster.data / "postmaster.pid") is None


def test_a_start_that_takes_too_long_is_ended(cluster: PrivateCluster):
    # It waits for a WAL segment that never comes.
    (cluster.data / "recovery.signal").touch()
    with pytest.raises(TimedOut, match="within 1 s"):
        cluster.start({"restore_command": "sleep 60; false"}, ready_seconds=1)
    wait_for(lambda: find_postmaster(cluster.data / "postmaster.pid") is None)


def test_what_a_data_folder_brings_along_does_no_harm(
    cluster: PrivateCluster, installation: Installation
):
    (cluster.data / "postgresql.auto.conf").write_text(
        "shared_preload_libraries = 'not_here'\n"
        "synchronous_standby_names = 'nobody'\n"
        "archive_mode = on\n"
        "archive_command = 'false'\n"
        "listen_addresses = '*'\n"
        "ssl = on\n"
        "logging_collector = on\n"
        "work_mem = 'as of another build'\n"
    )
    (cluster.data / "pg_hba.conf").write_text("local all all reject\n")
    (cluster.data / "postgresql.conf").write_text("this is no setting\n")
    adopted = PrivateCluster(cluster.directory, installation, superuser="ops")
    adopted.adopt()
    with adopted.running():
        assert value(adopted, "listen_addresses") == ""
        with psycopg.connect(adopted.conninfo()) as connection:
            connection.execute("create table written as select 1")
    assert "another build" in (cluster.directory / "postgresql.auto.conf").read_text()
    assert (cluster.data / "postgresql.conf").read_text() == "this is no setting\n"


def test_prepared_transactions_of_the_origin_survive_adoption(
    cluster: PrivateCluster, installation: Installation
):
    with (
        cluster.running({"max_prepared_transactions": "7"}),
        psycopg.connect(cluster.conninfo(), autocommit=True) as connection,
    ):
        connection.execute("begin; create table t(); prepare transaction 'open'")
    adopted = PrivateCluster(cluster.directory, installation, superuser="ops")
    adopted.adopt()
    with adopted.running():
        assert value(adopted, "max_prepared_transactions") == "7"
        with psycopg.connect(adopted.conninfo()) as connection:
            assert connection.execute("select gid from pg_prepared_xacts").fetchall() == [("open",)]


def test_only_a_data_folder_of_this_major_is_adopted(installation: Installation, short_path: Path):
    cluster = PrivateCluster(short_path, installation)
    cluster.data.mkdir()
    with pytest.raises(Refused, match="no PG_VERSION"):
        cluster.adopt()
    (cluster.data / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(Refused, match=r"is of PostgreSQL 9\.6"):
        cluster.adopt()


def test_a_long_path_gets_a_short_socket_that_is_removed(
    installation: Installation, short_path: Path
):
    cluster = PrivateCluster(short_path / ("long-" * 20) / "cluster", installation)
    make_folder(cluster.directory.parent, 0o711)
    cluster.create()
    with cluster.running():
        assert not cluster.socket_dir.is_relative_to(short_path)
        assert value(cluster, "unix_socket_directories") == str(cluster.socket_dir)
    cluster.remove()
    assert not cluster.socket_dir.exists()
    assert not cluster.directory.exists()


def test_stopping_is_immediate_when_the_block_fails_and_harmless_twice(cluster: PrivateCluster):
    with pytest.raises(KeyboardInterrupt), cluster.running():
        raise KeyboardInterrupt
    assert "immediate shutdown" in cluster.log_path.read_text()
    cluster.stop()


def test_a_backend_at_work_does_not_delay_the_stop(cluster: PrivateCluster):
    with cluster.running(), psycopg.connect(cluster.conninfo()) as connection:
        connection.execute("begin; create table t()")
        started = time.monotonic()
        cluster.stop()
        assert time.monotonic() - started < 10
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")


OWNER = """
    import sys, threading
    from pathlib import Path
    from tasks.private_cluster import PrivateCluster
    from tasks.programs import server_programs
    from tasks.scratch import scratch_folder

    with scratch_folder(Path(sys.argv[1])) as folder:
        cluster = PrivateCluster(folder, server_programs(int(sys.argv[2])))
        cluster.create()
        cluster.start()
        (folder / "ready").touch()
        threading.Event().wait(300)
"""


@pytest.fixture
def killed_owner(short_path: Path, pg_major: int) -> Path:
    """A scratch folder with a running cluster, whose owner has just been killed."""
    argv = [sys.executable, "-c", textwrap.dedent(OWNER), str(short_path), str(pg_major)]
    with subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(ROOT)}) as owner:
        try:
            (ready,) = wait_for(lambda: list(short_path.glob("*/ready")))
            folder: Path = ready.parent
            assert find_postmaster(folder / "data" / "postmaster.pid") is not None
            assert sweep(short_path) == []
        finally:
            owner.send_signal(signal.SIGKILL)
    return folder


@pytest.mark.skipif(death_signal_tool() is None, reason="no setpriv --pdeathsig here")
def test_a_postmaster_ends_with_its_killed_owner(killed_owner: Path):
    wait_for(lambda: find_postmaster(killed_owner / "data" / "postmaster.pid") is None)


def test_the_next_sweep_removes_what_a_killed_owner_left(killed_owner: Path):
    assert sweep(killed_owner.parent) == [killed_owner]
    assert not killed_owner.exists()


def test_the_sweep_stops_a_postmaster_that_outlived_its_owner(
    installation: Installation, short_path: Path, empty_data: Path
):
    # As on a system without death signals: the owner is gone, and its lock with it.
    with scratch_folder(short_path) as owned:
        left_behind = owned.with_name("scratch-left")
        owned.rename(left_behind)
    moved = make_cluster(left_behind / "cluster", installation, empty_data)
    moved.start()
    assert moved.process is not None
    assert sweep(short_path) == [left_behind]
    assert moved.process.wait(5) is not None
    moved.stop()


def test_a_foreign_process_with_the_same_number_is_not_taken_for_the_postmaster(tmp_path: Path):
    pid_file = tmp_path / "cluster" / "data" / "postmaster.pid"
    pid_file.parent.mkdir(parents=True)
    pid_file.write_text(f"{os.getpid()}\n")
    assert not stop_postmaster(pid_file)
    pid_file.write_text("nonsense")
    assert not stop_postmaster(pid_file)


def test_client_programs_log_in_as_us_and_as_the_account(cluster: PrivateCluster):
    with cluster.running():
        for account in {None, cluster.account}:
            tool = cluster.installation.program("pg_dump")
            argv: list[str | Path] = [tool, "-d", cluster.conninfo()]
            assert "PostgreSQL database dump" in run(argv, timeout_seconds=20, account=account).text


def test_a_folder_that_somebody_named_keeps_its_mode(short_path: Path):
    named = short_path / "named"
    named.mkdir()
    named.chmod(0o1777)
    with scratch_folder(named):
        assert named.stat().st_mode & 0o7777 == 0o1777
