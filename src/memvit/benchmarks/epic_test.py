"""How well a model does on segments in the form of EPIC-KITCHENS-100, by the official metrics.

python -m memvit.benchmarks.epic_test MODEL TASK DATA     prints JSON
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memvit.datasets.clips import ClipTiming
from memvit.datasets.epic_kitchens import EpicKitchensDataset, EpicTask
from memvit.datasets.loader import StreamLoader
from memvit.models.memvit import MeMViT
from memvit.models.zoo import create_model
from memvit.training.groups import GroupScores

TEST_FILE = "annotations/EPIC_100_test.csv"
BATCH_SIZE = 32


def open_test(model: MeMViT, task: EpicTask, root: Path) -> EpicKitchensDataset:
    """The test segments, in clips of the model."""
    config = model.config
    timing = ClipTiming(config.num_frames, config.frame_period_s, config.clip_duration_s, config.num_times)
    return EpicKitchensDataset(root / TEST_FILE, root, timing, task=task, classes=config.head.class_names)


@torch.inference_mode()
def score_segments(model: MeMViT, dataset: EpicKitchensDataset) -> GroupScores:
    """The scores of all segments, and what comes of them."""
    config = model.eval().config
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.mean, config.std))
    found = GroupScores(config.head.num_classes)
    found.begin(dataset)
    memory = None
    for batch in StreamLoader(dataset, batch_size=BATCH_SIZE, crop_size=config.crop_size, training=False):
        memory = None if memory is None else memory.forget(batch.starts)
        logits, memory = model((batch.clips.float() / 255 - mean) / std, memory)
        heads: tuple[Tensor, ...] = logits if isinstance(logits, tuple) else (logits,)
        found.update(batch, [head.softmax(dim=-1) for head in heads])
    return found


def hidden_top1(found: GroupScores, dataset: EpicKitchensDataset) -> float:
    """Share of the recipe's steps with a hidden ingredient of which the likeliest verb and noun are both right."""
    scores, answered = found.means()
    right = answered.copy()
    for head, column in zip(scores, ("verb_class", "noun_class"), strict=True):
        right &= head.argmax(axis=1) == dataset.rows[column].to_numpy()
    hidden = answered & (dataset.rows["verb_class"].to_numpy() != dataset.classes[0].index("take"))
    return float(right[hidden].mean())


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("task", choices=("recognition", "anticipation"))
    parser.add_argument("data", type=Path)
    options = parser.parse_args(argv)
    model = create_model(options.model)
    dataset = open_test(model, options.task, options.data)
    found = score_segments(model, dataset)
    result: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "support_clips": model.config.support_clips,
        "memory_length": model.config.memory.length,
        "segments": dataset.num_groups,
        "remembered": hidden_top1(found, dataset),
        "metrics": {name: round(float(value), 4) for name, value in found.compute().items()},
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
