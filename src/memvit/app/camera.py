"""A visitor's camera, whose pictures come in requests."""

from __future__ import annotations

import io
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from memvit.video import Frame, LiveSource

# What a request may unfold to in memory: the page sends 32 pictures at most, a few hundred pixels high.
MAX_PICTURES, MAX_SIDE_PX = 64, 1920
HEADER = struct.Struct("<dI")  # seconds, and bytes of the JPEG after it


class VisitorCamera(LiveSource):
    """A live source whose pictures are pushed instead of received. A model that is slower lets the visitor wait.

    Attributes:
        heard_s: when the last picture came, on the monotonic clock.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, max_attempts=0, drop="none")
        self.heard_s = time.monotonic()
        self._pushing = threading.Lock()  # a request that is sent again may meet the first one
        self._first_s: float | None = None
        self._newest_s = -1.0

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._frames)

    def push(self, pictures: list[tuple[float, np.ndarray]]) -> tuple[int, int]:
        """Takes pictures, and waits until there is room for them.

        Args:
            pictures: time in seconds, and (H, W, 3) uint8 RGB. Those that came before are left out: a request that fails
                on its way back is sent again.

        Returns:
            How many were taken, and how many left out.
        """
        num_taken = 0
        with self._pushing:
            for time_s, pixels in pictures:
                self.heard_s = time.monotonic()
                if self._first_s is None:
                    self._first_s = time_s
                if time_s - self._first_s <= self._newest_s:
                    continue
                self._newest_s = time_s - self._first_s
                if not self._frames.put(Frame(self._newest_s, pixels)):
                    break
                num_taken += 1
        return num_taken, len(pictures) - num_taken

    def finish(self) -> None:
        """No more pictures come; those that wait are still used."""
        self._frames.finish()


def read_pictures(body: bytes) -> list[tuple[float, np.ndarray]]:
    """The pictures of a request: each its time (float64) and length (uint32), little endian, then a JPEG.

    Returns:
        Time in seconds, and (H, W, 3) uint8 RGB.

    Raises:
        ValueError: it is cut off, something in it is no picture, or there are too many or too large ones.
    """
    pictures: list[tuple[float, np.ndarray]] = []
    start = 0
    while start < len(body):
        if len(body) - start < HEADER.size:
            raise ValueError("the pictures are cut off")
        time_s, length = HEADER.unpack_from(body, start)
        start += HEADER.size
        if len(pictures) == MAX_PICTURES:
            raise ValueError(f"there are more than {MAX_PICTURES}")
        if not np.isfinite(time_s) or not 0 < length <= len(body) - start:
            raise ValueError("the pictures are cut off, or a time is none")
        pictures.append((time_s, _decode(body[start : start + length])))
        start += length
    return pictures


def write_picture(pixels: np.ndarray) -> bytes:
    """A JPEG of (H, W, 3) uint8 RGB."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _decode(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if max(image.size) > MAX_SIDE_PX:
                raise ValueError(f"a picture of {image.size[0]}x{image.size[1]} is too large")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError("one of them is no JPEG, or far too large") from error
