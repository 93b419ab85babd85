"""A decoded frame whose pixels are converted only when somebody looks at them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

# libswscale's bilinear filter widens with the scale when it shrinks a picture, so it does not alias. The other two
# flags cost nothing measurable next to it and keep the conversion within one grey level of the exact one.
INTERPOLATION = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

PLAUSIBLE_ASPECT = (0.1, 10.0)


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What is known about a video before it is read.

    Attributes:
        path: the file, folder or (without its password) address.
        width, height: display size in pixels, upright and with square pixels.
        average_fps: average frame rate, ``None`` if unknown.
        duration_s: duration, ``None`` if unknown or endless.
        codec: name of the codec, such as ``h264``.
        rotation: clockwise turn in degrees (0, 90, 180, 270) that shows the stored picture upright; frames come
            with it applied.
    """

    path: str
    width: int
    height: int
    average_fps: float | None
    duration_s: float | None
    codec: str
    rotation: int = 0


@dataclass(slots=True, eq=False)
class Frame:
    """One frame of a video.

    Args:
        time_s: presentation time; the first frame of a video is at 0.
        picture: what the decoder gave, or an array (H, W, 3) of uint8 RGB.
        sample_aspect: width of one stored pixel over its height.
    """

    time_s: float
    picture: av.VideoFrame | np.ndarray
    sample_aspect: float = 1.0

    @property
    def height(self) -> int:
        """Display height in pixels: upright, with square pixels."""
        return self._display_size()[0]

    @property
    def width(self) -> int:
        """Display width in pixels: upright, with square pixels."""
        return self._display_size()[1]

    @property
    def rotation(self) -> int:
        """Clockwise turn in degrees that shows the stored picture upright: 0, 90, 180 or 270."""
        transpose, flip_rows, flip_columns = _orientation(self.picture)
        if transpose:
            return 90 if flip_columns else 270
        return 180 if flip_rows else 0

    def rgb(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        """Convert to upright RGB, scaled on the way.

        Args:
            height: wanted height in pixels; the display height if ``None``.
            width: wanted width in pixels; the display width if ``None``.

        Returns:
            (H, W, 3) uint8. May share memory with the frame: copy it before writing into it.
        """
        display_height, display_width = self._display_size()
        height = display_height if height is None else height
        width = display_width if width is None else width
        if height < 1 or width < 1:
            raise ValueError(f"a frame cannot be scaled to {height}x{width}: both sides must be at least 1 pixel")
        transpose, flip_rows, flip_columns = _orientation(self.picture)
        pixels = _convert(self.picture, *((width, height) if transpose else (height, width)))
        if transpose:
            pixels = pixels.transpose(1, 0, 2)
        if flip_rows:
            pixels = pixels[::-1]
        if flip_columns:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels)

    def _display_size(self) -> tuple[int, int]:
        if isinstance(self.picture, np.ndarray):
            height, width = self.picture.shape[:2]
        else:
            height, width = self.picture.height, self.picture.width
        low, high = PLAUSIBLE_ASPECT
        if low <= self.sample_aspect <= high:
            width = max(1, round(width * self.sample_aspect))
        return (width, height) if _orientation(self.picture)[0] else (height, width)


def _orientation(picture: av.VideoFrame | np.ndarray) -> tuple[bool, bool, bool]:
    """How to show a picture upright: (transpose, then flip the rows, then flip the columns).

    The display matrix maps a stored pixel (p, q) to (a p + c q, b p + d q). Every turn by a right angle, mirrored or
    not, has either a, d or b, c equal to zero; anything else is taken for the nearest of the eight.
    """
    if isinstance(picture, np.ndarray):
        return False, False, False
    try:
        matrix: Any = picture.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV 18 trips over side data newer than itself, such as the EXIF block of photos; the angle still works.
        turn = round(picture.rotation / 90) % 4  # counter-clockwise
        return turn in (1, 3), turn in (1, 2), turn in (2, 3)
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(a) >= abs(b):
        return False, d < 0, a < 0
    return True, b < 0, c < 0


class _Scalers(threading.local):
    """One libswscale context per thread: setting one up for every frame would cost as much as a small frame itself."""

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()


_scalers = _Scalers()


def _convert(picture: av.VideoFrame | np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale the stored picture to (height, width, 3) uint8 RGB in one pass."""
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(
                f"a frame must be (H, W, 3) uint8 RGB, not {picture.shape} {picture.dtype}: convert it before"
            )
        if picture.shape[:2] == (height, width):
            return picture
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    try:
        converted = _reformat(picture, height, width, None)
    except OSError:
        # libswscale refuses frames tagged with a colour matrix it does not know (reserved values happen in the wild);
        # BT.709 shows them with colours that are at worst slightly off.
        converted = _reformat(picture, height, width, Colorspace.ITU709)
    return converted.to_ndarray()


def _reformat(picture: av.VideoFrame, height: int, width: int, colorspace: Colorspace | None) -> av.VideoFrame:
    # Threads inside libswscale only help a lone large frame; decoding already keeps the cores busy.
    return _scalers.reformatter.reformat(
        picture,
        width=width,
        height=height,
        format="rgb24",
        src_colorspace=colorspace,
        dst_colorspace=colorspace,
        interpolation=INTERPOLATION,
        threads=1,
    )
