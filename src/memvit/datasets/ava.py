"""Boxes of people and what they do at keyframes, in the CSV form of AVA."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from memvit.datasets.annotations import AnnotationFile, Entry, VideoFolder, as_number, open_videos, read_rows
from memvit.datasets.clips import IGNORED, Annotation, ClipTiming, Task, Video

COLUMNS = ("video", "second", "x1", "y1", "x2", "y2", "action_id", "person_id")
HEAD = "action"
NO_ACTION = ("", "-1")

Corners = tuple[float, float, float, float]


class AvaDataset:
    """Videos with boxes of people at keyframes, each box with what the person does.

    The file has no header and a row for every action of a box: ``video,second,x1,y1,x2,y2,action_id,person_id``. Corners
    are fractions of the frame's width and height; an action id that is empty or -1 stands for a person of whom nothing is
    known. Rows with equal video, second and corners are one box with several actions.

    There is one clip for every second of a video that the file names, centred on it.

    Args:
        csv: the file.
        videos: the folder with the videos, which the file names with or without suffix.
        timing: of the clips; its stride does not matter.
        classes: the label map, a CSV file with the columns ``label_id,label_name``; or, as one head, the names of the
            classes of training, in the order of their ids. None: the ids in the file, as names.
        first_second: the second at which the video files begin, 900 for AVA's own.
        multi_label: whether several actions of a person can be true at a time.
        skip_unreadable: leave out videos that cannot be read, and log it, instead of raising an error.
        image_fps: images per second of folders of images.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: annotations or videos that cannot be used, with file and line; ``memvit data check`` lists all at once.
    """

    task: Task = "boxes"

    def __init__(
        self,
        csv: str | os.PathLike[str],
        videos: str | os.PathLike[str],
        timing: ClipTiming,
        *,
        classes: str | os.PathLike[str] | Sequence[Sequence[str]] | None = None,
        first_second: float = 0.0,
        multi_label: bool = True,
        skip_unreadable: bool = False,
        image_fps: float = 30.0,
    ) -> None:
        file = read_boxes(csv, videos, classes=classes, first_second=first_second, multi_label=multi_label)
        self.timing = timing
        self.multi_label = multi_label
        self._videos = open_videos(file, skip_unreadable=skip_unreadable, image_fps=image_fps)
        self.classes: tuple[tuple[str, ...], ...] = (tuple(file.names.values()),)
        self._keyframes = self._find_keyframes(file)

    @property
    def videos(self) -> Sequence[Video]:
        """The videos, in order of appearance."""
        return self._videos

    def clip_starts(self, video: Video) -> np.ndarray:
        """When the clips of a video start, float64 seconds, ascending; those at its ends may reach beyond them."""
        return self._keyframes[video.name].times_s - self.timing.duration_s / 2

    def annotate(self, video: Video, start_s: float) -> Annotation:
        """The boxes of the keyframe that a clip of a video is centred on, and their actions."""
        keyframes = self._keyframes[video.name]
        return keyframes.annotations[int(np.argmin(np.abs(keyframes.times_s - self.timing.duration_s / 2 - start_s)))]

    def _find_keyframes(self, file: BoxFile) -> dict[str, _Keyframes]:
        index = {name: position for position, name in enumerate(file.names.values())}
        boxes: dict[str, dict[float, dict[Corners, list[int]]]] = defaultdict(lambda: defaultdict(dict))
        for entry, corners in zip(file.entries, file.corners, strict=True):
            actions = boxes[entry.video][entry.start_s].setdefault(corners, [])
            actions += [index[name] for name in entry.labels[0]]
        return {
            video.name: _Keyframes(
                np.array(sorted(boxes[video.name])),
                [self._annotation(boxes[video.name][time_s]) for time_s in sorted(boxes[video.name])],
            )
            for video in self._videos
        }

    def _annotation(self, boxes: dict[Corners, list[int]]) -> Annotation:
        corners = np.array(list(boxes), np.float32).reshape(-1, 4)
        if not self.multi_label:
            labels = np.array([actions[0] if actions else IGNORED for actions in boxes.values()], np.int64)
            return Annotation((labels,), corners)
        labels = np.zeros((len(boxes), len(self.classes[0])), np.float32)
        for row, actions in zip(labels, boxes.values(), strict=True):
            row[actions if actions else slice(None)] = 1 if actions else IGNORED
        return Annotation((labels,), corners)


class _Keyframes(NamedTuple):
    """Of one video, ascending in time."""

    times_s: np.ndarray
    annotations: list[Annotation]


@dataclass
class BoxFile(AnnotationFile):
    """What a file in AVA's form says; `entries` has a row per box and action, with the time in the video.

    Attributes:
        corners: of the entries, x1, y1, x2, y2 as fractions of the frame.
        names: of the classes, by their ids, in the order of the ids.
    """

    corners: list[Corners] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def class_counts(self) -> tuple[Counter[str], ...]:
        """How many entries have each action, 0 for those that only the label map names."""
        counts = Counter(dict.fromkeys(self.names.values(), 0))
        counts.update(name for entry in self.entries for name in entry.labels[0])
        return (counts,)


def read_label_map(path: str | os.PathLike[str]) -> dict[str, str]:
    """The names of classes by their ids, in the order of the ids, from a CSV file.

    Args:
        path: of a file with the columns ``label_id,label_name`` or ``id,name``, maybe among others.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has no such form, or an id or a name twice.
    """
    (line, columns), *rows = read_rows(path)
    for id_column, name_column in (("label_id", "label_name"), ("id", "name")):
        if id_column in columns and name_column in columns:
            at_id, at_name = columns.index(id_column), columns.index(name_column)
            break
    else:
        raise ValueError(
            f"{path}:{line}: a label map has the columns label_id,label_name; there are {', '.join(columns)}"
        )
    names: dict[str, str] = {}
    for line, cells in rows:
        if len(cells) != len(columns):
            raise ValueError(
                f"{path}:{line}: {len(cells)} cells for {len(columns)} columns; put quotation marks around names with commas"
            )
        number = _as_id(cells[at_id])
        if number is None:
            raise ValueError(f"{path}:{line}: {cells[at_id]!r} is no id: give a whole number from 1")
        if number in names or cells[at_name] in names.values() or not cells[at_name]:
            raise ValueError(
                f"{path}:{line}: id {number} or name {cells[at_name]!r} is there before, or empty: make them different"
            )
        names[number] = cells[at_name]
    if not names:
        raise ValueError(f"{path}: no classes, only column names: add one line per class")
    return dict(sorted(names.items(), key=lambda item: int(item[0])))


def read_boxes(
    csv: str | os.PathLike[str],
    videos: str | os.PathLike[str],
    *,
    classes: str | os.PathLike[str] | Sequence[Sequence[str]] | None = None,
    first_second: float = 0.0,
    multi_label: bool = True,
) -> BoxFile:
    """Reads a CSV file in AVA's form; what is wrong with its rows is in the result's ``findings``.

    Args:
        csv: the file, as `AvaDataset` describes it.
        videos: the folder with the videos.
        classes: as for `AvaDataset`.
        first_second: the second at which the video files begin.
        multi_label: whether a box may have several actions.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the file or the label map has no such form at all.
    """
    names = None
    if isinstance(classes, str | os.PathLike):
        names = read_label_map(classes)
    elif classes is not None:
        names = _number(classes)
    file = BoxFile(Path(csv), VideoFolder(videos), (HEAD,), names=names or {})
    rows = read_rows(csv)
    if rows[0][1][:2] == list(COLUMNS[:2]):
        raise ValueError(f"{csv}:{rows[0][0]}: files in AVA's form have no line with column names: remove it")
    for line, cells in rows:
        if len(cells) != len(COLUMNS):
            hint = "; separate them by commas" if len(cells) == 1 else ""
            file.error("broken row", f"{len(cells)} cells, not {len(COLUMNS)} ({','.join(COLUMNS)}){hint}", line)
            continue
        _read_row(file, line, cells, first_second, names is not None)
    if names is None:
        ids = {name for entry in file.entries for name in entry.labels[0]}
        file.names = {number: number for number in sorted(ids, key=int)}
    if file.entries and not any(entry.labels[0] for entry in file.entries):
        file.error("no label", "no box has an action: there is nothing to learn")
    if not multi_label:
        _find_second_actions(file)
    return file


def _number(classes: Sequence[Sequence[str]]) -> dict[str, str]:
    """The ids of training's classes: their names if these are ids, otherwise counted from 1."""
    if len(classes) != 1:
        raise ValueError(f"boxes have one head of classes, but training has {len(classes)}: train with boxes as well")
    (names,) = classes
    if all(_as_id(name) == name for name in names):
        return {name: name for name in names}
    return {str(number): name for number, name in enumerate(names, start=1)}


def _as_id(cell: str) -> str | None:
    """A whole number from 1 in its usual form."""
    return str(int(cell)) if cell.isdecimal() and int(cell) else None


def _read_row(file: BoxFile, line: int, cells: list[str], first_second: float, known: bool) -> None:
    """Adds a row to the entries of a file, or to its findings."""
    if not cells[0]:
        file.error("no video", "the row names no video", line)
        return
    video = file.video(cells[0], line)
    numbers: list[float] = []
    for name, cell in zip(COLUMNS[1:6], cells[1:6], strict=True):
        number = as_number(cell)
        if number is None:
            file.error("not a number", f"{name} {cell!r} is not a number", line)
            return
        numbers.append(number)
    action = _as_id(cells[6])
    if action is None and cells[6] not in NO_ACTION:
        file.error("not a number", f"action_id {cells[6]!r} is no id: give a whole number from 1, or -1 for none", line)
        return
    if action is not None and known and action not in file.names:
        message = f"action_id {action} is no class: correct it, or add it to the label map or the training file"
        file.error("unknown label", message, line)
        return
    second, x1, y1, x2, y2 = numbers
    if not _check_place(file, line, second, first_second, (x1, y1, x2, y2)):
        return
    before = file.seen.setdefault((video, *numbers, action, cells[7]), line)
    if before != line:
        file.error("duplicate", f"the same as line {before}: remove one of them", line)
        return
    labels = () if action is None else (file.names[action] if known else action,)
    file.entries.append(Entry(line, video, second - first_second, second - first_second, (labels,)))
    file.corners.append((x1, y1, x2, y2))


def _check_place(file: BoxFile, line: int, second: float, first_second: float, corners: Corners) -> bool:
    """Whether a box is at a possible time and place; notes it if not."""
    x1, y1, x2, y2 = corners
    box = f"box {x1:g},{y1:g},{x2:g},{y2:g}"
    if second < first_second:
        message = (
            f"second {second:g} comes before first_second={first_second:g}, at which the video begins: correct either"
        )
        file.error("before the video", message, line)
    elif min(corners) < 0 or max(corners) > 1:
        message = f"{box} is not within 0 and 1: give fractions of the frame's width and height, not pixels"
        file.error("box outside", message, line)
    elif x2 <= x1 or y2 <= y1:
        file.error("reversed", f"{box} is empty or reversed: give x1 < x2 and y1 < y2", line)
    else:
        return True
    return False


def _find_second_actions(file: BoxFile) -> None:
    """Notes boxes with several actions."""
    first: dict[tuple[str, float, Corners], Entry] = {}
    for entry, corners in zip(file.entries, file.corners, strict=True):
        if not entry.labels[0]:
            continue
        before = first.setdefault((entry.video, entry.start_s, corners), entry)
        if before.labels != entry.labels:
            message = f"the box has another action in line {before.line}: remove one, or allow several (multi_label)"
            file.error("second action", message, entry.line)
