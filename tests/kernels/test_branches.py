"""Branches of CUDA graphs: which stream waits for which. There is no GPU here: streams note what they are asked for."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from memvit.kernels import branches
from memvit.kernels.branches import beside, branching, hand_over, handing_over, has_branches, run_branches

ON_GPU: Any = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0))


class Streams:
    """Streams of a GPU while it records: what happened on them, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.stack = ["main"]
        self.num_made = 0

    def stream(self, name: str, priority: int = -1) -> Any:
        return SimpleNamespace(
            name=name,
            priority=priority,
            wait_stream=lambda other: self.log.append(f"{name} waits for {other.name}"),
            wait_event=lambda event: self.log.append(f"{name} waits for {event}"),
            record_event=lambda: self.log[-1],
        )

    def current(self) -> Any:
        name = self.stack[-1]
        return self.stream(name, 0 if name.startswith("later") else -1)

    def make(self, device: torch.device, priority: int) -> Any:
        self.num_made += 1
        return self.stream(f"side {self.num_made}" if priority < 0 else f"later {self.num_made}", priority)

    @contextmanager
    def use(self, stream: Any) -> Iterator[None]:
        self.stack.append(stream.name)
        yield
        self.stack.pop()

    def work(self, what: str) -> str:
        self.log.append(f"{what} on {self.stack[-1]}")
        return what


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    made = Streams()
    monkeypatch.setattr(branches, "_free_streams", branches.defaultdict(list))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: made.current())
    monkeypatch.setattr(torch.cuda, "Stream", made.make)
    monkeypatch.setattr(torch.cuda, "stream", made.use)
    return made


def test_branches_begin_after_what_was_before_and_end_before_what_comes(streams: Streams) -> None:
    with branching():
        assert run_branches(ON_GPU, [lambda: streams.work("a"), lambda: streams.work("b")]) == ["a", "b"]
    assert streams.log == ["side 1 waits for main", "b on side 1", "a on main", "main waits for side 1"]


def test_branches_of_branches_have_streams_of_their_own_and_later_ones_take_them_again(streams: Streams) -> None:
    def inner() -> list[str]:
        return run_branches(ON_GPU, [lambda: streams.work("c"), lambda: streams.work("d")])

    with branching():
        for _ in range(2):
            assert run_branches(ON_GPU, [inner, lambda: streams.work("b"), inner]) == [["c", "d"], "b", ["c", "d"]]
    # Branches have their own within them while the streams of the outer ones are taken.
    once = streams.log[: len(streams.log) // 2]
    assert once == streams.log[len(once) :]
    assert streams.num_made == 3
    assert [line for line in once if " on " in line] == [
        "b on side 1", "d on side 3", "c on side 2", "d on side 3", "c on main",
    ]  # fmt: skip


def test_one_stream_does_all_where_nothing_is_recorded(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [lambda: streams.work("a"), lambda: streams.work("b")]
    assert not has_branches(ON_GPU)
    run_branches(ON_GPU, tasks)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with branching():
        assert has_branches(ON_GPU)
        run_branches(ON_GPU, tasks)  # a trial run
    assert streams.log == ["a on main", "b on main"] * 2
    assert not has_branches(ON_GPU)


def test_tensors_on_a_cpu_have_no_branches() -> None:
    with branching():
        assert not has_branches(torch.empty(1))
        assert run_branches(torch.empty(1), [lambda: 1, lambda: 2]) == [1, 2]


class Tensors:
    """What a piece of work reads."""


def test_work_beside_begins_when_it_can_has_a_low_priority_and_is_waited_for_at_the_end(streams: Streams) -> None:
    read = Tensors()
    is_there = weakref.ref(read)
    with branching(), beside(ON_GPU) as begin:
        streams.work("x")
        assert begin(lambda read=read: streams.work("a")) == "a"
        del read
        streams.work("y")
        assert begin(lambda: streams.work("b")) == "b"
        assert is_there() is not None  # a stream may be reading it
    assert is_there() is None
    assert streams.log == [
        "x on main", "later 1 waits for main", "a on later 1", "y on main", "later 1 waits for main", "b on later 1",
        "main waits for later 1",
    ]  # fmt: skip


def test_branches_of_work_beside_have_its_priority(streams: Streams) -> None:
    with branching():
        run_branches(ON_GPU, [lambda: None] * 2)
        with beside(ON_GPU) as begin:
            begin(lambda: run_branches(ON_GPU, [lambda: streams.work("a"), lambda: streams.work("b")]))
    assert [line for line in streams.log if " on " in line] == ["b on later 3", "a on later 2"]


def test_work_beside_is_done_at_once_where_nothing_is_recorded(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with branching(), beside(ON_GPU) as begin:
        assert begin(lambda: streams.work("a")) == "a"
        streams.work("x")
    assert streams.log == ["a on main", "x on main"]


def test_a_memory_is_handed_over_while_a_step_is_recorded() -> None:
    taken: list[str] = []
    hand_over(ON_GPU, "nobody waits")
    with handing_over(taken.append):
        hand_over(ON_GPU, "not recorded")
        with branching():
            hand_over(ON_GPU, "a memory")
            hand_over(torch.empty(1), "on a CPU")
    with branching():
        hand_over(ON_GPU, "nobody waits")
    assert taken == ["a memory"]
