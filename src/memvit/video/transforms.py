"""From decoded frames to the tensor a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from memvit.video.frames import Frame

# Beyond this, scaling first would blow up a thin frame only to crop most of it away.
MAX_SCALED_ASPECT = 8


@dataclass(frozen=True)
class ClipTransform:
    """Scale and crop frames, normalise clips.

    The short side of a frame is scaled to ``crop_size`` and the centre square cut out; with ``keep_aspect`` the whole
    frame is kept, its long side rounded to whole pixels. Smaller frames are scaled up.

    Args:
        crop_size: short side in pixels.
        mean, std: per channel (R, G, B), of values from 0 to 1.
        keep_aspect: keep the whole frame instead of its centre.
    """

    crop_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    keep_aspect: bool = False

    def __post_init__(self) -> None:
        if self.crop_size < 1:
            raise ValueError(f"crop_size={self.crop_size} is no size: give pixels, at least 1")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean={self.mean}, std={self.std}: give three numbers each, and std above 0")

    def frame(self, frame: Frame | np.ndarray) -> np.ndarray:
        """Scale and crop one frame.

        Args:
            frame: a decoded frame, or (H, W, 3) uint8 RGB.

        Returns:
            (H, W, 3) uint8: ``crop_size`` square, or with ``crop_size`` as its short side if ``keep_aspect``.
        """
        if isinstance(frame, np.ndarray):
            frame = Frame(0.0, frame)
        if not self.keep_aspect and max(frame.height, frame.width) > MAX_SCALED_ASPECT * min(frame.height, frame.width):
            frame = Frame(frame.time_s, _centre(frame.rgb(), min(frame.height, frame.width)))
        scale = self.crop_size / min(frame.height, frame.width)
        scaled = frame.rgb(round(frame.height * scale), round(frame.width * scale))
        return scaled if self.keep_aspect else _centre(scaled, self.crop_size)

    def clip(self, frames: Sequence[np.ndarray]) -> torch.Tensor:
        """Stack frames of :meth:`frame` and normalise them to ``(value / 255 - mean) / std``.

        Args:
            frames: T arrays (H, W, 3) uint8 of one size.

        Returns:
            (3, T, H, W) float32.
        """
        if not frames or any(frame.shape != frames[0].shape for frame in frames):
            sizes = sorted({frame.shape for frame in frames})
            raise ValueError(f"a clip takes one or more frames of one size, not {sizes}: give each to .frame() first")
        stacked = torch.from_numpy(np.stack(frames))  # (T, H, W, 3)
        clip = stacked.permute(3, 0, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1, 1) for values in (self.mean, self.std))
        return clip.div_(255).sub_(mean).div_(std)


def _centre(pixels: np.ndarray, size: int) -> np.ndarray:
    """The centre square of (H, W, 3), (size, size, 3)."""
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return np.ascontiguousarray(pixels[top : top + size, left : left + size])
