"""The annotation files of EPIC-KITCHENS-100 (Damen et al., IJCV 2022), as they are published.

Beside the segments (`EPIC_100_train.csv`, ...) lie the videos' frame rates and lengths, the names of the classes, and, for the
evaluation, the tail classes and the participants that training never sees.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from memvit.datasets.annotations import Entry, VideoFolder
from memvit.datasets.published import PublishedFile
from memvit.metrics.epic_annotations import TAIL_NOUNS_FILE, TAIL_VERBS_FILE, UNSEEN_PARTICIPANTS_FILE, read_text_table

HEADS = ("verb", "noun")
VIDEO_INFO = "EPIC_100_video_info.csv"
CLASS_FILES = {"verb": "EPIC_100_verb_classes.csv", "noun": "EPIC_100_noun_classes.csv"}
TAIL_FILES = {"verb": TAIL_VERBS_FILE, "noun": TAIL_NOUNS_FILE}
UNSEEN_FILES = (UNSEEN_PARTICIPANTS_FILE, "EPIC_100_unseen_participant_ids_test.csv")

COLUMNS = ("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp")
CLASS_COLUMNS = ("verb_class", "noun_class")
_TIME = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d*)?)")


class EpicVideo(NamedTuple):
    """What `EPIC_100_video_info.csv` says of a video: its length in seconds, and its own frame rate."""

    duration_s: float
    fps: float


@dataclass
class EpicFile(PublishedFile):
    """The segments of a file, the usable ones.

    Attributes:
        rows: line, narration_id, participant_id, video_id, start_s, stop_s, start_frame (0 where the file has none), and
            verb_class, noun_class: -1 where the file has none.
        names: per head, what its classes are called.
        infos: of the videos that the file names.
    """

    rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    names: tuple[tuple[str, ...], ...] = ()
    infos: dict[str, EpicVideo] = field(default_factory=dict)

    def class_counts(self) -> tuple[Counter[str], ...]:
        """Per head, how many segments have each class, 0 for those that only the list of classes names."""
        counts = tuple(Counter(dict.fromkeys(names, 0)) for names in self.names)
        for entry in self.entries:
            for count, labels in zip(counts, entry.labels, strict=True):
                count.update(labels)
        return counts


def read_epic(
    csv: str | os.PathLike[str],
    videos: VideoFolder,
    *,
    infos: Mapping[str, EpicVideo],
    classes: Sequence[Sequence[str]],
    labelled: bool = True,
) -> EpicFile:
    """Reads the segments; what is wrong with them is in the result's ``findings``.

    Rows that cannot be used are left out, each with a warning among the findings; these become errors where they are more
    than a tenth of the rows, or concern more than a tenth of the videos.

    Args:
        csv: the file, with the columns of `EPIC_100_train.csv`.
        videos: finds the videos.
        infos: of the videos, as of `read_video_info`.
        classes: per head, the names of the classes, as of `read_classes`.
        labelled: whether segments must have classes; the challenge's test segments have none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has no such form at all.
    """
    text = read_table(csv, COLUMNS, "segments")
    absent = [name for name in CLASS_COLUMNS if name not in text]
    if absent and (labelled or len(absent) == 1):
        raise ValueError(
            f"{csv}: no column {', '.join(absent)}; there are {', '.join(text.columns[1:])}. Give a file of EPIC-KITCHENS-100 "
            "with classes, such as EPIC_100_train.csv; segments without any are good for `memvit test` alone"
        )
    file = EpicFile(Path(csv), videos, HEADS, num_rows=len(text), names=tuple(map(tuple, classes)))
    rows = _check_rows(file, text, infos)
    first = rows.drop_duplicates("video_id")
    for name, line in zip(first["video_id"].tolist(), first["line"].tolist(), strict=True):
        file.video(name, line)
    file.infos = {name: infos[name] for name in file.lines}
    rows = rows[rows["video_id"].isin(list(file.paths))]
    file.rows = rows.reset_index(drop=True)
    file.judge()
    file.entries = [
        Entry(line, video, start_s, stop_s, _names_of(labels, classes))
        for line, video, start_s, stop_s, *labels in zip(
            *(rows[name].tolist() for name in ("line", "video_id", "start_s", "stop_s", *CLASS_COLUMNS)), strict=True
        )
    ]  # fmt: skip
    return file


def _names_of(labels: Sequence[int], classes: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple((names[number],) if number >= 0 else () for names, number in zip(classes, labels, strict=True))


def _check_rows(file: EpicFile, text: pd.DataFrame, infos: Mapping[str, EpicVideo]) -> pd.DataFrame:
    """The rows that can be used, with numbers in place of text; notes what is wrong with the others."""
    good = np.ones(len(text), bool)

    def refuse(bad: pd.Series | np.ndarray, kind: str, message: str) -> None:
        """Notes the first fault of rows; the message names columns of the row in braces."""
        nonlocal good
        bad = np.asarray(bad, bool) & good
        for at in np.flatnonzero(bad):
            row = text.iloc[at]
            file.error(kind, message.format_map(row), int(row["line"]))
        good &= ~bad

    table = text[["line", *COLUMNS[:3]]].copy()
    refuse(text["narration_id"] == "", "no id", "the segment has no narration_id")
    again = text.duplicated("narration_id")
    refuse(again, "duplicate", "narration_id {narration_id!r} is there before: remove one of the two")
    wrong = [
        video.split("_")[0] != person
        for video, person in zip(text["video_id"], text["participant_id"], strict=True)
    ]  # fmt: skip
    refuse(
        np.array(wrong, bool), "other participant", "video {video_id!r} is not one of participant {participant_id!r}"
    )
    known = text["video_id"].isin(list(infos)).to_numpy()
    refuse(~known, "no video info", f"there is no line for video {{video_id!r}} of {{participant_id}} in {VIDEO_INFO}")
    for column, name in (("start_timestamp", "start_s"), ("stop_timestamp", "stop_s")):
        table[name] = seconds(text[column])
        refuse(
            table[name].isna(),
            "no time",
            f"{column} {{{column}!r}} is no time: give hours:minutes:seconds, as in 00:01:02.50",
        )
    reversed_ = (table["stop_s"] <= table["start_s"]).to_numpy()
    refuse(reversed_, "reversed", "the segment ends at {stop_timestamp}, not after its start at {start_timestamp}")
    duration_s = text["video_id"].map({name: info.duration_s for name, info in infos.items()}).to_numpy(float)
    outside = table["start_s"].to_numpy() >= duration_s
    refuse(outside, "outside the video", "the segment begins at {start_timestamp}, after the end of video {video_id!r}")
    for column, names in zip(CLASS_COLUMNS, file.names, strict=True):
        if column not in text:
            table[column] = -1
            continue
        number = pd.to_numeric(text[column], errors="coerce")
        bad = number.isna() | (number % 1 != 0) | (number < 0) | (number >= len(names))
        refuse(
            bad, "unknown class", f"{column} {{{column}!r}} is no class: give a whole number from 0 to {len(names) - 1}"
        )
        table[column] = number.where(~bad, -1).astype(np.int64)
    frames = pd.to_numeric(text["start_frame"], errors="coerce") if "start_frame" in text else pd.Series(0, text.index)
    table["start_frame"] = frames.fillna(0)
    return table[good].copy()


def seconds(timestamps: pd.Series) -> pd.Series:
    """Seconds of ``hours:minutes:seconds``, NaN for what is no such time."""
    parts = timestamps.str.strip().str.extract(f"^{_TIME.pattern}$").astype(float)
    return 3600 * parts[0] + 60 * parts[1] + parts[2]


def read_video_info(csv: str | os.PathLike[str]) -> dict[str, EpicVideo]:
    """Lengths and frame rates of the videos, by their ids.

    Args:
        csv: `EPIC_100_video_info.csv`, or a file with its columns ``video_id``, ``duration`` and ``fps``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it has no such form, or a length or rate is no number.
    """
    table = read_table(csv, ("video_id", "duration", "fps"), "videos")
    infos: dict[str, EpicVideo] = {}
    numbers = {name: pd.to_numeric(table[name], errors="coerce") for name in ("duration", "fps")}
    for line, name, duration_s, fps in zip(
        table["line"].tolist(), table["video_id"], *(column.tolist() for column in numbers.values()), strict=True
    ):
        if not (0 < duration_s < np.inf and 0 < fps < np.inf):
            raise ValueError(f"{csv}:{line}: duration and fps of video {name!r} must be numbers above 0: correct them")
        if name in infos:
            raise ValueError(f"{csv}:{line}: video {name!r} is there before: remove one of the two lines")
        infos[name] = EpicVideo(duration_s, fps)
    return infos


def read_classes(csv: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of the classes of one head, by their numbers.

    Args:
        csv: `EPIC_100_verb_classes.csv` or `EPIC_100_noun_classes.csv`, or a file with their columns ``id`` and ``key``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it has no such form, ids do not count from 0, or two classes have one name.
    """
    table = read_table(csv, ("id", "key"), "classes")
    if table["id"].tolist() != [str(number) for number in range(len(table))]:
        raise ValueError(f"{csv}: the ids of the classes must count from 0, a line each, in order")
    names = tuple(table["key"])
    if len(set(names)) < len(names) or not all(names):
        raise ValueError(f"{csv}: two classes have the same name, or one has none: make them different")
    return names


def read_table(csv: str | os.PathLike[str], columns: Sequence[str], what: str) -> pd.DataFrame:
    """A CSV file with column names, its cells as text, and the column ``line``, counted from 1.

    Args:
        csv: the file.
        columns: that it must have.
        what: it lists, for messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no CSV file, lacks a column or has no rows.
    """
    path = Path(csv)
    if path.suffix in (".pkl", ".pickle"):
        raise ValueError(f"{path}: a pickle may run any code when it is read: give the CSV file beside it")
    table = read_text_table(path)
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(
            f"{path}: no column {', '.join(missing)}; there are {', '.join(map(str, table.columns))}. It is of another version, "
            f"or of another data set: give the file of EPIC-KITCHENS-100 that lists the {what}"
        )
    if table.empty:
        raise ValueError(f"{path}: only column names: it should list {what}, a line each")
    table.insert(0, "line", np.arange(2, len(table) + 2))
    return table


def beside(csv: str | os.PathLike[str], name: str, given: str | os.PathLike[str] | None) -> Path | None:
    """The file that is given, or else the one of that name beside the annotations, if it is there."""
    if given is not None:
        return Path(given)
    path = Path(csv).with_name(name)
    return path if path.is_file() else None
