"""Boxes of people from a file in AVA's form, in place of a detector."""

from __future__ import annotations

import bisect
import itertools
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

from memvit.datasets.annotations import as_number, enumerate_texts, read_rows
from memvit.online.keyframes import END_SLACK_S
from memvit.online.persons import Corners, Moment, Person
from memvit.online.tracking import Tracker
from memvit.video import VideoInfo

logger = logging.getLogger(__name__)

COLUMNS = ("video", "second", "x1", "y1", "x2", "y2", "action_id", "person_id or score")
SAME_TIME_S = 1e-3


@dataclass(frozen=True)
class GivenBox:
    """A box of the file.

    Attributes:
        person: the person's id; None where the file says none.
        score: a detector's, from 0 to 1; None where the file says none.
    """

    corners: Corners
    person: int | None = None
    score: float | None = None


Boxes = dict[float, list[GivenBox]]
"""Boxes of one video by their times, which ascend."""


class BoxFile:
    """Boxes of people in one or several videos.

    The file is CSV without a header, a row for every box: ``video,second,x1,y1,x2,y2,action_id,person_id``. Corners are
    fractions of the frame's width and height; seconds may have fractions. The last two columns may be empty or left out,
    and action ids mean nothing here: what AVA publishes, what evaluation takes and what `memvit detect` writes will do. In
    the last column whole numbers are ids of people, which tell who is who; numbers with a point are a detector's scores.

    Args:
        path: the file.
        first_second: the second at which the video files begin, 900 for AVA's own.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a row makes no sense; the message names its line.
    """

    def __init__(self, path: str | os.PathLike[str], first_second: float = 0.0) -> None:
        self.path = os.fspath(path)
        self.first_second = first_second
        rows = read_rows(path)
        line, cells = rows[0]
        if cells[:2] == list(COLUMNS[:2]):
            raise ValueError(f"{path}:{line}: files in AVA's form have no line with column names: remove it")
        videos: defaultdict[str, defaultdict[float, list[GivenBox]]] = defaultdict(lambda: defaultdict(list))
        for line, cells in rows:
            video, time_s, box = self._read_row(line, cells)
            self._add(videos[video][time_s], box, line)
        self.videos: dict[str, Boxes] = {name: dict(sorted(boxes.items())) for name, boxes in videos.items()}

    def name_of(self, source: str) -> str:
        """What the file calls a video: its file's name, with or without suffix and folders.

        Raises:
            ValueError: the file has no box of this video, or calls it by several names.
        """
        path = Path(unquote(urlsplit(source).path) if "://" in source else source)
        found = [name for name in self.videos if _ends_with(path, Path(name))]
        if not found:
            named = enumerate_texts([repr(name) for name in self.videos], 5)
            raise ValueError(
                f"{self.path} has no boxes of {path.name}, only of {named}: the first column is the video file's name, with "
                "or without suffix"
            )
        if len(found) > 1:
            raise ValueError(f"{self.path} calls {path.name} {' and '.join(found)}: use one name")
        return found[0]

    def persons(self, video: VideoInfo, *, every_s: float = 1.0, min_score: float = 0.0) -> GivenPersons:
        """Who is where in one video.

        Args:
            video: what is known about it.
            every_s: seconds from one keyframe to the next, see `GivenPersons`.
            min_score: boxes with a lower score are left out; those without a score stay.

        Raises:
            ValueError: the file has no box of this video, or none within its duration.
        """
        name = self.name_of(video.path)
        boxes = self.videos[name]
        if video.duration_s is not None:
            latest_s = video.duration_s + END_SLACK_S
            late = [time_s for time_s in boxes if time_s > latest_s]
            where = f"of {name} in {self.path} lie after its end at {video.duration_s:.2f} s"
            if len(late) == len(boxes):
                raise ValueError(
                    f"all boxes {where} (the first at {late[0]:g} s): is first_second={self.first_second:g} right, the second at "
                    "which the video file begins?"
                )
            if late:
                logger.warning("boxes at %d of %d seconds %s: they are left out", len(late), len(boxes), where)
        boxes = {
            time_s: [box for box in at if box.score is None or box.score >= min_score] for time_s, at in boxes.items()
        }
        return GivenPersons(boxes, aspect=video.width / video.height, every_s=every_s)

    def _read_row(self, line: int, cells: list[str]) -> tuple[str, float, GivenBox]:
        where = f"{self.path}:{line}"
        if len(cells) not in (6, 8):
            raise ValueError(f"{where}: {len(cells)} cells, not 8 ({','.join(COLUMNS)}); the last two may be left out")
        if not cells[0]:
            raise ValueError(f"{where}: the row names no video")
        numbers = []
        for name, cell in zip(COLUMNS[1:6], cells[1:6], strict=True):
            number = as_number(cell)
            if number is None:
                raise ValueError(f"{where}: {name} {cell!r} is not a number")
            numbers.append(number)
        second, x1, y1, x2, y2 = numbers
        box = f"box {x1:g},{y1:g},{x2:g},{y2:g}"
        if second < self.first_second:
            raise ValueError(
                f"{where}: second {second:g} comes before first_second={self.first_second:g}, at which the video begins: "
                "correct either"
            )
        if min(x1, y1, x2, y2) < 0 or max(x1, y1, x2, y2) > 1:
            raise ValueError(
                f"{where}: {box} is not within 0 and 1: give fractions of the frame's width and height, not pixels"
            )
        if x2 <= x1 or y2 <= y1:
            raise ValueError(f"{where}: {box} is empty or reversed: give x1 < x2 and y1 < y2")
        person, score = self._read_last(where, *cells[6:])
        return cells[0], second - self.first_second, GivenBox((x1, y1, x2, y2), person, score)

    def _read_last(self, where: str, action: str = "", last: str = "") -> tuple[int | None, float | None]:
        """(person, score) of a row, of which at least one is None."""
        if last in ("", "-1"):
            return None, None
        if last.isdecimal():
            return int(last), None
        score = as_number(last)
        if score is None:
            raise ValueError(f"{where}: the last column, {last!r}, is neither a person's id nor a detector's score")
        if action not in ("", "-1"):
            return None, None  # the score of an action, not of the box
        if not 0 <= score <= 1:
            raise ValueError(f"{where}: score {score:g} is not within 0 and 1")
        return None, score

    def _add(self, boxes: list[GivenBox], box: GivenBox, line: int) -> None:
        """Adds a box to those of its moment, once: a file may have a row for every action of a box."""
        for other in boxes:
            if other.corners == box.corners and other.person == box.person:
                return
            if box.person is not None and other.person == box.person:
                raise ValueError(
                    f"{self.path}:{line}: person {box.person} has another box at the same second: give everybody an id of "
                    "their own, leave ids out, or write scores with a point (1.0)"
                )
        boxes.append(box)


class GivenPersons:
    """The people in one video whose boxes are given.

    The seconds that have boxes are keyframes. Where they lie more densely than about `every_s` apart, some are not, and their
    boxes tell where people are but not what they do. Longer stretches without boxes get keyframes `every_s` apart, so that
    memory stays as it was in training; whoever has a box before and after such a stretch is taken to be in between.

    Args:
        boxes: by time, in order.
        aspect: the video's width over its height.
        every_s: seconds from one keyframe to the next.
    """

    needs_pixels = False

    def __init__(self, boxes: Boxes, *, aspect: float, every_s: float = 1.0) -> None:
        self.period_s = every_s
        self._times_s = list(boxes)
        self._people = _number(boxes, aspect)
        self._found: set[int] = set()

    @property
    def num_persons(self) -> int:
        """How many people there were so far."""
        return len(self._found)

    def moments(self, start_s: float) -> Iterator[Moment]:
        """As `PersonSource.moments`: they do not end with the boxes."""
        given = self._times_s[bisect.bisect_left(self._times_s, start_s - SAME_TIME_S) :]
        every_s = self.period_s
        last_s = start_s - every_s  # the last keyframe
        if given:  # keyframes before the first box lie so that it is one of them
            last_s = given[0] - (int((given[0] - start_s) / every_s + 1e-6) + 1) * every_s
        for time_s, following_s in itertools.pairwise([*given, math.inf]):
            while time_s - last_s > 1.5 * every_s + 1e-6:
                last_s += every_s
                yield Moment(last_s)
            is_nearest = abs(time_s - last_s - every_s) <= abs(following_s - last_s - every_s) + 1e-6
            is_keyframe = time_s - last_s > 0.5 * every_s + 1e-6 and is_nearest
            yield Moment(time_s, is_keyframe, is_given=True)
            last_s = time_s if is_keyframe else last_s
        while True:
            last_s += every_s
            yield Moment(last_s)

    def find(self, moment: Moment, frame: np.ndarray | None = None) -> tuple[Person, ...]:
        """As `PersonSource.find`."""
        after = bisect.bisect_left(self._times_s, moment.time_s - SAME_TIME_S)
        if after < len(self._times_s) and self._times_s[after] <= moment.time_s + SAME_TIME_S:
            self._found.update(person.track for person in self._people[after])
            return self._people[after]
        if not 0 < after < len(self._times_s):
            return ()
        start_s, end_s = self._times_s[after - 1], self._times_s[after]
        share = (moment.time_s - start_s) / (end_s - start_s)
        later = {person.track: person for person in self._people[after]}
        return tuple(
            Person(person.track, interpolate(person.corners, later[person.track].corners, share), interpolated=True)
            for person in self._people[after - 1]
            if person.track in later
        )


def interpolate(corners: Corners, later: Corners, share: float) -> Corners:
    """The box that far (0 to 1) on the way from one to another."""
    x1, y1, x2, y2 = (a + (b - a) * share for a, b in zip(corners, later, strict=True))
    return x1, y1, x2, y2


def _number(boxes: Boxes, aspect: float) -> list[tuple[Person, ...]]:
    """Who the boxes of each moment show: by the file's ids, and by where they are for those without."""
    tracker = Tracker()
    tracker.num_tracks = max((box.person for at in boxes.values() for box in at if box.person is not None), default=0)
    people = []
    for time_s, at in boxes.items():
        unknown = [box for box in at if box.person is None]
        corners = np.array([box.corners for box in unknown], np.float64).reshape(-1, 4)
        numbers = iter(tracker.update(time_s, corners * (aspect, 1, aspect, 1)))
        known = [Person(next(numbers) if box.person is None else box.person, box.corners, box.score) for box in at]
        people.append(tuple(sorted(known, key=lambda person: person.track)))
    return people


def _ends_with(path: Path, name: Path) -> bool:
    """Whether a path ends in the parts of a name, the last with or without its suffix."""
    parts, wanted = path.parts, name.parts
    if not wanted or len(wanted) > len(parts) or parts[len(parts) - len(wanted) : -1] != wanted[:-1]:
        return False
    return wanted[-1] in (path.name, path.stem)
