"""EPIC-KITCHENS-100 (Damen et al., IJCV 2022): recognise the actions of long egocentric videos, or anticipate them."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from memvit.datasets.annotations import OUTSIDE, Progress, enumerate_texts, open_videos
from memvit.datasets.clips import IGNORED, Annotation, ClipTiming, Task, Video
from memvit.datasets.epic_annotations import (
    CLASS_COLUMNS,
    CLASS_FILES,
    HEADS,
    TAIL_FILES,
    UNSEEN_FILES,
    VIDEO_INFO,
    EpicFile,
    beside,
    read_classes,
    read_epic,
    read_video_info,
)
from memvit.datasets.epic_media import EpicFolder
from memvit.datasets.spans import Spans, last_frames_s
from memvit.metrics import epic_kitchens as metrics
from memvit.video.sampling import TOLERANCE_S

logger = logging.getLogger(__name__)

EpicTask = Literal["recognition", "anticipation"]

# A clip that is to see nothing after a moment ends so much before it: a frame's time may be rounded that much.
MARGIN_S = TOLERANCE_S + 1e-4
# Two segments with the same middle have clips of their own, told apart by when they start.
TIE_S = 1e-5
NO_SEGMENT = -1
MAX_NAMED = 5
FILES_DIFFER_S = 1.0


class EpicKitchensDataset:
    """Videos of which the files of EPIC-KITCHENS-100 say which actions, a verb and a noun each, happen in them.

    Videos run as streams from their beginning to their last segment. Every segment has clips of its own. Where the next is more
    than a stride and a half away, further clips follow every stride, so that memory has seen everything: on the real data, about
    as many clips in all as if videos were cut every stride, and so a memory that reaches as far back.

    - "recognition": a segment is cut into as many parts as strides fit into it, and a clip is centred on each; so a segment
      that is shorter than a clip has one, centred on it. The scores of its clips are averaged.
    - "anticipation": what is asked at ``anticipation_s`` before a segment starts. Its clip ends at that moment: no later frame
      is part of it, and the answer is what a causal frame-level model says at the last token time. All other token times are
      labelled as well, with the action that goes on ``anticipation_s`` later; of several the one that started last.

    What cannot be used of the files is left out and logged with file and line: segments that are reversed or outside their
    video, unknown classes, participants and videos that are not there. A tenth of a file being so is an error.

    Args:
        csv: the segments, such as `EPIC_100_train.csv`; in the tests of the challenge they have no classes.
        videos: the folder with the videos, as of `EpicFolder`.
        timing: of the clips.
        task: what is asked.
        anticipation_s: how far ahead, seconds.
        classes: per head, the classes of training, to be compared; None: whatever the lists of classes say.
        labelled: whether segments must have classes.
        video_info, verb_classes, noun_classes: the files with lengths and rates of the videos, and the names of the classes;
            those beside ``csv``, under their official names, where None.
        tail_verbs, tail_nouns, unseen_participants: the files that say what is measured apart; those beside ``csv``, if any.
        skip_unreadable: leave out videos that cannot be read, and log it, instead of raising an error.
        image_fps: images per second where videos are images; None: worked out for every video.
        cache: a folder for what is known about tar files.
        on_progress: called with (videos opened, videos in all).

    Attributes:
        rows: the usable segments, a row each, as of `EpicFile.rows`; group i is row i.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: annotations or videos that cannot be used, with file and line; ``memvit data check`` lists all at once.
    """

    head_names = HEADS
    multi_label = False
    task: Task

    def __init__(
        self,
        csv: str | os.PathLike[str],
        videos: str | os.PathLike[str],
        timing: ClipTiming,
        *,
        task: EpicTask = "recognition",
        anticipation_s: float = 1.0,
        classes: Sequence[Sequence[str]] | None = None,
        labelled: bool = True,
        video_info: str | os.PathLike[str] | None = None,
        verb_classes: str | os.PathLike[str] | None = None,
        noun_classes: str | os.PathLike[str] | None = None,
        tail_verbs: str | os.PathLike[str] | None = None,
        tail_nouns: str | os.PathLike[str] | None = None,
        unseen_participants: str | os.PathLike[str] | None = None,
        skip_unreadable: bool = False,
        image_fps: float | None = None,
        cache: Path | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        if task not in ("recognition", "anticipation"):
            raise ValueError(f"task={task!r} is none of EPIC-KITCHENS: give 'recognition' or 'anticipation'")
        if not 0 < anticipation_s < np.inf:
            raise ValueError(f"anticipation_s={anticipation_s} is no time ahead: give seconds, more than 0")
        self.epic_task = task
        self.task = "clip" if task == "recognition" else "frames"
        self.anticipation_s = anticipation_s if task == "anticipation" else 0.0
        self.timing = timing
        file = open_epic(
            csv,
            videos,
            labelled=labelled,
            video_info=video_info,
            verb_classes=verb_classes,
            noun_classes=noun_classes,
            image_fps=image_fps,
            cache=cache,
        )
        self.classes = file.names
        if classes is not None and tuple(map(tuple, classes)) != self.classes:
            counts = ", ".join(str(len(names)) for names in classes)
            raise ValueError(
                f"{csv}: the lists of classes are not those of training, which has {counts}: give the same files"
            )
        self._videos = _open(file, skip_unreadable, on_progress)
        self.rows: pd.DataFrame = file.rows[_is_shown(file, self._videos)].reset_index(drop=True)
        self.num_groups = len(self.rows)
        self.labelled = bool((self.rows[list(CLASS_COLUMNS)] >= 0).all(axis=None)) and self.num_groups > 0
        self._subsets = (
            beside(csv, TAIL_FILES["verb"], tail_verbs),
            beside(csv, TAIL_FILES["noun"], tail_nouns),
            _unseen_beside(csv, unseen_participants),
        )
        self._plans = self._plan()

    @property
    def videos(self) -> Sequence[Video]:
        """The videos, in order of appearance."""
        return self._videos

    def clip_starts(self, video: Video) -> np.ndarray:
        """When the clips of a video start, float64 seconds, ascending. The first may begin before the video."""
        return self._plans[video.name].starts_s

    def group(self, video: str, start_s: float) -> int:
        """Which segment, counted in `rows`, the clip of a video that starts then belongs to; -1: none."""
        plan = self._plans[video]
        return int(plan.segments[plan.clip_at(start_s)])

    def annotate(self, video: Video, start_s: float) -> Annotation:
        """What is known about the clip of a video that starts then."""
        plan = self._plans[video.name]
        index = plan.clip_at(start_s)
        segment = int(plan.segments[index])
        if self.epic_task == "anticipation":
            return Annotation(self._later_labels(plan, start_s, segment))
        room_s = float(plan.rooms_s[index])
        return Annotation(tuple(np.array(label, np.int64) for label in self._labels(segment)), room_s=(room_s, room_s))

    def measure(self, scores: Sequence[np.ndarray], answered: np.ndarray) -> dict[str, float]:
        """The official evaluation of the task, in percent; nothing where segments have no classes.

        Args:
            scores: per head, the mean probabilities of every segment, float32 (segments, classes).
            answered: bool (segments,): the segments that were seen; the others do not count.
        """
        if not self.labelled:
            return {}
        if not answered.any():
            return dict.fromkeys(self.measure(scores, np.arange(self.num_groups) == 0), math.nan)
        verbs, nouns = (log_scores(head[answered]) for head in scores)
        evaluate = metrics.recognition if self.epic_task == "recognition" else metrics.anticipation
        return evaluate(verbs, nouns, self.rows[answered], *self._subsets)

    def _labels(self, segment: int) -> tuple[int, ...]:
        if segment == NO_SEGMENT:
            return (IGNORED,) * len(HEADS)
        return tuple(int(self._class_ids[head][segment]) for head in range(len(HEADS)))

    def _later_labels(self, plan: _Plan, start_s: float, segment: int) -> tuple[np.ndarray, ...]:
        """Per head, what goes on ``anticipation_s`` after each token time, int64 (num_times,)."""
        times_s = start_s + last_frames_s(self.timing) + MARGIN_S + self.anticipation_s
        found = [plan.spans.at(time_s) for time_s in times_s.tolist()]
        segments = [plan.spans.classes[at[0]][0] if at else NO_SEGMENT for at in found]
        if segment != NO_SEGMENT:
            segments[-1] = segment
        labels = np.array([self._labels(number) for number in segments], np.int64)
        return tuple(labels.T)

    def _plan(self) -> dict[str, _Plan]:
        """When the clips of every video start, and what they are there for."""
        self._class_ids = [self.rows[column].to_numpy() for column in CLASS_COLUMNS]
        table = self.rows[["video_id", "start_s", "stop_s"]]
        of_video = {str(name): group for name, group in table.groupby("video_id", sort=False)}
        plans = {}
        for video in self._videos:
            segments = of_video.get(video.name, table.iloc[:0])
            numbers = segments.index.to_numpy()
            starts_s, stops_s = segments["start_s"].to_numpy(float), segments["stop_s"].to_numpy(float)
            if self.epic_task == "recognition":
                clips, which, rooms_s = _inside(starts_s, stops_s, self.timing)
            else:
                length_s = float(last_frames_s(self.timing)[-1])
                clips = starts_s - self.anticipation_s - length_s - MARGIN_S
                which, rooms_s = np.arange(len(starts_s)), np.zeros(len(starts_s))
            starts, owners, rooms_s = _laid_out(clips, numbers[which], rooms_s, self.timing.stride_s)
            spans = sorted((a, b, [int(n)]) for a, b, n in zip(starts_s, stops_s, numbers, strict=True))
            plans[video.name] = _Plan(starts, owners, rooms_s, Spans(spans, len(self.rows), multi_label=False))
        return plans


class _Plan(NamedTuple):
    """The clips of a video: when they start, the segment each belongs to, the room it has; and all segments by time."""

    starts_s: np.ndarray
    segments: np.ndarray
    rooms_s: np.ndarray
    spans: Spans

    def clip_at(self, start_s: float) -> int:
        """Which clip starts then."""
        return int(np.abs(self.starts_s - start_s).argmin())


def open_epic(
    csv: str | os.PathLike[str],
    videos: str | os.PathLike[str],
    *,
    labelled: bool = True,
    video_info: str | os.PathLike[str] | None = None,
    verb_classes: str | os.PathLike[str] | None = None,
    noun_classes: str | os.PathLike[str] | None = None,
    image_fps: float | None = None,
    cache: Path | None = None,
) -> EpicFile:
    """Reads segments, and the files beside them that they need; the arguments are those of `EpicKitchensDataset`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a file has no such form at all.
    """
    given = {VIDEO_INFO: video_info, CLASS_FILES["verb"]: verb_classes, CLASS_FILES["noun"]: noun_classes}
    paths = {name: beside(csv, name, path) for name, path in given.items()}
    absent = [name for name, path in paths.items() if path is None]
    if absent and Path(csv).is_file():
        raise FileNotFoundError(f"{', '.join(absent)}: not beside {csv}; put it there, or say where it is")
    info_path = paths[VIDEO_INFO]
    infos = {} if info_path is None else read_video_info(info_path)
    classes = [read_classes(path) for head in HEADS if (path := paths[CLASS_FILES[head]]) is not None]
    folder = EpicFolder(videos, infos, image_fps=image_fps, cache=cache)
    return read_epic(csv, folder, infos=infos, classes=classes, labelled=labelled)


def log_scores(probabilities: np.ndarray) -> np.ndarray:
    """Scores of which a softmax makes the probabilities again, float64."""
    return np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-30))


def _open(file: EpicFile, skip_unreadable: bool, on_progress: Progress | None) -> tuple[Video, ...]:
    """The videos, in order of appearance; logs what cannot be used."""
    folder, videos = file.folder, []
    for video in open_videos(file, skip_unreadable=skip_unreadable, on_progress=on_progress):
        said_s = file.infos[video.name].duration_s
        if video.images is not None:  # which may end before the video does
            video = dataclasses.replace(video, duration_s=said_s)
        elif abs(video.duration_s - said_s) > FILES_DIFFER_S:
            logger.warning(
                "%s lasts %.1f s and not %.1f s, as %s says of %s: is it another video, or cut off?",
                *(video.path, video.duration_s, said_s, VIDEO_INFO, video.name),
            )
        videos.append(video)
    used = set(file.rows["line"][_is_shown(file, videos)])
    file.findings = [found for found in file.findings if found.kind != OUTSIDE or found.line not in used]
    for text in file.describe_unused():
        logger.warning("%s", text)
    if lacking := folder.incomplete():
        text = enumerate_texts(lacking, MAX_NAMED)
        logger.warning("%s: in place of a missing image the one before is shown: %s", folder.path, text)
    return tuple(videos)


def _is_shown(file: EpicFile, videos: Sequence[Video]) -> pd.Series:
    """Which segments begin before their video has ended; none of a video that is not there."""
    return file.rows["start_s"] < file.rows["video_id"].map({video.name: video.duration_s for video in videos})


def _unseen_beside(csv: str | os.PathLike[str], given: str | os.PathLike[str] | None) -> Path | None:
    """The list of participants that training never saw, that of the test segments for these."""
    names = UNSEEN_FILES if "test" not in Path(csv).stem else UNSEEN_FILES[::-1]
    return next((path for name in names if (path := beside(csv, name, given)) is not None), None)


def _inside(starts_s: np.ndarray, stops_s: np.ndarray, timing: ClipTiming) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clips that cover segments: their starts, the segment of each, and how much earlier or later it could be."""
    lengths_s = stops_s - starts_s
    spare = np.maximum(lengths_s - timing.duration_s, 0) / timing.stride_s
    counts = 1 + np.floor(spare + 1e-6).astype(np.int64)
    which = np.repeat(np.arange(len(counts)), counts)
    part = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    parts_s = lengths_s / counts
    middles_s = starts_s[which] + (part + 0.5) * parts_s[which]
    # A clip moves within its part, or, where it is the longer of the two, so that it still shows all of it.
    rooms_s = np.abs(parts_s - timing.duration_s)[which] / 2
    return middles_s - timing.duration_s / 2, which, rooms_s


def _laid_out(
    clips_s: np.ndarray, segments: np.ndarray, rooms_s: np.ndarray, stride_s: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clips in order, with others in the gaps between them and before the first.

    Those follow the clip before them, so that they are where they would be if nobody knew when the next segment is to come.
    """
    order = np.argsort(clips_s, kind="stable")
    clips_s, segments, rooms_s = clips_s[order], segments[order], rooms_s[order]
    for index in range(1, len(clips_s)):
        clips_s[index] = max(clips_s[index], clips_s[index - 1] + TIE_S)
    before_s = np.concatenate([[-stride_s], clips_s[:-1]]) if len(clips_s) else clips_s
    gaps_s = clips_s - before_s
    fillers = np.maximum(np.rint(gaps_s / stride_s).astype(np.int64) - 1, 0)
    after = np.repeat(np.arange(len(clips_s)), fillers)
    step = 1 + np.arange(len(after)) - np.repeat(np.cumsum(fillers) - fillers, fillers)
    between_s = before_s[after] + step * stride_s
    starts_s = np.concatenate([clips_s, between_s])
    owners = np.concatenate([segments, np.full(len(between_s), NO_SEGMENT)])
    rooms_s = np.concatenate([rooms_s, np.zeros(len(between_s))])
    order = np.argsort(starts_s, kind="stable")
    return starts_s[order], owners[order], rooms_s[order]
