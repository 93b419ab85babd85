"""The recipe: an ingredient is taken and goes under a lid; what is done next, and to what, follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from memvit.datasets.scenes.scene import Backdrop, Scene, Segment, check_lengths, ease, varied, whole_seconds
from memvit.video.shapes import BLACK, ball, ellipse, paint, rectangle, shadow, triangle

NOUNS = {"tomato": "#d8352a", "cucumber": "#36a843", "plum": "#3560dc", "lemon": "#ecc82c"}
# What is done to each, once it was taken: every verb follows every other for some noun, so that neither the present verb
# nor its place in the recipe tells the next one.
RECIPES = {
    "tomato": ("wash", "cut", "stir"),
    "cucumber": ("cut", "stir", "wash"),
    "plum": ("stir", "cut", "wash"),
    "lemon": ("cut", "wash", "stir"),
}


@dataclass(frozen=True)
class RecipeOptions:
    """How hard the recipe is.

    Attributes:
        shortest_s, longest_s: length of a video.
        min_step_s, max_step_s: length of a step.
    """

    shortest_s: float = 8.0
    longest_s: float = 24.0
    min_step_s: float = 1.5
    max_step_s: float = 2.5

    def __post_init__(self) -> None:
        check_lengths(self.shortest_s, self.longest_s, least=2.0)
        if not 1 <= self.min_step_s <= self.max_step_s:
            raise ValueError(
                f"min_step_s={self.min_step_s}, max_step_s={self.max_step_s}: 1 or more, the maximum no less"
            )

    @property
    def classes(self) -> tuple[tuple[str, ...], ...]:
        """Names of the classes, per head: verbs, nouns."""
        return tuple(sorted({"take", *(verb for verbs in RECIPES.values() for verb in verbs)})), tuple(sorted(NOUNS))


@dataclass(frozen=True)
class _Step:
    start_s: float
    end_s: float
    verb: str
    noun: str
    taken_s: float
    look: np.ndarray  # four numbers from 0 to 1: whatever the drawing of a step may vary


def recipe(rng: np.random.Generator, options: RecipeOptions) -> Scene:
    """An ingredient is taken and covered, then washed, cut and stirred, in the order that belongs to it; then another."""
    duration = whole_seconds(rng, options.shortest_s, options.longest_s)
    steps: list[_Step] = []
    time_s = 0.0
    while time_s < duration:
        noun = list(NOUNS)[int(rng.integers(len(NOUNS)))]
        taken_s = time_s
        for verb in ("take", *RECIPES[noun]):
            end_s = time_s + float(rng.uniform(options.min_step_s, options.max_step_s))
            taken_s = end_s if verb == "take" else taken_s
            if time_s < duration:
                steps.append(_Step(time_s, min(end_s, duration), verb, noun, taken_s, rng.random(4)))
            time_s = end_s
    backdrop = Backdrop(rng)
    colors = {noun: varied(rng, color) for noun, color in NOUNS.items()}
    steel, water = varied(rng, "#c8ccd2", 15), varied(rng, "#9fd4f0", 12)
    starts = np.array([step.start_s for step in steps])

    def draw(time_s: float, size: int) -> np.ndarray:
        frame = backdrop.draw(size)
        step = steps[int(np.searchsorted(starts, time_s, side="right")) - 1]
        elapsed_s = time_s - step.start_s
        done = elapsed_s / (step.end_s - step.start_s)
        _STEPS[step.verb](frame, step, elapsed_s, done, (colors[step.noun], steel, water))
        return frame

    def delay(time_s: float) -> float:
        step = steps[int(np.searchsorted(starts, time_s, side="right")) - 1]
        return 0.0 if step.verb == "take" else time_s - step.taken_s

    segments = [Segment(step.start_s, step.end_s, (step.verb, step.noun)) for step in steps]
    delays = [(second + 0.5, delay(second + 0.5)) for second in range(duration)]
    return Scene(duration, draw, rng.uniform(2, 5), segments, delays=delays)


_Palette = tuple[np.ndarray, np.ndarray, np.ndarray]


def _pot(frame: np.ndarray, step: _Step, steel: np.ndarray) -> tuple[float, float]:
    """A covered pot, which hides what is in it; gives the middle of its lid."""
    size = frame.shape[0]
    x, y = (0.5 + 0.16 * (step.look[0] - 0.5)) * size, (0.7 + 0.1 * (step.look[1] - 0.5)) * size
    shadow(frame, (x, y + 0.15 * size), 0.3 * size)
    paint(frame, rectangle(0.25 * size, 0.13 * size), (x, y), 0.36 * size, steel * 0.75)
    paint(frame, ellipse(0.28 * size, 0.06 * size), (x, y - 0.13 * size), 0.3 * size, steel)
    return x, y - 0.13 * size


def _take(frame: np.ndarray, step: _Step, elapsed_s: float, done: float, palette: _Palette) -> None:
    size = frame.shape[0]
    x, y = (0.2 + 0.6 * step.look[0]) * size, (-0.1 + 0.62 * ease(min(2 * done, 1.0))) * size
    radius = (0.2 + 0.05 * step.look[2]) * size
    shadow(frame, (x, y + radius), radius)
    ball(frame, (x, y), radius, palette[0])


def _wash(frame: np.ndarray, step: _Step, elapsed_s: float, done: float, palette: _Palette) -> None:
    size = frame.shape[0]
    x, y = _pot(frame, step, palette[1])
    speed = 1.2 + step.look[2]
    for drop in range(8):
        fall = (elapsed_s * speed + drop * 0.37) % 1
        center = x + (drop - 3.5) * 0.06 * size, fall * y
        paint(frame, ellipse(0.018 * size, 0.05 * size), center, 0.06 * size, palette[2])


def _cut(frame: np.ndarray, step: _Step, elapsed_s: float, done: float, palette: _Palette) -> None:
    size = frame.shape[0]
    x, y = _pot(frame, step, palette[1])
    up = abs(math.sin(math.pi * elapsed_s * (1.5 + step.look[2]))) * 0.2
    paint(frame, triangle(0.2 * size, math.pi / 2), (x, y - (0.16 + up) * size), 0.22 * size, palette[1] * 1.1)
    paint(frame, rectangle(0.03 * size, 0.1 * size), (x, y - (0.36 + up) * size), 0.14 * size, BLACK + 40)


def _stir(frame: np.ndarray, step: _Step, elapsed_s: float, done: float, palette: _Palette) -> None:
    size = frame.shape[0]
    x, y = _pot(frame, step, palette[1])
    angle = 2 * math.pi * elapsed_s * (0.8 + 0.6 * step.look[2])
    tip = x + 0.15 * math.cos(angle) * size, y - (0.1 + 0.04 * math.sin(angle)) * size
    wood = np.array([150, 100, 55], np.float32)
    paint(frame, rectangle(0.025 * size, 0.17 * size), (tip[0], tip[1] - 0.16 * size), 0.2 * size, wood)
    paint(frame, ellipse(0.06 * size, 0.04 * size), tip, 0.08 * size, wood * 0.8)


_STEPS: dict[str, Callable[[np.ndarray, _Step, float, float, _Palette], None]] = {
    "take": _take,
    "wash": _wash,
    "cut": _cut,
    "stir": _stir,
}
