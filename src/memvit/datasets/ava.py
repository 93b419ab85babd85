"""Boxes of people and what they do at keyframes, as in AVA (Gu et al., CVPR 2018)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from memvit.datasets.annotations import AnnotationFile, VideoFolder, enumerate_texts, open_videos
from memvit.datasets.ava_boxes import CORNERS, HEAD, BoxFile, Classes, read_boxes, read_excluded
from memvit.datasets.ava_boxes import without_suffix as bare
from memvit.datasets.clips import IGNORED, Annotation, ClipTiming, Task, Video
from memvit.datasets.frame_lists import FrameLists
from memvit.metrics.ava_records import GroundTruth
from memvit.video.images import NumberedImages

logger = logging.getLogger(__name__)

# Box tokens of the published models (paper section 5.1); a model attends to more, but none was trained to.
MANY_BOXES = 100
MAX_NAMED = 5


class AvaDataset:
    """Videos with boxes of people at keyframes, each box with what the person does.

    There is one clip for every keyframe, a second of a video that a file names, centred on it; the keyframes of a video
    follow one another. Rows with equal video, second and corners are one box with several actions, rows without an action
    a person of whom nothing is known.

    What cannot be used of the files is left out and logged with file and line, as `read_boxes` says. Keyframes without boxes
    and with more than the published models attend to are named in the log; their clips pass through the model as all do, so
    that memory stays what it would be.

    Args:
        csv: the annotated boxes, as `read_boxes` describes the file.
        videos: the folder with the videos, or with their frames as images; named with or without suffix.
        timing: of the clips; its stride does not matter.
        classes: a label map as of `read_label_map`; or, as one head, the names of the classes of training, in the order of
            their ids. None: the ids in the file, as names.
        first_second: the second at which the video files begin, 900 for AVA's own.
        seconds: the first and the last that keyframes are valid at, 902 and 1798 for AVA.
        multi_label: whether several actions of a person can be true at a time.
        detections: files with detected boxes, with a score in the place of the person's number.
        annotated: whether annotated boxes are shown; otherwise detected ones alone.
        min_score: detected boxes with a lower score are dropped.
        excluded: a CSV file ``video,second``: their clips pass through the model, without loss and metric.
        frame_lists: lists of the frames, as of `FrameLists`, with paths relative to ``videos``.
        skip_unreadable: leave out videos that cannot be read, and log it, instead of raising an error.
        image_fps: images per second of videos that are images.

    Attributes:
        class_ids: the ids of the classes in the files.
        class_names: the names of the classes by their ids.
        excluded: the excluded keyframes, (video, second).
        truth: the annotated boxes as the evaluation takes them, a row for every action of a box.
        first_second: as given.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: annotations or videos that cannot be used, with file and line; ``memvit data check`` lists all at once.
    """

    task: Task = "boxes"

    def __init__(
        self,
        csv: str | os.PathLike[str],
        videos: str | os.PathLike[str],
        timing: ClipTiming,
        *,
        classes: Classes | None = None,
        first_second: float = 0.0,
        seconds: tuple[float, float] | None = None,
        multi_label: bool = True,
        detections: Sequence[str | os.PathLike[str]] = (),
        annotated: bool = True,
        min_score: float = 0.9,
        excluded: str | os.PathLike[str] | None = None,
        frame_lists: Sequence[str | os.PathLike[str]] = (),
        skip_unreadable: bool = False,
        image_fps: float = 30.0,
    ) -> None:
        if not annotated and not detections:
            raise ValueError("annotated=False shows detected boxes alone, but there are none: give detections as well")
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_score={min_score} is no score: give 0 to 1")
        self.timing = timing
        self.multi_label = multi_label
        self.first_second = first_second
        folder = FrameLists(videos, frame_lists) if frame_lists else NumberedFolder(videos)
        options: dict[str, Any] = {"first_second": first_second, "seconds": seconds, "multi_label": multi_label}
        truth = read_boxes(csv, folder, classes=classes, **options)
        names = truth.names
        found = [read_boxes(path, folder, classes=names, detected=True, **options) for path in detections]
        files = [truth, *found]
        self._videos = _open(files, folder, skip_unreadable=skip_unreadable, image_fps=image_fps)
        self.classes: tuple[tuple[str, ...], ...] = (tuple(names.values()),)
        self.class_ids = tuple(int(number) for number in names)
        self.class_names = dict(zip(self.class_ids, names.values(), strict=True))
        self.excluded = self._read_excluded(excluded)
        shown = [truth.rows] if annotated else []
        shown += [file.rows[file.rows["score"] >= min_score] for file in found]
        present = {video.name for video in self._videos}
        rows, every = (
            pd.concat(tables, ignore_index=True) for tables in (shown, [file.rows for file in files])
        )  # fmt: skip
        self._keyframes = self._find_keyframes(rows[rows["video"].isin(present)], every[every["video"].isin(present)])
        self.truth = _ground_truth(truth, self.class_ids)
        self._note_crowds(truth if annotated else found[0])

    @property
    def videos(self) -> Sequence[Video]:
        """The videos, in order of appearance."""
        return self._videos

    def clip_starts(self, video: Video) -> np.ndarray:
        """When the clips of a video start, float64 seconds, ascending; those at its ends may reach beyond them."""
        return self._keyframes[video.name].times_s - self.timing.duration_s / 2

    def second(self, start_s: float) -> float:
        """The second, as the files count, of the keyframe of a clip that starts then."""
        return round(start_s + self.timing.duration_s / 2 + self.first_second, 6)

    def annotate(self, video: Video, start_s: float) -> Annotation:
        """The boxes of the keyframe that a clip of a video is centred on, and their actions."""
        keyframes = self._keyframes[video.name]
        at = int(np.argmin(np.abs(keyframes.times_s - self.timing.duration_s / 2 - start_s)))
        first, end = keyframes.first_box[at], keyframes.first_box[at + 1]
        actions = [
            keyframes.actions[keyframes.first_action[box] : keyframes.first_action[box + 1]]
            for box in range(first, end)
        ]
        if (bare(video.name), self.second(start_s)) in self.excluded:
            actions = [box[:0] for box in actions]
        corners = keyframes.corners[first:end]
        if not self.multi_label:
            return Annotation((np.array([box[0] if len(box) else IGNORED for box in actions], np.int64),), corners)
        labels = np.zeros((end - first, len(self.class_ids)), np.float32)
        for row, box in zip(labels, actions, strict=True):
            row[box if len(box) else slice(None)] = 1 if len(box) else IGNORED
        return Annotation((labels,), corners)

    def _read_excluded(self, path: str | os.PathLike[str] | None) -> frozenset[tuple[str, float]]:
        if path is None:
            return frozenset()
        return frozenset((bare(video), second) for video, second in read_excluded(path))

    def _find_keyframes(self, rows: pd.DataFrame, every: pd.DataFrame) -> dict[str, _Keyframes]:
        """Per video the keyframes that any row names, with the boxes that are shown."""
        times = {name: np.unique(group.to_numpy()) for name, group in every.groupby("video", sort=False)["time_s"]}
        tables = dict(list(rows.groupby("video", sort=False)))
        none = rows.iloc[:0]
        return {
            video.name: _boxes_of(tables.get(video.name, none), times.get(video.name, np.zeros(0)))
            for video in self._videos
        }

    def _note_crowds(self, file: BoxFile) -> None:
        """Logs keyframes that have no boxes, or very many."""
        counts = [
            (np.diff(keyframes.first_box), keyframes.times_s, name) for name, keyframes in self._keyframes.items()
        ]
        for what, chosen in (
            ("have no box", lambda number: number == 0),
            (f"have more than {MANY_BOXES} boxes", lambda number: number > MANY_BOXES),
        ):
            named = [
                f"{name} at {time_s + self.first_second:g}"
                for number, times_s, name in counts
                for time_s in times_s[chosen(number)].tolist()
            ]
            if named:
                total = sum(len(times_s) for _, times_s, _ in counts)
                logger.warning(
                    "%s: %d of %d keyframes %s: %s",
                    *(file.path, len(named), total, what, enumerate_texts(named, MAX_NAMED)),
                )


class NumberedFolder(VideoFolder):
    """Videos, or folders of images whose names tell which frames they are."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._known: dict[os.PathLike[str], NumberedImages] = {}

    def images(self, path: Path) -> NumberedImages | None:
        """The images of a folder that was found, with their numbers."""
        if not path.is_dir():
            return None
        if path not in self._known:
            self._known[path] = NumberedImages.numbered(path)
        return self._known[path]


class _Keyframes(NamedTuple):
    """Of one video, ascending in time: a keyframe's boxes, and a box's actions, from one index up to before the next."""

    times_s: np.ndarray
    first_box: np.ndarray
    corners: np.ndarray
    first_action: np.ndarray
    actions: np.ndarray


def _boxes_of(rows: pd.DataFrame, times_s: np.ndarray) -> _Keyframes:
    """The keyframes of one video, with the boxes of its rows in order of appearance."""
    rows = rows.sort_values("time_s", kind="stable")
    box = rows.groupby(["time_s", *CORNERS], sort=False).ngroup().to_numpy()
    order = np.argsort(box, kind="stable")
    rows, box = rows.iloc[order], box[order]
    begins = np.flatnonzero(np.r_[True, box[1:] != box[:-1]]) if len(box) else np.zeros(0, np.int64)
    first = rows.iloc[begins]
    labelled = (rows["action"] >= 0).to_numpy()
    pairs = np.unique(np.stack([box[labelled], rows["action"].to_numpy()[labelled]], axis=1), axis=0)
    return _Keyframes(
        times_s,
        np.asarray(np.searchsorted(first["time_s"].to_numpy(), np.r_[times_s, np.inf])),
        first[CORNERS].to_numpy(np.float32),
        np.searchsorted(pairs[:, 0], np.arange(len(begins) + 1)),
        pairs[:, 1],
    )


def _open(
    files: Sequence[BoxFile], folder: VideoFolder, *, skip_unreadable: bool, image_fps: float
) -> tuple[Video, ...]:
    """The videos of all files, in order of appearance; drops and logs what cannot be used of the files."""
    for file in files:
        file.check()
    together = AnnotationFile(files[0].path, folder, (HEAD,))
    names: dict[object, str] = {}
    for file in files:
        renamed = {name: names.setdefault(path, name) for name, path in file.paths.items()}
        file.rows["video"] = file.rows["video"].map(renamed)
        file.entries = [entry._replace(video=renamed[entry.video]) for entry in file.entries]
        together.paths |= {renamed[name]: path for name, path in file.paths.items()}
    videos = open_videos(together, skip_unreadable=skip_unreadable, image_fps=image_fps)
    durations = {video.name: video.duration_s for video in videos}
    for file in files:
        outside = file.find_outside(durations)
        file.findings += outside
        file.check()
        file.rows = file.rows[~file.rows["line"].isin([finding.line for finding in outside])]
        for text in file.describe_unused():
            logger.warning("%s", text)
    return videos


def _ground_truth(file: BoxFile, class_ids: Sequence[int]) -> GroundTruth:
    rows = file.rows[file.rows["action"] >= 0]
    return GroundTruth(
        rows["video"].map({name: bare(name) for name in rows["video"].unique()}).to_numpy(),
        rows["second"].to_numpy(float),
        rows[CORNERS].to_numpy(float),
        np.array(class_ids, np.int64)[rows["action"].to_numpy()],
    )
