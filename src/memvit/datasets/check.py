"""A report on annotations and videos before a training: figures, and everything that is wrong, found at once."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from memvit.datasets.annotations import (
    IMAGE_FPS,
    MAX_NAMED,
    SPLITS,
    AnnotationFile,
    Finding,
    Measured,
    Progress,
    enumerate_texts,
)
from memvit.datasets.measuring import measure_once


@dataclass(frozen=True)
class SplitReport:
    """A file with annotations in figures.

    Attributes:
        split: "train", "val" or "test".
        file: its path.
        num_videos: videos that can be read.
        hours: their length together.
        num_entries: segments, or boxes counted once for every action.
        classes: per head, how many entries each class has, the most frequent first.
        labelled_share: of the videos' time, the share in which something is labelled; ``None`` for keyframes.
        num_clips: clips of one epoch, if that is known, say because the length of a clip was given, else ``None``.
    """

    split: str
    file: str
    num_videos: int
    hours: float
    num_entries: int
    classes: dict[str, dict[str, int]]
    labelled_share: float | None
    num_clips: int | None


@dataclass(frozen=True)
class Report:
    """What was found in a data set: figures per file, and everything that is wrong, errors first."""

    splits: tuple[SplitReport, ...]
    findings: tuple[Finding, ...]

    def count(self, level: Literal["error", "warning", "note"]) -> int:
        """How many findings are of a level."""
        return sum(finding.level == level for finding in self.findings)

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.count("error")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"ok": self.ok, **dataclasses.asdict(self)}


def check_annotations(
    paths: Sequence[str | os.PathLike[str]],
    read: Callable[[str | os.PathLike[str]], AnnotationFile],
    *,
    clip_s: float | None = None,
    image_fps: float = IMAGE_FPS,
    on_progress: Progress | None = None,
) -> Report:
    """Finds everything that is wrong with annotations and their videos.

    Args:
        paths: of the files to train on, validate and test with, in this order.
        read: how, say `read_segments` or `read_boxes` with everything but the path filled in.
        clip_s: length of a clip, seconds, to say how many an epoch has.
        image_fps: images per second of folders of images.
        on_progress: called with (videos opened, videos to be opened), file by file.

    Raises:
        FileNotFoundError: there is no folder with videos.
        ValueError: there is no file, there are more than three, or ``clip_s`` is no length.
    """
    if not 1 <= len(paths) <= len(SPLITS):
        raise ValueError(
            f"{len(paths)} files of annotations: give 1 to {len(SPLITS)}: {', '.join(SPLITS)}, in this order"
        )
    if clip_s is not None and not 0 < clip_s < math.inf:
        raise ValueError(f"clip_s={clip_s} is no length of a clip: give seconds, more than 0")
    files: dict[str, AnnotationFile] = {}
    findings: list[Finding] = []
    for split, path in zip(SPLITS, paths, strict=False):
        try:
            files[split] = read(path)
        except (ValueError, OSError) as error:  # says where
            findings.append(Finding("error", "unusable file", str(error)))
    measured: dict[Path, Measured | str] = {}
    for file in files.values():
        measured |= measure_once(file, image_fps=image_fps, on_progress=on_progress)
    splits = []
    for split, file in files.items():
        durations = {}
        findings += file.findings
        for name, path in file.paths.items():
            found = measured[path]
            if isinstance(found, str):
                findings.append(Finding("error", "unreadable video", found, str(file.path), file.lines[name] or None))
            else:
                durations[name] = found.duration_s
        for text in file.folder.incomplete():
            findings.append(Finding("warning", "missing images", f"{text}: the one before is shown", str(file.path)))
        findings += file.find_outside(durations)
        splits.append(_describe(split, file, durations, clip_s))
    findings += [*_compare_classes(files), *_find_shared(files), *_find_unused(files)]
    ranks = {"error": 0, "warning": 1, "note": 2}
    order = {str(path): number for number, path in enumerate(paths)}
    findings.sort(key=lambda found: (ranks[found.level], order.get(found.file or "", 0), found.line or 0))
    return Report(tuple(splits), tuple(findings))


def _describe(split: str, file: AnnotationFile, durations: dict[str, float], clip_s: float | None) -> SplitReport:
    """A file in figures."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for entry in file.entries:
        if any(entry.labels) and entry.video in durations:
            spans.setdefault(entry.video, []).append((entry.start_s, min(entry.end_s, durations[entry.video])))
    are_keyframes = any(entry.start_s == entry.end_s for entry in file.entries)
    total_s = sum(durations.values())
    labelled_s = sum(_covered(of_video) for of_video in spans.values())
    return SplitReport(
        split=split,
        file=str(file.path),
        num_videos=len(durations),
        hours=total_s / 3600,
        num_entries=len(file.entries),
        classes={head: dict(count.most_common()) for head, count in zip(file.heads, file.class_counts(), strict=True)},
        labelled_share=None if are_keyframes or not total_s else labelled_s / total_s,
        num_clips=file.count_clips(durations, clip_s),
    )


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds that at least one span covers."""
    covered_s, until_s = 0.0, 0.0
    for start_s, end_s in sorted(spans):
        covered_s += max(0.0, end_s - max(start_s, until_s))
        until_s = max(until_s, end_s)
    return covered_s


def _compare_classes(files: dict[str, AnnotationFile]) -> Iterator[Finding]:
    """Classes that cannot be learnt or measured."""
    if "train" not in files:
        return
    train = files["train"]
    counts = dict(zip(train.heads, train.class_counts(), strict=True))
    for head, count in counts.items():
        if len(count) == 1:
            yield Finding("warning", "one class", f"{head} has one class only, {next(iter(count))!r}", str(train.path))
        never = [repr(name) for name, number in count.items() if not number]
        if never:
            message = f"classes of {head} that never occur ({len(never)} of {len(count)}): {enumerate_texts(never, MAX_NAMED)}"
            yield Finding("warning", "empty class", message, str(train.path))
        rare = [repr(name) for name, number in count.items() if number == 1]
        if rare:
            message = f"classes of {head} that occur once only ({len(rare)} of {len(count)}): {enumerate_texts(rare, MAX_NAMED)}"
            yield Finding("warning", "rare class", message, str(train.path))
    for file in list(files.values())[1:]:
        if file.heads != train.heads:
            message = f"columns of labels {', '.join(file.heads)}, but {', '.join(train.heads)} in {train.path}: make them alike"
            yield Finding("error", "other heads", message, str(file.path), 1)
            continue
        for head, count in zip(file.heads, file.class_counts(), strict=True):
            absent = [repr(name) for name, number in counts[head].items() if number and not count[name]]
            if absent:
                message = f"classes of {head} in {train.path} but not here ({len(absent)}): {enumerate_texts(absent, MAX_NAMED)}"
                yield Finding("warning", "missing class", message, str(file.path))
        yield from _find_unknown(file, train)


def _find_unknown(file: AnnotationFile, train: AnnotationFile) -> Iterator[Finding]:
    """Labels that training does not know, each where it comes first."""
    unknown: dict[tuple[str, str], int] = {}
    for i, (head, known) in enumerate(zip(file.heads, train.class_counts(), strict=True)):
        for entry in file.entries:
            for name in entry.labels[i]:
                if name not in known:
                    unknown.setdefault((head, name), entry.line)
    for (head, name), line in unknown.items():
        message = f"{head} {name!r} is not in {train.path}: correct it, or add it there"
        yield Finding("error", "unknown label", message, str(file.path), line or None)


def _find_shared(files: dict[str, AnnotationFile]) -> Iterator[Finding]:
    """Videos of two files: what is measured on them is not what a model does with videos that it never saw."""
    for (first, file), (second, other) in combinations(files.items(), 2):
        known = set(file.paths.values())
        shared = [name for name, path in other.paths.items() if path in known]
        if shared:
            message = (
                f"videos of {second} that are in {first} as well ({len(shared)}): {enumerate_texts(shared, MAX_NAMED)}"
            )
            yield Finding("warning", "shared video", message, str(other.path), other.lines[shared[0]] or None)


def _find_unused(files: dict[str, AnnotationFile]) -> Iterator[Finding]:
    """Videos in the folder that no file names."""
    if not files:
        return
    folder = next(iter(files.values())).folder
    used = {path for file in files.values() for path in file.paths.values()}
    unused = [str(path.relative_to(folder.path)) for path in folder.files() if path not in used]
    if unused:
        message = f"videos in {folder.path} that no file names ({len(unused)}): {enumerate_texts(unused, MAX_NAMED)}"
        yield Finding("note", "unused video", message)
