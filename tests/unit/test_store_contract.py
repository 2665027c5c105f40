"""What every store promises."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.errors import Refused
from blocks.storage.base import BackupStore, check_key
from blocks.storage.local import LocalStore
from tests.stores import PART, keys, write_all


def local_store(directory: Path) -> BackupStore:
    store = LocalStore(directory=directory / "backups")
    store.prepare()
    return store


# Another kind of store joins the contract with one line here.
FACTORIES: dict[str, Callable[[Path], BackupStore]] = {"local": local_store}


@pytest.fixture(params=FACTORIES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BackupStore:
    return FACTORIES[request.param](tmp_path)


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


@given(parts=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5))
def test_a_valid_key_stays_inside_its_store(parts: list[str]) -> None:
    key = "/".join(parts)
    try:
        check_key(key)
    except Refused:
        return
    top = Path("/store")
    assert os.path.normpath(top / key) == str(top / key)
