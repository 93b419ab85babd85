"""Who is where when: what `BoxRecognizer` asks, answered by a detector or by boxes that somebody gave."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from memvit.online.detectors import PersonDetector
from memvit.online.tracking import Tracker

Corners = tuple[float, float, float, float]
"""x1, y1, x2, y2 as fractions of the frame's width and height."""


@dataclass(frozen=True)
class Person:
    """Somebody at a moment.

    Attributes:
        track: a number that stays with the person.
        corners: where.
        score: the detector's, from 0 to 1; None where there is none.
        interpolated: nobody said that the person is here, but a little before and after.
    """

    track: int
    corners: Corners
    score: float | None = None
    interpolated: bool = False


@dataclass(frozen=True)
class Moment:
    """An instant at which people are looked for.

    Attributes:
        time_s: in seconds of the video.
        is_keyframe: whether it is also recognised what they do.
        is_given: whether somebody named this instant, so that it counts even just after the last frame.
    """

    time_s: float
    is_keyframe: bool = True
    is_given: bool = False


class PersonSource(Protocol):
    """Says when to look for people in one video, and who is there then. `DetectedPersons` and `GivenPersons` do.

    Attributes:
        period_s: from one moment to the next, about.
        needs_pixels: whether `find` looks at the frames.
    """

    period_s: float
    needs_pixels: bool

    @property
    def num_persons(self) -> int:
        """How many people were told apart so far."""

    def moments(self, start_s: float) -> Iterator[Moment]:
        """The moments of a video from `start_s` on, in order, beyond its end or without end."""

    def find(self, moment: Moment, frame: np.ndarray | None) -> tuple[Person, ...]:
        """The people at a moment; called once for each, in order.

        Args:
            moment: one of `moments`.
            frame: what is on display then, (H, W, 3) uint8 RGB, maybe smaller than in the video; None if `needs_pixels` says
                no.
        """


class DetectedPersons:
    """The people whom a detector finds in one video.

    Args:
        detector: finds people in a frame.
        every_s: seconds from one keyframe to the next.
        detect_fps: detections per second; there is one at every keyframe at least.
        min_score: of those whom the detector is this sure about.
        tracker: joins boxes of different frames; a new one where None.

    Raises:
        ValueError: a rate is 0 or less, or the score no score.
    """

    needs_pixels = True

    def __init__(
        self,
        detector: PersonDetector,
        *,
        every_s: float = 1.0,
        detect_fps: float = 2.0,
        min_score: float = 0.6,
        tracker: Tracker | None = None,
    ) -> None:
        check_looks(every_s, detect_fps, min_score)
        self.detector = detector
        self.min_score = min_score
        self.every_s = every_s
        self.num_looks = max(1, round(every_s * detect_fps))  # per keyframe
        self.period_s = every_s / self.num_looks
        self.tracker = tracker or Tracker()

    @property
    def num_persons(self) -> int:
        """How many people were told apart so far."""
        return self.tracker.num_tracks

    def moments(self, start_s: float) -> Iterator[Moment]:
        """As `PersonSource.moments`; the first is a keyframe at the start of the video, and they do not end."""
        number = 0
        while True:
            # Multiplied, not added up, so hours of video do not drift.
            keyframe, look = divmod(number, self.num_looks)
            yield Moment(start_s + keyframe * self.every_s + look * self.period_s, is_keyframe=look == 0)
            number += 1

    def find(self, moment: Moment, frame: np.ndarray | None) -> tuple[Person, ...]:
        """As `PersonSource.find`."""
        assert frame is not None
        height, width = frame.shape[:2]
        boxes, scores = self.detector.detect(frame)
        boxes, scores = np.asarray(boxes, np.float64).reshape(-1, 4).clip(0, 1), np.asarray(scores).reshape(-1)
        chosen = (scores >= self.min_score) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, scores = boxes[chosen], scores[chosen]
        tracks = self.tracker.update(moment.time_s, boxes * (width, height, width, height))
        people = [
            Person(track, tuple(box), float(score))
            for track, box, score in zip(tracks, boxes.tolist(), scores, strict=True)
        ]
        return tuple(sorted(people, key=lambda person: person.track))


def check_looks(every_s: float, detect_fps: float, min_score: float) -> None:
    """Refuses options of `DetectedPersons` that make no sense.

    Raises:
        ValueError: one does.
    """
    if not 0 < every_s < math.inf:
        raise ValueError(f"a keyframe every {every_s} s: give seconds, more than 0")
    if not 0 < detect_fps < math.inf:
        raise ValueError(f"detect_fps={detect_fps}: give detections per second, more than 0")
    if not 0 <= min_score <= 1:
        raise ValueError(f"people with a score of {min_score}: scores are from 0 to 1")
