from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from memvit.metrics.classification import ClassificationMetrics, MultiLabelMetric, SingleLabelMetric


def _one_hot(classes: list[int], num: int = 3) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), num).float()


def test_top1_and_mean_class_accuracy_over_the_classes_that_occur() -> None:
    metric = SingleLabelMetric(3)
    metric.update(_one_hot([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]))
    metric.update(_one_hot([2]), torch.tensor([0]))
    values = {name: value.item() for name, value in metric.compute().items()}
    assert values["top1"] == pytest.approx(60.0)
    assert values["mean_class_accuracy"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    assert values["top5"] == 100.0  # of 3 classes


def test_top5_looks_at_five_classes() -> None:
    metric = SingleLabelMetric(7)
    logits = torch.arange(7.0).repeat(7, 1)  # the best five are 6, 5, 4, 3, 2
    metric.update(logits, torch.arange(7))
    assert metric.compute()["top5"].item() == pytest.approx(500 / 7)
    assert metric.compute()["top1"].item() == pytest.approx(100 / 7)


def test_unlabelled_items_are_not_counted() -> None:
    metric = SingleLabelMetric(3)
    metric.update(_one_hot([0, 1, 2]), torch.tensor([0, -1, -1]))
    assert metric.compute()["top1"] == 100
    metric.reset()
    metric.update(_one_hot([0]), torch.tensor([-1]))
    assert metric.compute()["top1"].isnan()


def test_mean_average_precision_by_hand() -> None:
    metric = MultiLabelMetric(3)
    scores = torch.tensor([[4.0, 1.0, 0.0], [3.0, 2.0, 0.0], [2.0, 3.0, 0.0], [9.0, 9.0, 9.0]])
    labels = torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 0, 0], [-1, -1, -1]])
    metric.update(scores[:2], labels[:2])
    metric.update(scores[2:], labels[2:])
    # Class 0: hits at ranks 1 and 3; class 1: at rank 3; class 2 never occurs.
    assert metric.compute()["mAP"].item() == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1 / 3) / 2)


@pytest.mark.parametrize("num_classes", [1, 2])
def test_mean_average_precision_of_few_classes_and_no_items(num_classes: int) -> None:
    metric = MultiLabelMetric(num_classes)
    metric.update(torch.zeros(0, num_classes), torch.zeros(0, num_classes))
    assert metric.compute()["mAP"].isnan()
    metric.update(torch.tensor([[1.0], [0.0]]).repeat(1, num_classes), torch.eye(2)[:, :1].repeat(1, num_classes))
    assert metric.compute()["mAP"] == 100


def test_heads_are_told_apart_and_averaged() -> None:
    metrics = ClassificationMetrics((3, 2), multi_label=False)
    labels = torch.tensor([0, 1])
    metrics.update([(_one_hot([0, 1]), labels), (_one_hot([0, 0], 2), labels)])
    values = metrics.compute()
    assert (values["top1/1"], values["top1/2"], values["top1"]) == (100, 50, 75)


def _count(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(1)
    logits, labels = torch.randn(9, 4), torch.randint(-1, 4, (9,))
    mine = slice(0, 9) if rank == 0 else slice(9, 9)  # the other process has nothing but filler
    single, several = SingleLabelMetric(4), MultiLabelMetric(4)
    alone = SingleLabelMetric(4, sync_on_compute=False), MultiLabelMetric(4, sync_on_compute=False)
    many = torch.nn.functional.one_hot(labels.clamp(min=0), 4).float()
    for metric, part in ((single, mine), (alone[0], slice(0, 9))):
        metric.update(logits[part], labels[part])
    for metric, part in ((several, mine), (alone[1], slice(0, 9))):
        metric.update(logits[part], many[part])
    assert single.compute() == alone[0].compute()
    assert several.compute() == alone[1].compute()
    Path(folder, f"done{rank}").touch()
    dist.destroy_process_group()


def test_processes_count_together_even_if_one_has_only_filler(tmp_path: Path) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    mp.spawn(_count, (str(tmp_path),), nprocs=2)
    assert sorted(path.name for path in tmp_path.glob("done*")) == ["done0", "done1"]
