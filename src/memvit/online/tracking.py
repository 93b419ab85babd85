"""Which box is whom: boxes found now and then are joined into tracks, so that colours and numbers stay with people.

At one to four detections a second, people who walk share no pixel with their last box. Boxes are therefore moved on as
they moved before and enlarged by the way that a person may have gone meanwhile; then their overlap decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIN_OVERLAP = 0.1
# How far boxes are enlarged on every side, in units of the square root of their area (about a metre for a standing
# person): always, and for every second since the track was seen last.
SLACK, SLACK_PER_S = 0.1, 0.4
MAX_SLACK = 0.6
VELOCITY_WEIGHT = 0.8  # of the newest displacement against those before


@dataclass
class _Track:
    """Where somebody was last, and how fast.

    Attributes:
        box: (4,) x1, y1, x2, y2.
        velocity: (2,) of the centre, per second.
    """

    number: int
    box: np.ndarray
    velocity: np.ndarray
    time_s: float
    num_boxes: int = 1

    def predict(self, time_s: float) -> np.ndarray:
        return self.box + np.tile(self.velocity * (time_s - self.time_s), 2)

    def move(self, box: np.ndarray, time_s: float) -> None:
        moved = (box[:2] + box[2:] - self.box[:2] - self.box[2:]) / 2 / max(time_s - self.time_s, 1e-6)
        weight = 1.0 if self.num_boxes == 1 else VELOCITY_WEIGHT
        self.velocity = weight * moved + (1 - weight) * self.velocity
        self.box, self.time_s, self.num_boxes = box, time_s, self.num_boxes + 1


class Tracker:
    """Gives boxes the numbers of the people they show; the same boxes always get the same numbers.

    Pairs of a track and a box are joined beginning with those that overlap most. A box without a track begins one; a track
    without boxes is kept for a while, then its number is not used again.

    Args:
        max_absence_s: how long somebody may be out of sight and keep the number.
    """

    def __init__(self, max_absence_s: float = 2.0) -> None:
        self.max_absence_s = max_absence_s
        self.num_tracks = 0
        self._tracks: list[_Track] = []

    def update(self, time_s: float, boxes: np.ndarray) -> list[int]:
        """Takes the boxes of a moment, later than the one before.

        Args:
            time_s: when.
            boxes: (n, 4) x1, y1, x2, y2 in pixels, or any unit that is the same along both axes.

        Returns:
            The number of each box's track, from 1.
        """
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        self._tracks = [track for track in self._tracks if time_s - track.time_s <= self.max_absence_s + 1e-6]
        overlaps = self._overlaps(time_s, boxes)
        numbers = [0] * len(boxes)
        free = list(self._tracks)
        for flat in np.argsort(-overlaps, axis=None, kind="stable"):
            row, column = divmod(int(flat), len(boxes))
            if overlaps[row, column] < MIN_OVERLAP:
                break
            track = self._tracks[row]
            if numbers[column] == 0 and track in free:
                free.remove(track)
                track.move(boxes[column], time_s)
                numbers[column] = track.number
        for column, box in enumerate(boxes):
            if numbers[column] == 0:
                self.num_tracks += 1
                numbers[column] = self.num_tracks
                self._tracks.append(_Track(self.num_tracks, box, np.zeros(2), time_s))
        return numbers

    def _overlaps(self, time_s: float, boxes: np.ndarray) -> np.ndarray:
        """How well each track fits each box, (tracks, boxes), from 0 to 1."""
        overlaps = np.zeros((len(self._tracks), len(boxes)))
        for row, track in enumerate(self._tracks):
            slack = min(SLACK + SLACK_PER_S * (time_s - track.time_s), MAX_SLACK)
            overlaps[row] = iou(_enlarge(track.predict(time_s), slack), _enlarge(boxes, slack))
        return overlaps


def iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box, (4,), with others, (n, 4): (n,)."""
    top_left, bottom_right = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(bottom_right - top_left, 0, None).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return shared / np.maximum(areas - shared, 1e-12)


def _enlarge(boxes: np.ndarray, slack: float) -> np.ndarray:
    """Boxes (..., 4), larger on every side by a share of the square root of their area."""
    sizes = boxes[..., 2:] - boxes[..., :2]
    margin = slack * np.sqrt(sizes.prod(axis=-1, keepdims=True))
    return np.concatenate([boxes[..., :2] - margin, boxes[..., 2:] + margin], axis=-1)
