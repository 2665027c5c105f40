"""What LocalStore promises on top of what every store does."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from blocks.durable_files import PARTIAL_PREFIX, PartialFile
from blocks.errors import Refused, Unavailable
from blocks.storage.local import LocalStore
from tests.stores import PART, keys, write_all


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    store = LocalStore(directory=tmp_path / "backups")
    store.prepare()
    return store


class TestLocalStore:
    def test_location_and_kind(self, local: LocalStore) -> None:
        assert local.location() == f"file://{local.directory}"
        assert local.kind == "LOCAL"
        assert local.free_bytes() == pytest.approx(shutil.disk_usage(local.directory).free, rel=0.2)

    def test_a_relative_directory_is_refused(self) -> None:
        with pytest.raises(Refused, match="relative"):
            LocalStore(directory=Path("backups"))

    def test_files_and_directories_are_for_their_owner_only(self, local: LocalStore) -> None:
        local.put("a/b", b"")
        modes = [
            path.stat().st_mode & 0o777 for path in (local.directory / "a/b", local.directory / "a")
        ]
        assert modes == [0o600, 0o700]

    def test_nothing_but_the_object_lies_there(self, local: LocalStore) -> None:
        local.put("a/b", b"x")
        with local.create("a/c/d") as writer:
            writer.write(b"x")
        assert [path.name for path in local.directory.rglob("*")] == ["a", "b"]
        assert (local.directory / "a/b").stat().st_nlink == 1
        local.delete_object("a/b")
        assert list(local.directory.iterdir()) == []

    def test_a_large_object_is_written_through_every_writeback(self, local: LocalStore) -> None:
        with local.create("large") as writer:
            for _ in range(50):
                writer.write(PART)
            writer.commit()
        assert sum(chunk == PART for chunk in local.read("large", chunk_bytes=len(PART))) == 50

    def test_a_missing_directory_is_refused(self, tmp_path: Path) -> None:
        store = LocalStore(directory=tmp_path / "mnt" / "nas")
        calls = (store.check, lambda: store.put("a", b""), lambda: list(store.list()))
        for call in calls:
            with pytest.raises(Refused, match=r"mnt/nas does not exist. Create it, or mount"):
                call()
        assert not (tmp_path / "mnt").exists()

    def test_a_file_in_the_place_of_the_directory_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(Refused, match="not a directory"):
            LocalStore(directory=tmp_path / "file").check()

    def test_a_name_too_long_for_the_file_system_is_refused(self, local: LocalStore) -> None:
        with pytest.raises(Refused, match="too long"):
            local.put("x" * 300, b"")

    def test_links_out_of_the_store_are_not_listed(self, local: LocalStore, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("x")
        (local.directory / "link").symlink_to(tmp_path / "secret")
        assert keys(local) == []

    def test_a_write_after_the_commit_cannot_change_the_object(self, local: LocalStore) -> None:
        with local.create("key") as writer:
            writer.write(b"x")
            writer.commit()
            with pytest.raises(Unavailable):
                writer.write(b"y")
        assert local.get("key") == b"x"

    def test_what_dead_writers_left_is_swept_and_the_living_are_spared(
        self, local: LocalStore
    ) -> None:
        local.put("a/object", b"x")
        remains = local.directory / "a" / f"{PARTIAL_PREFIX}dead"
        alone = local.directory / "b" / f"{PARTIAL_PREFIX}dead"
        alone.parent.mkdir()
        for path in (remains, alone):
            path.touch()
        later = datetime.now(UTC) + timedelta(hours=1)
        assert keys(local) == ["a/object"]
        with local.create("a/living") as writer:
            writer.write(b"x")
            assert local.sweep_partials(7200, later) == 0
            assert local.sweep_partials(60, later) == 2
            writer.commit()
        assert keys(local) == ["a/living", "a/object"]
        assert not remains.exists()
        assert not alone.parent.exists()

    def test_what_a_killed_process_left_is_invisible_and_swept(self, local: LocalStore) -> None:
        program = (
            "import os, sys; from pathlib import Path; from blocks.storage.local import LocalStore\n"
            "with LocalStore(directory=Path(sys.argv[1])).create('a/key') as writer:\n"
            "    writer.write(b'x' * 1000000); os.kill(os.getpid(), 9)\n"
        )
        argv = [sys.executable, "-c", program, str(local.directory)]
        assert subprocess.run(argv, check=False).returncode == -9
        assert keys(local) == []
        assert local.sweep_partials(0, datetime.now(UTC) + timedelta(seconds=1)) == 1
        assert list(local.directory.iterdir()) == []


class TestFullDisk:
    @pytest.fixture
    def small(self, tmp_path: Path) -> Iterator[LocalStore]:
        place = tmp_path / "small"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
        if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a file system of 1 MiB needs root and the right to mount")
        yield LocalStore(directory=place)
        subprocess.run(["umount", str(place)], check=True)

    def test_a_full_disk_is_refused_with_what_is_missing_and_nothing_stays(
        self, small: LocalStore
    ) -> None:
        small.put("before", b"x" * 100)
        sentence = r"disk full: .* needs \d+ bytes more, 0 are free\. Free space"
        with pytest.raises(Refused, match=sentence) as caught:
            write_all(small, "a/large", [bytes(600_000)] * 2)
        assert str(small.directory) in str(caught.value)
        assert keys(small) == ["before"]
        assert [path.name for path in small.directory.iterdir()] == ["before"]
        room = small.free_bytes()
        assert room is not None
        assert room > 900_000
        small.put("after", bytes(600_000))

    def test_a_read_only_file_system_is_refused(self, small: LocalStore) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(small.directory)], check=True)
        with pytest.raises(Refused, match="read-only file system"):
            small.check()
        with pytest.raises(Refused, match="read-only file system"):
            small.put("key", b"")

    def test_the_limit_of_the_process_is_refused(self, local: LocalStore) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(Refused, match="larger than its file system or the limit"):
                local.put("key", bytes(200_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert keys(local) == []
        assert list(local.directory.iterdir()) == []


@contextmanager
def an_ordinary_user() -> Iterator[None]:
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_directory_without_the_right_to_write_is_refused() -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o555)
        store = LocalStore(directory=Path(place))
        with (
            an_ordinary_user(),
            pytest.raises(Refused, match=r"permission denied for the user with id \d+\. Give"),
        ):
            store.check()
        Path(place).chmod(0o000)
        with an_ordinary_user(), pytest.raises(Refused, match="permission denied"):
            list(store.list())


def test_a_partial_file_has_no_reader_but_its_owner(tmp_path: Path) -> None:
    with PartialFile(tmp_path) as partial:
        partial.write(b"x")
        (path,) = tmp_path.iterdir()
        assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == []
