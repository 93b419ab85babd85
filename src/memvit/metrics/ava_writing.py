"""Writes detections as a file that AVA's evaluation takes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from memvit.metrics.ava_records import GRID, Detections, on_grid, usable_detections

BOXES_AT_A_TIME = 1000


def write_detections(
    path: str | os.PathLike[str], detections: Detections, *, action_ids: Collection[int] | None = None
) -> int:
    """Writes a file of detections as AVA's evaluation takes it, whole or not at all, in constant memory.

    Evaluating the file gives the very result of evaluating the arrays: corners have 6 digits after the point, which is the
    grid that boxes are compared on, scores the 9 digits that tell all float32 numbers apart (17 where they are float64).
    Seconds are written as 0902, or as 0902.5 with up to 3 digits after the point. Boxes that cannot be used are left out and
    logged.

    Args:
        path: of the file.
        detections: what to write, a row for every box and action.
        action_ids: of the columns to write, such as `evaluated_actions()`; None: all.

    Returns:
        How many rows there are.

    Raises:
        OSError: the file cannot be written.
        ValueError: more than a tenth of the boxes cannot be used.
    """
    ids = np.asarray(detections.action_ids).tolist()
    columns = [column for column, action in enumerate(ids) if action_ids is None or action in action_ids]
    digits = 17 if np.asarray(detections.scores).dtype == np.float64 else 9
    form = "".join(f"%s{ids[column]},%.{digits}g\n" for column in columns)
    usable = usable_detections(detections)
    part = Path(f"{os.fspath(path)}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            for first in range(0, len(usable), BOXES_AT_A_TIME):
                index = usable[first : first + BOXES_AT_A_TIME]
                scores = detections.scores[index][:, columns].tolist()
                for place, row in zip(_places(detections, index), scores, strict=True):
                    cells = [place] * (2 * len(row))
                    cells[1::2] = row
                    file.write(form % tuple(cells))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return len(usable) * len(columns)


def _places(detections: Detections, index: np.ndarray) -> Iterator[str]:
    """The cells before the action, with the comma after them."""
    corners = on_grid(detections.corners[index]) / GRID
    seconds = np.asarray(detections.seconds[index], np.float64)
    for video, second, (x1, y1, x2, y2) in zip(
        detections.videos[index].tolist(), seconds.tolist(), corners.tolist(), strict=True
    ):
        time = f"{second:08.3f}".rstrip("0").rstrip(".")
        yield f"{_quote(str(video))},{time},{x1:.6f},{y1:.6f},{x2:.6f},{y2:.6f},"


def _quote(cell: str) -> str:
    if not any(character in cell for character in ',"\r\n'):
        return cell
    return '"' + cell.replace('"', '""') + '"'
