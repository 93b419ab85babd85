"""Whether reading videos keeps up with training: clips per second of the loader, of the model, and of both together.

    python -m memvit.benchmarks.loading --out docs/results/loading.json

On generated videos in real files, with the demo's model; all in one run, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from memvit.datasets.clips import Batch, ClipTiming
from memvit.datasets.loader import StreamLoader
from memvit.datasets.segments import SegmentsDataset
from memvit.datasets.synthetic import make_dataset
from memvit.models.memory import Memory
from memvit.models.memvit import MeMViT
from memvit.models.zoo import create_model

NUM_VIDEOS = 120


class _Trainer:
    """Plain training steps on batches."""

    def __init__(self, model: MeMViT) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        self.mean, self.std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (model.config.mean, model.config.std))
        self.memory: Memory | None = None

    def step(self, batch: Batch) -> None:
        clips = (batch.clips.float() / 255 - self.mean) / self.std
        memory = None if self.memory is None else self.memory.forget(batch.starts)
        logits, self.memory = self.model(clips, memory)
        torch.nn.functional.cross_entropy(logits, batch.labels[0], ignore_index=-1).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def clips_per_s(batches: Iterable[Batch], trainer: _Trainer | None = None) -> float:
    """Clips per second after the first batch, whose wait is that of starting up."""
    began_s, num_clips = 0.0, 0
    for i, batch in enumerate(batches):
        if trainer is not None:
            trainer.step(batch)
        if i == 0:
            began_s = time.perf_counter()
        else:
            num_clips += int(batch.present.sum())
    return num_clips / (time.perf_counter() - began_s)


def measure(model_name: str, batch_size: int, workers: Sequence[int]) -> dict[str, Any]:
    """Clips per second: {"model": ..., "loader": {workers: ...}, "training": {workers: ...}}."""
    model = create_model(model_name, num_classes=4)
    config = model.config
    timing = ClipTiming(config.num_frames, config.frame_period_s, config.clip_duration_s, config.num_times)
    with tempfile.TemporaryDirectory() as folder:
        root = make_dataset("recall", folder, videos=NUM_VIDEOS, eval_videos=1, size=config.crop_size, fps=config.fps)
        dataset = SegmentsDataset(root / "train.csv", root / "videos", timing)

        def loader(num_workers: int) -> StreamLoader:
            return StreamLoader(
                dataset, batch_size=batch_size, crop_size=config.crop_size, training=True, num_workers=num_workers
            )

        kept = list(loader(0))
        return {
            "model": clips_per_s(kept, _Trainer(model)),
            "loader": {str(n): clips_per_s(loader(n)) for n in workers},
            "training": {str(n): clips_per_s(loader(n), _Trainer(model)) for n in workers},
        }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="memvit_nano")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    rates = measure(options.model, options.batch_size, options.workers)
    table = Table(title=f"{options.model}, batch {options.batch_size}: clips per second")
    for heading in ("worker processes", "loader alone", "training", "model alone"):
        table.add_column(heading, justify="right")
    for n in map(str, options.workers):
        table.add_row(n, f"{rates['loader'][n]:.0f}", f"{rates['training'][n]:.0f}", f"{rates['model']:.0f}")
    Console().print(table)
    if options.out is not None:
        threads = torch.get_num_threads()
        machine = f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}"
        result = {"model_name": options.model, "batch_size": options.batch_size, "machine": machine, **rates}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
