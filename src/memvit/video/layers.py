"""Text and panels for frames: rendered once, then blended into as many frames as need them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFont


@dataclass(frozen=True)
class Layer:
    """Rendered pixels and where they go, ready for blending: frame x keep / 256 + add.

    Attributes:
        keep: uint16 (h, w, 3), 256 where the frame shows through whole, 0 where not at all.
        add: uint16 (h, w, 3), the layer's own share, times 256.
    """

    keep: np.ndarray
    add: np.ndarray
    left: int
    top: int

    @classmethod
    def of(cls, image: Image.Image, left: int, top: int) -> Layer:
        """The layer of an RGBA image whose upper left corner goes to (left, top)."""
        rgba = np.asarray(image).astype(np.float32)
        alpha = rgba[..., 3:] / 255
        keep = np.round(256 * (1 - alpha))
        # 255 * 256 + 128 is the most that keep * 255 + add comes to: it fits 16 bits, and rounds.
        add = np.floor(rgba[..., :3] * (256 - keep)) + 128
        return cls(np.repeat(keep.astype(np.uint16), 3, axis=2), add.astype(np.uint16), left, top)

    @property
    def width(self) -> int:
        """Pixels."""
        return self.keep.shape[1]

    @property
    def height(self) -> int:
        """Pixels."""
        return self.keep.shape[0]

    def moved(self, left: int, top: int) -> Layer:
        """The same pixels elsewhere."""
        return dataclasses.replace(self, left=left, top=top)

    def blend_into(self, frame: np.ndarray) -> None:
        """Blends the layer into uint8 (H, W, 3), in place; what reaches beyond its right and lower edges is left out."""
        patch = frame[self.top : self.top + self.height, self.left : self.left + self.width]
        height, width = patch.shape[:2]
        blended = patch * self.keep[:height, :width]
        blended += self.add[:height, :width]
        blended >>= 8
        patch[:] = blended


def rounded_box(width: int, height: int, radius: int, color: tuple[int, int, int, int]) -> Image.Image:
    """A box with smooth round corners, RGBA, the box filling the image."""
    beyond_x, beyond_y = (
        np.maximum(np.abs(np.arange(size, dtype=np.float32) + 0.5 - size / 2) - (size / 2 - radius), 0)
        for size in (width, height)
    )
    coverage = np.clip(radius + 0.5 - np.hypot(beyond_x[None], beyond_y[:, None]), 0, 1)
    image = Image.new("RGBA", (width, height), color)
    image.putalpha(Image.fromarray(np.round(coverage * color[3]).astype(np.uint8)))
    return image


def fit_text(text: str, font: ImageFont.FreeTypeFont, max_px: float) -> str:
    """One line of text, its end replaced by an ellipsis where it is wider than `max_px`."""
    if font.getlength(text) <= max_px:
        return text
    # The longest beginning that fits, by bisection.
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if font.getlength(text[:middle].rstrip() + "…") <= max_px:
            fits = middle
        else:
            too_long = middle
    return text[:fits].rstrip() + "…" if fits else ""


def one_line(text: str) -> str:
    """The text without what cannot be set in one line: line breaks, halves of characters, a novel's length."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())[:500]
