"""What every store promises, and what LocalStore promises on top."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.durable_files import PARTIAL_PREFIX, PartialFile
from blocks.errors import Refused, Unavailable
from blocks.storage.base import BackupStore, check_key
from blocks.storage.local import LocalStore

PART = bytes(range(256)) * 4096


def local_store(directory: Path) -> BackupStore:
    store = LocalStore(directory=directory / "backups")
    store.prepare()
    return store


# Another kind of store joins the contract with one line here.
FACTORIES: dict[str, Callable[[Path], BackupStore]] = {"local": local_store}


@pytest.fixture(params=FACTORIES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BackupStore:
    return FACTORIES[request.param](tmp_path)


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    store = LocalStore(directory=tmp_path / "backups")
    store.prepare()
    return store


def keys(store: BackupStore, prefix: str = "") -> list[str]:
    return [stored.key for stored in store.list(prefix)]


def write_all(store: BackupStore, key: str, parts: Iterable[bytes]) -> None:
    with store.create(key) as writer:
        for part in parts:
            writer.write(part)
        writer.commit()


class TestEveryStore:
    def test_an_object_comes_back_as_it_went_in(self, store: BackupStore) -> None:
        with store.create("a/b/c.zst.age") as writer:
            for data in (PART, bytearray(PART), memoryview(PART)[5:], b""):
                writer.write(data)
            writer.commit()
        whole = PART + PART + PART[5:]
        assert b"".join(store.read("a/b/c.zst.age")) == store.get("a/b/c.zst.age") == whole

    def test_an_empty_object_is_an_object(self, store: BackupStore) -> None:
        store.put("empty", b"")
        assert store.get("empty") == b""
        assert [stored.size_bytes for stored in store.list()] == [0]

    @pytest.mark.parametrize("offset", [0, 1, 999, 1000, 1001])
    @pytest.mark.parametrize("length", [None, 0, 1, 999, 5000])
    @pytest.mark.parametrize("chunk_bytes", [1, 300, 1 << 20])
    def test_ranges_are_read(
        self, store: BackupStore, offset: int, length: int | None, chunk_bytes: int
    ) -> None:
        data = PART[:1000]
        store.put("key", data)
        chunks = list(store.read("key", offset, length, chunk_bytes))
        assert b"".join(chunks) == (
            data[offset:] if length is None else data[offset : offset + length]
        )
        assert all(0 < len(chunk) <= chunk_bytes for chunk in chunks)

    def test_nothing_is_seen_before_the_commit(self, store: BackupStore) -> None:
        with store.create("key") as writer:
            writer.write(PART)
            assert keys(store) == []
            with pytest.raises(Refused, match="missing"):
                store.get("key")
            writer.commit()
            assert keys(store) == ["key"]

    def test_without_commit_nothing_stays(self, store: BackupStore) -> None:
        with store.create("a/key") as writer:
            writer.write(PART)
        assert keys(store) == []
        store.put("a/key", b"later")

    def test_an_error_leaves_nothing_and_passes_through(self, store: BackupStore) -> None:
        def source() -> Iterator[bytes]:
            yield PART
            msg = "the source broke off"
            raise RuntimeError(msg)

        with pytest.raises(RuntimeError, match="broke off"):
            write_all(store, "key", source())
        assert keys(store) == []

    def test_an_object_is_never_overwritten(self, store: BackupStore) -> None:
        store.put("key", b"first")
        with pytest.raises(Refused, match="exists already"):
            store.create("key").__enter__()
        with pytest.raises(Refused, match="exists already"):
            store.put("key", b"second")
        assert store.get("key") == b"first"

    def test_of_two_writers_the_first_to_commit_wins(self, store: BackupStore) -> None:
        with store.create("key") as slow, store.create("key") as quick:
            slow.write(b"slow")
            quick.write(b"quick")
            quick.commit()
            with pytest.raises(Refused, match="exists already"):
                slow.commit()
        assert store.get("key") == b"quick"

    def test_of_many_writers_at_once_one_wins(self, store: BackupStore) -> None:
        def put(number: int) -> bool:
            try:
                store.put("d/key", b"%d" % number)
            except Refused:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(put, range(32)))
        assert won.count(True) == 1
        assert store.get("d/key") == b"%d" % won.index(True)

    def test_a_missing_object_is_refused_by_name(self, store: BackupStore) -> None:
        store.put("there", b"")
        for key in ("gone", "there/below", "no/such/place"):
            with pytest.raises(Refused, match=f"{key} is missing from {store.location()}"):
                list(store.read(key))

    def test_listing_is_sorted_by_key_and_by_prefix(self, store: BackupStore) -> None:
        names = ["b", "a/z", "a-b", "a/b/c", "a.b", "é", "aa"]
        for name in names:
            store.put(name, b"12345")
        assert keys(store) == sorted(names)
        assert keys(store, "a/") == ["a/b/c", "a/z"]
        assert keys(store, "a/b") == ["a/b/c"]
        assert keys(store, "a") == ["a-b", "a.b", "a/b/c", "a/z", "aa"]
        assert keys(store, "a/b/c/") == keys(store, "nothing/") == []

    def test_listing_tells_size_and_time(self, store: BackupStore) -> None:
        before = datetime.now(UTC) - timedelta(seconds=2)
        store.put("key", PART)
        (stored,) = store.list()
        assert (stored.key, stored.size_bytes) == ("key", len(PART))
        assert before <= stored.modified_at <= datetime.now(UTC) + timedelta(seconds=2)

    def test_deleting_twice_is_fine(self, store: BackupStore) -> None:
        store.put("a/key", b"")
        store.put("a/other", b"")
        for _ in range(2):
            store.delete_object("a/key")
        assert keys(store) == ["a/other"]
        store.delete_object("a/other/below")
        store.put("a/key", b"again")

    def test_a_prefix_is_deleted_and_nothing_else(self, store: BackupStore) -> None:
        for name in ("set-1/a", "set-1/b/c", "set-10/a", "other"):
            store.put(name, b"")
        for _ in range(2):
            store.delete_prefix("set-1/")
        assert keys(store) == ["other", "set-10/a"]
        with pytest.raises(Refused, match="whole store"):
            store.delete_prefix("")

    @pytest.mark.parametrize(
        "key",
        [
            "",
            "/a",
            "a/",
            "a//b",
            "..",
            "a/../b",
            "./a",
            "a\0b",
            "a\nb",
            "x" * 1025,
            ".partial-1/a",
            "\ud800",
        ],
    )
    def test_a_bad_key_is_refused_everywhere(self, store: BackupStore, key: str) -> None:
        calls = (
            lambda: store.put(key, b""),
            lambda: store.get(key),
            lambda: store.delete_object(key),
        )
        for call in calls:
            with pytest.raises(Refused, match="not a valid key"):
                call()
        assert keys(store) == []

    def test_creating_and_deleting_in_one_place_at_once_loses_nothing(
        self, store: BackupStore
    ) -> None:
        def work(number: int) -> None:
            for turn in range(15):
                store.put(f"deep/er/{number}-{turn}", b"x")
                if turn % 5:
                    store.delete_object(f"deep/er/{number}-{turn}")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert keys(store) == sorted(f"deep/er/{n}-{turn}" for n in range(4) for turn in (0, 5, 10))

    def test_a_working_store_passes_its_check_and_keeps_nothing_of_it(
        self, store: BackupStore
    ) -> None:
        store.check()
        assert keys(store) == []
        room = store.free_bytes()
        assert room is None or room > 0


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


@given(parts=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5))
def test_a_valid_key_stays_inside_its_store(parts: list[str]) -> None:
    key = "/".join(parts)
    try:
        check_key(key)
    except Refused:
        return
    top = Path("/store")
    assert os.path.normpath(top / key) == str(top / key)


def test_a_partial_file_has_no_reader_but_its_owner(tmp_path: Path) -> None:
    with PartialFile(tmp_path) as partial:
        partial.write(b"x")
        (path,) = tmp_path.iterdir()
        assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == []
