"""Recall: a cue is shown at the beginning and never again. What was it?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memvit.datasets.scenes.scene import Backdrop, Scene, Segment, check_lengths, varied, whole_seconds
from memvit.video.shapes import WHITE, disc, paint, ring, square

COLORS = {"red": "#d8352a", "green": "#36a843", "blue": "#3560dc", "yellow": "#ecc82c"}


@dataclass(frozen=True)
class RecallOptions:
    """How hard recall is.

    Attributes:
        shortest_s, longest_s: length of a video; the longest delay is one second less.
        num_classes: cues to tell apart, 2 to 4.
        max_distractors: things in the picture after the cue, 1 up to this, in the colours of cues.
    """

    shortest_s: float = 1.0
    longest_s: float = 12.0
    num_classes: int = 4
    max_distractors: int = 2

    def __post_init__(self) -> None:
        check_lengths(self.shortest_s, self.longest_s, least=1.0)
        if not 2 <= self.num_classes <= len(COLORS):
            raise ValueError(f"num_classes={self.num_classes}: there are cues in 2 to {len(COLORS)} colours")
        if self.max_distractors < 1:
            raise ValueError(f"max_distractors={self.max_distractors}: show 1 or more")

    @property
    def classes(self) -> tuple[tuple[str, ...], ...]:
        """Names of the classes, per head."""
        return (tuple(list(COLORS)[: self.num_classes]),)


@dataclass(frozen=True)
class _Thing:
    """A disc or square that drifts; places and sizes in fractions of the frame."""

    color: np.ndarray
    radius: float
    place: np.ndarray
    speed: np.ndarray
    is_disc: bool

    def center(self, elapsed_s: float, margin: float) -> np.ndarray:
        return np.clip(self.place + self.speed * elapsed_s, margin, 1 - margin)


def recall(rng: np.random.Generator, options: RecallOptions) -> Scene:
    """A ringed thing in one colour fills the first second; things in all colours pass by after it."""
    names = options.classes[0]
    duration = whole_seconds(rng, options.shortest_s, options.longest_s)
    label = names[int(rng.integers(len(names)))]
    # A cut to another place every second: what tells videos apart is the cue alone.
    backdrops = [Backdrop(rng) for _ in range(duration)]

    def thing(color: str, smallest: float, largest: float) -> _Thing:
        place, speed = rng.uniform(0.22, 0.78, 2), rng.uniform(-0.19, 0.19, 2)
        return _Thing(varied(rng, COLORS[color]), rng.uniform(smallest, largest), place, speed, bool(rng.integers(2)))

    cue = thing(label, 0.27, 0.33)
    acts = [
        [
            thing(names[int(rng.integers(len(names)))], 0.09, 0.16)
            for _ in range(rng.integers(options.max_distractors) + 1)
        ]
        for _ in range(duration)
    ]

    def draw(time_s: float, size: int) -> np.ndarray:
        second = min(int(time_s), duration - 1)
        frame = backdrops[second].draw(size)
        for shown in [cue] if second == 0 else acts[second]:
            is_cue = shown is cue
            x, y = shown.center(time_s - second, margin=0.42 if is_cue else 0.19) * size
            radius = shown.radius * size
            if is_cue:
                paint(frame, ring(radius + 0.08 * size, 0.045 * size), (x, y), radius + 0.12 * size, WHITE)
            shape = disc(radius) if shown.is_disc else square(radius * 0.85, 0.0)
            paint(frame, shape, (x, y), radius * 1.3, shown.color)
        return frame

    delays = [(second + 0.5, float(second)) for second in range(duration)]
    return Scene(duration, draw, rng.uniform(2, 6), [Segment(0.0, duration, (label,))], delays=delays)
