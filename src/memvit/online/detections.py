"""What people were seen doing, on disk: a line per keyframe while it happens, and two tables of boxes.

`detections.jsonl` has everything, `detections.csv` is what AVA's evaluation takes, and `boxes.csv` holds every box that was
seen, between keyframes too, in the form that `--boxes` takes: people need to be detected only once.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from memvit.online.boxes import KeyframePrediction, Sighting
from memvit.online.persons import Corners, Person
from memvit.online.results import OVERLAY_FILE, SUMMARY_FILE, ResultFolder, short

DETECTIONS_FILE = "detections.jsonl"
AVA_FILE = "detections.csv"
BOXES_FILE = "boxes.csv"


@dataclass(frozen=True)
class DetectionRecord:
    """What people do at a keyframe, as a line of `detections.jsonl` has it.

    Attributes:
        video: the source, an address without its password.
        keyframe: its number in the video, from 0.
        time_s: when, seconds of the video.
        persons: who is there.
        actions: per person, (label, score) of the best actions, best first.
        untrained: the weights were random, so the scores of actions mean nothing.
    """

    video: str
    keyframe: int
    time_s: float
    persons: tuple[Person, ...]
    actions: tuple[tuple[tuple[str, float], ...], ...]
    untrained: bool = False

    def to_json(self) -> str:
        """One line, without its end."""
        persons = []
        for person, actions in zip(self.persons, self.actions, strict=True):
            entry: dict[str, object] = {"track": person.track, "box": [round(corner, 5) for corner in person.corners]}
            if person.score is not None:
                entry["score"] = short(person.score)
            if person.interpolated:
                entry["interpolated"] = True
            entry["actions"] = [{"label": label, "score": short(score)} for label, score in actions]
            persons.append(entry)
        line: dict[str, object] = {
            "video": self.video,
            "keyframe": self.keyframe,
            "time_s": round(self.time_s, 6),
            "persons": persons,
        }
        if self.untrained:
            line["untrained"] = True
        return json.dumps(line, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> DetectionRecord:
        """Reads a line of `to_json`.

        Raises:
            ValueError: it is none.
        """
        try:
            data = json.loads(line)
            persons, actions = [], []
            for entry in data["persons"]:
                x1, y1, x2, y2 = (float(corner) for corner in entry["box"])
                score = None if entry.get("score") is None else float(entry["score"])
                interpolated = bool(entry.get("interpolated", False))
                persons.append(Person(int(entry["track"]), (x1, y1, x2, y2), score, interpolated))
                actions.append(tuple((str(a["label"]), float(a["score"])) for a in entry["actions"]))
            keyframe, time_s = int(data["keyframe"]), float(data["time_s"])
            untrained = bool(data.get("untrained", False))
            return cls(str(data["video"]), keyframe, time_s, tuple(persons), tuple(actions), untrained)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"no line of detections ({type(error).__name__}: {error})") from error


class DetectionWriter(ResultFolder):
    """Writes `detections.jsonl`, `detections.csv` and `boxes.csv`, keyframe by keyframe.

    Args:
        folder: made where missing; results of an earlier run in it are removed.
        video: the source, as the records name it.
        csv_name: what the tables call the video.
        first_second: what they call the beginning of the video.
        topk: actions listed per person in `detections.jsonl`.
        min_score: actions of a lower score are left out of `detections.csv`.
        untrained: say that the weights are random.

    Raises:
        ValueError: the folder cannot be made, or a file in it not be opened.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        video: str,
        csv_name: str,
        *,
        first_second: float = 0.0,
        topk: int = 5,
        min_score: float = 0.001,
        untrained: bool = False,
    ) -> None:
        super().__init__(folder, (DETECTIONS_FILE, AVA_FILE, BOXES_FILE), (SUMMARY_FILE, OVERLAY_FILE))
        self.video = video
        self.csv_name = csv_name
        self.first_second = first_second
        self.topk = topk
        self.min_score = min_score
        self.untrained = untrained

    def see(self, sighting: Sighting) -> None:
        """Appends the boxes of a moment.

        Raises:
            ValueError: the disk is full or gone.
        """
        second = self._second(sighting.moment.time_s)
        rows = [(self.csv_name, second, *_corners(person), "", person.track) for person in sighting.persons]
        self.append_rows(BOXES_FILE, rows)

    def write(self, prediction: KeyframePrediction) -> DetectionRecord:
        """Appends a keyframe; gives what `detections.jsonl` says of it.

        Raises:
            ValueError: the disk is full or gone.
        """
        topk = tuple(tuple(best) for best in prediction.topk(self.topk))
        record = DetectionRecord(
            self.video, prediction.keyframe, prediction.time_s, prediction.persons, topk, self.untrained
        )
        self.append_line(DETECTIONS_FILE, record.to_json())
        second = self._second(prediction.time_s)
        self.append_rows(
            AVA_FILE,
            [
                (self.csv_name, second, *_corners(person), action, short(float(score)))
                for person, scores in zip(prediction.persons, prediction.scores, strict=True)
                if not person.interpolated  # nobody has asked what is done there
                for action, score in enumerate(scores, start=1)
                if score >= self.min_score
            ],
        )
        return record

    def _second(self, time_s: float) -> str:
        """AVA writes whole seconds with four digits."""
        second = round(self.first_second + time_s, 6)
        return f"{int(second):04d}" if second == int(second) else f"{second:010.5f}".rstrip("0")


def read_detections(path: str | os.PathLike[str]) -> Iterator[DetectionRecord]:
    """The keyframes in a `detections.jsonl`, one after another; the file may still be growing.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is none of detections; a last one without its end is left out.
    """
    path = Path(path, DETECTIONS_FILE) if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: give a detections.jsonl of memvit detect, or its folder")
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return  # it is being written
            try:
                record = DetectionRecord.from_json(line)
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number}: {error}; remove the line or run memvit detect again"
                ) from error
            yield record


def read_seen_boxes(folder: str | os.PathLike[str], first_second: float = 0.0) -> Iterator[tuple[float, int, Corners]]:
    """The rows of the `boxes.csv` that a `DetectionWriter` left: (seconds of the video, track, box), in order of time."""
    with open(Path(folder, BOXES_FILE), newline="", encoding="utf-8") as file:
        for _, second, x1, y1, x2, y2, _, track in csv.reader(file):
            yield float(second) - first_second, int(track), (float(x1), float(y1), float(x2), float(y2))


def _corners(person: Person) -> Sequence[str]:
    return [f"{corner:.5f}" for corner in person.corners]
