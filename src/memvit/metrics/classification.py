"""How well items are classified: clips, the token times of clips, or boxes, one label each or several."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.classification import multilabel_average_precision


class SingleLabelMetric(Metric):
    """Top-1, top-5 and mean class accuracy, in percent, of items with one label each.

    Top-5 is top-C where there are fewer than 5 classes, C. The mean class accuracy is the mean of top-1 over the classes
    that occur among the labels. Values are NaN as long as nothing is labelled.

    Args:
        num_classes: C.
        options: as for torchmetrics' `Metric`.
    """

    full_state_update = False
    higher_is_better = True
    correct: Tensor
    correct_top5: Tensor
    total: Tensor

    def __init__(self, num_classes: int, **options: Any) -> None:
        super().__init__(**options)
        self.num_classes = num_classes
        for name in ("correct", "correct_top5", "total"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Counts items.

        Args:
            logits: (items, C).
            labels: int64 (items,); below 0: not counted.
        """
        labelled = labels >= 0
        logits, labels = logits[labelled].float(), labels[labelled]
        # Stable, so that ties go to the first class, whatever the device.
        order = logits.argsort(dim=-1, descending=True, stable=True)[:, : min(5, self.num_classes)]
        hits = order == labels[:, None]
        self.total += torch.bincount(labels, minlength=self.num_classes)
        self.correct += torch.bincount(labels[hits[:, 0]], minlength=self.num_classes)
        self.correct_top5 += torch.bincount(labels[hits.any(dim=1)], minlength=self.num_classes)

    def compute(self) -> dict[str, Tensor]:
        """`top1`, `top5` and `mean_class_accuracy`."""
        num_items, present = self.total.sum(), self.total > 0
        recall = self.correct[present].double() / self.total[present]
        return {
            "top1": (100 * self.correct.sum().double() / num_items).float(),
            "top5": (100 * self.correct_top5.sum().double() / num_items).float(),
            "mean_class_accuracy": (100 * recall.mean()).float(),
        }


class MultiLabelMetric(Metric):
    """Mean average precision, in percent, of items with any number of labels.

    The mean is over the classes that occur among the labels; NaN where none does. Average precision is the area under the
    precision-recall curve in steps, without interpolation.

    Args:
        num_classes: C.
        options: as for torchmetrics' `Metric`.
    """

    full_state_update = False
    higher_is_better = True
    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self, num_classes: int, **options: Any) -> None:
        super().__init__(**options)
        self.num_classes = num_classes
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Keeps items.

        Args:
            logits: (items, C).
            labels: (items, C) of 0 and 1; rows below 0 are not counted.
        """
        labelled = (labels >= 0).all(dim=-1)
        # Also where there are none: every process must have something to gather.
        self.scores.append(logits[labelled].float().sigmoid())
        self.labels.append(labels[labelled].long())

    def compute(self) -> dict[str, Tensor]:
        """`mAP`."""
        scores = torch.cat(self.scores) if isinstance(self.scores, list) else self.scores
        labels = torch.cat(self.labels) if isinstance(self.labels, list) else self.labels
        occurs = labels.any(dim=0)
        if not occurs.any():
            return {"mAP": torch.tensor(float("nan"), device=scores.device)}
        if self.num_classes == 1:  # torchmetrics wants two or more labels
            scores, labels, occurs = scores.repeat(1, 2), labels.repeat(1, 2), occurs.repeat(2)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Nn]o positive samples.*")
            each = multilabel_average_precision(scores, labels, num_labels=labels.shape[1], average="none")
        assert each is not None
        return {"mAP": 100 * each[occurs].mean()}


class ClassificationMetrics(nn.Module):
    """The metrics of all heads. They are synchronised among processes when they are computed.

    Args:
        num_classes: per head.
        multi_label: whether items can have several labels at a time.
    """

    def __init__(self, num_classes: Sequence[int], multi_label: bool) -> None:
        super().__init__()
        kind = MultiLabelMetric if multi_label else SingleLabelMetric
        self.heads = nn.ModuleList(kind(num) for num in num_classes)

    def update(self, items: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Counts items.

        Args:
            items: per head, logits (items, classes) and labels (items,) or, for several labels, (items, classes).
        """
        for metric, (logits, labels) in zip(self.heads, items, strict=True):
            assert isinstance(metric, Metric)
            metric.update(logits, labels)

    def compute(self) -> dict[str, Tensor]:
        """Every metric by name; with several heads also each head's, as `top1/1` of the first, and their mean as `top1`."""
        per_head = [metric.compute() for metric in self.heads]  # type: ignore[operator]
        values = {name: torch.stack([head[name] for head in per_head]).mean() for name in per_head[0]}
        if len(per_head) > 1:
            for number, head in enumerate(per_head, start=1):
                values |= {f"{name}/{number}": value for name, value in head.items()}
        return values

    def reset(self) -> None:
        """Forgets everything."""
        for metric in self.heads:
            assert isinstance(metric, Metric)
            metric.reset()
