"""Lists of the frames of videos as images, in PySlowFast's form."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pandas as pd

from memvit.datasets.annotations import VideoFolder
from memvit.video.images import NumberedImages

logger = logging.getLogger(__name__)

COLUMNS = ["original_vido_id", "video_id", "frame_id", "path", "labels"]  # the first is spelt so
CHUNK_ROWS = 1_000_000  # a whole list has millions


class FrameLists(VideoFolder):
    """Finds videos as images by lists of frames.

    A list has a line ``original_vido_id video_id frame_id path labels``, then one for every frame, separated by spaces:
    the video's name, a number of it, the frame's number from 0, the image's path relative to the folder, and labels, which
    are not used here.

    Frames that a list leaves out are known to be missing: what comes before them is shown in their place. How many there
    are is logged.

    Args:
        folder: that the paths are relative to.
        lists: the files.

    Raises:
        FileNotFoundError: no such folder or list.
        ValueError: a list has no such form.
    """

    def __init__(self, folder: str | os.PathLike[str], lists: Sequence[str | os.PathLike[str]]) -> None:
        super().__init__(folder)
        self.lists = [Path(path) for path in lists]
        self._images: dict[str, NumberedImages] = {}
        for path in self.lists:
            self._read(path)
        self._by_path: dict[Path, NumberedImages] = {}
        names: dict[str, str] = {}
        for name, images in self._images.items():
            if images.folder in names:
                raise ValueError(
                    f"{', '.join(map(str, self.lists))}: videos {names[images.folder]!r} and {name!r} share the folder "
                    f"{images.folder}: keep the images of each in a folder of its own"
                )
            names[images.folder] = name
            self._by_path[Path(images.folder)] = images

    def find(self, name: str) -> Path | None:
        """The folder of a video's images."""
        images = self._images.get(name) or self._images.get(PurePosixPath(name).stem)
        return None if images is None else Path(images.folder)

    def images(self, path: Path) -> NumberedImages | None:
        """The images of a video that was found."""
        return self._by_path.get(path)

    def files(self) -> list[Path]:
        """The folders of all videos in the lists, by name."""
        return sorted(self._by_path)

    def _read(self, path: Path) -> None:
        try:
            with open(path, encoding="utf-8") as file:
                first = file.readline().split()
            has_names = bool(first) and first[0] in ("original_vido_id", "original_video_id")
            chunks = pd.read_csv(
                path,
                sep=" ",
                header=None,
                skiprows=int(has_names),
                names=COLUMNS,
                usecols=["original_vido_id", "frame_id", "path"],
                dtype={"original_vido_id": str, "frame_id": str, "path": str},
                keep_default_na=False,
                index_col=False,
                chunksize=CHUNK_ROWS,
            )
            parts: dict[str, list[_Part]] = {}
            first_line = 1 + has_names
            for chunk in chunks:
                for video, part in self._split(path, chunk, first_line):
                    parts.setdefault(video, []).append(part)
                first_line += len(chunk)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such file; give the list of frames") from None
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path}: no list of frames ({' '.join(str(error).split())}); it has the columns {' '.join(COLUMNS)}, "
                "separated by spaces"
            ) from error
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}); give a list of frames") from error
        if not parts:
            raise ValueError(f"{path}: no frames: add one line per frame")
        for video, found in parts.items():
            self._add(path, video, found)

    def _split(self, path: Path, chunk: pd.DataFrame, first_line: int) -> list[tuple[str, _Part]]:
        """The frames of a part of a list, by video."""
        numbers = pd.to_numeric(chunk["frame_id"], errors="coerce")
        bad = (numbers.isna() | (numbers < 0) | (numbers % 1 != 0) | (chunk["path"] == "")).to_numpy()
        if bad.any():
            at = int(bad.argmax())
            row = " ".join(chunk.iloc[at].astype(str))
            raise ValueError(
                f"{path}:{first_line + at}: {row!r} is no frame: a line has {' '.join(COLUMNS)}, separated by spaces, and "
                "frame_id counts from 0"
            )
        numbers = numbers.astype(np.int64)
        # Runs of lines of one video: a list goes through them one after another.
        names = chunk["original_vido_id"].to_numpy()
        if not len(names):
            return []
        begins = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
        ends = np.r_[begins[1:], len(names)]
        paths, frames = chunk["path"].to_numpy(), numbers.to_numpy()
        return [
            (str(names[begin]), _Part(_names(paths[begin:end]), frames[begin:end]))
            for begin, end in zip(begins, ends, strict=True)
        ]

    def _add(self, path: Path, video: str, parts: Sequence[_Part]) -> None:
        if video in self._images:
            raise ValueError(f"{path}: video {video!r} is in another list as well: every video belongs to one")
        names = np.concatenate([part.paths for part in parts])
        numbers = np.concatenate([part.numbers for part in parts])
        numbers, first = np.unique(numbers, return_index=True)
        if len(first) < len(names):
            logger.warning("%s: %d frames of video %s are listed twice", path, len(names) - len(first), video)
        names = names[first]
        # Without the folder that all share, names take a third of the room.
        folder = os.path.commonpath([os.path.dirname(os.fsdecode(name)) for name in (names[0], names[-1])])
        prefix = os.fsencode(folder) + b"/" if folder else b""
        if prefix and np.char.startswith(names, prefix).all():
            names = names.astype(object)
            names = np.array([name[len(prefix) :] for name in names], np.bytes_)
        else:
            folder = ""
        images = NumberedImages(os.fspath(self.path / folder), names, numbers)
        if images.num_missing:
            gap = int(np.diff(numbers, prepend=-1).argmax())
            logger.warning(
                "%s: %d of %d frames of video %s are not listed (the first of the longest gap is %d): the frame before is shown",
                *(path, images.num_missing, images.num_frames, video, numbers[gap - 1] + 1 if gap else 0),
            )
        self._images[video] = images


class _Part(NamedTuple):
    """Consecutive lines of one video: paths as bytes, numbers of frames."""

    paths: np.ndarray
    numbers: np.ndarray


def _names(paths: np.ndarray) -> np.ndarray:
    return np.array([os.fsencode(path) for path in paths], np.bytes_)
