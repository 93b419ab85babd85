"""Read a folder of numbered images as a video."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np

from memvit.video.errors import VideoError, check_range, empty_range
from memvit.video.frames import Frame, VideoInfo

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


@dataclass(frozen=True, eq=False)
class NumberedImages:
    """The images of one video and which frames they are: some may be missing.

    Attributes:
        folder: that the names are relative to.
        names: of the image files, bytes (n,): a tenth of the memory of as many paths.
        numbers: int (n,), ascending: image ``i`` is frame ``numbers[i]`` of the video, counted from 0.
    """

    folder: str
    names: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Of an image."""
        return Path(self.folder, os.fsdecode(self.names[index]))

    @property
    def num_frames(self) -> int:
        """Frames of the video, missing ones included."""
        return int(self.numbers[-1]) + 1 if len(self) else 0

    @property
    def num_missing(self) -> int:
        """Frames that there is no image of."""
        return self.num_frames - len(self)

    @classmethod
    def counted(cls, folder: str | os.PathLike[str]) -> NumberedImages:
        """The images of a folder in natural order, one frame each.

        Raises:
            VideoError: the folder cannot be listed.
        """
        images = list_images(folder)
        names = np.array([os.fsencode(image.name) for image in images], np.bytes_)
        return cls(os.fspath(folder), names, np.arange(len(images)))

    @classmethod
    def numbered(cls, folder: str | os.PathLike[str]) -> NumberedImages:
        """The images of a folder as the frames that their names say, from the first one's number on.

        Where the last numbers in their names do not count them one by one, apart from gaps, they are counted.

        Raises:
            VideoError: the folder cannot be listed.
        """
        counted = cls.counted(folder)
        found = [re.search(r"(\d+)\D*$", Path(os.fsdecode(name)).stem) for name in counted.names]
        numbers = np.array([int(match[1]) if match else -1 for match in found], np.int64)
        steps = np.diff(numbers)
        if len(steps) and numbers.min() >= 0 and steps.min() > 0 and np.median(steps) == 1:
            return cls(counted.folder, counted.names, numbers - numbers[0])
        return counted


class ImageFolderReader:
    """Iterate over the images of a folder as frames with ``start_s <= time_s < end_s``.

    The images come in natural order (``frame_2`` before ``frame_10``); image ``i`` is at ``i / fps`` seconds. An image
    that cannot be read leaves a gap at its time and is named in :attr:`warning`.

    Args:
        folder: holds the images; other files, hidden files and subfolders are ignored.
        fps: images per second.
        start_s: where to start, in seconds.
        end_s: where to stop, in seconds; ``None`` reads to the end.
        images: which files are which frames, where that is known better than from the folder.

    Attributes:
        info: what is known about the images; the size is that of the first readable one.
        warning: one line about images that could not be read; ``None`` before the end of an iteration and for a whole
            folder.

    Raises:
        VideoError: on opening, if there is no readable image; on iterating, if none lies in the wanted range.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        fps: float = 30.0,
        start_s: float = 0.0,
        end_s: float | None = None,
        images: NumberedImages | None = None,
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
        self._images = NumberedImages.counted(folder) if images is None else images
        if not len(self._images):
            wanted = ", ".join(sorted(IMAGE_SUFFIXES))
            raise VideoError(f"no image in {self.path}: pass a folder with {wanted} files")
        first, codec = self._first_readable()
        self.info = VideoInfo(
            path=self.path,
            width=first.width,
            height=first.height,
            average_fps=fps,
            duration_s=self._images.num_frames / fps,
            codec=codec,
            rotation=first.rotation,
        )

    def __iter__(self) -> Iterator[Frame]:
        self.warning = None
        num_frames = 0
        broken: list[Path] = []
        times_s = self._images.numbers / self.fps
        for index in range(int(np.searchsorted(times_s, self.start_s)), len(self._images)):
            time_s = float(times_s[index])
            if self._closed or (self.end_s is not None and time_s >= self.end_s):
                break
            image = self._images.path(index)
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
            raise VideoError(empty_range(self.path, self.start_s, self.end_s, times_s[-1]))

    def close(self) -> None:
        """Stop reading. Safe to call from another thread and more than once."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _first_readable(self) -> tuple[Frame, str]:
        for index in range(len(self._images)):
            try:
                picture, codec = read_image(self._images.path(index))
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
