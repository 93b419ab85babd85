"""What a report shows, read from the files that recognition wrote."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memvit.models.config import ACTION
from memvit.online.detections import DETECTIONS_FILE, DetectionRecord, read_detections
from memvit.online.results import (
    PREDICTIONS_FILE,
    SUMMARY_FILE,
    ClipRecord,
    Labels,
    VideoResult,
    read_predictions,
    read_summary,
    short,
)

MAX_KEYFRAME_S = 2.0  # somebody seen at one keyframe only is shown for no longer than this
DEFAULT_KEYFRAME_S = 1.0


@dataclass
class Section:
    """Classes over time: those of one head, the actions that heads make together, or what people do.

    Attributes:
        name: what the classes are; empty where there is nothing to tell apart.
        labels: the classes that occur.
        start_s, end_s: of every entry, the time that it was seen, seconds of the video; in order of `start_s`.
        top: of every entry, class and score by turns, best first; classes by their place in `labels`.
        about_s: of every entry, the moment it is about if the model anticipates; empty if it recognises.
        who: of every entry, the person's number; empty where whole clips were recognised.
    """

    name: str
    labels: list[str] = field(default_factory=list)
    start_s: list[float] = field(default_factory=list)
    end_s: list[float] = field(default_factory=list)
    top: list[list[float]] = field(default_factory=list)
    about_s: list[float] = field(default_factory=list)
    who: list[int] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)

    def add(
        self, start_s: float, end_s: float, classes: Labels, about_s: float | None = None, who: int | None = None
    ) -> None:
        """Appends an entry."""
        self.start_s.append(round(start_s, 3))
        self.end_s.append(round(end_s, 3))
        if about_s is not None:
            self.about_s.append(round(about_s, 3))
        if who is not None:
            self.who.append(who)
        self.top.append([value for label, score in classes for value in (self._place(label), round(short(score), 5))])

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "name": self.name,
            "labels": self.labels,
            "start": self.start_s,
            "end": self.end_s,
            "top": self.top,
            "about": self.about_s,
            "who": self.who,
        }

    def _place(self, label: str) -> int:
        if label not in self._places:
            self._places[label] = len(self.labels)
            self.labels.append(label)
        return self._places[label]


@dataclass(frozen=True)
class Findings:
    """What was recognised in one video.

    Attributes:
        video: what the records call it.
        sections: classes over time, one or more.
        boxes: per keyframe (time_s, ((track, x1, y1, x2, y2), ...)), corners as fractions of the frame; empty where whole
            clips were recognised.
        end_s: the last moment that was recognised.
        untrained: the weights were random.
        summary: how recognition ended, where it says so.
    """

    video: str
    sections: tuple[Section, ...]
    boxes: tuple[tuple[float, tuple[tuple[float, ...], ...]], ...]
    end_s: float
    untrained: bool
    summary: VideoResult | None


def read_findings(path: str | os.PathLike[str]) -> Findings:
    """Reads what `memvit predict` or `memvit detect` found in a video.

    Args:
        path: `predictions.jsonl`, `detections.jsonl`, or the folder that holds one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: nothing in it, a damaged line, or lines of several videos.
    """
    path = _find(Path(path))
    summary = _summary(path.parent)
    with open(path, encoding="utf-8", errors="replace") as file:
        first = file.readline()
    if not first.strip():
        raise ValueError(
            f"{path} is empty: nothing was recognised, so there is nothing to report; recognise the video again"
        )
    if _is_of_people(first):
        return _read_people(path, summary)
    return _read_clips(path, summary)


def _find(path: Path) -> Path:
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no {path}: give the folder that memvit predict or memvit detect wrote, or its .jsonl file"
            )
        return path
    found = [path / name for name in (PREDICTIONS_FILE, DETECTIONS_FILE) if (path / name).is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{path} holds {PREDICTIONS_FILE} and {DETECTIONS_FILE}: give one of the two files")
    inner = sorted(
        entry.parent.name for name in (PREDICTIONS_FILE, DETECTIONS_FILE) for entry in path.glob(f"*/{name}")
    )
    hint = f"give one of its folders, such as {path / inner[0]}" if inner else "run memvit predict first"
    raise FileNotFoundError(f"there is no {PREDICTIONS_FILE} and no {DETECTIONS_FILE} in {path}: {hint}")


def _summary(folder: Path) -> VideoResult | None:
    """How recognition ended; None where it has not, or a single file was copied from its folder."""
    return read_summary(folder) if (folder / SUMMARY_FILE).is_file() else None


def _is_of_people(line: str) -> bool:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(data, dict) and "persons" in data


def _read_clips(path: Path, summary: VideoResult | None) -> Findings:
    sections: list[Section] = []
    video, end_s, untrained, before_s, number = "", 0.0, False, 0.0, 0
    try:
        for number, record in enumerate(read_predictions(path), start=1):
            where = f"{path}, line {number}"
            groups = (record.actions, *record.topk) if record.actions else record.topk
            _check(where, [record.start_s, record.end_s, record.about_s or 0.0], groups)
            if not sections:
                video = record.video
                sections = [Section(name) for name in _section_names(record, summary)]
            _check_same(where, video, record.video)
            if len(groups) != len(sections) or record.end_s < record.start_s or record.start_s < before_s:
                raise ValueError(f"{where} does not fit the lines before it: remove it or run memvit predict again")
            for section, classes in zip(sections, groups, strict=True):
                section.add(record.start_s, record.end_s, classes, record.about_s)
            before_s, end_s = record.start_s, max(end_s, record.end_s)
            untrained = untrained or record.untrained
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text ({error}): give a file of memvit predict") from error
    except RecursionError as error:
        where = f"{path}, line {number + 1}"
        raise ValueError(f"{where}: no line of predictions; remove the line or run memvit predict again") from error
    if not sections:
        raise ValueError(f"{path} has no whole line yet: wait for the first clip, or run memvit predict again")
    for section in sections:
        if section.about_s and len(section.about_s) != len(section.start_s):
            raise ValueError(f"{path} mixes lines with and without about_s: run memvit predict again")
    return Findings(video, tuple(sections), (), end_s, untrained, summary)


def _section_names(record: ClipRecord, summary: VideoResult | None) -> list[str]:
    names = list(summary.head_names) if summary is not None else []
    if len(names) != len(record.topk):
        names = [""] if len(record.topk) == 1 else [f"head {i + 1}" for i in range(len(record.topk))]
    return [ACTION, *names] if record.actions else names


def _read_people(path: Path, summary: VideoResult | None) -> Findings:
    records: list[DetectionRecord] = []
    try:
        for number, record in enumerate(read_detections(path), start=1):
            where = f"{path}, line {number}"
            corners = [corner for person in record.persons for corner in person.corners]
            _check(where, [record.time_s, *(abs(corner) for corner in corners)], record.actions)
            _check_same(where, records[0].video if records else record.video, record.video)
            if records and record.time_s <= records[-1].time_s:
                raise ValueError(f"{where} is not later than the line before it: remove it or run memvit detect again")
            records.append(record)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text ({error}): give a file of memvit detect") from error
    if not records:
        raise ValueError(f"{path} has no whole line yet: wait for the first keyframe, or run memvit detect again")
    actions, people = Section("actions"), Section("people")
    for record, (start_s, end_s) in zip(records, _around([record.time_s for record in records]), strict=True):
        for person, classes in zip(record.persons, record.actions, strict=True):
            actions.add(start_s, end_s, classes, who=person.track)
            people.add(start_s, end_s, ((f"person {person.track}", 1.0),), who=person.track)
    boxes = tuple(
        (
            round(record.time_s, 3),
            tuple((person.track, *(round(c, 4) for c in person.corners)) for person in record.persons),
        )
        for record in records
    )
    untrained = any(record.untrained for record in records)
    return Findings(records[0].video, (actions, people), boxes, records[-1].time_s, untrained, summary)


def _around(times_s: Sequence[float]) -> list[tuple[float, float]]:
    """The time that each keyframe stands for: to the middle between it and its neighbours, unless they are far away."""
    gaps = [b - a for a, b in itertools.pairwise(times_s)]
    usual_s = min(sorted(gaps)[len(gaps) // 2] if gaps else DEFAULT_KEYFRAME_S, MAX_KEYFRAME_S)
    before = [usual_s, *(min(gap, MAX_KEYFRAME_S) for gap in gaps)]
    after = [*before[1:], usual_s]
    return [(max(t - b / 2, 0.0), t + a / 2) for t, b, a in zip(times_s, before, after, strict=True)]


def _check(where: str, times: Iterable[float], groups: Iterable[Labels]) -> None:
    """Refuses what JSON readers let through: numbers that are none, or a time before the video."""
    scores = [score for classes in groups for _, score in classes]
    if not all(math.isfinite(value) for value in (*times, *scores)) or any(value < 0 for value in times):
        raise ValueError(f"{where} holds a number that is NaN, infinite or a time before 0: recognise the video again")


def _check_same(where: str, video: str, other: str) -> None:
    if video != other:
        raise ValueError(f"{where} is of {other}, those before it of {video}: give the predictions of one video")
