"""Anti-aliased shapes and soft backdrops for generated videos, drawn with NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

# A shape is the signed distance of points to its edge, in pixels, negative inside.
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def disc(radius: float) -> Distance:
    """A filled circle."""
    return lambda x, y: np.hypot(x, y) - radius


def ring(radius: float, thickness: float) -> Distance:
    """A circle of some thickness around its line."""
    return lambda x, y: np.abs(np.hypot(x, y) - radius) - thickness / 2


def square(half_side: float, angle: float) -> Distance:
    """A square with rounded corners, turned by an angle in radians."""
    corner = half_side * 0.2

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u = np.abs(x * math.cos(angle) + y * math.sin(angle)) - half_side + corner
        v = np.abs(y * math.cos(angle) - x * math.sin(angle)) - half_side + corner
        outside = np.hypot(np.maximum(u, 0), np.maximum(v, 0))
        return outside + np.minimum(np.maximum(u, v), 0) - corner

    return distance


def rectangle(half_width: float, half_height: float) -> Distance:
    """An upright rectangle."""
    return lambda x, y: np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def triangle(radius: float, angle: float) -> Distance:
    """A triangle with equal sides in a circle of that radius, turned by an angle in radians."""
    normals = [angle + k * 2 * math.pi / 3 for k in range(3)]
    return lambda x, y: np.max([x * math.cos(a) + y * math.sin(a) for a in normals], axis=0) - radius / 2


def ellipse(radius_x: float, radius_y: float) -> Distance:
    """An ellipse, about: distances are exact on its edge alone."""
    return lambda x, y: (np.hypot(x / radius_x, y / radius_y) - 1) * min(radius_x, radius_y)


def paint(
    frame: np.ndarray,
    shape: Distance,
    center: tuple[float, float],
    reach: float,
    color: np.ndarray,
    *,
    opacity: float = 1.0,
    softness: float = 1.0,
) -> None:
    """Blend a shape into the frame, in place, with a smooth edge of `softness` pixels; nothing lies beyond `reach`."""
    height, width = frame.shape[:2]
    reach += softness
    left, right = max(int(center[0] - reach), 0), min(int(center[0] + reach) + 2, width)
    top, bottom = max(int(center[1] - reach), 0), min(int(center[1] + reach) + 2, height)
    if left >= right or top >= bottom:
        return
    x = np.arange(left, right, dtype=np.float32)[None] - np.float32(center[0])
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(center[1])
    alpha = (np.clip(0.5 - shape(x, y) / softness, 0, 1) * opacity)[..., None]
    patch = frame[top:bottom, left:right]
    patch[:] = patch * (1 - alpha) + (color * alpha + 0.5)


BLACK = np.zeros(3, np.float32)
WHITE = np.full(3, 255, np.float32)


def shadow(frame: np.ndarray, center: tuple[float, float], radius: float, opacity: float = 0.3) -> None:
    """A soft shadow on the floor."""
    paint(frame, ellipse(radius, radius * 0.3), center, radius * 1.3, BLACK, opacity=opacity, softness=radius * 0.3)


def ball(frame: np.ndarray, center: tuple[float, float], radius: float, color: np.ndarray) -> None:
    """A ball with a highlight."""
    paint(frame, disc(radius), center, radius, color)
    shine = (center[0] - radius * 0.35, center[1] - radius * 0.35)
    paint(frame, disc(radius * 0.25), shine, radius * 0.5, WHITE, opacity=0.55, softness=radius * 0.4)


def textured(rng: np.random.Generator, width: int, height: int, color: np.ndarray) -> np.ndarray:
    """Soft clouds with fine grain in one colour, lighter above than below: uint8 (height, width, 3)."""
    light = np.zeros((height, width), np.float32)
    for cells, weight in ((3, 26.0), (8, 14.0), (30, 7.0), (height // 2, 5.0)):
        rows = max(cells, 2)
        grid = rng.uniform(-1, 1, (rows, max(rows * width // height, 2))).astype(np.float32)
        light += weight * np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    light += np.linspace(18, -18, height, dtype=np.float32)[:, None]
    return np.clip(color + light[..., None], 0, 255).astype(np.uint8)


def rgb(color: str) -> np.ndarray:
    """Colour "#rrggbb" as three floats from 0 to 255."""
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
