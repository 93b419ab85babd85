"""What a pass over validation or test videos measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from memvit.metrics.classification import ClassificationMetrics
from memvit.training.losses import summed_loss


class SummedLosses(Metric):
    """The loss of every head, summed over labelled items, and how many these are.

    Args:
        num_heads: how many heads.
        options: as for torchmetrics' `Metric`.
    """

    full_state_update = False
    higher_is_better = False
    totals: Tensor
    counts: Tensor

    def __init__(self, num_heads: int, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("totals", torch.zeros(num_heads), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(num_heads, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, items: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Adds a batch; items as for `Evaluation`."""
        totals, counts = zip(*(summed_loss(logits, labels) for logits, labels in items), strict=True)
        self.totals += torch.stack(totals)
        self.counts += torch.stack(counts)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Per head, the sum and the number of items."""
        return self.totals, self.counts


class Evaluation(nn.Module):
    """Metrics and loss of all heads over a pass, synchronised among processes when they are computed.

    Args:
        num_classes: per head.
        multi_label: whether items can have several labels at a time.

    Attributes:
        num_labelled: items that count, of all heads and processes; known once the metrics have been computed.
    """

    def __init__(self, num_classes: Sequence[int], multi_label: bool) -> None:
        super().__init__()
        self.metrics = ClassificationMetrics(num_classes, multi_label)
        self.losses = SummedLosses(len(num_classes))
        self.num_labelled = 0

    def reset(self) -> None:
        """Forgets everything."""
        self.metrics.reset()
        self.losses.reset()

    def update(self, items: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Counts a batch.

        Args:
            items: per head, logits (items, classes) and labels (items,) or, for several labels, (items, classes).
        """
        self.metrics.update(items)
        self.losses.update(items)

    def compute(self) -> dict[str, Tensor]:
        """The metrics by name, and the sum of the heads' mean losses as `loss`; NaN where nothing is labelled.

        As in training, a head that has no labelled items adds nothing to the loss.
        """
        totals, counts = self.losses.compute()
        self.num_labelled = int(counts.sum())
        loss = (totals / counts)[counts > 0].sum() if self.num_labelled else torch.full_like(totals.sum(), math.nan)
        return self.metrics.compute() | {"loss": loss}
