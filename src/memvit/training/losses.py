"""Losses summed over labelled items, so that several processes can divide by what they have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from memvit.datasets.clips import IGNORED, Batch
from memvit.models.heads import Logits


def labels_of(batch: Batch) -> tuple[Tensor, ...]:
    """A batch's labels per head, one row per item, in which nothing of filler is labelled.

    Returns:
        Per head int64 (items,), or float32 (items, classes) with several labels at a time. Items are clips, the token
        times of clips, or boxes, in the order of the model's logits.
    """
    if batch.boxes is not None:
        # Not by repeat_interleave, whose counts would have to be copied to a GPU and waited for.
        present = torch.cat([p.expand(len(boxes)) for p, boxes in zip(batch.present, batch.boxes, strict=True)])
    else:
        present = batch.present
    masked = []
    for labels in batch.labels:
        mask = present.view(-1, *[1] * (labels.dim() - 1))
        masked.append(torch.where(mask, labels, torch.full_like(labels, IGNORED)))
    return tuple(masked)


def items_of(logits: Logits, labels: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Per head, logits (items, classes) and labels (items,) or (items, classes).

    Args:
        logits: as the model gives them: (B, classes), (B, T, classes), (boxes, classes), or a tuple of those.
        labels: as `labels_of` gives them.

    Raises:
        ValueError: they do not belong together.
    """
    per_head = logits if isinstance(logits, tuple) else (logits,)
    if len(per_head) != len(labels):
        raise ValueError(f"the model has {len(per_head)} heads, and the data labels for {len(labels)}")
    pairs = []
    for head, (scores, target) in enumerate(zip(per_head, labels, strict=True)):
        multi_label = target.is_floating_point()
        if scores.shape[: None if multi_label else -1] != target.shape:
            raise ValueError(
                f"head {head}: logits of shape {tuple(scores.shape)} do not fit labels of shape {tuple(target.shape)}"
            )
        pairs.append((scores.flatten(0, -2), target.flatten(0, -2) if multi_label else target.flatten()))
    return pairs


def is_labelled(labels: Tensor) -> Tensor:
    """Which items carry a label, bool (items,)."""
    return (labels >= 0).all(dim=-1) if labels.is_floating_point() else labels >= 0


def summed_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """One head's loss, summed over labelled items, and how many there are.

    Cross entropy; with several labels at a time binary cross entropy, the mean over classes. In float32, whatever the
    logits are. Without labelled items it is 0 and still belongs to the graph, as gradient averaging among processes needs.

    Args:
        logits: (items, classes).
        labels: int64 (items,) or float32 (items, classes).
        label_smoothing: share of the label that is spread over all classes; for several labels, moved towards 1/2.
    """
    logits = logits.float()
    labelled = is_labelled(labels)
    if labels.is_floating_point():
        target = labels.clamp(min=0) * (1 - label_smoothing) + 0.5 * label_smoothing
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=-1)
        total = torch.where(labelled, losses, 0.0).sum()
    else:
        total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing)
    return total, labelled.sum()
