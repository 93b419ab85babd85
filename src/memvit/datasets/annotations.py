"""Annotation files and the videos that they name: read whole, and all that is wrong with them found, with file and line."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av

from memvit.datasets.clips import Video
from memvit.video import VIDEO_SUFFIXES, VideoReader
from memvit.video.images import IMAGE_SUFFIXES, ImageFolderReader, NumberedImages
from memvit.video.reader import DEFAULT_FPS

logger = logging.getLogger(__name__)

OUTSIDE_SLACK_S = 0.5  # annotators round times, containers round durations
NUM_PROBES = 8
IMAGE_FPS = 30.0
SPLITS = ("train", "val", "test")

MAX_NAMED = 10
OUTSIDE = "outside the video"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Finding:
    """Something about annotations or videos that the user should know.

    Attributes:
        level: an error must be mended before training, a warning should be looked at.
        kind: a word or two, the same for all findings of a kind.
        message: what is wrong and what to do.
        file: with the annotations.
        line: in that file, from 1.
    """

    level: Literal["error", "warning", "note"]
    kind: str
    message: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        where = "" if self.file is None else f"{self.file}: " if self.line is None else f"{self.file}:{self.line}: "
        return where + self.message


class Entry(NamedTuple):
    """A row with annotations: from ``start_s`` until before ``end_s`` (the same for a keyframe), per head the labels."""

    line: int
    video: str
    start_s: float
    end_s: float
    labels: tuple[tuple[str, ...], ...]


class VideoFolder:
    """Finds the videos that annotations name: files, with or without suffix, or folders of images.

    Args:
        path: of the folder.

    Attributes:
        naming: how videos are named, for messages.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    naming = "names are relative to that folder, with or without suffix"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path}: no such folder; give the folder with the videos")
        self._listings: dict[Path, dict[str, list[Path]]] = {}

    def find(self, name: str) -> Path | None:
        """A video by its name relative to the folder; ``None`` if there is none.

        Raises:
            ValueError: several could be meant.
        """
        path = self.path / name
        if path.is_file():
            return path
        found = list(self._listing(path.parent).get(path.name, ()))
        if path.is_dir() and any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in path.iterdir()):
            found.append(path)
        if len(found) > 1:
            names = ", ".join(sorted(other.name for other in found))
            raise ValueError(
                f"video {name!r} could be any of {names} in {path.parent}: add its suffix or move the others"
            )
        return found[0] if found else None

    def images(self, path: Path) -> NumberedImages | None:
        """Which images of a folder that was found are which frames; ``None``: they are counted, or it is a file."""
        return None

    def incomplete(self) -> list[str]:
        """Of the videos whose images were asked for, those that lack some, a phrase each."""
        return []

    def files(self) -> list[Path]:
        """All video files, those in subfolders included, by name."""
        return sorted(path for path in self.path.rglob("*") if _is_video_file(path) and path.is_file())

    def _listing(self, folder: Path) -> dict[str, list[Path]]:
        """The video files of a folder by their names without suffix."""
        if folder not in self._listings:
            by_stem: dict[str, list[Path]] = {}
            for path in folder.iterdir() if folder.is_dir() else ():
                if _is_video_file(path):
                    by_stem.setdefault(path.stem, []).append(path)
            self._listings[folder] = by_stem
        return self._listings[folder]


def _is_video_file(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


@dataclass
class AnnotationFile:
    """What a file with annotations says.

    Attributes:
        path: of the file.
        folder: with the videos.
        heads: what each label is called.
        entries: the good rows, in their order.
        lines: per video, in order of appearance, the first line that names it.
        paths: per video that is there, its file or folder of images.
        findings: what is wrong in rows.
        seen: for finding duplicates: what each row says, and its line.
    """

    path: Path
    folder: VideoFolder
    heads: tuple[str, ...]
    entries: list[Entry] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    seen: dict[tuple[Any, ...], int] = field(default_factory=dict)
    _names: dict[Path, str] = field(default_factory=dict)

    def error(self, kind: str, message: str, line: int | None = None) -> None:
        """Notes an error."""
        self.findings.append(Finding("error", kind, message, str(self.path), line))

    def video(self, name: str, line: int) -> str:
        """The name of a video where it was met first: it may be written with and without its suffix."""
        if name in self.lines:
            return name
        try:
            path = self.folder.find(name)
            if path is None:
                self.error(
                    "missing video", f"there is no video {name!r} in {self.folder.path}; {self.folder.naming}", line
                )
        except ValueError as error:
            self.error("ambiguous video", str(error), line)
            path = None
        first = name if path is None else self._names.setdefault(path, name)
        if first == name:
            self.lines[name] = line
            if path is not None:
                self.paths[name] = path
        return first

    def class_counts(self) -> tuple[Counter[str], ...]:
        """Per head, how many entries have each label."""
        return tuple(
            Counter(name for entry in self.entries for name in entry.labels[i]) for i in range(len(self.heads))
        )

    def count_clips(self, durations: Mapping[str, float], clip_s: float | None) -> int | None:
        """Clips of one epoch: the keyframes, or else by the length of a clip; ``None`` where that is not known.

        Args:
            durations: per video that can be read, seconds.
            clip_s: length of a clip, seconds.
        """
        keyframes = {(entry.video, entry.start_s) for entry in self.entries if entry.start_s == entry.end_s}
        if keyframes:
            return len(keyframes)
        if clip_s is None:
            return None
        return sum(max(1, math.ceil(duration_s / clip_s - 1e-3)) for duration_s in durations.values())

    def find_outside(self, durations: Mapping[str, float]) -> list[Finding]:
        """Entries outside their videos: an error where nothing of one lies inside, otherwise a warning.

        Args:
            durations: per video, seconds; others are not looked at.
        """
        findings = []
        for entry in self.entries:
            duration_s = durations.get(entry.video)
            if duration_s is None:
                continue
            is_instant = entry.start_s == entry.end_s
            lost = entry.start_s > duration_s + OUTSIDE_SLACK_S if is_instant else entry.start_s >= duration_s
            if not lost and entry.end_s <= duration_s + OUTSIDE_SLACK_S:
                continue
            what = f"{entry.start_s:g} s" if is_instant else f"{entry.start_s:g} to {entry.end_s:g} s"
            where = "lies outside" if lost else "reaches beyond the end of"
            hint = "; is first_second right, the second at which the video files begin?" if is_instant else ""
            message = f"{what} {where} video {entry.video!r}, which lasts {duration_s:.2f} s{hint}"
            level: Literal["error", "warning"] = "error" if lost else "warning"
            findings.append(Finding(level, OUTSIDE, message, str(self.path), entry.line))
        return findings

    def check(self) -> None:
        """Raises an error if there is one among the findings.

        Raises:
            ValueError: what is wrong first, with file and line, and how much more there is.
        """
        errors = [finding for finding in self.findings if finding.level == "error"]
        if not errors:
            return
        missing = [name for name in self.lines if name not in self.paths]
        if errors[0].kind == "missing video" and len(missing) > 1:
            named = enumerate_texts([repr(name) for name in missing], 5)
            raise ValueError(
                f"{errors[0].file}:{errors[0].line}: {len(missing)} of {len(self.lines)} videos are not in "
                f"{self.folder.path}: {named}; {self.folder.naming}"
            )
        more = f" (and {len(errors) - 1} more errors; `memvit data check` lists them)" if len(errors) > 1 else ""
        raise ValueError(f"{errors[0]}{more}")


def read_rows(path: str | os.PathLike[str]) -> list[tuple[int, list[str]]]:
    """The rows of a CSV file that are not blank: the line each begins at, its cells without spaces around them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is empty or no CSV file.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; give the CSV file with the annotations") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a CSV file, or not in UTF-8; save it as CSV (UTF-8)") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a CSV file") from error
    if "\0" in text:
        raise ValueError(f"{path}: not a CSV file, or not in UTF-8; save it as CSV (UTF-8)")
    rows = []
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    line = 1
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                rows.append((line, stripped))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}:{line}: not a CSV file ({error}); is a quotation mark left open?") from error
    if not rows:
        raise ValueError(f"{path}: empty; it should hold annotations, one per line")
    return rows


def as_number(cell: str) -> float | None:
    """The finite number that a cell holds; ``None`` if it holds something else."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def open_videos(
    file: AnnotationFile,
    *,
    skip_unreadable: bool = False,
    image_fps: float = IMAGE_FPS,
    on_progress: Progress | None = None,
) -> tuple[Video, ...]:
    """The videos of annotations in which no error was found, in order of appearance.

    Args:
        file: the annotations.
        skip_unreadable: leave out videos that cannot be read, and log it, instead of raising an error.
        image_fps: images per second of folders of images.
        on_progress: called with (videos opened, videos in all).

    Raises:
        ValueError: an error was found before, a video cannot be read, or an entry lies outside its video.
    """
    file.check()
    videos, unreadable = [], []
    measured = measure(file, image_fps=image_fps, on_progress=on_progress)
    for name, path in file.paths.items():
        found = measured[path]
        if isinstance(found, str):
            unreadable.append(found)
        else:
            videos.append(Video(name, str(path), *found, images=file.folder.images(path)))
    if unreadable:
        text = f"{file.path}: {len(unreadable)} of {len(measured)} videos cannot be read: {enumerate_texts(unreadable, 10)}"
        if not skip_unreadable or not videos:
            raise ValueError(f"{text}. Replace them, or leave them out (skip_unreadable)")
        logger.warning("%s. They are left out", text)
    outside = file.find_outside({video.name: video.duration_s for video in videos})
    file.findings += outside
    file.check()
    if outside:
        more = f" (and so do {len(outside) - 1} more segments)" if len(outside) > 1 else ""
        logger.warning("%s%s: what lies outside is not used", outside[0], more)
    return tuple(videos)


class Measured(NamedTuple):
    """Of a video: its duration in seconds, its frames' height and width in pixels."""

    duration_s: float
    height: int
    width: int


def measure(
    *files: AnnotationFile, image_fps: float = IMAGE_FPS, on_progress: Progress | None = None
) -> dict[Path, Measured | str]:
    """Opens the videos of annotations, each once: how long and large they are; why not, for those that cannot be read.

    Args:
        files: the annotations.
        image_fps: images per second of folders of images.
        on_progress: called with (videos done, videos in all).
    """
    folders = {path: file.folder for file in files for path in file.paths.values()}
    found: dict[Path, Measured | str] = {}
    with ThreadPoolExecutor(NUM_PROBES) as pool:
        waiting = {pool.submit(_measure, path, folders[path], image_fps): path for path in folders}
        try:
            for done, future in enumerate(as_completed(waiting), start=1):
                try:
                    found[waiting[future]] = future.result()
                except (ValueError, OSError, av.FFmpegError) as error:
                    found[waiting[future]] = str(error)
                if on_progress is not None:
                    on_progress(done, len(waiting))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found


def _measure(path: Path, folder: VideoFolder, image_fps: float) -> Measured:
    images = folder.images(path)
    if images is not None or path.is_dir():
        fps = (images.fps if images is not None else None) or image_fps
        info = ImageFolderReader(path, fps, images=images).info
        return Measured(float(info.duration_s or 0.0), info.height, info.width)
    status = path.stat()
    return _measure_file(str(path), (status.st_mtime_ns, status.st_size))


@cache
def _measure_file(path: str, version: tuple[int, int]) -> Measured:
    """Of a video file in a version of it; training opens the same data several times."""
    with VideoReader(path, threads=1) as reader:  # many videos are opened at a time
        info = reader.info
        if info.duration_s and info.duration_s > 0:
            return Measured(info.duration_s, info.height, info.width)
        last_s = max(frame.time_s for frame in reader)
        return Measured(last_s + 1 / (info.average_fps or DEFAULT_FPS), info.height, info.width)


def enumerate_texts(texts: Sequence[str], most: int) -> str:
    """The first texts, and how many more there are."""
    more = [f"{len(texts) - most} more"] if len(texts) > most else []
    return "; ".join([*texts[:most], *more])
