"""The predictions of a validation or test as a CSV file, and the table of what was measured."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from torch import Tensor

from memvit.commands.terminal import say, stdout_console
from memvit.datasets.clips import Batch
from memvit.datasets.epic_kitchens import EpicKitchensDataset, log_scores
from memvit.metrics.ava import save_class_picture, write_detections
from memvit.metrics.epic_submission import Challenge, write_submission
from memvit.models.hub import make_directory
from memvit.training.groups import GroupScores
from memvit.training.keyframes import KeyframeDetections
from memvit.training.losses import is_labelled
from memvit.training.module import VideoClassifier
from memvit.training.report import report_failures

logger = logging.getLogger(__name__)

Role = Literal["val", "test"]


class Predictions(Callback):
    """Prints what `memvit validate` or `memvit test` measured, and writes their predictions; not for a training.

    The file has a row per labelled or unlabelled item: `video,start_s,end_s`, for boxes `x1,y1,x2,y2` (fractions of the
    frame's width and height), then `label,predicted,score` for each head, numbered from 1 where there are several. With
    several classes at a time `label` joins them with "|" and `predicted` is the likeliest.

    Args:
        path: the CSV file; None: none.
        detections: the CSV file with the scores of boxes in the form of AVA's evaluation; None: none.
        submission: the zip file for the challenge of EPIC-KITCHENS-100; None: none.
        console: where to tell what was written.
    """

    def __init__(self, path: str | None, detections: str | None, submission: str | None, console: Console) -> None:
        self.path = None if path is None else Path(path)
        self.detections = None if detections is None else Path(detections)
        self.submission = None if submission is None else Path(submission)
        self.console = console
        self._rows: list[list[Any]] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds out now, not after hours, whether the files can be written."""
        self._begin(pl_module, "val")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds out now, not after hours, whether the files can be written."""
        self._begin(pl_module, "test")

    def _begin(self, pl_module: LightningModule, role: Role) -> None:
        self._rows = []
        for path in (self.path, self.detections, self.submission):
            if path is not None:
                make_directory(path.parent)
        assert isinstance(pl_module, VideoClassifier)
        _, findings = pl_module.measures(role)
        if self.detections is not None and not isinstance(findings, KeyframeDetections):
            raise ValueError(
                f"model.detections={self.detections}: there are no boxes at keyframes to write; use AvaData, or leave it out"
            )
        if self.submission is not None and not isinstance(pl_module.data.dataset(role), EpicKitchensDataset):
            raise ValueError(
                f"model.submission={self.submission}: there is no challenge to take part in; use EpicKitchensData, or leave "
                "it out"
            )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps a batch's predictions."""
        self._keep(pl_module, outputs, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps a batch's predictions."""
        self._keep(pl_module, outputs, batch)

    def _keep(self, pl_module: LightningModule, outputs: Any, batch: Batch) -> None:
        if self.path is not None:
            assert isinstance(pl_module, VideoClassifier)
            self._rows += prediction_rows(batch, outputs["items"], pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the predictions of all processes, by video and time."""
        self._write_predictions(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the predictions of all processes, by video and time."""
        self._write_predictions(trainer, pl_module)

    def _write_detections(self, path: Path, trainer: Trainer, findings: KeyframeDetections) -> None:
        found = findings.gathered()
        if not trainer.is_global_zero:
            return
        result, dataset = findings.result, findings.dataset
        assert result is not None
        assert dataset is not None
        num_rows = write_detections(path, found)
        picture = path.with_name(f"{path.stem}_classes.png")
        save_class_picture(result, picture, names=dataset.class_names)
        say(self.console, f"{num_rows} scores of {len(found.videos)} boxes: {path}; the classes: {picture}")

    def _write_submission(self, path: Path, trainer: Trainer, findings: GroupScores) -> None:
        dataset = findings.dataset
        assert isinstance(dataset, EpicKitchensDataset)
        scores, answered = findings.gathered()
        if not trainer.is_global_zero:
            return
        if not answered.all():
            # A submission must hold every segment; equal scores say that nothing is known.
            logger.warning("%d segments could not be read: all classes get the same score", (~answered).sum())
        verbs, nouns = (log_scores(np.where(answered[:, None], head, 1.0)) for head in scores)
        challenge: Challenge = "action_recognition" if dataset.epic_task == "recognition" else "action_anticipation"
        write_submission(path, challenge, dataset.rows["narration_id"], verbs, nouns)
        say(self.console, f"{dataset.num_groups:,} segments for the challenge: {path}")

    def _write_predictions(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, VideoClassifier)
        if self.path is None:
            return
        everyone: list[list[list[Any]]] = [self._rows]
        if trainer.world_size > 1:
            everyone = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(everyone, self._rows)
        if not trainer.is_global_zero:
            return
        rows = sorted((row for rows in everyone for row in rows), key=lambda row: row[:2])
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(column_names(pl_module))
            writer.writerows(rows)
        say(self.console, f"{len(rows)} predictions: {self.path}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what was found at keyframes or in segments, which is evaluated by now, and prints the table."""
        self._end(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what was found at keyframes or in segments, which is evaluated by now, and prints the table."""
        self._end(trainer, pl_module, "test")

    def _end(self, trainer: Trainer, pl_module: LightningModule, role: Role) -> None:
        assert isinstance(pl_module, VideoClassifier)
        _, findings = pl_module.measures(role)
        if self.detections is not None:
            assert isinstance(findings, KeyframeDetections)
            self._write_detections(self.detections, trainer, findings)
        if self.submission is not None:
            assert isinstance(findings, GroupScores)
            self._write_submission(self.submission, trainer, findings)
        self._print(trainer, pl_module, role)

    def _print(self, trainer: Trainer, pl_module: VideoClassifier, role: Role) -> None:
        if not trainer.is_global_zero:
            return
        table = Table("metric", "value")
        for name, value in trainer.callback_metrics.items():
            if name.startswith(f"{role}/"):
                unit = "" if name == f"{role}/loss" else " %"
                table.add_row(name.removeprefix(f"{role}/"), f"{float(value):.4g}{unit}")
        if table.row_count:
            stdout_console().print(table)
        else:
            say(self.console, "nothing is labelled, so nothing is measured")
        report_failures(pl_module, self.console)


def column_names(module: VideoClassifier) -> list[str]:
    """The columns of a file of predictions."""
    head = module.config.head
    boxes = ["x1", "y1", "x2", "y2"] if head.task == "boxes" else []
    suffixes = [""] if len(head.num_classes) == 1 else [f"_{number + 1}" for number in range(len(head.num_classes))]
    return [
        "video",
        "start_s",
        "end_s",
        *boxes,
        *(f"{n}{s}" for s in suffixes for n in ("label", "predicted", "score")),
    ]


def prediction_rows(batch: Batch, items: Sequence[tuple[Tensor, Tensor]], module: VideoClassifier) -> list[list[Any]]:
    """A batch's rows: one per clip, token time or box that is no filler.

    Args:
        batch: the clips.
        items: per head, logits (items, classes) and labels, as `test_step` returns them.
        module: the model's.
    """
    config = module.config
    places = _places(batch, module)
    columns = [
        _answers(logits, labels, names, config.head.activation)
        for (logits, labels), names in zip(items, config.head.class_names, strict=True)
    ]
    return [
        [*place, *(value for column in columns for value in column[index])]
        for index, place in enumerate(places)
        if place is not None
    ]


def _places(batch: Batch, module: VideoClassifier) -> list[list[Any] | None]:
    """Where every item is; None for filler."""
    config = module.config
    places: list[list[Any] | None] = []
    for index, (video, start_s) in enumerate(zip(batch.videos, batch.start_s, strict=True)):
        present = bool(batch.present[index])
        num_parts = config.num_times if config.head.task == "frames" else 1
        length_s = config.clip_duration_s / num_parts
        spans = [(round(start_s + i * length_s, 4), round(start_s + (i + 1) * length_s, 4)) for i in range(num_parts)]
        if batch.frame_boxes is not None:
            parts = [
                [video, *spans[0], *(round(value, 4) for value in box)] for box in batch.frame_boxes[index].tolist()
            ]
        else:
            parts = [[video, *span] for span in spans]
        places += [part if present else None for part in parts]
    return places


def _answers(logits: Tensor, labels: Tensor, names: Sequence[str], activation: str) -> list[list[Any]]:
    """Per item: label, predicted class, score."""
    scores = logits.float().sigmoid() if activation == "sigmoid" else logits.float().softmax(dim=-1)
    best = scores.max(dim=-1)
    answers = []
    for known, label, index, score in zip(
        is_labelled(labels).tolist(), labels.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
    ):
        if not known:
            text = ""
        elif isinstance(label, list):
            text = "|".join(name for name, value in zip(names, label, strict=True) if value > 0.5)
        else:
            text = names[label]
        answers.append([text, names[index], f"{score:.6g}"])
    return answers
