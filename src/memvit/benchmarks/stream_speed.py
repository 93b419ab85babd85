"""What memory costs in time, and how time grows with the number of streams."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence

import torch

from memvit.benchmarks.contenders import Case, make_step
from memvit.benchmarks.progress import OnProgress, counter
from memvit.benchmarks.speed_records import MemoryTimes, StreamTimes
from memvit.benchmarks.timing import take_turns
from memvit.models.config import MViTConfig


def time_memory(
    config: MViTConfig,
    device: torch.device,
    *,
    dtypes: Sequence[str],
    lengths: Sequence[int],
    num_pairs: int,
    on_progress: OnProgress,
) -> Iterator[MemoryTimes]:
    """Times one stream with full memory of several lengths against the same model without memory.

    With and without take turns, one step each, and every second pair the other way round. Length 0 times a model without
    memory against another one: what comes out is the error of the measurement.

    Args:
        config: the model; its own memory length is not used.
        lengths: memory lengths M.
        num_pairs: how often each pair is timed.

    Yields:
        The times of each number format and length.
    """
    for dtype in dtypes:
        without = make_step(Case("forward", "no memory", "eager", dtype, 1), config, device)
        for length in lengths:
            tick = counter(on_progress, f"memory, {dtype}, M = {length}", num_pairs + 1)
            contender = Case("forward", "memory", "eager", dtype, 1)
            steps = {"with": make_step(contender, config.replace(memory_length=length), device), "without": without}
            seconds = take_turns(steps, num_pairs, device, on_round=tick)
            yield MemoryTimes(dtype, length, tuple(seconds["with"]), tuple(seconds["without"]))
            del steps
            gc.collect()


def time_streams(
    config: MViTConfig,
    device: torch.device,
    *,
    dtypes: Sequence[str],
    num_streams: Sequence[int],
    num_rounds: int,
    on_progress: OnProgress,
) -> Iterator[StreamTimes]:
    """Times steps of several streams in one batch; the numbers of streams take turns.

    Args:
        config: the model.
        num_streams: how many streams, each of which is timed.
        num_rounds: how often.

    Yields:
        The times of each number format and number of streams.
    """
    for dtype in dtypes:
        tick = counter(on_progress, f"streams, {dtype}", num_rounds + 1)
        steps = {n: make_step(Case("forward", "memory", "eager", dtype, n), config, device) for n in num_streams}
        seconds = take_turns(steps, num_rounds, device, on_round=tick)
        yield from (StreamTimes(dtype, n, tuple(seconds[n])) for n in num_streams)
