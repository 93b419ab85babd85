"""What a pass over videos finds at keyframes, evaluated as AVA does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from memvit.datasets.ava import AvaDataset
from memvit.datasets.ava_actions import action_names
from memvit.datasets.ava_boxes import without_suffix
from memvit.datasets.clips import Batch
from memvit.metrics.ava import AvaResult, Detections, GroundTruth, evaluate_boxes

logger = logging.getLogger(__name__)

CORNER_DIGITS = 6  # what a file of detections has as well


class KeyframeDetections(Metric):
    """Keeps the boxes of a pass and their scores; the frame mAP at an IoU of 0.5, in percent, comes of them.

    Keyframes of which no clip was read (a video that cannot be decoded, or a pass that was cut short) do not count; that is
    logged.

    Args:
        num_classes: C.
        options: as for torchmetrics' `Metric`.
    """

    full_state_update = False
    higher_is_better = True
    places: list[Tensor]
    corners: list[Tensor]
    scores: list[Tensor]
    seen: list[Tensor]

    def __init__(self, num_classes: int, **options: Any) -> None:
        super().__init__(**options)
        self.num_classes = num_classes
        self.dataset: AvaDataset | None = None
        self.result: AvaResult | None = None
        for name in ("places", "corners", "scores", "seen"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def begin(self, dataset: AvaDataset) -> None:
        """Forgets everything; what follows is of a data set."""
        self.reset()
        self.dataset = dataset
        names = [(video.name, without_suffix(video.name)) for video in dataset.videos]
        self._numbers = {name: number for number, same in enumerate(names) for name in same}

    def update(self, batch: Batch, heads: Sequence[Tensor]) -> None:
        """Keeps the boxes of a batch.

        Args:
            batch: with boxes.
            heads: the scores of the one head there is, (boxes, C), from 0 to 1.
        """
        (scores,) = heads
        assert self.dataset is not None
        assert batch.frame_boxes is not None
        present = batch.present.tolist()
        seen = [
            (self._numbers[name], self.dataset.second(start_s))
            for name, start_s, there in zip(batch.videos, batch.start_s, present, strict=True)
            if there
        ]
        counts = [len(boxes) for boxes in batch.frame_boxes]
        of_present = torch.tensor(present, device=scores.device).repeat_interleave(
            torch.tensor(counts, device=scores.device)
        )
        kept = [boxes for boxes, there in zip(batch.frame_boxes, present, strict=True) if there]
        # Also where there is nothing: every process must have something to gather.
        keyframes = torch.tensor(seen, dtype=torch.float64, device=scores.device).view(-1, 2)
        sizes = torch.tensor([len(boxes) for boxes in kept], dtype=torch.long, device=scores.device)
        self.seen.append(keyframes)
        self.places.append(keyframes.repeat_interleave(sizes, dim=0))
        self.corners.append(torch.cat([*kept, torch.zeros(0, 4, device=scores.device)]))
        self.scores.append(scores[of_present].float())

    def compute(self) -> dict[str, Tensor]:
        """`mAP`; `result` then has the classes."""
        assert self.dataset is not None
        truth = self._seen_truth(self.dataset)
        self.result = evaluate_boxes(
            truth,
            self.detections(),
            excluded=self.dataset.excluded,
            classes=None if self.dataset.class_names == action_names() else self.dataset.class_names,
        )
        return {"mAP": torch.tensor(100 * self.result.mean_ap)}

    def gathered(self) -> Detections:
        """What all processes found; all of them have to ask."""
        with self.sync_context():
            return self.detections()

    def detections(self) -> Detections:
        """What was found: by this process, or by all while they are synchronised."""
        assert self.dataset is not None
        places, corners, scores = (_joined(part).cpu().numpy() for part in (self.places, self.corners, self.scores))
        names = np.array([without_suffix(video.name) for video in self.dataset.videos], object)
        return Detections(
            names[places[:, 0].astype(np.int64)],
            places[:, 1],
            corners.astype(np.float64).round(CORNER_DIGITS),
            scores,
            np.array(self.dataset.class_ids),
        )

    def _seen_truth(self, dataset: AvaDataset) -> GroundTruth:
        """The annotated boxes of the keyframes of which a clip was read."""
        seen = {(int(video), float(second)) for video, second in _joined(self.seen).tolist()}
        truth = dataset.truth
        kept = np.array(
            [
                (self._numbers.get(name, -1), float(second)) in seen
                for name, second in zip(truth.videos, truth.seconds, strict=True)
            ],
            bool,
        )
        missed = {
            (str(name), float(second)) for name, second in zip(truth.videos[~kept], truth.seconds[~kept], strict=True)
        }
        if missed:
            logger.warning(
                "%d annotated keyframes were not read, the first of %s: they do not count here, in an evaluation of the file of "
                "detections they do",
                *(len(missed), min(missed)[0]),
            )
        return GroundTruth(truth.videos[kept], truth.seconds[kept], truth.corners[kept], truth.action_ids[kept])


def _joined(parts: list[Tensor] | Tensor) -> Tensor:
    return torch.cat(parts) if isinstance(parts, list) else parts
