"""Your own videos: a folder of them, and CSV files that say what happens from when to when."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from memvit.datasets.annotations import AnnotationFile, Entry, VideoFolder, as_number, open_videos, read_rows
from memvit.datasets.clips import Annotation, ClipTiming, Task, Video
from memvit.datasets.spans import EPSILON_S, Spans, last_frames_s
from memvit.models.config import ACTION
from memvit.video.sampling import TOLERANCE_S

REQUIRED_COLUMNS = ("video", "start_s", "end_s")
LABEL_SEPARATOR = "|"


class SegmentsDataset:
    """Videos of which CSV files say what happens from when to when.

    The file has the columns ``video,start_s,end_s`` and behind them one column of labels per head, say ``label`` or
    ``verb,noun``. A video is named relative to its folder, with or without suffix; it may be a folder of images. Labels are
    the names of the classes; an empty cell has none: what happens then is ignored for that head. Segments include their
    start and exclude their end.

    Videos are cut into clips from their beginning to their end, every ``timing.stride_s``, because a model with memory
    watches everything; clips in which nothing is labelled carry no loss. The last clip may reach beyond the end; it is
    there if it shows an instant (with a whole period of the video from it on) that no clip before it shows.

    What a clip is labelled with, where C is the part of it within the video:

    - task "clip": the segment at the middle of C. If there is none there, the segment with the largest overlap with C (of
      equal ones the earlier), provided that it covers at least half of C or has at least half of itself in C: short
      segments are not lost. With ``multi_label``, all segments for which any of this is true.
    - task "frames": for each token time, the segment at its last frame.
    - ``anticipation_s`` > 0, task "clip": the segment that long after the end of the clip, whole or not. Task "frames": the
      segment that long after each token time's last frame.

    Args:
        csv: the file.
        videos: the folder.
        timing: of the clips.
        classes: per head the classes, in their order, as training found them; from the file where None: sorted, as
            numbers if all are.
        task: "clip": one label a clip; "frames": one for every token time.
        multi_label: whether several classes can be true at a time: segments may overlap, and a cell may hold several
            labels with ``|`` between them.
        anticipation_s: how far ahead the label is to be predicted, seconds.
        skip_unreadable: leave out videos that cannot be read, and log it, instead of raising an error.
        image_fps: images per second of folders of images.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: annotations or videos that cannot be used, with file and line; ``memvit data check`` lists all at once.
    """

    task: Task

    def __init__(
        self,
        csv: str | os.PathLike[str],
        videos: str | os.PathLike[str],
        timing: ClipTiming,
        *,
        classes: Sequence[Sequence[str]] | None = None,
        task: Literal["clip", "frames"] = "clip",
        multi_label: bool = False,
        anticipation_s: float = 0.0,
        skip_unreadable: bool = False,
        image_fps: float = 30.0,
    ) -> None:
        if task not in ("clip", "frames"):
            raise ValueError(f"task={task!r} cannot be learnt from segments: give 'clip' or 'frames'")
        if not 0 <= anticipation_s < math.inf:
            raise ValueError(f"anticipation_s={anticipation_s} is no time ahead: give seconds, 0 or more")
        file = read_segments(csv, videos, multi_label=multi_label)
        self.task = task
        self.timing = timing
        self.multi_label = multi_label
        self.anticipation_s = anticipation_s
        # "action" is what several heads say together.
        self.head_names = file.heads if len(file.heads) > 1 and ACTION not in file.heads else ()
        self.classes = choose_classes(file, classes)
        self._videos = open_videos(file, skip_unreadable=skip_unreadable, image_fps=image_fps)
        self._spans = self._find_spans(file.entries)

    @property
    def videos(self) -> Sequence[Video]:
        """The videos, in order of appearance."""
        return self._videos

    def clip_starts(self, video: Video) -> np.ndarray:
        """When the clips of a video start, float64 seconds, ascending."""
        return np.arange(count_clips(video.duration_s, self.timing)) * self.timing.stride_s

    def annotate(self, video: Video, start_s: float) -> Annotation:
        """What is known about the clip of a video that starts then."""
        spans = self._spans[video.name]
        label_of = self._label_frames if self.task == "frames" else self._label_clip
        return Annotation(tuple(label_of(span, video, start_s) for span in spans))

    def _label_clip(self, spans: Spans, video: Video, start_s: float) -> np.ndarray:
        end_s = start_s + self.timing.duration_s
        if self.anticipation_s > 0:
            return spans.label(spans.at(end_s + self.anticipation_s))
        return spans.label(spans.within(start_s, min(end_s, video.duration_s)))

    def _label_frames(self, spans: Spans, video: Video, start_s: float) -> np.ndarray:
        times_s = start_s + last_frames_s(self.timing) + self.anticipation_s
        return np.stack([spans.label(spans.at(time_s)) for time_s in times_s.tolist()])

    def _find_spans(self, entries: Sequence[Entry]) -> dict[str, tuple[Spans, ...]]:
        """Per video and head, the segments that have a label."""
        of_video: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            of_video[entry.video].append(entry)
        indices = [{name: index for index, name in enumerate(names)} for names in self.classes]
        found = {}
        for video in self._videos:
            heads = []
            for head, index in enumerate(indices):
                labelled = sorted(
                    (entry.start_s, min(entry.end_s, video.duration_s), [index[name] for name in entry.labels[head]])
                    for entry in of_video[video.name]
                    if entry.labels[head]
                )
                heads.append(Spans(labelled, len(index), self.multi_label))
            found[video.name] = tuple(heads)
        return found


def count_clips(duration_s: float, timing: ClipTiming) -> int:
    """Clips of a video, as `SegmentsDataset` describes them; at least one.

    Args:
        duration_s: of the video.
        timing: of the clips.
    """
    # A clip shows something new from the end of the clip before on, or from its own start if there is a gap.
    new_s = max(0.0, timing.duration_s - timing.stride_s)
    last_start_s = duration_s + min(TOLERANCE_S, timing.period_s / 4) - timing.period_s - new_s
    return 1 + max(0, math.floor(last_start_s / timing.stride_s))


def read_segments(
    csv: str | os.PathLike[str], videos: str | os.PathLike[str], *, multi_label: bool = False
) -> AnnotationFile:
    """Reads a CSV file of segments; what is wrong with its rows is in the result's ``findings``.

    Args:
        csv: the file, as `SegmentsDataset` describes it.
        videos: the folder with the videos.
        multi_label: whether segments may overlap and cells hold several labels.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the file has no such form at all.
    """
    header_row, *rows = read_rows(csv)
    columns = _check_header(os.fspath(csv), *header_row)
    if not rows:
        raise ValueError(f"{csv}: no segments, only column names: add one line per segment")
    first_label = columns.index("end_s") + 1
    heads = tuple(name for name in columns[first_label:] if name not in REQUIRED_COLUMNS)
    file = AnnotationFile(Path(csv), VideoFolder(videos), heads)
    for line, cells in rows:
        if len(cells) != len(columns):
            hint = "; put quotation marks around labels with commas" if len(cells) > len(columns) else ""
            file.error("broken row", f"{len(cells)} cells for {len(columns)} columns{hint}", line)
            continue
        _read_row(file, line, dict(zip(columns, cells, strict=True)), multi_label)
    if file.entries and not any(any(entry.labels) for entry in file.entries):
        file.error("no label", f"no segment has a label in {', '.join(heads)}: there is nothing to learn")
    if not multi_label:
        _find_overlaps(file)
    return file


def choose_classes(file: AnnotationFile, classes: Sequence[Sequence[str]] | None) -> tuple[tuple[str, ...], ...]:
    """The classes of each head: those of training if given, otherwise those that a file names.

    What does not fit is added to the file's findings, and the first error of these raised.

    Args:
        file: the annotations.
        classes: per head, of training.

    Raises:
        ValueError: the file has an error, other heads than training, or a label that training has not.
    """
    file.check()
    counts = file.class_counts()
    if classes is None:
        for head, count in zip(file.heads, counts, strict=True):
            if not count:
                file.error("no label", f"no segment has a label in the column {head!r}: remove it or fill it in")
        file.check()
        return tuple(tuple(_in_order(count)) for count in counts)
    if len(classes) != len(file.heads):
        raise ValueError(
            f"{file.path}: {len(file.heads)} label columns ({', '.join(file.heads)}), but training has {len(classes)}: make "
            "the files alike"
        )
    for entry in file.entries:
        for head, names, known in zip(file.heads, entry.labels, classes, strict=True):
            for name in names:
                if name not in known:
                    message = f"{head} {name!r} is no class of training: correct it, or add it to the training file"
                    file.error("unknown label", message, entry.line)
    file.check()
    return tuple(tuple(names) for names in classes)


def _in_order(names: Iterable[str]) -> list[str]:
    """Sorted, as numbers if all are."""
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _check_header(path: str, line: int, columns: list[str]) -> list[str]:
    """The names of the columns, found usable."""
    where, form = f"{path}:{line}", ",".join(REQUIRED_COLUMNS)
    for separator, what in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and separator in columns[0]:
            raise ValueError(f"{where}: columns are separated by {what}: save the file with commas between them")
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing:
        raise ValueError(
            f"{where}: no column {', '.join(missing)}; there are {', '.join(columns)}. The first line must name the columns: "
            f"{form} and behind them one or more of labels"
        )
    for number, name in enumerate(columns, start=1):
        if not name:
            raise ValueError(f"{where}: column {number} has no name: give it one, or remove the comma")
        if columns.index(name) != number - 1:
            raise ValueError(f"{where}: two columns are called {name!r}: rename one")
    if not [name for name in columns[columns.index("end_s") + 1 :] if name not in REQUIRED_COLUMNS]:
        raise ValueError(
            f"{where}: no column of labels behind end_s; there are {', '.join(columns)}: add one, say `label`"
        )
    return columns


def _read_row(file: AnnotationFile, line: int, cells: dict[str, str], multi_label: bool) -> None:
    """Adds a row to the entries of a file, or to its findings."""
    if not cells["video"]:
        file.error("no video", "the row names no video", line)
        return
    video = file.video(cells["video"], line)
    times = []
    for name in ("start_s", "end_s"):
        time_s = as_number(cells[name])
        if time_s is None:
            file.error("not a number", f"{name} {cells[name]!r} is not a number: give seconds, as in 12.5", line)
            return
        times.append(time_s)
    start_s, end_s = times
    if start_s < 0:
        file.error(
            "before the video", f"start_s {start_s:g} is before the beginning of the video: give 0 or more", line
        )
    elif end_s <= start_s:
        file.error(
            "reversed", f"end_s {end_s:g} does not come after start_s {start_s:g}: exchange or correct them", line
        )
    else:
        labels = tuple(_split_labels(cells[head], multi_label) for head in file.heads)
        entry = Entry(line, video, start_s, end_s, labels)
        before = file.seen.setdefault(entry[1:], line)
        if before != line:
            file.error("duplicate", f"the same as line {before}: remove one of them", line)
        else:
            file.entries.append(entry)


def _split_labels(cell: str, multi_label: bool) -> tuple[str, ...]:
    names = cell.split(LABEL_SEPARATOR) if multi_label else [cell]
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


def _find_overlaps(file: AnnotationFile) -> None:
    """Notes segments of a video that overlap and have a label of the same head."""
    found: dict[tuple[int, int], str] = {}
    for head in range(len(file.heads)):
        reaching: dict[str, Entry] = {}  # of each video, the segment that lasts longest so far
        for entry in sorted((e for e in file.entries if e.labels[head]), key=lambda e: (e.start_s, e.line)):
            before = reaching.get(entry.video, entry)
            if entry.start_s < before.end_s - EPSILON_S and before is not entry:
                first, second = sorted((before, entry))
                found[second.line, first.line] = (
                    f"{second.labels[head][0]!r} from {second.start_s:g} to {second.end_s:g} s overlaps "
                    f"{first.labels[head][0]!r} from {first.start_s:g} to {first.end_s:g} s of the same video in line "
                    f"{first.line}: let one end where the next begins, or allow several labels at a time (multi_label)"
                )
            if before.end_s <= entry.end_s:
                reaching[entry.video] = entry
    for (line, _), message in sorted(found.items()):
        file.error("overlap", message, line)
