"""The numbers of a run, step by step, in a CSV file that survives being killed."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from memvit.training.late import LateValues
from memvit.training.module import VideoClassifier

FILE = "metrics.csv"


class Journal:
    """A CSV file of one row per step or validation; columns appear as they are needed.

    Every row is on its way to the disk when `write` returns. Rows that come after the checkpoint that a training resumes
    from are taken away, so every step stands there once.

    Args:
        path: the file; rows that are in it are kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        self._file: TextIO | None = None
        if path.is_file():
            with path.open(newline="") as file:
                self.columns = next(csv.reader(file), [])

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row."""
        if new := [name for name in row if name not in self.columns]:
            rows = self.rows()
            self.columns += new
            self._replace(rows)
        if self._file is None:
            self._file = self.path.open("a", newline="")
        csv.DictWriter(self._file, self.columns, restval="").writerow({n: _text(v) for n, v in row.items()})
        self._file.flush()

    def rows(self) -> list[dict[str, str]]:
        """All rows that are whole."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            # A row that a kill cut short has no value, or half of one, in its last column.
            text = file.read()
        lines = text[: text.rfind("\n") + 1].splitlines()
        return list(csv.DictReader(lines))

    def keep_until(self, step: int, position: tuple[int, int]) -> None:
        """Takes away what came later.

        Args:
            step: the last optimiser step whose validation stays.
            position: epoch and batch of the first training row to go.
        """

        def stays(row: dict[str, str]) -> bool:
            if row.get("batch"):
                return (int(row["epoch"]), int(row["batch"])) < position
            return int(row["step"]) <= step

        self._replace([row for row in self.rows() if stays(row)])

    def close(self) -> None:
        """Closes the file; writing opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _replace(self, rows: list[dict[str, str]]) -> None:
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = self.path.with_name(f".{self.path.name}-new")
        with written.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(written, self.path)


def _text(value: Any) -> Any:
    return repr(value) if isinstance(value, float) else value  # all digits


class JournalCallback(Callback):
    """Writes the loss and the learning rate of every step, and the metrics of every validation.

    A step is written when the next one has been computed, so that a GPU need not be waited for; those of a checkpoint are
    written before it, so that what is in the checkpoint is in the journal.

    Args:
        folder: of the run.
        carried_over: the journal of the run that is continued in another folder; its rows are taken over.
    """

    def __init__(self, folder: Path, carried_over: Path | None = None) -> None:
        self.folder = folder
        self.carried_over = carried_over
        self._journal: Journal | None = None
        self._losses: LateValues[tuple[dict[str, Any], float]] = LateValues()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the journal, without what came after the checkpoint."""
        if not trainer.is_global_zero:
            return
        self._journal = Journal(self.folder / FILE)
        if self.carried_over is not None and self.carried_over.is_file():
            before = Journal(self.carried_over)
            self._journal.columns = before.columns
            self._journal._replace(before.rows())
        assert isinstance(pl_module, VideoClassifier)
        data = pl_module.data
        self._journal.keep_until(trainer.global_step, (data.epoch, data.step))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes a step, and writes the one before."""
        if self._journal is None:
            return
        values = trainer.callback_metrics
        row = {"step": trainer.global_step, "epoch": batch.epoch, "batch": batch.step}
        lr = float(values["train/lr"])  # which is on the CPU
        self._write(self._losses.put((row, lr), values["train/loss"]))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes the steps that are in the checkpoint."""
        self._write(self._losses.flush())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes the last step of a training that was interrupted."""
        if isinstance(exception, KeyboardInterrupt):  # after anything else the GPU may not answer
            self._write(self._losses.flush())

    def _write(self, steps: list[tuple[tuple[dict[str, Any], float], Tensor]]) -> None:
        if self._journal is not None:
            for (row, lr), loss in steps:
                self._journal.write({**row, "train/loss": float(loss), "train/lr": lr})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what a validation measured."""
        if self._journal is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._write(self._losses.flush())
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if values:
            self._journal.write({"step": trainer.global_step, "epoch": trainer.current_epoch, **values})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the last step and closes the journal."""
        self._write(self._losses.flush())
        if self._journal is not None:
            self._journal.close()
