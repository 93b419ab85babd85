"""How far a training is, with its loss and speed: a bar where somebody watches, a line now and then elsewhere."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from memvit.training.late import LateValues

LINE_EVERY_S = 30.0


class Speed:
    """Clips per second, over the whole time and lately."""

    def __init__(self) -> None:
        self.num_clips = 0
        self.seconds = 0.0
        self._recent: float | None = None
        self._last = time.perf_counter()

    def restart_clock(self) -> None:
        """Leaves out the time until now."""
        self._last = time.perf_counter()

    def count(self, num_clips: int) -> None:
        """Counts clips that took the time since the last call."""
        now = time.perf_counter()
        elapsed = max(now - self._last, 1e-9)
        self._last = now
        self.num_clips += num_clips
        self.seconds += elapsed
        rate = num_clips / elapsed
        self._recent = rate if self._recent is None else 0.9 * self._recent + 0.1 * rate

    @property
    def recent(self) -> float:
        """Clips per second of the last steps."""
        return self._recent or 0.0

    @property
    def mean(self) -> float:
        """Clips per second since the beginning."""
        return self.num_clips / self.seconds if self.seconds else 0.0


class TrainingProgress(ProgressBar):
    """Shows progress on stderr.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self.speed = Speed()
        self._enabled = True
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_line = time.monotonic()
        self._num_clips = 0
        self._numbers: LateValues[None] = LateValues()  # loss and number of clips of a step
        self._loss = math.nan

    def disable(self) -> None:
        """Shows nothing from now on."""
        self._enabled = False

    def enable(self) -> None:
        """Shows progress again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints without breaking the bar."""
        if self._enabled:
            self.console.print(" ".join(map(str, args)), markup=False, soft_wrap=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._begin()
        self.speed = Speed()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts over for an epoch."""
        self.speed.restart_clock()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Shows a step."""
        loss = trainer.callback_metrics["train/loss"]
        arrived = self._numbers.put(None, torch.stack([loss, batch.present.sum().to(loss.dtype)]))
        self._note(arrived, trainer.world_size)
        last = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        name = f"epoch {batch.epoch + 1}" + (f"/{last}" if last else "")
        detail = f"loss {self._loss:.4f}  {self.speed.recent:.1f} clips/s" if arrived else ""
        self._show(name, batch.step + 1, self.total_train_batches, detail)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the bar away."""
        self._note(self._numbers.flush(), trainer.world_size)
        self._end()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts to validate."""
        self._start_evaluation()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Shows a step of the validation."""
        name = "checking validation" if trainer.sanity_checking else "validation"
        self.has_dataloader_changed(dataloader_idx)
        self._show(name, batch_idx + 1, self.total_val_batches_current_dataloader, self._evaluation_speed(batch))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells what came out."""
        if trainer.state.fn != "fit":
            self._end()
        elif not trainer.sanity_checking:
            values = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
            text = ", ".join(f"{name.removeprefix('val/')} {value:.4g}" for name, value in values.items())
            self.print(f"step {trainer.global_step}: validation {text or 'measures nothing, as nothing is labelled'}")
        self.speed.restart_clock()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts to test."""
        self._start_evaluation()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Shows a step of the test."""
        self.has_dataloader_changed(dataloader_idx)
        self._show("test", batch_idx + 1, self.total_test_batches_current_dataloader, self._evaluation_speed(batch))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the bar away."""
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Takes the bar away before the error is shown."""
        self._end()

    def _note(self, arrived: list[tuple[None, Tensor]], world_size: int) -> None:
        if not arrived:
            return
        num_clips = 0
        for _, numbers in arrived:
            self._loss, present = numbers.tolist()
            num_clips += int(present) * world_size
        self.speed.count(num_clips)

    def _start_evaluation(self) -> None:
        self._begin()
        self._num_clips, self._evaluation_began = 0, time.perf_counter()

    def _evaluation_speed(self, batch: Any) -> str:
        self._num_clips += int(batch.present.sum()) * self.trainer.world_size
        return f"{self._num_clips / max(time.perf_counter() - self._evaluation_began, 1e-9):.1f} clips/s"

    def _begin(self) -> None:
        if not self._enabled or self._bar is not None or not self.console.is_terminal:
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self._bar = Progress(*columns, console=self.console, transient=True)
        self._task = self._bar.add_task("starting", total=None, detail="")
        self._bar.start()

    def _show(self, name: str, done: int, total: int | float, detail: str) -> None:
        if self._bar is not None and self._task is not None:
            if self._bar.tasks[0].description != name:
                self._bar.reset(self._task, description=name, total=total)
            self._bar.update(self._task, completed=done, total=total, detail=detail)
            return
        now = time.monotonic()
        if self._enabled and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            self.print(f"{name}: {done}/{total:.0f} {detail}")

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
