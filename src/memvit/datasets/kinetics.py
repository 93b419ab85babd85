"""Short videos with one label each, as in Kinetics-400, -600 and -700 (Kay et al., 2017; Carreira et al., 2018 and 2019)."""

from __future__ import annotations

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from memvit.datasets.annotations import (
    MAX_NAMED,
    AnnotationFile,
    Entry,
    Finding,
    Progress,
    VideoFolder,
    enumerate_texts,
)
from memvit.datasets.class_files import read_class_names
from memvit.datasets.clips import Annotation, ClipTiming, Task, Video
from memvit.datasets.measuring import measure_once
from memvit.metrics.classification import SingleLabelMetric
from memvit.video import VIDEO_SUFFIXES

logger = logging.getLogger(__name__)

HEAD = "label"
MAX_CLASSES = 100_000  # a list that counts further without naming its classes is of another kind
_LINE = re.compile(r"(.*[^\s,])[\s,]+([^\s,]+)")  # a path, which may have spaces and commas in it, and a label

Classes = str | os.PathLike[str] | Sequence[Sequence[str]]


class KineticsDataset:
    """Videos of one label each, seen as one clip or several.

    Videos come from a list as PySlowFast has it, a line ``path label`` for every video with a space, a comma or a tab before
    the label, a number from 0; or from a folder that has a folder for every class, with its videos. As few are left after a
    while as there were, videos that are missing or cannot be read may be left out.

    A clip is taken from the middle of a video, with ``room_s`` up to both its ends, so that `Augmentation.clip_jitter` of 1
    takes it from anywhere. Several are spread evenly, the first at the beginning, the last at the end, and their scores
    averaged: a video is a group. A video that is shorter than a clip is one clip that begins with it.

    The first time, every video is opened to see how long it is; see `measure_once`.

    Args:
        source: the list, or the folder of folders.
        videos: the folder that paths of a list are relative to; of no use for a folder of folders.
        timing: of the clips; its stride does not matter.
        classes: a file with names, as of `read_class_names`; or, as one head, the classes of training. None: the folders'
            names, sorted; for a list the numbers from 0 to the largest, as names.
        num_clips: of every video.
        skip_unreadable: leave out videos that are missing or cannot be read, and log it, instead of raising an error.
        max_missing_share: of the videos, how many may be left out.
        image_fps: images per second of videos that are folders of images.
        on_progress: called with (videos opened, videos to be opened).

    Attributes:
        num_groups: videos.
        labels: of every video, the number of its class, int64 (num_groups,).

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a line, a label or a video cannot be used, with file and line.
    """

    task: Task = "clip"
    multi_label = False

    def __init__(
        self,
        source: str | os.PathLike[str],
        videos: str | os.PathLike[str],
        timing: ClipTiming,
        *,
        classes: Classes | None = None,
        num_clips: int = 1,
        skip_unreadable: bool = False,
        max_missing_share: float = 0.1,
        image_fps: float = 30.0,
        on_progress: Progress | None = None,
    ) -> None:
        if num_clips < 1:
            raise ValueError(f"num_clips={num_clips} shows nothing of a video: give 1 or more")
        if not 0 <= max_missing_share <= 1:
            raise ValueError(f"max_missing_share={max_missing_share} is no share: give 0 to 1")
        file = read_labelled_videos(source, videos, classes=classes)
        losses = _Losses(file, skip_unreadable, max_missing_share)
        losses.check()
        self.timing = timing
        self.num_clips = num_clips
        self.classes: tuple[tuple[str, ...], ...] = (file.class_names,)
        measured = measure_once(file, image_fps=image_fps, on_progress=on_progress)
        self._videos: list[Video] = []
        for name, path in file.paths.items():
            size = measured[path]
            if isinstance(size, str):
                losses.unreadable[name] = size
            else:
                self._videos.append(Video(name, str(path), *size))
        losses.check()
        losses.log()
        self.num_groups = len(self._videos)
        self.labels = np.array([file.class_of[video.name] for video in self._videos], np.int64)
        self._groups = {video.name: number for number, video in enumerate(self._videos)}

    @property
    def videos(self) -> Sequence[Video]:
        """The videos, in their order."""
        return self._videos

    def clip_starts(self, video: Video) -> np.ndarray:
        """When the clips of a video start, float64 seconds, ascending."""
        last_s = self._last_start_s(video)
        if self.num_clips == 1 or last_s == 0:
            return np.array([last_s / 2])
        return np.linspace(0, last_s, self.num_clips)

    def annotate(self, video: Video, start_s: float) -> Annotation:
        """The label of a video, which is true of all of it."""
        label = self.labels[self._groups[video.name]]
        return Annotation((np.array(label),), room_s=(start_s, max(0.0, self._last_start_s(video) - start_s)))

    def group(self, video: str, start_s: float) -> int:
        """The number of the video."""
        return self._groups[video]

    def measure(self, scores: Sequence[np.ndarray], answered: np.ndarray) -> dict[str, float]:
        """Of the videos, in percent: ``top1``, ``top5`` and ``mean_class_accuracy``, as of `SingleLabelMetric`.

        Args:
            scores: of one head, float32 (num_groups, classes): the mean score of a video's clips.
            answered: bool (num_groups,): which videos are counted.
        """
        (of_videos,) = scores
        metric = SingleLabelMetric(len(self.classes[0]))
        metric.update(torch.from_numpy(of_videos[answered]), torch.from_numpy(self.labels[answered]))
        return {name: float(value) for name, value in metric.compute().items()}

    def _last_start_s(self, video: Video) -> float:
        """When the last clip that ends with the video starts; 0 if it is shorter."""
        return max(0.0, video.duration_s - self.timing.duration_s)


@dataclass
class LabelledVideos(AnnotationFile):
    """Videos with a class each, as a list or a folder has them.

    Attributes:
        class_names: of all classes.
        class_of: per video, the number of its class.
    """

    class_names: tuple[str, ...] = ()
    class_of: dict[str, int] = field(default_factory=dict)

    def class_counts(self) -> tuple[Counter[str], ...]:
        """How many videos have each class; 0 for those that are known and have none."""
        (found,) = super().class_counts()
        return (Counter({name: found[name] for name in self.class_names}),)

    def find_outside(self, durations: Mapping[str, float]) -> list[Finding]:
        """Nothing: a label is true of all of its video."""
        return []

    def count_clips(self, durations: Mapping[str, float], clip_s: float | None) -> int | None:
        """An epoch takes one clip of every video."""
        return len(durations)

    def check(self) -> None:
        """Raises an error if there is one among the findings; missing videos are none.

        Raises:
            ValueError: what is wrong, with file and line.
        """
        errors = [str(finding) for finding in self.findings if finding.kind != "missing video"]
        if len(errors) > 1:
            raise ValueError(f"{self.path}: {len(errors)} videos cannot be used: {enumerate_texts(errors, MAX_NAMED)}")
        if errors:
            raise ValueError(errors[0])


def read_labelled_videos(
    source: str | os.PathLike[str], videos: str | os.PathLike[str], *, classes: Classes | None = None
) -> LabelledVideos:
    """As `find_labelled_videos`; what is wrong in lines and labels is an error.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: lines or labels that cannot be used, with file and line.
    """
    file = find_labelled_videos(source, videos, classes=classes)
    file.check()
    return file


def find_labelled_videos(
    source: str | os.PathLike[str], videos: str | os.PathLike[str], *, classes: Classes | None = None
) -> LabelledVideos:
    """Reads which videos there are and what each shows, as `KineticsDataset` describes it; opens none.

    Args:
        source: the list, or the folder of folders.
        videos: the folder that paths of a list are relative to.
        classes: a file with their names; or, as one head, those of training; None: those that are found.

    Returns:
        The videos; those that are missing have no path. Lines and labels that cannot be used are among the findings.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: there is no video, or names of classes cannot be used.
    """
    names = None if classes is None else _named(classes)
    origin = f"{os.fspath(classes)} names" if isinstance(classes, str | os.PathLike) else "training has"
    file = _read_folders(Path(source), names) if Path(source).is_dir() else _read_list(Path(source), videos)
    if names is not None:
        for name, number in file.class_of.items():
            if number < 0 or number >= len(names):
                label = repr(Path(name).parts[0]) if number < 0 else str(number)
                message = f"{label} is no class: {origin} {len(names)}, {_range(names, number < 0)}"
                file.error("unknown label", message, file.lines[name] or None)
        file.class_names = names
    if not (file.class_of or file.findings):
        raise ValueError(f"{source}: no videos; give a list of videos, or a folder with a folder of videos per class")
    file.entries = [
        Entry(file.lines[name], name, 0.0, math.inf, ((file.class_names[number],),))
        for name, number in file.class_of.items()
        if 0 <= number < len(file.class_names)
    ]
    return file


def _named(classes: Classes) -> tuple[str, ...]:
    """The names of the classes that are given."""
    if isinstance(classes, str | os.PathLike):
        names = read_class_names(classes)
        again = next((name for number, name in enumerate(names) if name in names[:number]), None)
        if again is not None:
            raise ValueError(f"{classes} names two classes {again!r}: rename one")
        return names
    if len(classes) != 1:
        raise ValueError(f"videos have one label each, but training has {len(classes)} heads of classes: give one")
    return tuple(classes[0])


def _range(names: Sequence[str], by_name: bool) -> str:
    """What classes are called, for a message."""
    return enumerate_texts([repr(name) for name in names], 5) if by_name else f"numbered from 0 to {len(names) - 1}"


def _read_list(path: Path, videos: str | os.PathLike[str]) -> LabelledVideos:
    """The videos of a list."""
    rows = _read_lines(path)
    absolute = all(os.path.isabs(text) for _, text, _ in rows)
    file = LabelledVideos(path, VideoFolder(path.parent if absolute else videos), (HEAD,))
    for line, text, label in rows:
        if not label:
            message = f"{text!r} has no label: write path and label, with a space, a comma or a tab between them"
            file.error("broken row", message, line)
        elif not (label.isascii() and label.isdecimal()):
            hint = "; a list has no line with column names" if line == 1 else ""
            file.error("not a number", f"label {label!r} is not a whole number from 0{hint}", line)
        elif int(label) >= MAX_CLASSES:
            file.error("not a number", f"label {label} is no class: numbers are below {MAX_CLASSES}", line)
        else:
            name = file.video(text, line)
            if name in file.class_of:
                file.error("duplicate", f"{text!r} is the same video as in line {file.lines[name]}: remove one", line)
            else:
                file.class_of[name] = int(label)
    file.class_names = tuple(str(number) for number in range(max(file.class_of.values(), default=-1) + 1))
    return file


def _read_lines(path: Path) -> list[tuple[int, str, str]]:
    """The lines that are not blank: number from 1, path, label, which is empty where there is none."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file; give a list of videos, or a folder with one per class"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a list in UTF-8; save it as text, a line `path label` per video") from None
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped:
            continue
        match = _LINE.fullmatch(stripped)
        video, label = match.groups() if match else (stripped, "")
        if len(video) > 1 and video[0] == video[-1] == '"':  # as tables are saved where paths have spaces in them
            video = video[1:-1].replace('""', '"')
        rows.append((number, video, label))
    return rows


def _read_folders(path: Path, names: Sequence[str] | None) -> LabelledVideos:
    """The videos of the folders of classes; -1 is the number of a class that is not known."""
    with os.scandir(path) as entries:
        folders = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    known = {name: number for number, name in enumerate(folders if names is None else names)}
    file = LabelledVideos(path, VideoFolder(path), (HEAD,), class_names=tuple(known))
    for folder in folders:
        with os.scandir(path / folder) as entries:
            found = sorted(entry.name for entry in entries if _is_video(entry.name) and entry.is_file())
        for name in (f"{folder}/{video}" for video in found):
            file.lines[name] = 0
            file.paths[name] = path / name
            file.class_of[name] = known.get(folder, -1)
    return file


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES and not name.startswith(".")


class _Losses:
    """Counts the videos that cannot be used, and says whether they may be left out.

    Args:
        file: the videos.
        skip: whether any may be.
        max_share: how many.

    Attributes:
        missing: their names.
        unreadable: per video, why.
    """

    def __init__(self, file: LabelledVideos, skip: bool, max_share: float) -> None:
        self.file = file
        self.skip = skip
        self.max_share = max_share
        self.missing = [name for name in file.class_of if name not in file.paths]
        self.unreadable: dict[str, str] = {}

    def check(self) -> None:
        """Raises an error if videos cannot be used that should.

        Raises:
            ValueError: which, with their lines.
        """
        num_lost = len(self.missing) + len(self.unreadable)
        if self.skip and num_lost <= self.max_share * len(self.file.class_of) and num_lost < len(self.file.class_of):
            return
        if not num_lost:
            return
        cure = "replace them, or leave them out (skip_unreadable)"
        if self.skip:
            cure = (
                f"more than max_missing_share={self.max_share:g} allows; is {self.file.folder.path} the right folder?"
            )
        raise ValueError(f"{self.file.path}: {'; '.join(self._described())}: {cure}")

    def log(self) -> None:
        """Tells what is left out."""
        for text in self._described():
            logger.warning("%s: %s. They are left out", self.file.path, text)

    def _described(self) -> list[str]:
        total = len(self.file.class_of)
        texts = []
        if self.missing:
            named = enumerate_texts([self._named(name) for name in self.missing], MAX_NAMED)
            texts.append(f"{len(self.missing)} of {total} videos are not in {self.file.folder.path} ({named})")
        if self.unreadable:
            reasons = [f"{self._named(name)}: {why}" for name, why in self.unreadable.items()]
            texts.append(
                f"{len(self.unreadable)} of {total} videos cannot be read ({enumerate_texts(reasons, MAX_NAMED)})"
            )
        return texts

    def _named(self, name: str) -> str:
        line = self.file.lines[name]
        return f"line {line}: {name!r}" if line else repr(name)
