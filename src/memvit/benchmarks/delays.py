"""How well a model does on a generated data set, by how long ago the answer was last to be seen.

python -m memvit.benchmarks.delays MODEL TASK DATA [DATA]     prints JSON
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memvit.datasets.ava import AvaDataset
from memvit.datasets.clips import ClipTiming, VideoDataset
from memvit.datasets.loader import StreamLoader
from memvit.datasets.segments import SegmentsDataset
from memvit.datasets.synthetic import LABEL_MAP_FILE
from memvit.models.memvit import MeMViT
from memvit.models.zoo import create_model

BATCH_SIZE = 32


def open_test(task: str, root: Path, model: MeMViT) -> VideoDataset:
    """The test videos of a generated data set, cut into the model's clips, with its classes."""
    config = model.config
    timing = ClipTiming(config.num_frames, config.frame_period_s, config.clip_duration_s, config.num_times)
    csv_file, videos = root / "test.csv", root / "videos"
    if task == "shell_game":
        return AvaDataset(csv_file, videos, timing, classes=root / LABEL_MAP_FILE, first_second=0.0, multi_label=False)
    return SegmentsDataset(csv_file, videos, timing, classes=config.head.class_names)


def read_delays(path: Path) -> dict[tuple[str, float], float]:
    """(video, moment in seconds) -> seconds since the answer was last to be seen."""
    with open(path, newline="") as file:
        return {(row["video"], float(row["time_s"])): float(row["delay_s"]) for row in csv.DictReader(file)}


@torch.inference_mode()
def hits_by_delay(model: MeMViT, task: str, root: Path) -> dict[int, list[tuple[bool, ...]]]:
    """Delay in whole seconds -> for every clip, whether each head was right.

    In the shell game a clip is right if of its three cups that with the ball has the highest score.
    """
    model = model.eval()
    delays = read_delays(root / "test_delays.csv")
    dataset = open_test(task, root, model)
    half_s = dataset.timing.duration_s / 2
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (model.config.mean, model.config.std))
    hits: dict[int, list[tuple[bool, ...]]] = defaultdict(list)
    memory = None
    for batch in StreamLoader(
        dataset, batch_size=BATCH_SIZE, crop_size=model.config.crop_size, training=False, num_workers=0
    ):
        memory = None if memory is None else memory.forget(batch.starts)
        clips = (batch.clips.float() / 255 - mean) / std
        logits, memory = model(clips, memory, boxes=batch.boxes)
        heads = logits if isinstance(logits, tuple) else (logits,)
        right = (
            _cups_right(heads[0], batch.labels[0], batch.boxes) if batch.boxes else _clips_right(heads, batch.labels)
        )
        for i, (video, start_s) in enumerate(zip(batch.videos, batch.start_s, strict=True)):
            delay_s = delays.get((video, round(start_s + half_s, 3)))
            if batch.present[i] and delay_s is not None and right[i] is not None:
                hits[int(delay_s)].append(right[i])  # type: ignore[arg-type]
    return dict(hits)


@torch.inference_mode()
def anticipation_by_delay(model: MeMViT, root: Path, ahead_s: float = 1.0) -> dict[int, list[tuple[bool, ...]]]:
    """The same for a model that says, at every token time, what goes on `ahead_s` later in a recipe.

    Asked about every step that follows from what was taken, once: the last token time that ends before the step begins
    answers. Nothing is seen of the step then, and `ahead_s` later, for certain, it is what goes on: earlier nobody could
    tell when the step before it will end.
    """
    config = model.eval().config
    timing = ClipTiming(config.num_frames, config.frame_period_s, config.clip_duration_s, config.num_times)
    dataset = SegmentsDataset(
        root / "test.csv",
        root / "videos",
        timing,
        classes=config.head.class_names,
        task="frames",
        anticipation_s=ahead_s,
    )
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.mean, config.std))
    frames_per_time = config.num_frames // config.num_times
    answers: dict[str, list[tuple[float, tuple[int, ...]]]] = defaultdict(list)
    memory = None
    for batch in StreamLoader(dataset, batch_size=BATCH_SIZE, crop_size=config.crop_size, training=False):
        memory = None if memory is None else memory.forget(batch.starts)
        logits, memory = model((batch.clips.float() / 255 - mean) / std, memory)
        assert isinstance(logits, tuple)
        best = torch.stack([scores.argmax(dim=2) for scores in logits], dim=2).tolist()  # [stream][time][head]
        for i, (video, start_s) in enumerate(zip(batch.videos, batch.start_s, strict=True)):
            if batch.present[i]:
                for j, classes in enumerate(best[i]):
                    last_s = start_s + ((j + 1) * frames_per_time - 1) * config.frame_period_s
                    answers[video].append((last_s, tuple(classes)))
    return _steps_right(root / "test.csv", answers, config.head.class_names, ahead_s)


def _steps_right(
    path: Path, answers: dict[str, list[tuple[float, tuple[int, ...]]]], names: Sequence[Sequence[str]], ahead_s: float
) -> dict[int, list[tuple[bool, ...]]]:
    hits: dict[int, list[tuple[bool, ...]]] = defaultdict(list)
    taken_s = 0.0
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            start_s, end_s = float(row["start_s"]), float(row["end_s"])
            if row["verb"] == "take":
                taken_s = end_s
                continue
            time_s, answer = [asked for asked in answers[row["video"]] if asked[0] < start_s][-1]
            if time_s + ahead_s >= end_s:  # the video is over by then
                continue
            truth = (row["verb"], row["noun"])
            right = tuple(names[h][answer[h]] == truth[h] for h in range(len(truth)))
            hits[max(0, int(start_s - taken_s))].append(right)
    return dict(hits)


def _clips_right(heads: Sequence[Tensor], labels: Sequence[Tensor]) -> list[tuple[bool, ...] | None]:
    right = [(scores.argmax(dim=1) == label).tolist() for scores, label in zip(heads, labels, strict=True)]
    known = [all(int(label[i]) >= 0 for label in labels) for i in range(len(labels[0]))]
    return [tuple(head[i] for head in right) if known[i] else None for i in range(len(known))]


def _cups_right(scores: Tensor, labels: Tensor, boxes: Sequence[Tensor]) -> list[tuple[bool, ...] | None]:
    counts = [len(b) for b in boxes]
    ball = (scores[:, 1] - scores[:, 0]).split(counts)
    truth = labels.split(counts)
    return [(bool(t[s.argmax()] == 1),) if len(s) else None for s, t in zip(ball, truth, strict=True)]


def summarise(hits: dict[int, list[tuple[bool, ...]]]) -> dict[str, Any]:
    """Accuracy per delay (all heads right) with counts, and per head."""
    by_delay = {}
    for delay, rows in sorted(hits.items()):
        num_heads = len(rows[0])
        heads = [sum(row[h] for row in rows) / len(rows) for h in range(num_heads)]
        by_delay[str(delay)] = {"clips": len(rows), "accuracy": sum(map(all, rows)) / len(rows), "heads": heads}
    return by_delay


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("task")
    parser.add_argument("data", nargs="+", type=Path)
    options = parser.parse_args(argv)
    model = create_model(options.model)
    if options.task == "recipe_anticipation":
        tests = [anticipation_by_delay(model, root) for root in options.data]
    else:
        tests = [hits_by_delay(model, options.task, root) for root in options.data]
    # A step that follows the taking at once (delay 0) is foreseen while the ingredient is still in sight.
    remembered = [all(row) for delay, rows in tests[0].items() if delay > 0 for row in rows]
    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "support_clips": model.config.support_clips,
        "memory_length": model.config.memory.length,
        # After the answer is gone, within the lengths of video that were trained.
        "remembered": sum(remembered) / len(remembered),
        "remembered_clips": len(remembered),
        "by_delay": summarise(tests[0]),
        "by_long_delay": summarise(tests[1]) if len(tests) > 1 else None,
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
