"""Real videos and annotations that fit into a second, and a model as small."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from memvit.training.checkpoints import AtomicCheckpointIO
from memvit.training.data import SegmentsData
from memvit.training.module import VideoClassifier
from memvit.training.optimization import OptimizerOptions
from memvit.video.writer import VideoWriter

FPS = 8
COLORS = ("blue", "green", "red")

# Every mechanism of the large models on clips of half a second: two blocks with memory, dropout, stochastic depth.
TINY_OPTIONS: dict[str, Any] = {
    "crop_size": 32,
    "num_frames": 4,
    "sampling_rate": 1,
    "fps": float(FPS),
    "depth": 2,
    "embed_dim": 8,
    "dim_mul": [[1, 2.0]],
    "head_mul": [[1, 2.0]],
    "q_strides": [[0, 1, 1, 1], [1, 1, 2, 2]],
    "memory_layers": "all",
    "memory_kernel": [3, 3, 3],
    "memory_stride": [2, 2, 2],
    "drop_path": 0.2,
    "head_dropout": 0.1,
    "spatial_scale_factor": 8,
}
CALM: dict[str, Any] = {**TINY_OPTIONS, "drop_path": 0.0, "head_dropout": 0.0}


class KillAt(Callback):
    """Kills its own process, without a chance to tidy up, before an optimiser step.

    Args:
        step: how many steps come before.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class InterruptAt(KillAt):
    """Presses Ctrl-C there."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


class BreakAt(KillAt):
    """Breaks the weights there."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.lightning_module.network.head.projection.bias.data.fill_(float("nan"))  # type: ignore[union-attr]


class FailAt(KillAt):
    """Raises an error there, for tests that do without a second process."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise ValueError(f"stopped before step {self.step}")


def write_dataset(root: Path, lengths: dict[str, Sequence[int]]) -> Path:
    """Videos that show a colour a second, and who carries it on which side (`label` and `side`), as CSV files.

    Args:
        root: folder.
        lengths: per split, the lengths of its videos in seconds.
    """
    rng = np.random.default_rng(0)
    (root / "videos").mkdir(parents=True)
    for split, seconds in lengths.items():
        rows: list[tuple[Any, ...]] = []
        for index, length in enumerate(seconds):
            name = f"{split}{index}.mp4"
            with VideoWriter(root / "videos" / name, 32, 32, FPS, codec="mpeg4") as video:
                for second in range(length):
                    color, side = int(rng.integers(3)), int(rng.integers(2))
                    rows.append((name, second, second + 1, COLORS[2 - color], ("left", "right")[side]))
                    for _ in range(FPS):
                        frame = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8)
                        frame[:, 16 * side : 16 * side + 16, color] += 150
                        video.write(frame)
        for suffix, width in (("", 4), ("_sides", 5)):
            with (root / f"{split}{suffix}.csv").open("w", newline="") as file:
                columns = ("video", "start_s", "end_s", "label", "side")[:width]
                csv.writer(file).writerows([columns, *(row[:width] for row in rows)])
    return root


def tiny_data(root: Path, **options: Any) -> SegmentsData:
    """Its data module, read without worker processes."""
    return SegmentsData(**{"root": str(root), "batch_size": 2, "num_workers": 0, **options})


def tiny_module(**options: Any) -> VideoClassifier:
    """A module with the tiny model, without anything random unless asked for."""
    settings: dict[str, Any] = {"options": CALM, "optimizer": OptimizerOptions(lr=0.01, warmup_epochs=0)}
    return VideoClassifier(**settings | options)


def tiny_trainer(root: Path, *callbacks: Callback, **options: Any) -> Trainer:
    """A trainer that is quiet and leaves nothing behind."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": root,
        "max_steps": 3,
    }
    return Trainer(**settings | options, callbacks=list(callbacks), plugins=[AtomicCheckpointIO()])
