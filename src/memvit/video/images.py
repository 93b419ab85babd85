"""Read a folder of numbered images as a video."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import av

from memvit.video.errors import VideoError, check_range, empty_range
from memvit.video.frames import Frame, VideoInfo

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


class ImageFolderReader:
    """Iterate over the images of a folder as frames with ``start_s <= time_s < end_s``.

    The images come in natural order (``frame_2`` before ``frame_10``); image ``i`` is at ``i / fps`` seconds. An image
    that cannot be read leaves a gap at its time and is named in :attr:`warning`.

    Args:
        folder: holds the images; other files, hidden files and subfolders are ignored.
        fps: images per second.
        start_s: where to start, in seconds.
        end_s: where to stop, in seconds; ``None`` reads to the end.

    Attributes:
        info: what is known about the images; the size is that of the first readable one.
        warning: one line about images that could not be read; ``None`` before the end of an iteration and for a whole
            folder.

    Raises:
        VideoError: on opening, if there is no readable image; on iterating, if none lies in the wanted range.
    """

    def __init__(
        self, folder: str | os.PathLike[str], fps: float = 30.0, start_s: float = 0.0, end_s: float | None = None
    ) -> None:
        check_range(start_s, end_s)
        if not 0 < fps < float("inf"):
            raise VideoError(f"fps={fps} is no frame rate: give images per second, more than 0")
        self.path = os.fspath(folder)
        self.fps = fps
        self.start_s = start_s
        self.end_s = end_s
        self.warning: str | None = None
        self._closed = False
        self._images = list_images(folder)
        if not self._images:
            wanted = ", ".join(sorted(IMAGE_SUFFIXES))
            raise VideoError(f"no image in {self.path}: pass a folder with {wanted} files")
        first, codec = self._first_readable()
        self.info = VideoInfo(
            path=self.path,
            width=first.width,
            height=first.height,
            average_fps=fps,
            duration_s=len(self._images) / fps,
            codec=codec,
            rotation=first.rotation,
        )

    def __iter__(self) -> Iterator[Frame]:
        self.warning = None
        num_frames = 0
        broken: list[Path] = []
        for index, image in enumerate(self._images):
            time_s = index / self.fps
            if time_s < self.start_s:
                continue
            if self._closed or (self.end_s is not None and time_s >= self.end_s):
                break
            try:
                picture, _ = read_image(image)
            except (av.FFmpegError, OSError) as error:
                logger.debug("skipped %s: %s", image, error)
                broken.append(image)
                continue
            num_frames += 1
            yield Frame(time_s, picture)
        if broken:
            count = "1 image" if len(broken) == 1 else f"{len(broken)} images"
            self.warning = f"{count} of {self.path} could not be read (first {broken[0].name}): make them again"
            logger.warning("%s", self.warning)
        if not num_frames and not self._closed:
            raise VideoError(empty_range(self.path, self.start_s, self.end_s, (len(self._images) - 1) / self.fps))

    def close(self) -> None:
        """Stop reading. Safe to call from another thread and more than once."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _first_readable(self) -> tuple[Frame, str]:
        for image in self._images:
            try:
                picture, codec = read_image(image)
            except (av.FFmpegError, OSError):
                continue
            return Frame(0.0, picture), codec
        raise VideoError(f"none of the {len(self._images)} images in {self.path} can be read: make them again")


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files of a folder in natural order.

    Raises:
        VideoError: the folder is missing, is no folder or may not be listed.
    """
    try:
        entries = list(Path(folder).iterdir())
    except OSError as error:
        raise VideoError(
            f"cannot list the images of {os.fspath(folder)} ({error.strerror}): check the path and its permissions"
        ) from error
    images = [entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".")]
    return sorted((image for image in images if image.is_file()), key=lambda image: _natural_key(image.name))


def _natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Compare runs of digits as numbers; the name itself settles ties such as ``1.png`` and ``01.png``."""
    parts = re.findall(r"(\d+)|(\D+)", name.lower())
    return [(int(digits), "") if digits else (-1, text) for digits, text in parts], name


def read_image(path: str | os.PathLike[str]) -> tuple[av.VideoFrame, str]:
    """Decode one image: the picture and the name of its codec.

    Raises:
        av.FFmpegError, OSError: it cannot be read.
    """
    # An open file is recognised by its content. A name would be taken for a pattern (%d) and believed about its type.
    with open(path, "rb") as file, av.open(file, "r") as container:
        for picture in container.decode(video=0):
            return picture, container.streams.video[0].codec_context.name
    raise OSError(f"no picture in {os.fspath(path)}")
