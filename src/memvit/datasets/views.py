"""Which part of a frame a clip shows, and how large."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memvit.video.errors import VideoError
from memvit.video.frames import Frame
from memvit.video.transforms import MAX_SCALED_ASPECT


@dataclass(frozen=True)
class View:
    """Scale a frame, cut a rectangle out of it, mirror that.

    Attributes:
        scaled_height, scaled_width: of the whole frame once scaled, pixels.
        top, left: of the rectangle in it.
        height, width: of the rectangle.
        flip: mirror left and right.
    """

    scaled_height: int
    scaled_width: int
    top: int
    left: int
    height: int
    width: int
    flip: bool = False

    def frame(self, frame: Frame) -> np.ndarray:
        """What is seen of a frame, (height, width, 3) uint8 RGB. May share memory with the frame."""
        scaled = frame.rgb(self.scaled_height, self.scaled_width)
        seen = scaled[self.top : self.top + self.height, self.left : self.left + self.width]
        return np.ascontiguousarray(seen[:, ::-1] if self.flip else seen)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Where boxes of the frame are in the view.

        Args:
            boxes: (n, 4) x1, y1, x2, y2 as fractions of the frame's width and height.

        Returns:
            float32 (n, 4) in pixels of the view; may reach beyond it.
        """
        x1, y1, x2, y2 = np.asarray(boxes, np.float64).reshape(-1, 4).T
        x1, x2 = x1 * self.scaled_width - self.left, x2 * self.scaled_width - self.left
        y1, y2 = y1 * self.scaled_height - self.top, y2 * self.scaled_height - self.top
        if self.flip:
            x1, x2 = self.width - x2, self.width - x1
        return np.stack([x1, y1, x2, y2], axis=1).astype(np.float32)


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width of a frame scaled to a short side, pixels.

    Raises:
        VideoError: one side is so much longer than the other that scaling would blow it up.
    """
    if max(height, width) > MAX_SCALED_ASPECT * min(height, width):
        raise VideoError(
            f"frames of {width}x{height} pixels are too thin: one side may be {MAX_SCALED_ASPECT} times the other; crop them"
        )
    scale = short_side / min(height, width)
    return round(height * scale), round(width * scale)


def centre_view(height: int, width: int, crop_size: int, *, keep_aspect: bool = False) -> View:
    """The centre square of a frame scaled to a short side of ``crop_size``, as :class:`memvit.video.ClipTransform`.

    Args:
        height, width: of the frame, pixels.
        crop_size: pixels.
        keep_aspect: the whole frame instead of its centre.
    """
    scaled = scaled_size(height, width, crop_size)
    if keep_aspect:
        return View(*scaled, 0, 0, *scaled)
    return View(*scaled, (scaled[0] - crop_size) // 2, (scaled[1] - crop_size) // 2, crop_size, crop_size)


def clip_boxes(boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut boxes off at the edges of a picture.

    Args:
        boxes: (n, 4) x1, y1, x2, y2 in pixels.
        height, width: of the picture, pixels.

    Returns:
        The boxes that are left, (m, 4), and which those are, bool (n,): boxes that lie outside are dropped.
    """
    clipped = boxes.clip(0, np.array([width, height, width, height], boxes.dtype))
    inside = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    return clipped[inside], inside
