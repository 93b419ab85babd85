"""A sample video that needs no download: coloured shapes that do one thing after another.

Every act is one activity (a ball bounces, a square rotates, the camera pans, ...) for 6 to 10 seconds. What is shown
depends on the seed alone; the encoded bytes may differ between FFmpeg builds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from memvit.video.shapes import BLACK, ball, disc, paint, rgb, ring, shadow, square, textured, triangle
from memvit.video.writer import VideoWriter

Act = tuple[float, float, str]
"""Start and end in seconds, and what goes on."""

_MEAN_ACT_S = 8.0
# A background and, for what moves in front of it, colours that stand out from it.
_PALETTES = (
    ("#264653", ("#e9c46a", "#e76f51", "#f4f1de")),
    ("#e8dcc4", ("#bc4749", "#386641", "#1d3557")),
    ("#3d405b", ("#f2cc8f", "#81b29a", "#e07a5f")),
    ("#cfe1e8", ("#d62828", "#003049", "#f77f00")),
    ("#1b4332", ("#ffd166", "#ef476f", "#f1faee")),
    ("#efd3d7", ("#6a4c93", "#1982c4", "#ff595e")),
)


def make_sample_video(
    path: str | os.PathLike[str],
    *,
    duration_s: float = 64,
    seed: int = 0,
    width: int = 320,
    height: int = 240,
    fps: float = 30,
) -> list[Act]:
    """Draw and encode the sample video.

    Args:
        path: the file to write; see `VideoWriter`.
        duration_s: length, seconds, rounded to whole frames.
        seed: chooses the acts, their lengths and their colours.
        width: pixels.
        height: pixels.
        fps: frames per second.

    Returns:
        The acts in order, (start_s, end_s, name): the first starts at 0, each starts where the one before ends.

    Raises:
        ValueError: the duration holds no frame, or `VideoWriter` cannot write there at that size and rate.
    """
    with VideoWriter(path, width, height, fps) as video:
        num_frames = round(duration_s * fps)
        if num_frames < 1:
            raise ValueError(f"{path}: duration_s={duration_s} at {fps} fps holds no frame; make it longer")
        rng = np.random.default_rng(seed)
        bounds = _act_bounds(rng, num_frames, num_acts=max(1, round(duration_s / _MEAN_ACT_S)))
        names = _act_names(rng, num_acts=len(bounds) - 1)
        palettes = [_PALETTES[i % len(_PALETTES)] for i in range(len(names))]
        for name, palette, first, last in zip(names, palettes, bounds[:-1], bounds[1:], strict=True):
            stage = _Stage.set_up(rng, width, height, *palette)
            for i in range(last - first):
                video.write(_ACTS[name](stage, i / fps, i / max(last - first - 1, 1)))
    return [(a / fps, b / fps, name) for a, b, name in zip(bounds[:-1], bounds[1:], names, strict=True)]


def _act_bounds(rng: np.random.Generator, num_frames: int, num_acts: int) -> list[int]:
    """Frame numbers at which acts begin, and the end: acts of 6 to 10 s where the duration allows."""
    lengths = rng.uniform(0.85, 1.15, num_acts)
    ends = np.cumsum(lengths / lengths.sum()) * num_frames
    return [0, *(round(float(end)) for end in ends)]


def _act_names(rng: np.random.Generator, num_acts: int) -> list[str]:
    """All activities in a random order, again and again, never the same one twice in a row."""
    names: list[str] = []
    while len(names) < num_acts:
        order = [str(name) for name in rng.permutation(list(_ACTS))]
        if names and names[-1] == order[0]:
            order.reverse()
        names += order
    return names[:num_acts]


@dataclass(frozen=True)
class _Stage:
    """Where an act is played.

    Attributes:
        backdrop: uint8 (height, 3 * width, 3), wider than the frame so that a camera can pan over it.
        colors: float (3, 3), RGB of the things that move.
        size: (height, width) of the frame, pixels.
        direction: +1 or -1, so that an act that comes again need not look the same.
    """

    backdrop: np.ndarray
    colors: np.ndarray
    size: tuple[int, int]
    direction: int

    @classmethod
    def set_up(
        cls, rng: np.random.Generator, width: int, height: int, background: str, colors: tuple[str, ...]
    ) -> _Stage:
        backdrop = textured(rng, width * 3, height, rgb(background))
        order = rng.permutation(len(colors))
        return cls(backdrop, np.stack([rgb(colors[i]) for i in order]), (height, width), int(rng.choice((-1, 1))))

    def frame(self, pan: float = 0.5) -> np.ndarray:
        """A fresh copy of the backdrop at a pan of 0 (left) to 1 (right)."""
        width = self.size[1]
        left = round(pan * 2 * width)
        return self.backdrop[:, left : left + width].copy()


def _ease(done: float) -> float:
    """0 to 1, slow at both ends."""
    return done * done * (3 - 2 * done)


# An act draws one frame: `time_s` since it began, and `done`, 0 at its first frame and 1 at its last.


def _ball_bounces(stage: _Stage, time_s: float, done: float) -> np.ndarray:
    height, width = stage.size
    frame, radius, floor = stage.frame(), height * 0.11, height * 0.86
    period_s = 1.1
    fall = 2 * (time_s / period_s % 1) - 1
    up = (1 - fall * fall) * height * 0.52
    x = width * (0.5 + 0.32 * stage.direction * math.sin(2 * math.pi * time_s / 5))
    shadow(frame, (x, floor), radius * (1.1 - 0.4 * up / height), 0.4 - 0.35 * up / height)
    ball(frame, (x, floor - radius - up), radius, stage.colors[0])
    return frame


def _square_rotates(stage: _Stage, time_s: float, done: float) -> np.ndarray:
    height, width = stage.size
    frame, half_side = stage.frame(), height * 0.23
    angle = stage.direction * 2 * math.pi * time_s / 4
    shape = square(half_side, angle)
    offset = height * 0.02
    center = (width / 2, height / 2)
    paint(frame, shape, (center[0] + offset, center[1] + offset), half_side * 1.45, BLACK, opacity=0.25, softness=6)
    paint(frame, shape, center, half_side * 1.45, stage.colors[0])
    paint(frame, square(half_side * 0.45, angle), center, half_side, stage.colors[1])
    return frame


def _blobs_swap(stage: _Stage, time_s: float, done: float) -> np.ndarray:
    height, width = stage.size
    frame, radius = stage.frame(), height * 0.12
    # Half a turn, then a rest: two things that visibly change places.
    turn, num_turns = math.modf(time_s / 2.2)
    angle = stage.direction * math.pi * (num_turns + _ease(min(turn * 1.4, 1)))
    for side, color in ((0.0, stage.colors[0]), (math.pi, stage.colors[1])):
        x = width / 2 + width * 0.27 * math.cos(angle + side)
        y = height / 2 + height * 0.24 * math.sin(angle + side)
        shadow(frame, (x, y + radius), radius)
        ball(frame, (x, y), radius, color)
    return frame


def _camera_pans(stage: _Stage, time_s: float, done: float) -> np.ndarray:
    height, width = stage.size
    pan = _ease(done if stage.direction > 0 else 1 - done)
    frame = stage.frame(pan)
    left = round(pan * 2 * width)
    for i in range(9):  # a row of pillars and balls along the backdrop
        x, color = (i + 0.5) * width / 3 - left, stage.colors[i % 3]
        size = height * (0.10 + 0.03 * (i * 7 % 4))
        y = height * 0.85 - size
        shadow(frame, (x, y + size), size)
        if i % 2:
            paint(frame, square(size, 0.0), (x, y), size * 1.5, color)
        else:
            ball(frame, (x, y), size, color)
    return frame


def _lights_fade(stage: _Stage, time_s: float, done: float) -> np.ndarray:
    height, width = stage.size
    frame = stage.frame()
    for i, place in enumerate((0.22, 0.5, 0.78)):
        shadow(frame, (width * place, height * 0.66), height * 0.13)
        ball(frame, (width * place, height * 0.53), height * 0.13, stage.colors[i])
    brightness = 0.54 + 0.46 * math.cos(2 * math.pi * time_s / 4)
    return (frame * np.float32(brightness)).astype(np.uint8)


def _ring_pulses(stage: _Stage, time_s: float, done: float) -> np.ndarray:
    height, width = stage.size
    frame, center = stage.frame(), (width / 2, height / 2)
    for i in range(3):
        phase = (time_s / 2.4 + i / 3) % 1
        radius = height * (0.06 + 0.42 * phase)
        thickness = height * 0.05
        paint(frame, ring(radius, thickness), center, radius + thickness, stage.colors[i], opacity=1 - phase**2)
    ball(frame, center, height * 0.07, stage.colors[0])
    return frame


def _triangle_orbits(stage: _Stage, time_s: float, done: float) -> np.ndarray:
    height, width = stage.size
    frame, center = stage.frame(), (width / 2, height / 2)
    angle = stage.direction * 2 * math.pi * time_s / 3.5
    ball(frame, center, height * 0.11, stage.colors[1])
    x, y = width / 2 + width * 0.32 * math.cos(angle), height / 2 + height * 0.33 * math.sin(angle)
    paint(frame, triangle(height * 0.14, angle * 2), (x, y), height * 0.14, stage.colors[0])
    return frame


def _truck_crosses(stage: _Stage, time_s: float, done: float) -> np.ndarray:
    height, width = stage.size
    frame, half_side, floor = stage.frame(), height * 0.1, height * 0.84
    across = (time_s / 3.2) % 1
    x = width * (-0.25 + 1.5 * (across if stage.direction > 0 else 1 - across))
    shadow(frame, (x, floor), half_side * 2.2)
    for place, side in ((-0.9, 1.0), (0.9, 1.0), (-0.9 * stage.direction, 1.5)):
        center = (x + place * half_side, floor - half_side * (side + 0.2))
        paint(frame, square(half_side * side, 0.0), center, half_side * side * 1.45, stage.colors[0])
    for place in (-1.1, 1.1):
        hub = (x + place * half_side, floor - half_side * 0.3)
        paint(frame, disc(half_side * 0.5), hub, half_side * 0.5, stage.colors[1])
        paint(frame, disc(half_side * 0.2), hub, half_side * 0.2, stage.colors[2])
    return frame


_ACTS: dict[str, Callable[[_Stage, float, float], np.ndarray]] = {
    "ball bouncing": _ball_bounces,
    "square rotating": _square_rotates,
    "blobs swapping": _blobs_swap,
    "camera panning": _camera_pans,
    "lights fading": _lights_fade,
    "rings pulsing": _ring_pulses,
    "triangle orbiting": _triangle_orbits,
    "truck crossing": _truck_crosses,
}
