"""What a pass over validation or test videos measures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from memvit.metrics.classification import ClassificationMetrics
from memvit.training.losses import summed_loss


class Evaluation(nn.Module):
    """Metrics and loss of all heads over a pass, synchronised among processes when they are computed.

    Args:
        num_classes: per head.
        multi_label: whether items can have several labels at a time.
    """

    def __init__(self, num_classes: Sequence[int], multi_label: bool) -> None:
        super().__init__()
        self.metrics = ClassificationMetrics(num_classes, multi_label)
        self.losses = nn.ModuleList(MeanMetric() for _ in num_classes)

    def reset(self) -> None:
        """Forgets everything."""
        self.metrics.reset()
        for loss in self._losses():
            loss.reset()

    def update(self, items: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Counts a batch.

        Args:
            items: per head, logits (items, classes) and labels (items,) or, for several labels, (items, classes).
        """
        self.metrics.update(items)
        for mean, (logits, labels) in zip(self._losses(), items, strict=True):
            total, count = summed_loss(logits, labels)
            mean.update(total / count.clamp(min=1), weight=count)

    def compute(self) -> dict[str, Tensor]:
        """The metrics by name, and the sum of the heads' mean losses as `loss`."""
        return self.metrics.compute() | {"loss": torch.stack([loss.compute() for loss in self._losses()]).sum()}

    def _losses(self) -> list[MeanMetric]:
        return list(self.losses)  # type: ignore[arg-type]
