from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from memvit.datasets.clips import IGNORED, Batch
from memvit.training.losses import is_labelled, items_of, labels_of, summed_loss


def _batch(labels: torch.Tensor, present: list[bool], boxes: list[torch.Tensor] | None = None) -> Batch:
    num = len(present)
    clips = torch.zeros(num, 3, 2, 4, 4, dtype=torch.uint8)
    flags = torch.tensor(present)
    return Batch(clips, flags, flags, (labels,), boxes, ["v"] * num, [0.0] * num, 0, 0)


def test_filler_has_no_labels() -> None:
    assert labels_of(_batch(torch.tensor([2, 1]), [True, False]))[0].tolist() == [2, IGNORED]
    frames = torch.tensor([[0, 1], [1, 1]])
    assert labels_of(_batch(frames, [False, True]))[0].tolist() == [[IGNORED, IGNORED], [1, 1]]
    boxes = [torch.zeros(2, 4), torch.zeros(0, 4), torch.zeros(1, 4)]
    assert labels_of(_batch(torch.tensor([0, 1, 2]), [False, True, True], boxes))[0].tolist() == [IGNORED, IGNORED, 2]


def test_cross_entropy_counts_labelled_items_alone() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    total, count = summed_loss(logits, torch.tensor([1, IGNORED, 3]))
    expected = -logits.log_softmax(-1)[[0, 2], [1, 3]].sum()
    assert count == 2
    assert total.item() == pytest.approx(expected.item())


def test_label_smoothing_is_pytorchs() -> None:
    logits, labels = torch.randn(3, 4), torch.tensor([1, 0, 3])
    assert summed_loss(logits, labels, 0.1)[0] == F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1)


def test_several_labels_are_scored_one_by_one() -> None:
    logits = torch.zeros(2, 3)
    labels = torch.tensor([[1.0, 0.0, 1.0], [-1.0, -1.0, -1.0]])
    total, count = summed_loss(logits, labels)
    assert (total.item(), count.item()) == (pytest.approx(math.log(2)), 1)
    assert is_labelled(labels).tolist() == [True, False]


@pytest.mark.parametrize("labels", [torch.full((2,), IGNORED), torch.full((2, 3), float(IGNORED))])
def test_without_labels_the_loss_is_zero_and_so_are_its_gradients(labels: torch.Tensor) -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    total, count = summed_loss(logits, labels)
    total.backward()
    assert (total.item(), count.item()) == (0, 0)
    assert logits.grad is not None
    assert not logits.grad.any()


def test_no_boxes_at_all_is_a_loss_of_zero() -> None:
    logits = torch.zeros(0, 3, requires_grad=True)
    total, count = summed_loss(logits, torch.zeros(0, dtype=torch.long))
    total.backward()
    assert (total.item(), count.item()) == (0, 0)


def test_items_are_token_times_where_those_are_labelled() -> None:
    logits = torch.randn(2, 5, 3)
    ((scores, labels),) = items_of(logits, [torch.zeros(2, 5, dtype=torch.long)])
    assert scores.shape == (10, 3)
    assert labels.shape == (10,)
    assert torch.equal(scores[5], logits[1, 0])


def test_labels_that_do_not_fit_the_model_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) do not fit labels of shape \(2, 5\)"):
        items_of(torch.zeros(2, 3), [torch.zeros(2, 5, dtype=torch.long)])
    with pytest.raises(ValueError, match="2 heads, and the data labels for 1"):
        items_of((torch.zeros(2, 3), torch.zeros(2, 3)), [torch.zeros(2, dtype=torch.long)])
