"""Pieces of work that do not need one another, as branches of a CUDA graph.

A step of one stream is some hundred launches, each too small to fill a GPU. Recorded as a CUDA graph they need not wait for one
another where their results do not (within `branching`). Elsewhere such pieces run one after the other.

What the step's result depends on goes first: a graph keeps the priorities of the streams that it was recorded from. Beside what
is done for later steps at the same priority, attention took up to twice as long as alone (76 and 41 us in the last stage, H200).
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Begin = Callable[[Callable[[], Any]], Any]

URGENT, LATER = -1, 0  # priorities of streams

_free_streams: defaultdict[tuple[torch.device, int], list[torch.cuda.Stream]] = defaultdict(list)
_this_thread = threading.local()


@contextmanager
def branching() -> Iterator[None]:
    """While a step is recorded, and while it is tried before: there is to be nothing new when it is recorded."""
    before = getattr(_this_thread, "branches", False)
    _this_thread.branches = True
    try:
        yield
    finally:
        _this_thread.branches = before


def has_branches(x: Tensor) -> bool:
    """Whether what is computed from this tensor is computed within `branching`, on a GPU."""
    if not x.is_cuda or torch.compiler.is_compiling():
        return False
    return getattr(_this_thread, "branches", False)


def run_branches(x: Tensor, branches: Sequence[Callable[[], Any]]) -> list[Any]:
    """Runs functions, beside each other while a step is recorded. Their results are in their order.

    In a trial run they take the same ways one after the other.

    Args:
        x: on the device that they run on.
        branches: none changes what another reads, and what they read exists until all are done.
    """
    if len(branches) == 1 or not _is_recorded(x):
        return [branch() for branch in branches]
    here = torch.cuda.current_stream(x.device)
    streams = [_take_stream(x.device, here.priority) for _ in branches[1:]]
    results = []
    for stream, branch in zip(streams, branches[1:], strict=True):
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            results.append(branch())
    results.insert(0, branches[0]())
    for stream in streams:
        here.wait_stream(stream)
    # In an order that has the next branches take the same streams again, whose memory is there already.
    _free_streams[x.device, here.priority].extend(reversed(streams))
    return results


@contextmanager
def beside(x: Tensor) -> Iterator[Begin]:
    """A branch for what is wanted at the end, while a step is recorded: beside what is done within this context, and behind it
    where both want the GPU.

    Args:
        x: on the device that it runs on.

    Yields:
        What does a piece of work after what was begun and done so far, and returns its result, which is there after this context,
        or in what is begun later. Elsewhere the work is done at once.
    """
    if not _is_recorded(x):
        yield lambda work: work()
        return
    stream = _take_stream(x.device, LATER)
    held = []  # what work reads must not make room for other tensors meanwhile

    def begin(work: Callable[[], Any]) -> Any:
        held.append(work)
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            return work()

    yield begin
    torch.cuda.current_stream(x.device).wait_stream(stream)
    held.clear()
    _free_streams[x.device, LATER].append(stream)


def _take_stream(device: torch.device, priority: int) -> torch.cuda.Stream:
    free = _free_streams[device, priority]
    return free.pop() if free else torch.cuda.Stream(device, priority=priority)


def _is_recorded(x: Tensor) -> bool:
    return has_branches(x) and torch.cuda.is_current_stream_capturing()


@contextmanager
def handing_over(take: Callable[[Any], None]) -> Iterator[None]:
    """Has whoever makes a step's memory hand it over within `branching`, beside what is left of the step."""
    before = getattr(_this_thread, "take", None)
    _this_thread.take = take
    try:
        yield
    finally:
        _this_thread.take = before


def hand_over(x: Tensor, memory: Any) -> None:
    """Gives a memory to `handing_over`, if somebody waits for it and this is within `branching`.

    Args:
        x: on the device of the step.
        memory: is read after this; nothing that the step still does reads the memory before it.
    """
    take = getattr(_this_thread, "take", None)
    if take is not None and has_branches(x):
        take(memory)
