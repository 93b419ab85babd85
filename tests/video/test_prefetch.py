from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from encode import indices, write_video

from memvit.video import Prefetcher, VideoReader


def counting(stop: int, made: list[int], closed: threading.Event | None = None) -> Iterator[int]:
    try:
        for item in range(stop):
            made.append(item)
            yield item
    finally:
        if closed is not None:
            closed.set()


class Endless:
    """Gives 0, 1, 2 ... and notes what was taken from it."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[int]:
        return counting(10**9, self.made, self.closed)


def settled(values: list[int]) -> int:
    """How many values there are once no more are added."""
    count = -1
    while count != len(values):
        count = len(values)
        time.sleep(0.05)
    return count


def test_items_come_in_order_and_ahead_of_the_consumer() -> None:
    source = Endless()
    with Prefetcher(source, max_items=3) as items:
        consumer = iter(items)
        assert next(consumer) == 0
        assert settled(source.made) == 1 + 3 + 1  # taken, waiting, in the making
        assert [next(consumer) for _ in range(100)] == list(range(1, 101))
    assert source.closed.wait(1)


def test_everything_arrives_once() -> None:
    assert list(Prefetcher(range(1000), max_items=2)) == list(range(1000))


def test_a_prefetcher_can_be_iterated_again() -> None:
    items = Prefetcher([1, 2, 3])
    assert list(items) == list(items) == [1, 2, 3]


def test_an_error_comes_after_the_items_before_it() -> None:
    def breaks() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("third")

    seen = []
    with pytest.raises(KeyError, match="third"):  # noqa: PT012
        for item in Prefetcher(breaks(), max_items=8):
            time.sleep(0.02)
            seen.append(item)
    assert seen == [1, 2]


def test_leaving_the_loop_ends_the_thread() -> None:
    source = Endless()
    for item in Prefetcher(source, max_items=2):
        if item == 5:
            break
    assert source.closed.wait(1)
    count = len(source.made)
    time.sleep(0.05)
    assert len(source.made) == count


def test_closing_from_another_thread_ends_a_waiting_consumer() -> None:
    release = threading.Event()

    def stuck() -> Iterator[int]:
        yield 1
        release.wait(5)
        yield 2

    items = Prefetcher(stuck())
    timer = threading.Timer(0.1, lambda: (release.set(), items.close()))
    timer.start()
    began = time.monotonic()
    seen = list(items)
    assert seen in ([1], [1, 2])
    assert time.monotonic() - began < 2
    timer.join()


def test_an_error_nobody_waits_for_does_not_block() -> None:
    def breaks() -> Iterator[int]:
        yield from range(3)
        raise RuntimeError("late")

    with Prefetcher(breaks(), max_items=1) as items:
        assert next(iter(items)) == 0


def test_a_queue_needs_room() -> None:
    with pytest.raises(ValueError, match="max_items=0"):
        Prefetcher([], max_items=0)


def test_video_prefetched_is_the_same_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 40)
    with VideoReader(path, 0.5) as reader, Prefetcher(reader, max_items=4) as frames:
        assert indices(frames) == list(range(15, 40))
    with VideoReader(path) as reader, Prefetcher(reader, max_items=4) as frames:
        next(iter(frames))
