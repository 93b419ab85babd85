"""Whether `memvit predict` keeps its processor busy: its rate beside decoding alone and the model alone.

    python -m memvit.benchmarks.pipeline --model memvit_tiny --size 640x360 --out pipeline.json

Decoding, the model and the whole take turns for several rounds. What is timed of the whole is `predict_video`: from opening
the file to the last result on disk, the timeline's picture included; the interpreter's start, imports and the making of the
model are not. Its threads wait for one another as those of the command do, asleep (`share_cores`); decoding and the model
alone run in another process, where they wait as PyTorch has it, which is faster where nobody else wants the cores.

Where decoding and the model share the same cores, their work adds up and the whole cannot be as fast as the slower of them:
`of_bound` says how much of what remains possible is reached, all of their processor time spread evenly over all cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from memvit.models.zoo import create_model
from memvit.online import OnlineRecognizer
from memvit.online.predict import predict_video
from memvit.video import Frame, TimeSampler, VideoReader
from memvit.video.writer import VideoWriter

VIDEO_FPS = 30


@dataclass(frozen=True)
class Timing:
    """One measurement: seconds on the wall, and of all processors of this process together."""

    wall_s: float
    cpu_s: float


def timed(work: Callable[[], object]) -> Timing:
    """Runs once."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    return Timing(time.perf_counter() - wall_s, time.process_time() - cpu_s)


def write_moving_picture(path: Path, width: int, height: int, seconds: float) -> Path:
    """A video that is neither trivial nor impossible to encode: a soft texture that pans, and sharp squares that cross it."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 4, 3), dtype=np.uint8))
    texture = np.asarray(coarse.resize((2 * width, 2 * height), Image.Resampling.BICUBIC))
    side = height // 6
    squares = [(rng.integers(0, 256, (side, side, 3), dtype=np.uint8), *rng.uniform(0.5, 3, 4)) for _ in range(4)]
    with VideoWriter(path, width, height, VIDEO_FPS) as writer:
        for i in range(round(seconds * VIDEO_FPS)):
            t = i / VIDEO_FPS
            left, top = (round(size * (0.5 + 0.5 * np.sin(0.3 * t))) for size in (width, height))
            frame = texture[top : top + height, left : left + width].copy()
            for pixels, rate_x, rate_y, phase_x, phase_y in squares:
                x = round((width - side) * (0.5 + 0.5 * np.sin(rate_x * t + phase_x)))
                y = round((height - side) * (0.5 + 0.5 * np.sin(rate_y * t + phase_y)))
                frame[y : y + side, x : x + side] = pixels
            writer.write(frame)
    return path


def decode(recognizer: OnlineRecognizer, path: Path) -> int:
    """Everything before the model: decodes, samples, scales and normalises; returns the number of clips."""
    grid, transform = recognizer.grid, recognizer.transform
    sampler: TimeSampler[Frame] = TimeSampler(grid.period_s)
    waiting: list[np.ndarray] = []
    num_clips = 0

    def take(sampled: Sequence[tuple[int, Frame]]) -> None:
        nonlocal waiting, num_clips
        for _, frame in sampled:
            waiting.append(transform.frame(frame))
            if len(waiting) == grid.num_frames:
                transform.clip(waiting)
                waiting, num_clips = [], num_clips + 1

    with VideoReader(path) as reader:
        for frame in reader.read(sampler.shows):
            take(sampler.push(frame))
    take(sampler.finish())
    return num_clips + bool(waiting)


@torch.inference_mode()
def run_model(recognizer: OnlineRecognizer, num_clips: int) -> None:
    """The model alone: as many clips, one after another with memory, all of them ready."""
    config = recognizer.model.config
    clip = torch.randn(3, config.num_frames, config.crop_size, config.crop_size)
    memories = [recognizer.model.new_memory(1)]
    for _ in range(num_clips):
        _, memories = recognizer.engine.step([clip], memories)


class _Parts:
    """What is timed, in a process of its own."""

    def __init__(self, model_name: str, dtype: str, folder: Path) -> None:
        recognizer = OnlineRecognizer(create_model(model_name), dtype=getattr(torch, dtype), max_batch_size=1)
        video, results = folder / "video.mp4", folder / "results"
        self.num_clips = decode(recognizer, video)
        self.parts: dict[str, Callable[[], object]] = {
            "decoding": lambda: decode(recognizer, video),
            "model": lambda: run_model(recognizer, self.num_clips),
            "predict": lambda: predict_video(recognizer, video, results),
        }
        run_model(recognizer, 3)
        predict_video(recognizer, video, results)  # imports what it draws with


_parts: _Parts | None = None


def _prepare(model_name: str, dtype: str, folder: Path) -> int:
    global _parts
    _parts = _Parts(model_name, dtype, folder)
    return _parts.num_clips


def _time(name: str) -> Timing:
    assert _parts is not None
    return timed(_parts.parts[name])


@contextmanager
def _process(wait_policy: str | None) -> Iterator[ProcessPoolExecutor]:
    """A process in which OpenMP's threads wait as told; it is told before it loads PyTorch."""
    before = os.environ.pop("OMP_WAIT_POLICY", None)
    try:
        if wait_policy is not None:
            os.environ["OMP_WAIT_POLICY"] = wait_policy
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(os.getpid).result()
            yield pool
    finally:
        os.environ.pop("OMP_WAIT_POLICY", None)
        if before is not None:
            os.environ["OMP_WAIT_POLICY"] = before


def measure(
    model_name: str, width: int, height: int, seconds: float, num_rounds: int, dtype: str = "float32"
) -> dict[str, Any]:
    """Times the three in turns.

    Returns:
        Per part, "decoding", "model" and "predict": medians of wall and processor seconds, and all rounds; and the shares
        `of_slower` (of the rate of the slower part alone) and `of_bound`, as medians over rounds.
    """
    rounds: dict[str, list[Timing]] = {name: [] for name in ("decoding", "model", "predict")}
    with tempfile.TemporaryDirectory() as folder, _process(None) as alone, _process("PASSIVE") as command:
        write_moving_picture(Path(folder, "video.mp4"), width, height, seconds)
        for process in (alone, command):
            num_clips = process.submit(_prepare, model_name, dtype, Path(folder)).result()
        for _ in range(num_rounds):
            for name, runs in rounds.items():
                runs.append((command if name == "predict" else alone).submit(_time, name).result())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    together = list(zip(rounds["decoding"], rounds["model"], rounds["predict"], strict=True))
    bounds = [max(d.wall_s, m.wall_s, (d.cpu_s + m.cpu_s) / cores) for d, m, _ in together]
    return {
        "model_name": model_name,
        "dtype": dtype,
        "video": f"{width}x{height}, {seconds:g} s, {VIDEO_FPS} fps",
        "num_clips": num_clips,
        "parts": {
            name: {
                "wall_s": statistics.median(run.wall_s for run in runs),
                "cpu_s": statistics.median(run.cpu_s for run in runs),
                "rounds_wall_s": [round(run.wall_s, 4) for run in runs],
            }
            for name, runs in rounds.items()
        },
        "of_slower": statistics.median(max(d.wall_s, m.wall_s) / p.wall_s for d, m, p in together),
        "of_bound": statistics.median(bound / p.wall_s for bound, (_, _, p) in zip(bounds, together, strict=True)),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["memvit_16x4", "memvit_tiny"])
    parser.add_argument("--size", nargs="+", default=["640x360", "1280x720"], help="of the videos, WIDTHxHEIGHT")
    parser.add_argument("--seconds", type=float, default=60.0, help="of video")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args(argv)
    table = Table(title=f"seconds for {options.seconds:g} s of video, medians of {options.rounds} rounds")
    headings = ("model", "video", "clips", "decoding", "model alone", "predict", "of the slower", "of the bound")
    for heading in headings:
        table.add_column(heading, justify="right")
    results = []
    for name in options.model:
        for size in options.size:
            width, height = map(int, size.split("x"))
            result = measure(name, width, height, options.seconds, options.rounds, options.dtype)
            results.append(result)
            walls = (f"{result['parts'][part]['wall_s']:.2f}" for part in ("decoding", "model", "predict"))
            shares = (f"{result[share]:.0%}" for share in ("of_slower", "of_bound"))
            table.add_row(name, size, str(result["num_clips"]), *walls, *shares)
    Console().print(table)
    if options.out is not None:
        threads = torch.get_num_threads()
        machine = f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}"
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
