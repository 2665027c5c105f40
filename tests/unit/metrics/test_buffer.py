"""The buffer in front of the vault: in order, bounded, and honest about what it lost."""

import threading
from datetime import UTC, datetime

from tasks.metrics.buffer import BatchBuffer
from tasks.metrics.models import Batch, Sample

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def batch(server: str, rows: int) -> Batch:
    samples = tuple(Sample("f", {"n": str(n)}, NOW, {}) for n in range(rows))
    return Batch(server, NOW, (), samples)


def names(batches: list[Batch]) -> list[str]:
    return [each.server for each in batches]


def filled(limit_rows: int, *names: str) -> BatchBuffer:
    buffer = BatchBuffer(limit_rows)
    for name in names:
        buffer.add(batch(name, 2))
    return buffer


def test_batches_come_out_as_they_went_in_up_to_the_rows_asked_for():
    buffer = filled(100, "a", "b", "c")
    assert names(buffer.take(5)) == ["a", "b"]
    assert buffer.rows == 2
    assert names(buffer.take(5)) == ["c"]
    assert (buffer.take(5), buffer.rows, buffer.lost_rows) == ([], 0, 0)


def test_at_least_one_batch_comes_out():
    assert names(filled(100, "a", "b").take(1)) == ["a"]


def test_the_oldest_go_first_and_are_counted():
    buffer = filled(5, "a", "b", "c", "b")
    assert (buffer.rows, buffer.lost_rows) == (4, 4)
    assert (buffer.lost_of("a"), buffer.lost_of("b"), buffer.lost_of("c")) == (2, 2, 0)
    assert names(buffer.take(100)) == ["c", "b"]


def test_loss_is_reported_once_and_kept_in_total():
    buffer = filled(2, "a", "b")
    assert (buffer.take_lost(), buffer.take_lost()) == (2, 0)
    buffer.add(batch("c", 1))
    assert (buffer.take_lost(), buffer.lost_rows) == (2, 4)


def test_what_is_put_back_comes_first_again():
    buffer = filled(100, "a", "b")
    taken = buffer.take(100)
    buffer.add(batch("c", 2))
    buffer.put_back(taken)
    assert (buffer.rows, names(buffer.take(100))) == (6, ["a", "b", "c"])


def test_what_is_put_back_and_finds_no_room_is_lost_oldest_first():
    buffer = filled(4, "a", "b")
    taken = buffer.take(100)
    buffer.add(batch("c", 2))
    buffer.put_back(taken)
    assert (names(buffer.take(100)), buffer.lost_of("a")) == (["b", "c"], 2)


def test_a_dropped_batch_counts_as_lost():
    buffer = filled(100, "a")
    buffer.drop(buffer.take(100)[0])
    assert (buffer.rows, buffer.lost_rows) == (0, 2)


def test_the_newest_batch_is_kept_even_when_it_is_larger_than_the_bound():
    buffer = filled(3, "a")
    buffer.add(batch("huge", 50))
    assert (names(buffer.take(1)), buffer.lost_of("a")) == (["huge"], 2)


def test_nothing_is_lost_between_threads():
    buffer = BatchBuffer(10**6)
    taken: list[Batch] = []

    def write(name: str) -> None:
        for _ in range(200):
            buffer.add(batch(name, 1))

    writers = [threading.Thread(target=write, args=[str(n)]) for n in range(4)]
    for writer in writers:
        writer.start()
    while len(taken) < 800 and (any(w.is_alive() for w in writers) or buffer.rows):
        taken += buffer.take(7)
    for writer in writers:
        writer.join()
    taken += buffer.take(10**6)
    assert (len(taken), buffer.rows, buffer.lost_rows) == (800, 0, 0)
