"""What several clips together say of a segment or a video, measured as the data set defines it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from memvit.datasets.clips import Batch, GroupedDataset


class GroupScores(Metric):
    """Averages the scores of the clips of every group over a pass; the data set's own metrics come of them.

    Args:
        num_classes: per head.
        options: as for torchmetrics' `Metric`.
    """

    full_state_update = False
    higher_is_better = True
    num_clips: Tensor

    def __init__(self, num_classes: Sequence[int], **options: object) -> None:
        super().__init__(**options)
        self.num_classes = tuple(num_classes)
        self.dataset: GroupedDataset | None = None
        self.num_missed = 0
        for head, num in enumerate(self.num_classes):
            self.add_state(f"sums_{head}", torch.zeros(0, num), dist_reduce_fx="sum")
        self.add_state("num_clips", torch.zeros(0, dtype=torch.long), dist_reduce_fx="sum")

    def begin(self, dataset: GroupedDataset) -> None:
        """Forgets everything; what follows is of a data set."""
        self.reset()
        self.dataset = dataset
        for head, num in enumerate(self.num_classes):
            setattr(self, f"sums_{head}", torch.zeros(dataset.num_groups, num, device=self.device))
        self.num_clips = torch.zeros(dataset.num_groups, dtype=torch.long, device=self.device)

    def update(self, batch: Batch, scores: Sequence[Tensor]) -> None:
        """Adds the clips of a batch.

        Args:
            batch: of clips.
            scores: per head (B, classes), or (B, T, classes) of which the last time counts, from 0 to 1.
        """
        assert self.dataset is not None
        groups = torch.tensor(
            [
                self.dataset.group(name, start_s) if there else -1
                for name, start_s, there in zip(batch.videos, batch.start_s, batch.present.tolist(), strict=True)
            ],
            device=self.num_clips.device,
        )
        counts = groups >= 0
        groups = groups[counts]
        self.num_clips.index_add_(0, groups, torch.ones_like(groups))
        for sums, head in zip(self._sums(), scores, strict=True):
            newest = head if head.dim() == 2 else head[:, -1]
            sums.index_add_(0, groups, newest[counts].to(sums))

    def compute(self) -> dict[str, Tensor]:
        """The data set's metrics; `num_missed` then says of how many groups no clip was seen."""
        assert self.dataset is not None
        scores, answered = self.means()
        self.num_missed = int((~answered).sum())
        values = self.dataset.measure(scores, answered)
        return {name: torch.tensor(value, dtype=torch.float64).float() for name, value in values.items()}

    def gathered(self) -> tuple[list[np.ndarray], np.ndarray]:
        """`means` of what all processes found; all of them have to ask."""
        with self.sync_context():
            return self.means()

    def means(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Per head, the mean scores float32 (groups, classes); and of which groups there are any, bool (groups,)."""
        answered = (self.num_clips > 0).cpu().numpy()
        counts = self.num_clips.clamp(min=1)[:, None]
        return [(sums / counts).cpu().numpy() for sums in self._sums()], answered

    def _sums(self) -> list[Tensor]:
        return [getattr(self, f"sums_{head}") for head in range(len(self.num_classes))]
