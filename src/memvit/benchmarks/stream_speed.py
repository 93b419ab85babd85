"""What memory costs in time, and how time grows with the number of streams."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence

import torch

from memvit.benchmarks.contenders import Case, clip_size, make_step, usual_form
from memvit.benchmarks.progress import OnProgress, counter
from memvit.benchmarks.speed_records import MemoryTimes, StreamTimes
from memvit.benchmarks.timing import Step, take_turns
from memvit.models.config import MViTConfig
from memvit.models.memvit import MeMViT
from memvit.online.engine import StepEngine


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
    form = usual_form(device)
    for dtype in dtypes:
        without = make_step(Case("forward", "no memory", form, dtype, 1), config, device)
        for length in lengths:
            tick = counter(on_progress, f"memory, {dtype}, M = {length}", num_pairs + 1)
            contender = Case("forward", "memory", form, dtype, 1)
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
    """Times steps of several streams in one batch, as `OnlineRecognizer` runs them; the numbers of streams take turns.

    On a GPU a step begins with clips in the host's memory and ends with scores there.

    Args:
        config: the model.
        num_streams: how many streams, each of which is timed.
        num_rounds: how often.

    Yields:
        The times of each number format and number of streams.
    """
    for dtype in dtypes:
        tick = counter(on_progress, f"streams, {dtype}", num_rounds + 1)
        steps = {n: _stream_step(config, dtype, n, device) for n in num_streams}
        seconds = take_turns(steps, num_rounds, device, on_round=tick)
        yield from (StreamTimes(dtype, n, tuple(seconds[n])) for n in num_streams)


def _stream_step(config: MViTConfig, dtype: str, num_streams: int, device: torch.device) -> Step:
    model = MeMViT(config).to(device).eval()
    number_format = None if dtype == "float32" else getattr(torch, dtype)
    engine = StepEngine(model, number_format, max_batch_size=num_streams)
    size = clip_size(config, "memory")
    clips = list(torch.randn(num_streams, config.in_channels, *size))
    with torch.inference_mode():
        memories = [model.new_memory(1, *size) for _ in range(num_streams)]
    for _ in range(config.memory.num_slots + 1):
        _, memories = engine.step(clips, memories)

    def step() -> None:
        nonlocal memories
        _, memories = engine.step(clips, memories)

    return step
