from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from memvit.datasets.clips import IGNORED, Batch
from memvit.training.evaluation import Evaluation
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


def test_a_measured_loss_is_that_of_the_heads_with_labels() -> None:
    evaluation = Evaluation((4, 3), multi_label=False)
    first, second, none = torch.randn(3, 4), torch.randn(2, 4), torch.full((3,), IGNORED)
    evaluation.update([(first, torch.tensor([1, IGNORED, 3])), (torch.randn(3, 3), none)])
    evaluation.update([(second, torch.tensor([0, 2])), (torch.randn(2, 3), none[:2])])
    expected = F.cross_entropy(torch.cat([first[[0, 2]], second]), torch.tensor([1, 3, 0, 2]))
    assert evaluation.compute()["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert evaluation.num_labelled == 4

    evaluation.update([(first * math.nan, torch.tensor([1, 1, 1])), (torch.randn(3, 3), none)])
    assert math.isnan(evaluation.compute()["loss"])  # of weights that are broken: to be seen
    assert evaluation.num_labelled == 7

    evaluation.reset()
    evaluation.update([(first, none), (torch.randn(3, 3), none)])
    assert math.isnan(evaluation.compute()["loss"])
    assert evaluation.num_labelled == 0


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
