"""CSV files in AVA's form: annotated boxes, detected boxes, excluded keyframes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np
import pandas as pd

from memvit.datasets.annotations import Entry, VideoFolder, as_number, read_rows
from memvit.datasets.label_maps import as_id, read_label_map
from memvit.datasets.published import PublishedFile
from memvit.video import VIDEO_SUFFIXES

COLUMNS = ("video", "second", "x1", "y1", "x2", "y2", "action_id", "person_id")
DETECTED_COLUMNS = (*COLUMNS[:-1], "score")
HEAD = "action"
NO_ACTION = ("", "-1")
CORNERS = ["x1", "y1", "x2", "y2"]

Classes = str | os.PathLike[str] | Mapping[str, str] | Sequence[Sequence[str]]


@dataclass
class BoxFile(PublishedFile):
    """What a file in AVA's form says; `entries` has a row per box and action, with the time in the video.

    Attributes:
        rows: the usable rows: line, video, second (as the file counts), time_s (in the video file), x1, y1, x2, y2 as
            fractions of the frame, action (index of the class, -1 for none), score (1 for annotated boxes).
        names: of the classes, by their ids, in the order of the ids.
    """

    rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    names: dict[str, str] = field(default_factory=dict)

    def class_counts(self) -> tuple[Counter[str], ...]:
        """How many entries have each action, 0 for those that only the label map names."""
        counts = Counter(dict.fromkeys(self.names.values(), 0))
        counts.update(name for entry in self.entries for name in entry.labels[0])
        return (counts,)


def read_boxes(
    csv: str | os.PathLike[str],
    videos: str | os.PathLike[str] | VideoFolder,
    *,
    classes: Classes | None = None,
    first_second: float = 0.0,
    seconds: tuple[float, float] | None = None,
    multi_label: bool = True,
    detected: bool = False,
) -> BoxFile:
    """Reads a CSV file in AVA's form; what is wrong with its rows is in the result's ``findings``.

    Rows that cannot be used are left out, each with a warning among the findings; these become errors where they are more
    than a tenth of the rows, or concern more than a tenth of the videos.

    Args:
        csv: the file, without a header, a row for every action of a box: ``video,second,x1,y1,x2,y2,action_id,person_id``,
            or with a score in the place of the person's number if the boxes are ``detected``.
        videos: the folder with the videos, or lists of their frames.
        classes: a label map, or where `read_label_map` finds one; or, as one head, the names of the classes of training, in
            the order of their ids; None: the ids in the file, as names.
        first_second: the second at which the video files begin.
        seconds: the first and the last that keyframes are valid at, as the file counts.
        multi_label: whether a box may have several actions.
        detected: whether rows end with a score from 0 to 1.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the file or the label map has no such form at all.
    """
    names = None
    if isinstance(classes, str | os.PathLike):
        names = read_label_map(classes)
    elif isinstance(classes, Mapping):
        names = dict(classes)
    elif classes is not None:
        names = _number(classes)
    folder = videos if isinstance(videos, VideoFolder) else VideoFolder(videos)
    file = BoxFile(Path(csv), folder, (HEAD,), names=names or {})
    table = _read_table(file, DETECTED_COLUMNS if detected else COLUMNS)
    table = _check_rows(file, table, first_second, seconds, detected, known=names is not None)
    table = _find_videos(file, table)
    table = _drop_repeated(file, table, multi_label)
    file.judge()
    if names is None:
        ids = sorted(set(table["action_id"]) - set(NO_ACTION), key=int)
        file.names = {number: number for number in ids}
    index = {number: position for position, number in enumerate(file.names)}
    table["action"] = table["action_id"].map(index).fillna(-1).astype(np.int32)
    table["time_s"] = table["second"] - first_second
    file.rows = table[["line", "video", "second", "time_s", *CORNERS, "action", "score"]].reset_index(drop=True)
    if not detected and len(table) and (file.rows["action"] < 0).all():
        file.error("no label", "no box has an action: there is nothing to learn")
    class_names = [(name,) for name in file.names.values()]
    file.entries = [
        Entry(line, video, time_s, time_s, (class_names[action] if action >= 0 else (),))
        for line, video, time_s, action in zip(
            *(file.rows[name].tolist() for name in ("line", "video", "time_s", "action")), strict=True
        )
    ]
    return file


def read_excluded(path: str | os.PathLike[str]) -> set[tuple[str, float]]:
    """The keyframes that a file excludes from training and evaluation, (video, second).

    Args:
        path: of a CSV file without a header, ``video,second`` a row.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row has no such form, with file and line.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; give the CSV file with excluded keyframes")
    if not Path(path).read_bytes().strip():  # nothing is excluded
        return set()
    keyframes = set()
    for line, cells in read_rows(path):
        second = as_number(cells[1]) if len(cells) == 2 else None
        if second is None or not cells[0]:
            raise ValueError(f"{path}:{line}: {','.join(cells)!r} is no keyframe: give video,second")
        keyframes.add((cells[0], second))
    return keyframes


def without_suffix(video: str) -> str:
    """The name of a video that may be written with the suffix of its file."""
    return str(PurePath(video).with_suffix("")) if PurePath(video).suffix.lower() in VIDEO_SUFFIXES else video


def _number(classes: Sequence[Sequence[str]]) -> dict[str, str]:
    """The ids of training's classes: their names if these are ids, otherwise counted from 1."""
    if len(classes) != 1:
        raise ValueError(f"boxes have one head of classes, but training has {len(classes)}: train with boxes as well")
    (names,) = classes
    if all(as_id(name) == name for name in names):
        return {name: name for name in names}
    return {str(number): name for number, name in enumerate(names, start=1)}


def _read_table(file: BoxFile, columns: Sequence[str]) -> pd.DataFrame:
    """The rows with as many cells as there are columns, as text, each with its line."""
    rows = read_rows(file.path)
    file.num_rows = len(rows)
    if rows[0][1][:2] == list(columns[:2]):
        raise ValueError(f"{file.path}:{rows[0][0]}: files in AVA's form have no line with column names: remove it")
    whole = []
    for line, cells in rows:
        if len(cells) == len(columns):
            whole.append((line, *cells))
            continue
        hint = "; separate them by commas" if len(cells) == 1 else ""
        file.error("broken row", f"{len(cells)} cells, not {len(columns)} ({','.join(columns)}){hint}", line)
    return pd.DataFrame(whole, columns=["line", *columns])


def _check_rows(
    file: BoxFile,
    table: pd.DataFrame,
    first_second: float,
    seconds: tuple[float, float] | None,
    detected: bool,
    known: bool,
) -> pd.DataFrame:
    """The rows that can be used, with numbers in place of text; notes what is wrong with the others."""
    text = table
    table = table.copy()
    good = np.ones(len(table), bool)

    def refuse(bad: pd.Series | np.ndarray, kind: str, message: object) -> None:
        """Notes the first fault of rows; the message is for one row, of the text's columns."""
        nonlocal good
        bad = np.asarray(bad, bool) & good
        for at in np.flatnonzero(bad):
            row = text.iloc[at]
            file.error(kind, message(row) if callable(message) else str(message), int(row["line"]))
        good &= ~bad

    refuse(table["video"] == "", "no video", "the row names no video")
    for name in ("second", *CORNERS, *(("score",) if detected else ())):
        table[name] = pd.to_numeric(text[name], errors="coerce")
        refuse(
            ~np.isfinite(table[name].to_numpy(float)),
            "not a number",
            lambda row, name=name: f"{name} {row[name]!r} is not a number",
        )
    table["action_id"] = text["action_id"].map({cell: as_id(cell) or cell for cell in text["action_id"].unique()})
    is_id = table["action_id"].map({cell: as_id(cell) is not None for cell in table["action_id"].unique()})
    refuse(
        ~is_id.to_numpy(bool) & ~table["action_id"].isin(NO_ACTION).to_numpy(),
        "not a number",
        lambda row: f"action_id {row['action_id']!r} is no id: give a whole number from 1, or -1 for none",
    )
    if known:
        refuse(
            is_id.to_numpy(bool) & ~table["action_id"].isin(list(file.names)).to_numpy(),
            "unknown label",
            lambda row: (
                f"action_id {int(row['action_id'])} is no class: correct it, or add it to the label map or the training file"
            ),
        )
    if detected:
        refuse(
            ~table["score"].between(0, 1), "score outside", lambda row: f"score {row['score']} is not within 0 and 1"
        )
    else:
        person = text["person_id"]
        number = person.map({cell: cell == "" or cell.removeprefix("-").isdecimal() for cell in person.unique()})
        refuse(
            ~number.to_numpy(bool), "not a number", lambda row: f"person_id {row['person_id']!r} is not a whole number"
        )
        table["score"] = 1.0
    low, high = (first_second, np.inf) if seconds is None else seconds
    refuse(
        table["second"] < first_second,
        "before the video",
        lambda row: (
            f"second {float(row['second']):g} comes before first_second={first_second:g}, at which the video begins: "
            "correct either"
        ),
    )
    refuse(
        (table["second"] < low) | (table["second"] > high),
        "outside the valid seconds",
        lambda row: f"second {float(row['second']):g} is not within {low:g} and {high:g}, where keyframes are",
    )
    corners = table[CORNERS].to_numpy(float)
    refuse(
        np.any((corners < 0) | (corners > 1), axis=1),
        "box outside",
        lambda row: f"{_box(row)} is not within 0 and 1: give fractions of the frame's width and height, not pixels",
    )
    refuse(
        (corners[:, 2] <= corners[:, 0]) | (corners[:, 3] <= corners[:, 1]),
        "reversed",
        lambda row: f"{_box(row)} is empty or reversed: give x1 < x2 and y1 < y2",
    )
    return table[good].copy()


def _box(row: pd.Series) -> str:
    return "box " + ",".join(f"{float(row[name]):g}" for name in CORNERS)


def _find_videos(file: BoxFile, table: pd.DataFrame) -> pd.DataFrame:
    """The rows whose video is there, called by the name under which it was met first; notes missing videos."""
    first = table.drop_duplicates("video")
    names = {name: file.video(name, line) for name, line in zip(first["video"], first["line"].tolist(), strict=True)}
    table["video"] = table["video"].map(names)
    return table[table["video"].isin(list(file.paths))].copy()


def _drop_repeated(file: BoxFile, table: pd.DataFrame, multi_label: bool) -> pd.DataFrame:
    """The rows that say something new; notes the others."""
    box = ["video", "second", *CORNERS]
    last = "person_id" if "person_id" in table else "score"
    lines = table.groupby([*box, "action_id", last], sort=False)["line"].transform("first")
    again = lines != table["line"]
    for line, before in zip(table.loc[again, "line"].tolist(), lines[again].tolist(), strict=True):
        file.error("duplicate", f"the same as line {before}: remove one of them", line)
    table = table[~again]
    if multi_label:
        return table.copy()
    labelled = table[~table["action_id"].isin(NO_ACTION)]
    of_box = labelled.groupby(box, sort=False)
    other = of_box["action_id"].transform("first") != labelled["action_id"]
    before = of_box["line"].transform("first")[other].tolist()
    for line, first in zip(labelled.loc[other, "line"].tolist(), before, strict=True):
        message = f"the box has another action in line {first}: remove one, or allow several (multi_label)"
        file.error("second action", message, line)
    return table.drop(other.index[other])
