"""Boxes with actions and with scores as arrays, keyframes as numbers, and what of them cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

logger = logging.getLogger("memvit.metrics.ava")

# Boxes are compared on a grid of whole millionths of the frame, so that what is 0.137 in a file and what is 0.137 in float32
# is the same, and overlaps are exact: an IoU of 0.5 is 0.5. Times are compared in whole milliseconds for the same reason.
GRID = 1_000_000
MS_PER_S = 1_000
MAX_SECOND = 1e8
_SPAN = 2**40  # of the milliseconds of one video

NO_ACTION = -1
_NO_ID = -2
# Real files have a few bad rows, which are left out. A file with more of them than this is another kind of file.
MAX_UNUSABLE_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Annotated boxes, a row for every action of a box.

    Attributes:
        videos: names (n,).
        seconds: of the keyframes (n,), numbers or texts such as "0902".
        corners: (n, 4), x1, y1, x2, y2 as fractions of the frame.
        action_ids: int (n,); -1 for a person of whom no action is known, who does not count.

    Raises:
        ValueError: the shapes do not fit.
    """

    videos: np.ndarray
    seconds: np.ndarray
    corners: np.ndarray
    action_ids: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.videos)
        _check_shapes(self, videos=(n,), seconds=(n,), corners=(n, 4), action_ids=(n,))


@dataclass(frozen=True, eq=False)
class Detections:
    """Detected boxes, each with scores of all actions.

    Attributes:
        videos: names (n,).
        seconds: of the keyframes (n,), numbers or texts such as "0902".
        corners: (n, 4), x1, y1, x2, y2 as fractions of the frame.
        scores: (n, C), any finite numbers; only their order counts.
        action_ids: int (C,), whose score each column is.

    Raises:
        ValueError: the shapes do not fit, or an action has two columns.
    """

    videos: np.ndarray
    seconds: np.ndarray
    corners: np.ndarray
    scores: np.ndarray
    action_ids: np.ndarray

    def __post_init__(self) -> None:
        n, c = len(self.videos), len(self.action_ids)
        _check_shapes(self, videos=(n,), seconds=(n,), corners=(n, 4), scores=(n, c), action_ids=(c,))
        if len(set(np.asarray(self.action_ids).tolist())) != c:
            raise ValueError("action_ids names an action twice: give one column of scores per action")


def _check_shapes(arrays: GroundTruth | Detections, **shapes: tuple[int, ...]) -> None:
    for name, shape in shapes.items():
        found = np.shape(getattr(arrays, name))
        if found != shape:
            raise ValueError(f"{type(arrays).__name__}.{name} has the shape {found}, not {shape}")


@dataclass(frozen=True, eq=False)
class LabelledBoxes:
    """Ground truth that counts: keyframes int64 (n,), corners int32 (n, 4) on the grid, actions int64 (n,)."""

    keyframes: np.ndarray
    corners: np.ndarray
    actions: np.ndarray


@dataclass(frozen=True, eq=False)
class ScoredBoxes:
    """Detections that count.

    Attributes:
        keyframes: int64 (b,).
        corners: int32 (b, 4), on the grid.
        by_action: per action that has any, which box each of its scores is for (None: for all, in their order), and the
            scores, in the order of rows.
    """

    keyframes: np.ndarray
    corners: np.ndarray
    by_action: Mapping[int, tuple[np.ndarray | None, np.ndarray]]


class Keyframes:
    """Gives keyframes numbers: one for each video and second, however these are written.

    Args:
        excluded: (video, second) of keyframes that do not count.
    """

    def __init__(self, excluded: Iterable[tuple[str, float | str]] = ()) -> None:
        self._videos: dict[str, int] = {}
        pairs = list(excluded)
        videos, seconds = [video for video, _ in pairs], [float(second) for _, second in pairs]
        self._excluded = self.number(np.array(videos, object), np.array(seconds, float))

    def number(self, videos: np.ndarray | pd.Categorical, seconds: np.ndarray) -> np.ndarray:
        """Numbers int64 (n,) of videos' names (n,) at finite seconds (n,)."""
        codes, names = pd.factorize(videos)
        numbers = [self._videos.setdefault(str(name).strip(), len(self._videos)) for name in names]
        milliseconds = np.rint(np.asarray(seconds, float) * MS_PER_S).astype(np.int64)
        return np.array(numbers, np.int64)[codes] * _SPAN + milliseconds

    def is_counted(self, keyframes: np.ndarray) -> np.ndarray:
        """Which numbers (n,) are not those of excluded keyframes."""
        return ~np.isin(keyframes, self._excluded)

    def describe(self, keyframe: int) -> str:
        """The video and second that have a number."""
        return f"{list(self._videos)[keyframe // _SPAN]} at {keyframe % _SPAN / MS_PER_S:g}"


@dataclass
class Faults:
    """What of a file, or of arrays, cannot be used.

    Attributes:
        name: of the file or the arrays.
        place: how a line, or an index, in it is written.
        num_rows: all there are.
    """

    name: str
    place: Callable[[int], str]
    num_rows: int = 0
    _kinds: dict[str, tuple[int, int, str]] = field(default_factory=dict)  # how many, where first, what is wrong there

    @classmethod
    def of_file(cls, path: object) -> Faults:
        """For the lines of a file."""
        return cls(str(path), lambda line: f"{path}:{line}")

    @classmethod
    def of_arrays(cls, name: str, num_rows: int) -> Faults:
        """For the rows of arrays."""
        return cls(name, lambda index: f"{name}[{index}]", num_rows)

    def note(self, kind: str, place: int, message: str, count: int = 1) -> None:
        """Notes rows with a fault of some kind: where the first of them is and what is wrong with it."""
        before, first, text = self._kinds.get(kind, (0, place, message))
        self._kinds[kind] = (before + count, first, text)

    def check(self) -> None:
        """Logs every kind of fault, with the place of the first.

        Raises:
            ValueError: more than a tenth of the rows have faults.
        """
        kinds = sorted(self._kinds.values(), key=lambda kind: kind[1])
        total = sum(count for count, _, _ in kinds)
        if total > MAX_UNUSABLE_SHARE * self.num_rows:
            _, first, message = kinds[0]
            raise ValueError(
                f"{self.place(first)}: {message}; {total} of {self.num_rows} rows of {self.name} cannot be used, too many to "
                "leave them out: correct them"
            )
        for count, first, message in kinds:
            left_out = f"{count} of {self.num_rows} rows have such a fault and are left out"
            logger.warning("%s: %s; %s", self.place(first), message, left_out)


class Rows:
    """Rows of a file or of arrays, of which those with faults are dropped.

    Args:
        faults: where to note them.
        places: int64 (n,), their lines or indices.
        counts: int64 (n,), how many rows each stands for; None: one.

    Attributes:
        good: bool (n,), which are left.
    """

    def __init__(self, faults: Faults, places: np.ndarray, counts: np.ndarray | None = None) -> None:
        self.good = np.ones(len(places), bool)
        self._faults, self._places, self._counts = faults, places, counts

    def drop(self, bad: np.ndarray, kind: str, message: Callable[[int], str]) -> None:
        """Drops what is bad and notes it, unless it was dropped before.

        Args:
            bad: bool (n,).
            kind: of the fault.
            message: what is wrong with the one that has this index.
        """
        found = np.flatnonzero(bad & self.good)
        if len(found):
            count = len(found) if self._counts is None else int(self._counts[found].sum())
            self._faults.note(kind, int(self._places[found[0]]), message(int(found[0])), count)
            self.good[found] = False

    def drop_bad_boxes(self, seconds: np.ndarray, corners: np.ndarray) -> None:
        """Drops boxes at no time (n,), outside the frame, or empty; corners (n, 4) are on the grid, as floats."""

        def box(index: int) -> str:
            return "box " + ",".join(f"{corner:g}" for corner in corners[index] / GRID)

        is_time = (seconds >= 0) & (seconds <= MAX_SECOND)
        self.drop(~is_time, "second", lambda index: f"second {seconds[index]:g} is no time in a video")
        is_inside = np.all((corners >= 0) & (corners <= GRID), axis=1)
        self.drop(
            ~is_inside,
            "outside",
            lambda index: (
                f"{box(index)} is not within 0 and 1: give fractions of the frame's width and height, not pixels"
            ),
        )
        self.drop(
            (corners[:, 2] <= corners[:, 0]) | (corners[:, 3] <= corners[:, 1]),
            "reversed",
            lambda index: f"{box(index)} is empty or reversed: give x1 < x2 and y1 < y2",
        )

    def drop_unknown_actions(self, numbers: np.ndarray, known: Collection[int]) -> np.ndarray:
        """Drops rows whose action is none of those known; returns the ids, int64 (n,), of finite numbers (n,)."""
        numbers = np.asarray(numbers, np.float64)
        ids = numbers.clip(_NO_ID, 2**31).astype(np.int64)
        ids[ids != numbers] = _NO_ID
        self.drop(
            ~np.isin(ids, np.array(sorted(known), np.int64)),
            "action",
            lambda index: f"action_id {numbers[index]:g} is no class: correct it, or give the label map that has it",
        )
        return ids


def on_grid(corners: np.ndarray) -> np.ndarray:
    """Corners (n, 4), fractions of the frame, as float64 whole numbers of millionths."""
    return np.rint(np.asarray(corners, np.float64) * GRID)


def count_truth(
    truth: GroundTruth, keyframes: Keyframes, *, counted: Collection[int], known: Collection[int]
) -> LabelledBoxes:
    """The annotated boxes that count: usable, with an evaluated action, at a keyframe that is not excluded.

    Raises:
        ValueError: more than a tenth of the rows cannot be used.
    """
    faults = Faults.of_arrays("ground truth", len(truth.videos))
    rows = Rows(faults, np.arange(len(truth.videos)))
    seconds, corners = np.asarray(truth.seconds, np.float64), on_grid(truth.corners)
    rows.drop_bad_boxes(seconds, corners)
    actions = rows.drop_unknown_actions(truth.action_ids, {NO_ACTION, *known})
    faults.check()
    good = rows.good & np.isin(actions, list(counted))
    numbers = keyframes.number(np.asarray(truth.videos, object)[good], seconds[good])
    chosen = keyframes.is_counted(numbers)
    return LabelledBoxes(numbers[chosen], corners[good][chosen].astype(np.int32), actions[good][chosen])


def count_detections(detections: Detections, keyframes: Keyframes, *, counted: Collection[int]) -> ScoredBoxes:
    """The detected boxes that count: usable, at a keyframe that is not excluded; with the scores of evaluated actions.

    Raises:
        ValueError: more than a tenth of the boxes cannot be used.
    """
    usable = usable_detections(detections)
    numbers = keyframes.number(
        np.asarray(detections.videos, object)[usable], np.asarray(detections.seconds, np.float64)[usable]
    )
    chosen = keyframes.is_counted(numbers)
    index = usable[chosen]
    scores = detections.scores if len(index) == len(detections.scores) else detections.scores[index]
    by_action = {
        action: (None, scores[:, column])
        for column, action in enumerate(np.asarray(detections.action_ids).tolist())
        if action in counted
    }
    return ScoredBoxes(numbers[chosen], on_grid(detections.corners[index]).astype(np.int32), by_action)


def usable_detections(detections: Detections) -> np.ndarray:
    """Indices of the boxes that can be used; the others are logged.

    Raises:
        ValueError: more than a tenth of the boxes cannot be used.
    """
    faults = Faults.of_arrays("detections", len(detections.videos))
    rows = Rows(faults, np.arange(len(detections.videos)))
    rows.drop_bad_boxes(np.asarray(detections.seconds, np.float64), on_grid(detections.corners))
    rows.drop(
        ~np.isfinite(detections.scores).all(axis=1),
        "score",
        lambda index: "a score is no finite number: did the model's training diverge?",
    )
    faults.check()
    return np.flatnonzero(rows.good)
