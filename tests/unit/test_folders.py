import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.errors import Refused
from tasks.folders import locked, make_folder, remove_tree, try_lock
from tasks.home import home, make_home
from tasks.scratch import abandoned, scratch_folder, sweep
from tasks.server_log import complaints, tail_of


def test_a_folder_gets_its_mode_whatever_the_umask(tmp_path: Path):
    before = os.umask(0o077)
    try:
        assert make_folder(tmp_path / "a" / "b", 0o711).stat().st_mode & 0o777 == 0o711
    finally:
        os.umask(before)


def test_removing_opens_what_was_closed_and_is_harmless_the_second_time(tmp_path: Path):
    inner = tmp_path / "tree" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").touch()
    (tmp_path / "outside").mkdir()
    (inner / "link").symlink_to(tmp_path / "outside")
    inner.chmod(0)
    remove_tree(tmp_path / "tree")
    remove_tree(tmp_path / "tree")
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]


def test_a_lock_is_held_by_one(tmp_path: Path):
    with locked(tmp_path / "lock"):
        assert try_lock(tmp_path / "lock") is None
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    lock.close()


def test_a_scratch_folder_is_gone_after_its_block_also_when_that_fails(tmp_path: Path):
    folders = []

    def fail_inside() -> None:
        with scratch_folder(tmp_path) as folder:
            folders.append(folder)
            (folder / "file").touch()
            assert abandoned(tmp_path) == []
            assert sweep(tmp_path) == []
            assert folder.stat().st_mode & 0o777 == 0o711
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert not folders[0].exists()


def test_the_sweep_takes_what_has_no_owner_and_nothing_else(tmp_path: Path):
    left_over = tmp_path / "scratch-of-a-crash"
    (left_over / "data").mkdir(parents=True)
    (tmp_path / "something-else").mkdir()
    with scratch_folder(tmp_path) as owned:
        assert abandoned(tmp_path) == [left_over]
        assert sweep(tmp_path) == [left_over]
        assert owned.exists()
    assert sweep(tmp_path) == []
    assert (tmp_path / "something-else").exists()
    assert sweep(tmp_path / "absent") == []


def test_a_scratch_place_that_cannot_be_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(Refused, match="No scratch folder can be made"),
        scratch_folder(tmp_path / "file"),
    ):
        pass


def test_the_home_is_configured_or_follows_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("ONEVAULT_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert home() == tmp_path / "onevault"
    assert make_home().stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert home() == Path("/var/lib/onevault")
    monkeypatch.setenv("ONEVAULT_HOME", str(tmp_path / "mine"))
    assert home() == tmp_path / "mine"


def test_a_home_that_cannot_be_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ONEVAULT_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(Refused, match="set ONEVAULT_HOME"):
        make_home()


def test_a_log_is_quoted_from_where_the_start_began(tmp_path: Path):
    log = tmp_path / "log"
    assert tail_of(log) == []
    assert complaints(log) == "it said nothing"
    log.write_text("FATAL:  an old story\n")
    before = log.stat().st_size
    log.write_text(
        log.read_text() + "LOG:  starting\nFATAL:  password=secret is wrong\nLOG:  bye\n"
    )
    assert complaints(log, after_bytes=before) == "FATAL:  password=*** is wrong"
    assert tail_of(log, lines=1) == ["LOG:  bye"]


def test_a_sweep_never_meets_a_folder_that_is_being_made_or_removed(tmp_path: Path):
    done = threading.Event()
    taken: list[Path] = []

    def sweep_on() -> None:
        while not done.is_set():
            taken.extend(sweep(tmp_path))

    with ThreadPoolExecutor(2) as pool:
        sweepers = [pool.submit(sweep_on) for _ in range(2)]
        try:
            for _ in range(100):
                with scratch_folder(tmp_path) as folder:
                    for number in range(10):
                        (folder / str(number)).touch()
        finally:
            done.set()
        for sweeper in sweepers:
            sweeper.result()
    assert taken == []
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
