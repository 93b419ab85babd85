"""The shell game: a ball goes under one of three cups, which swap places. Which cup holds it?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from memvit.datasets.scenes.scene import Backdrop, Box, Scene, check_lengths, ease, varied, whole_seconds
from memvit.video.shapes import ball, paint, rectangle, shadow


@dataclass(frozen=True)
class ShellGameOptions:
    """How hard the shell game is.

    Attributes:
        shortest_s, longest_s: length of a video.
        min_hidden_s, max_hidden_s: how long a ball stays hidden; then another round begins with the ball shown.
        swap_probability: that two cups swap places in a second.
    """

    shortest_s: float = 6.0
    longest_s: float = 18.0
    min_hidden_s: int = 2
    max_hidden_s: int = 3
    swap_probability: float = 0.5

    def __post_init__(self) -> None:
        check_lengths(self.shortest_s, self.longest_s, least=3.0)
        if not 1 <= self.min_hidden_s <= self.max_hidden_s:
            raise ValueError(
                f"min_hidden_s={self.min_hidden_s}, max_hidden_s={self.max_hidden_s}: 1 or more, the maximum no less"
            )
        if not 0 <= self.swap_probability <= 1:
            raise ValueError(f"swap_probability={self.swap_probability}: a probability is from 0 to 1")

    @property
    def classes(self) -> tuple[tuple[str, ...], ...]:
        """Names of the classes, per head."""
        return (("empty", "ball"),)


@dataclass(frozen=True)
class _Turn:
    """What happens around a full second: from half a second before it to half a second after.

    Attributes:
        holder: the place (0, 1, 2) of the ball in the end.
        shown: whether the cup over it is lifted.
        swap: places whose cups change, in the first half; None: none do.
        side: whether the first goes above or below the other.
        hidden_s: turns since the ball was shown.
    """

    holder: int
    shown: bool
    swap: tuple[int, int] | None
    side: int
    hidden_s: int


def _turns(rng: np.random.Generator, options: ShellGameOptions, num_turns: int) -> list[_Turn]:
    turns: list[_Turn] = []
    holder, hidden, left = 0, 0, 0
    for _ in range(num_turns):
        swap = None
        if shown := left == 0:
            holder, hidden = int(rng.integers(3)), 0
            left = int(rng.integers(options.min_hidden_s, options.max_hidden_s + 1))
        else:
            left, hidden = left - 1, hidden + 1
            if rng.random() < options.swap_probability:
                first, second = (int(i) for i in rng.permutation(3)[:2])
                swap = (first, second)
                holder = {first: second, second: first}.get(holder, holder)
        turns.append(_Turn(holder, shown, swap, int(rng.choice((-1, 1))), hidden))
    return turns


def shell_game(rng: np.random.Generator, options: ShellGameOptions) -> Scene:
    """Three cups, a ball that is shown now and then, and swaps in between; one turn around every full second."""
    duration = whole_seconds(rng, options.shortest_s, options.longest_s)
    turns = _turns(rng, options, duration - 1)
    backdrop = Backdrop(rng)
    cup_color = varied(rng, "#96603a", 12) * rng.uniform(0.65, 1.25)
    ball_color = varied(rng, "#e1322a", 20)
    radius = rng.uniform(0.085, 0.105)
    places = np.array([0.2, 0.5, 0.8]) + rng.uniform(-0.035, 0.035, 3)
    level = 0.55 + rng.uniform(-0.12, 0.12)

    def draw(time_s: float, size: int) -> np.ndarray:
        frame = backdrop.draw(size)
        number = min(max(int(time_s - 0.5), 0), len(turns) - 1)
        turn, elapsed_s = turns[number], min(max(time_s - 0.5 - number, 0.0), 1.0)
        cups = [(float(x), level) for x in places]
        if turn.swap is not None:
            done = ease(min(elapsed_s / 0.5, 1.0))
            arc = 2 * radius * math.sin(math.pi * done) * turn.side
            for (to, of), sign in ((turn.swap, 1), (turn.swap[::-1], -1)):
                cups[to] = (float(places[of] + (places[to] - places[of]) * done), level + sign * arc)
        lift = 1.8 * radius * min(1.0, 2 * (1 - abs(2 * elapsed_s - 1))) if turn.shown else 0.0
        for place, (x, y) in sorted(enumerate(cups), key=lambda cup: cup[1][1]):
            shadow(frame, (x * size, (y + radius) * size), radius * size)
            if turn.shown and place == turn.holder:
                ball(frame, (x * size, (y + 0.3 * radius) * size), 0.65 * radius * size, ball_color)
                y -= lift
            center = x * size, y * size
            paint(frame, rectangle(radius * size, radius * size), center, 1.5 * radius * size, cup_color)
            top = center[0], (y - 0.8 * radius) * size
            paint(frame, rectangle(0.55 * radius * size, 0.2 * radius * size), top, radius * size, cup_color * 0.6)
        return frame

    reach = radius + 0.03
    boxes = [
        Box(
            number + 1,
            (float(x) - reach, level - reach, float(x) + reach, level + reach),
            "ball" if place == turn.holder else "empty",
            place,
        )
        for number, turn in enumerate(turns)
        for place, x in enumerate(places)
    ]
    delays = [(number + 1.0, float(turn.hidden_s)) for number, turn in enumerate(turns)]
    return Scene(duration, draw, rng.uniform(2, 5), boxes=boxes, delays=delays)
