"""Frame mAP of AVA v2.2 (Gu et al., CVPR 2018): how well boxes of people and their actions are found at keyframes.

A detection of an action belongs to the ground-truth box of its keyframe and action that it overlaps most, the first of
several. It is true if their IoU is at least 0.5 and no other detection has that box already; all other detections are false.
An action's average precision (AP) is the area under the curve of precision over recall, with every precision raised to the
highest at the same or more recall; the mean is over the evaluated actions that the ground truth has. Detections at keyframes
without ground truth are false as well; excluded keyframes do not count at all.

Two things are left open by this:

- Which of several detections gets a box? The one in the first row (`match_order="rows"`): the evaluation whose results we
  compare ours with takes a keyframe's detections as they come; its results are matched exactly by this rule, and not by the
  other. The one with the highest score (`match_order="scores"`) is what one expects, and what the official challenge does,
  which sorts every keyframe's rows by score before. Both give the same where rows are sorted like that.
- Which of several detections with equal scores comes first on the curve? The one in the last row: scores are sorted in
  ascending order, stably, and then reversed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from memvit.datasets.ava_actions import action_names, evaluated_actions
from memvit.metrics.ava_files import read_detections, read_ground_truth
from memvit.metrics.ava_picture import save_class_picture
from memvit.metrics.ava_records import (
    Detections,
    GroundTruth,
    Keyframes,
    LabelledBoxes,
    ScoredBoxes,
    count_detections,
    count_truth,
)
from memvit.metrics.ava_writing import write_detections

__all__ = [
    "AvaResult",
    "Detections",
    "GroundTruth",
    "MatchOrder",
    "evaluate",
    "evaluate_boxes",
    "evaluate_files",
    "save_class_picture",
    "write_detections",
]

logger = logging.getLogger(__name__)

MIN_IOU = 0.5
BOXES_AT_A_TIME = 50_000

MatchOrder = Literal["rows", "scores"]


@dataclass(frozen=True)
class AvaResult:
    """What an evaluation found.

    Attributes:
        mean_ap: of the classes in `ap`, from 0 to 1; NaN where there are none.
        ap: average precision, from 0 to 1, of every evaluated class that has ground truth, by the classes' ids.
        num_boxes: of the same classes in the ground truth.
    """

    mean_ap: float
    ap: dict[int, float]
    num_boxes: dict[int, int]

    def to_dict(self) -> dict[str, Any]:
        """``{"mAP": mean, "AP": {class: average precision}}``."""
        return {"mAP": self.mean_ap, "AP": dict(self.ap)}


def evaluate(
    groundtruth_csv: str | os.PathLike[str],
    detections_csv: str | os.PathLike[str],
    excluded_csv: str | os.PathLike[str] | None = None,
    *,
    classes: Mapping[int, str] | None = None,
    match_order: MatchOrder = "rows",
) -> dict[str, Any]:
    """Evaluates files, as `evaluate_files`, whose arguments and errors these are.

    Returns:
        ``{"mAP": mean, "AP": {class: average precision}}``, from 0 to 1; see `AvaResult`.
    """
    return evaluate_files(
        groundtruth_csv, detections_csv, excluded_csv, classes=classes, match_order=match_order
    ).to_dict()


def evaluate_files(
    groundtruth_csv: str | os.PathLike[str],
    detections_csv: str | os.PathLike[str],
    excluded_csv: str | os.PathLike[str] | None = None,
    *,
    classes: Mapping[int, str] | None = None,
    match_order: MatchOrder = "rows",
) -> AvaResult:
    """Evaluates files in AVA's form: CSV without a header, a row for every action of a box.

    Rows that cannot be used are left out and logged, one warning for each kind of fault.

    Args:
        groundtruth_csv: ``video,second,x1,y1,x2,y2,action_id,person_id``, the last of which may be missing. Rows with no
            action, or -1, do not count.
        detections_csv: ``video,second,x1,y1,x2,y2,action_id,score``; there may be no rows.
        excluded_csv: ``video,second`` of keyframes that do not count.
        classes: names of the classes by their ids, all of which count; None: the 60 evaluated of AVA's 80 actions. The other
            actions of AVA may occur in the files as well if these are some of AVA's, by id and name.
        match_order: which of several detections gets a box, the one in the first row or the one with the highest score;
            see above.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the ground truth is empty, a file has a line with column names, or more than a tenth of its rows cannot be
            used.
    """
    counted, known = _class_ids(classes)
    keyframes = Keyframes(_read_excluded(excluded_csv))
    truth = count_truth(read_ground_truth(groundtruth_csv, known=known), keyframes, counted=counted, known=known)
    found = read_detections(detections_csv, keyframes, counted=counted, known=known)
    return _evaluate(truth, found, keyframes, match_order)


def evaluate_boxes(
    ground_truth: GroundTruth,
    detections: Detections,
    *,
    excluded: Iterable[tuple[str, float | str]] = (),
    classes: Mapping[int, str] | None = None,
    match_order: MatchOrder = "rows",
) -> AvaResult:
    """Evaluates boxes in arrays; the result is that of `evaluate_files` for the same boxes in files.

    Boxes that cannot be used are left out and logged. Classes without a column of scores have no detections.

    Args:
        ground_truth: the annotated boxes; there may be none.
        detections: the detected boxes with their scores.
        excluded: (video, second) of keyframes that do not count.
        classes: as of `evaluate_files`.
        match_order: as of `evaluate_files`.

    Raises:
        ValueError: more than a tenth of the boxes cannot be used, or a column is of no known class.
    """
    counted, known = _class_ids(classes)
    strange = sorted(set(np.asarray(detections.action_ids).tolist()) - known)
    if strange:
        raise ValueError(f"detections.action_ids: {strange[0]} is no class: correct it, or give classes that have it")
    keyframes = Keyframes(excluded)
    truth = count_truth(ground_truth, keyframes, counted=counted, known=known)
    return _evaluate(truth, count_detections(detections, keyframes, counted=counted), keyframes, match_order)


def _class_ids(classes: Mapping[int, str] | None) -> tuple[frozenset[int], frozenset[int]]:
    """The ids of classes that count, and of all that may occur."""
    every = action_names()
    if classes is None:
        return evaluated_actions(), frozenset(every)
    return frozenset(classes), frozenset(every if classes.items() <= every.items() else classes)


def _read_excluded(path: str | os.PathLike[str] | None) -> set[tuple[str, float]]:
    if path is None:
        return set()
    from memvit.datasets.ava_boxes import read_excluded  # imports PyTorch, which nothing else here needs

    return read_excluded(path)


def _evaluate(truth: LabelledBoxes, found: ScoredBoxes, keyframes: Keyframes, match_order: MatchOrder) -> AvaResult:
    if match_order not in ("rows", "scores"):
        raise ValueError(f"match_order={match_order!r} is unknown: give 'rows' or 'scores'")
    _warn_if_apart(truth, found, keyframes)
    actions, counts = np.unique(truth.actions, return_counts=True)
    num_boxes = dict(zip(actions.tolist(), counts.tolist(), strict=True))
    boxes, rows = _match(truth, found)
    matched_actions = truth.actions[rows]
    truth_of_box = np.full(len(found.keyframes), -1)
    ap = {}
    for action, number in num_boxes.items():
        if action not in found.by_action:
            ap[action] = 0.0
            continue
        of_action = slice(*np.searchsorted(matched_actions, [action, action + 1]))
        truth_of_box[boxes[of_action]] = rows[of_action]
        box_of_score, scores = found.by_action[action]
        row_of_score = truth_of_box if box_of_score is None else truth_of_box[box_of_score]
        is_true = _first_of_each(row_of_score, scores if match_order == "scores" else None)
        ap[action] = _average_precision(scores, is_true, number)
        truth_of_box[boxes[of_action]] = -1
    return AvaResult(float(np.mean(list(ap.values()))) if ap else float("nan"), ap, num_boxes)


def _warn_if_apart(truth: LabelledBoxes, found: ScoredBoxes, keyframes: Keyframes) -> None:
    """Says so if nothing can match because videos or seconds are not the same."""
    if len(truth.keyframes) and len(found.keyframes) and not np.isin(found.keyframes, truth.keyframes).any():
        logger.warning(
            "no detection is at a keyframe with ground truth; are videos and seconds written alike? Detections: %s; ground "
            "truth: %s",
            *(keyframes.describe(int(boxes.keyframes[0])) for boxes in (found, truth)),
        )


def _match(truth: LabelledBoxes, found: ScoredBoxes) -> tuple[np.ndarray, np.ndarray]:
    """Per detected box and action the row of ground truth that it overlaps most, where that is enough for a match.

    Returns:
        Boxes and rows, int64 (matches,) each, in the order of the rows' actions.
    """
    order = np.argsort(truth.keyframes, kind="stable")
    keyframes = truth.keyframes[order]
    parts = []
    for first in range(0, len(found.keyframes), BOXES_AT_A_TIME):
        wanted = found.keyframes[first : first + BOXES_AT_A_TIME]
        begin = np.searchsorted(keyframes, wanted, side="left")
        num = np.searchsorted(keyframes, wanted, side="right") - begin
        box = first + np.repeat(np.arange(len(wanted)), num)
        row = order[np.arange(len(box)) + np.repeat(begin - np.cumsum(num) + num, num)]
        overlap = _iou(found.corners[box], truth.corners[row])
        enough = overlap >= MIN_IOU
        parts.append((box[enough], row[enough], overlap[enough]))
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    box, row, overlap = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    action = truth.actions[row]
    best_first = np.lexsort((row, -overlap, box, action))
    box, row, action = box[best_first], row[best_first], action[best_first]
    is_best = np.ones(len(box), bool)
    is_best[1:] = (box[1:] != box[:-1]) | (action[1:] != action[:-1])
    return box[is_best], row[is_best]


def _iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union (n,) of pairs of boxes (n, 4) on the grid; exact up to the rounding of the division."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    size = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    shared = size.clip(min=0).prod(axis=1)
    areas = (one[:, 2:] - one[:, :2]).prod(axis=1) + (other[:, 2:] - other[:, :2]).prod(axis=1)
    return shared / (areas - shared)


def _first_of_each(row_of_score: np.ndarray, scores: np.ndarray | None) -> np.ndarray:
    """Which detections get the ground truth (-1: none) that they overlap most: the first, or the highest in score."""
    matching = np.flatnonzero(row_of_score >= 0)
    if scores is not None:
        matching = matching[np.argsort(-scores[matching].astype(np.float64), kind="stable")]
    _, first = np.unique(row_of_score[matching], return_index=True)
    is_true = np.zeros(len(row_of_score), bool)
    is_true[matching[first]] = True
    return is_true


def _average_precision(scores: np.ndarray, is_true: np.ndarray, num_boxes: int) -> float:
    """The area under the curve: every true detection adds 1 / num_boxes of recall."""
    descending = np.argsort(scores, kind="stable")[::-1]
    ranks = np.flatnonzero(is_true[descending]) + 1
    precision = np.arange(1, len(ranks) + 1) / ranks
    highest = np.maximum.accumulate(precision[::-1])
    return float(highest.sum() / num_boxes)
