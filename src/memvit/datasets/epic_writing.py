"""Generated scenes of verbs and nouns in the files of EPIC-KITCHENS-100, for its reader."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memvit.datasets.epic_annotations import CLASS_FILES, HEADS, TAIL_FILES, UNSEEN_FILES, VIDEO_INFO
from memvit.datasets.scenes import Scene, Segment

FOLDER = "annotations"
SPLIT_FILES = {"train": "EPIC_100_train.csv", "val": "EPIC_100_validation.csv", "test": "EPIC_100_test.csv"}
SEGMENT_COLUMNS = (
    *("narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp"),
    *(
        "start_frame",
        "stop_frame",
        "narration",
        "verb",
        "verb_class",
        "noun",
        "noun_class",
        "all_nouns",
        "all_noun_classes",
    ),
)
NUM_PARTICIPANTS, NUM_UNSEEN = 20, 10
# Tail classes are the smallest ones, as many as make up no more of the segments to train on than this.
TAIL_SHARE = 0.2


def video_ids(counts: Mapping[str, int]) -> dict[str, list[str]]:
    """Ids such as ``P01_101`` for so many videos per split; half of those that are not trained on are of unseen participants."""
    taken: Counter[int] = Counter()
    ids: dict[str, list[str]] = {}
    for split, num in counts.items():
        ids[split] = []
        for index in range(num):
            participant = 1 + index % NUM_PARTICIPANTS
            if split != "train" and index % 2:
                participant = NUM_PARTICIPANTS + 1 + index // 2 % NUM_UNSEEN
            taken[participant] += 1
            ids[split].append(f"P{participant:02d}_{100 + taken[participant]}")
    return ids


def video_path(root: Path, video: str) -> Path:
    """Where the file of a video belongs."""
    return root / video.partition("_")[0] / "videos" / f"{video}.mp4"


def write_epic(
    root: Path,
    splits: Mapping[str, Sequence[tuple[str, Scene]]],
    classes: Sequence[Sequence[str]],
    *,
    size: int,
    fps: float,
) -> None:
    """Writes all annotation files.

    Args:
        root: of the data set; they go into its folder `annotations`.
        splits: the videos' ids and scenes.
        classes: the names of the verbs and of the nouns.
        size, fps: of the videos.
    """
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for split, named in splits.items():
        rows = [row for video, scene in named for row in _segment_rows(video, scene.segments, classes, fps)]
        write_rows(folder / SPLIT_FILES[split], [SEGMENT_COLUMNS, *rows])
    info = [(name, scene.duration_s, fps, f"{size}x{size}") for named in splits.values() for name, scene in named]
    write_rows(folder / VIDEO_INFO, [("video_id", "duration", "fps", "resolution"), *info])
    for which, head in enumerate(HEADS):
        names = [(number, name, [name], name) for number, name in enumerate(classes[which])]
        write_rows(folder / CLASS_FILES[head], [("id", "key", "instances", "category"), *names])
        labels = [segment.labels[which] for _, scene in splits["train"] for segment in scene.segments]
        write_rows(
            folder / TAIL_FILES[head], [(head,), *((number,) for number in tail_classes(labels, classes[which]))]
        )
    unseen = sorted(
        {name.partition("_")[0] for split, named in splits.items() for name, _ in named if split != "train"}
        - {name.partition("_")[0] for name, _ in splits["train"]}
    )
    write_rows(folder / UNSEEN_FILES[0], [("participant_id",), *((name,) for name in unseen)])


def tail_classes(labels: Sequence[str], names: Sequence[str]) -> list[int]:
    """The smallest classes, as many as make up at most `TAIL_SHARE` of the labels, by their numbers."""
    counts = Counter(labels)
    tail, total = [], 0
    for number in sorted(range(len(names)), key=lambda number: (counts[names[number]], number)):
        total += counts[names[number]]
        if total > TAIL_SHARE * len(labels):
            break
        tail.append(number)
    return sorted(tail)


def timestamp(time_s: float) -> str:
    """Seconds as ``00:01:02.50``."""
    hundredths = round(time_s * 100)
    minutes, rest = divmod(hundredths, 6000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 100:02d}.{rest % 100:02d}"


def write_rows(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """A CSV file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    with open(part, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    os.replace(part, path)


def _segment_rows(
    video: str, segments: Sequence[Segment], classes: Sequence[Sequence[str]], fps: float
) -> list[tuple[Any, ...]]:
    rows = []
    for number, segment in enumerate(segments):
        start, stop = timestamp(segment.start_s), timestamp(segment.end_s)
        if start == stop:  # too short to be told in hundredths of a second
            continue
        verb, noun = segment.labels
        verb_class, noun_class = classes[0].index(verb), classes[1].index(noun)
        frames = 1 + int(segment.start_s * fps), 1 + int(segment.end_s * fps)
        times = (start, start, stop, *frames)
        labels = (f"{verb} {noun}", verb, verb_class, noun, noun_class, [noun], [noun_class])
        rows.append((f"{video}_{number}", video.partition("_")[0], video, *times, *labels))
    return rows
