"""Checkpoints: written whole or not at all, when to write them, and whether one belongs to this training."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

logger = logging.getLogger(__name__)

FOLDER, LAST, BEST = "checkpoints", "last.ckpt", "best.ckpt"
DEFAULT_MONITORS = ("val/top1", "val/mAP", "val/all_action_accuracy_at_1", "val/overall_action_mt5r")
SECTION = "memvit"  # of a checkpoint, with what Lightning knows nothing of


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint beside its place and moves it there once it is on the disk.

    A full disk or a kill leaves the checkpoint before as it was.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint.

        Raises:
            ValueError: it cannot be written; what was there before is untouched.
        """
        path = Path(path)
        written = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(written, path)
            _sync_folder(path.parent)
        except (OSError, RuntimeError) as error:  # RuntimeError: PyTorch's archive writer, on a failed write
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            kept = f"the checkpoint before, {path}, is whole" if path.exists() else "there is none before it"
            raise ValueError(f"{path}: the checkpoint cannot be written ({reason}); {kept}; free space") from error
        finally:
            written.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Reads a checkpoint: tensors and plain data; nothing in it is executed.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is no checkpoint of ours, or cut short.
        """
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint, if it is there."""
        Path(path).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename last through a power cut, where folders can be synchronised."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_checkpoint(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """The content of a checkpoint that training wrote, on the CPU.

    Args:
        path: the file.
        mmap: tensors are read when they are used; for a look at the rest.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no checkpoint of ours, or cut short.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; give a file from a run's folder {FOLDER}, or last")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # on bytes that are no pickle, the unpickler stumbles in any way
        raise ValueError(f"{path} is not a checkpoint, or is cut short; take another one") from error
    if not isinstance(content, dict) or SECTION not in content:
        raise ValueError(
            f"{path} is not a checkpoint of `memvit fit`; to start from such weights, give --model.weights"
        )
    return content


def check_same(saved: Mapping[str, Any], current: Mapping[str, Any], source: str) -> None:
    """Checks that a checkpoint belongs to the training as it is configured now.

    Args:
        saved, current: nested plain data under equal names.
        source: what the message calls the checkpoint.

    Raises:
        ValueError: some fields differ; all are listed with both values.
    """
    before, now = _flatten(saved), _flatten(current)
    differing = [
        f"{name} was {_shown(before.get(name))} and is {_shown(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if differing:
        raise ValueError(
            f"{source} is of another training: {'; '.join(differing)}. Set these as they were to continue it, or start a "
            "new training from its weights with --model.weights"
        )


def _flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + str(name)] = value
    return flat


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt` and, by a metric of the validation, `best.ckpt`.

    A checkpoint is written every so many steps, after every validation, and after an epoch without one; never between
    the last batch before a validation and that validation, so that what is resumed goes on where it stopped.

    Args:
        folder: where the files go; set before training starts.
        every_n_steps: optimiser steps between two checkpoints; 0: only after validations.
        monitor: the metric that decides what is best, the lower the better if its name says "loss"; None: the one of
            `DEFAULT_MONITORS` that there is.
    """

    def __init__(self, folder: Path, every_n_steps: int, monitor: str | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.monitor = monitor
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.has_validated = False  # since this process began
        self._saved_step = -1

    @property
    def best_path(self) -> Path:
        """The best checkpoint; the last one where none is known to be better."""
        best = self.folder / BEST
        return best if self.best_score is not None and best.is_file() else self.folder / LAST

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Removes what a kill in the middle of writing has left."""
        if trainer.is_global_zero:
            for rest in self.folder.glob(".*.ckpt-*"):
                rest.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """What is best so far."""
        return {"monitor": self.monitor, "best_score": self.best_score, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what was best, if anything was, and by the same metric."""
        if state_dict["best_score"] is not None and self.monitor in (None, state_dict["monitor"]):
            self.monitor = state_dict["monitor"]
            self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves every so many steps."""
        step = trainer.global_step
        due = self.every_n_steps > 0 and step > 0 and step % self.every_n_steps == 0 and step != self._saved_step
        loop = trainer.fit_loop.epoch_loop
        stepped = not loop._should_accumulate()
        if due and stepped and not loop._num_ready_batches_reached() and not _validates_next(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, and tells whether this is the best so far.

        Raises:
            ValueError: what is monitored is not measured; the checkpoint has been saved.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        metrics = trainer.callback_metrics
        if trainer.sanity_checking:  # a wrong name shows before hours of training
            self._check_monitor(metrics)
            return
        self.has_validated = True
        if self.monitor is None:  # not before: what is not measured here may have a name in a sanity check
            self.monitor = next((name for name in DEFAULT_MONITORS if name in metrics), None)
        name = self.monitor or ""
        value, before = float(metrics.get(name, math.nan)), self.best_score
        is_best = before is None or (value < before if "loss" in name else value > before)
        is_best = is_best and not math.isnan(value)
        if is_best:
            self.best_score, self.best_step = value, trainer.global_step
        self._save(trainer)
        if is_best and trainer.is_global_zero:
            _link(self.folder / LAST, self.folder / BEST)
        self._check_monitor(metrics)

    def _check_monitor(self, metrics: Mapping[str, Any]) -> None:
        if self.monitor is not None and self.monitor not in metrics:
            known = ", ".join(name for name in metrics if name.startswith("val/"))
            there_are = f"metrics are {known}" if known else "nothing is, as nothing that is validated is labelled"
            raise ValueError(f"run.monitor={self.monitor!r} is not measured; {there_are}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves after an epoch that no validation ended."""
        if self._saved_step != trainer.global_step:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(self.folder / LAST)


def _validates_next(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that has just been trained."""
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    return trainer.enable_validation and fetcher is not None and loop._should_check_val_fx(fetcher)


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name, replacing what had it; a copy where the file system has no links."""
    linked = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
    try:
        try:
            os.link(source, linked)
        except OSError:
            shutil.copyfile(source, linked)
        os.replace(linked, target)
    except OSError as error:
        raise ValueError(f"{target} cannot be written ({error.strerror}); free space") from error
    finally:
        linked.unlink(missing_ok=True)
