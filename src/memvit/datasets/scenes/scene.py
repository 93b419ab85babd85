"""What a generated video shows and what is true about it, before it is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from memvit.video.shapes import rgb


@dataclass(frozen=True)
class Segment:
    """Something that goes on for a while: a row of the segments format.

    Attributes:
        start_s, end_s: when, seconds.
        labels: a class name per head.
    """

    start_s: float
    end_s: float
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Box:
    """A labelled box at a moment: a row of the AVA format.

    Attributes:
        second: when.
        corners: x1, y1, x2, y2 as fractions of the frame.
        label: what it shows.
        track: which thing it is, the same all the time.
    """

    second: int
    corners: tuple[float, float, float, float]
    label: str
    track: int


@dataclass
class Scene:
    """One generated video before it is drawn.

    Attributes:
        duration_s: seconds.
        draw: the frame at a time in seconds, for a height in pixels: float32 (height, height, 3), 0 to 255, noise aside.
        noise: standard deviation of the noise of every pixel, in grey levels.
        segments, boxes: the truth, whichever the task has.
        delays: (moment, delay): how long ago the answer was last to be seen, both in seconds; 0 while it is seen. Moments
            are the middles of clips of one second.
    """

    duration_s: float
    draw: Callable[[float, int], np.ndarray]
    noise: float
    segments: list[Segment] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    delays: list[tuple[float, float]] = field(default_factory=list)


class Backdrop:
    """A soft, uneven wall in an unsaturated colour; the same at every size."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.color = rng.uniform(70, 150) + rng.uniform(-14, 14, 3)
        self.slope = rng.uniform(-40, 40, 2)
        self.clouds = rng.normal(0, 12, (10, 10)).astype(np.float32)
        self._drawn: dict[int, np.ndarray] = {}

    def draw(self, size: int) -> np.ndarray:
        """A fresh copy, float32 (size, size, 3)."""
        if size not in self._drawn:
            at = (np.arange(size) + 0.5) / size
            cell = np.minimum((at * 10).astype(int), 9)
            light = self.slope[0] * at[:, None] + self.slope[1] * at[None, :] + self.clouds[cell][:, cell]
            self._drawn[size] = (self.color + light[..., None]).astype(np.float32)
        return self._drawn[size].copy()


def varied(rng: np.random.Generator, color: str | np.ndarray, amount: float = 20.0) -> np.ndarray:
    """A colour near a given one, float32 (3,)."""
    base = rgb(color) if isinstance(color, str) else color
    return np.clip(base + rng.uniform(-amount, amount, 3), 0, 255).astype(np.float32)


def whole_seconds(rng: np.random.Generator, shortest_s: float, longest_s: float) -> int:
    """A whole number of seconds within bounds, as often from 2 to 4 as from 4 to 8: every scale of delay gets its share."""
    shortest, longest = math.ceil(shortest_s), max(math.ceil(shortest_s), math.floor(longest_s))
    return min(int(math.exp(rng.uniform(math.log(shortest), math.log(longest + 1)))), longest)


def ease(done: float) -> float:
    """0 to 1, slow at both ends."""
    return done * done * (3 - 2 * done)


def check_lengths(shortest_s: float, longest_s: float, least: float) -> None:
    """Refuses lengths of videos that make no sense."""
    if not least <= shortest_s <= longest_s < float("inf"):
        raise ValueError(
            f"shortest_s={shortest_s}, longest_s={longest_s}: lengths are {least:g} s or more, the longest no shorter"
        )
