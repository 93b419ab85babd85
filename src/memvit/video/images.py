"""Read numbered images, such as those of a folder, as a video."""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
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
LISTED_SUFFIXES = ", ".join(sorted(IMAGE_SUFFIXES))

# The last number in the name of an image, if it fits into 64 bits; no suffix of an image holds digits.
NUMBER = re.compile(r"(?<!\d)(\d{1,18})[^\d/]*$")


@dataclass(frozen=True, eq=False)
class NumberedImages:
    """The images of one video and which frames they are: some may be missing.

    Attributes:
        folder: that the names are relative to.
        names: of the image files, bytes (n,): a tenth of the memory of as many paths.
        numbers: int (n,), ascending: image ``i`` is frame ``numbers[i]`` of the video, counted from 0.
        fps: images per second, missing ones included; ``None``: not known.
        warning: one line about what is known to be lost, if anything.
        found: whether the images were seen where they are; otherwise some may not exist.
    """

    folder: str
    names: np.ndarray
    numbers: np.ndarray
    fps: float | None = None
    warning: str | None = None
    found: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Of an image; one inside a file is named as if that were a folder."""
        return Path(self.folder, os.fsdecode(self.names[index]))

    def read(self, index: int) -> bytes:
        """The file of an image.

        Raises:
            OSError: it cannot be read.
        """
        return self.path(index).read_bytes()

    @property
    def num_frames(self) -> int:
        """Frames of the video, missing ones included."""
        return int(self.numbers[-1]) + 1 if len(self) else 0

    @property
    def num_missing(self) -> int:
        """Frames that there is no image of."""
        return self.num_frames - len(self)

    @classmethod
    def counted(cls, folder: str | os.PathLike[str], /) -> NumberedImages:
        """The images of a folder in natural order, one frame each.

        Raises:
            VideoError: the folder cannot be listed.
        """
        names = _list_names(folder)
        return cls(os.fspath(folder), as_bytes(names)[natural_order(names)], np.arange(len(names)), found=True)

    @classmethod
    def numbered(cls, folder: str | os.PathLike[str], /) -> NumberedImages:
        """The images of a folder as the frames that their names say, from the first one's number on.

        Where the last numbers in their names do not count them one by one, apart from gaps, they are counted.

        Raises:
            VideoError: the folder cannot be listed.
        """
        return cls.counted(folder).with_numbers_of_names()

    @classmethod
    def from_numbers(
        cls, folder: str | os.PathLike[str], /, first: int = 1, fps: float | None = None
    ) -> NumberedImages:
        """The images of a folder as the frames that the last numbers in their names say.

        Other than with :meth:`numbered`, images that are missing at the beginning shift no time.

        Args:
            folder: holds the images.
            first: the number of the image at time 0; where there is an image 0, it is that one.
            fps: images per second, if known.

        Raises:
            VideoError: the folder cannot be listed, or the names do not number the images from ``first`` on.
        """
        names = _list_names(folder)
        order, numbers = order_by_number(os.fspath(folder), names, first)
        return cls(os.fspath(folder), as_bytes(names)[order], numbers, fps, found=True)

    def with_numbers_of_names(self) -> Self:
        """As :meth:`numbered`, of counted images."""
        found = [NUMBER.search(os.fsdecode(name)) for name in self.names.tolist()]
        numbers = np.array([int(match[1]) if match else -1 for match in found], np.int64)
        steps = np.diff(numbers)
        if len(steps) and numbers.min() >= 0 and steps.min() > 0 and np.median(steps) == 1:
            return dataclasses.replace(self, numbers=numbers - numbers[0])
        return self


class ImageFolderReader:
    """Iterate over numbered images as frames with ``start_s <= time_s < end_s``.

    The images of a folder come in natural order (``frame_2`` before ``frame_10``); frame ``i`` is at ``i / fps`` seconds.
    An image that cannot be read leaves a gap at its time and is named in :attr:`warning`.

    With ``wanted``, other images are read only where they are needed to know what is on display: the nearest readable one
    before a wanted one that cannot be read (where there is none, the nearest after it), and the next one after all wanted,
    which shows that the video goes on. Of images that are only listed (not `NumberedImages.found`), those that are passed
    over are looked for, so that :attr:`warning` counts them if they are not there.

    Args:
        folder: holds the images; other files, hidden files and subfolders are ignored.
        fps: images per second.
        start_s: where to start, in seconds.
        end_s: where to stop, in seconds; ``None`` reads to the end.
        images: which files are which frames, where that is known better than from the folder; those of a tar file are read
            from it.
        wanted: which of the images to read, int (n,), ascending; ``None``: all.

    Attributes:
        info: what is known about the images; the size is that of the first readable one.
        warning: one line about images that are lost; ``None`` before the end of an iteration and if none is known to be.

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
        wanted: np.ndarray | None = None,
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
        self._wanted = wanted
        if not len(self._images):
            raise VideoError(f"no image in {self.path}: pass a folder with {LISTED_SUFFIXES} files")
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
        broken: list[int] = []
        times_s = self._images.numbers / self.fps
        first = int(np.searchsorted(times_s, self.start_s))
        end = len(times_s) if self.end_s is None else int(np.searchsorted(times_s, self.end_s))
        for index, picture in self._pictures(first, end, broken):
            num_frames += 1
            yield Frame(float(times_s[index]), picture)
        self.warning = self._describe(broken)
        if broken:
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

    def _pictures(self, first: int, end: int, broken: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """What is to be read of the images from ``first`` until before ``end``; notes those that cannot be read."""
        if self._wanted is None:
            for index in range(first, end):
                yield from self._first_of([index], broken)
            return
        given = False
        done = first - 1  # what is on display at the time of any image up to this one has been given
        for index in self._wanted[(self._wanted >= first) & (self._wanted < end)].tolist():
            if index <= done:
                continue
            found = self._first_of(range(index, done, -1), broken)
            if not found and not given:
                found = self._first_of(range(index + 1, end), broken)
            if given and found and not self._images.found:
                passed = range(done + 1, found[0][0])
                broken += [number for number in passed if not self._images.path(number).exists()]
            yield from found
            given = given or bool(found)
            done = max([index, *(number for number, _ in found)])
        yield from self._first_of(range(done + 1, end), broken)

    def _first_of(self, indices: Iterable[int], broken: list[int]) -> list[tuple[int, av.VideoFrame]]:
        """The first of some images that can be read; none once closed."""
        for index in indices:
            if self._closed:
                break
            try:
                return [(index, decode_image(self._images.read(index))[0])]
            except (av.FFmpegError, OSError) as error:
                logger.debug("skipped %s: %s", self._images.path(index), error)
                broken.append(index)
        return []

    def _describe(self, broken: Sequence[int]) -> str | None:
        if not broken:
            return self._images.warning
        count = "1 image" if len(broken) == 1 else f"{len(broken)} images"
        name = self._images.path(min(broken)).name
        text = f"{count} of {self.path} could not be read (first {name}): make them again"
        return text if self._images.warning is None else f"{self._images.warning}; {text}"

    def _first_readable(self) -> tuple[Frame, str]:
        for index in range(len(self._images)):
            try:
                picture, codec = decode_image(self._images.read(index))
            except (av.FFmpegError, OSError):
                continue
            return Frame(0.0, picture), codec
        raise VideoError(f"none of the {len(self._images)} images in {self.path} can be read: make them again")


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files of a folder in natural order.

    Raises:
        VideoError: the folder is missing, is no folder or may not be listed.
    """
    names = _list_names(folder)
    return [Path(folder, names[index]) for index in natural_order(names)]


def is_image(name: str) -> bool:
    """Whether a file is taken for an image: by its suffix, unless it is hidden."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not os.path.basename(name).startswith(".")


def natural_order(names: Sequence[str]) -> np.ndarray:
    """The order, int (n,), in which runs of digits count as numbers."""
    return np.array(sorted(range(len(names)), key=lambda index: _natural_key(names[index])), np.intp)


def order_by_number(source: str, names: Sequence[str], first: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of images by the last numbers in their names, and which frames of the video they are then, int (n,) both.

    Args:
        source: holds the images, for messages.
        names: of the images.
        first: as of :meth:`NumberedImages.from_numbers`.

    Raises:
        VideoError: the names do not number the images from ``first`` on.
    """
    found = [NUMBER.search(name) for name in names]
    if None in found:
        name = min(name for name, match in zip(names, found, strict=True) if match is None)
        raise VideoError(f"{source}: image {name} has no number in its name: move it elsewhere, or number it")
    numbers = np.array([int(match[1]) for match in found if match], np.int64)
    order = np.argsort(numbers, kind="stable")
    numbers = numbers[order]
    twice = np.flatnonzero(np.diff(numbers) == 0)
    if len(twice):
        one, other = sorted(names[order[at]] for at in (twice[0], twice[0] + 1))
        raise VideoError(f"{source}: images {one} and {other} have the same number: keep one of each")
    if len(numbers) and numbers[0] == 0:
        first = 0
    if len(numbers) and numbers[0] < first:
        raise VideoError(
            f"{source}: image {names[order[0]]} comes before number {first}, the first: give the number of the first image"
        )
    return order, numbers - first


def as_bytes(names: Sequence[str]) -> np.ndarray:
    """Names of files as an array (n,) of bytes."""
    return np.array([os.fsencode(name) for name in names], np.bytes_)


def _list_names(folder: str | os.PathLike[str]) -> list[str]:
    """The image files of a folder in any order. Asks the file system for names and kinds only: folders may be huge."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if is_image(entry.name) and entry.is_file()]
    except OSError as error:
        raise VideoError(
            f"cannot list the images of {os.fspath(folder)} ({error.strerror}): check the path and its permissions"
        ) from error


def _natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Compare runs of digits as numbers; the name itself settles ties such as ``1.png`` and ``01.png``."""
    parts = re.findall(r"(\d+)|(\D+)", name.lower())
    return [(int(digits), "") if digits else (-1, text) for digits, text in parts], name


def decode_image(data: bytes) -> tuple[av.VideoFrame, str]:
    """Decode the file of one image: the picture and the name of its codec.

    Raises:
        av.FFmpegError, OSError: it cannot be decoded.
    """
    # Without a name, a file is recognised by its content. A name would be taken for a pattern (%d), and believed.
    with av.open(io.BytesIO(data), "r") as container:
        for picture in container.decode(video=0):
            return picture, container.streams.video[0].codec_context.name
    raise OSError("no picture in it")
