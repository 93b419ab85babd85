"""What was recognised, on disk: a line per clip while it happens, a summary once a video is done.

A folder per video: `predictions.jsonl` and `predictions.csv` grow clip by clip and can be read meanwhile; `summary.json`
appears, whole, when the video has ended, and says how. As long as it is missing, the others are still growing or their
process died.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TextIO

from memvit.models.config import ACTION

PREDICTIONS_FILE = "predictions.jsonl"
CSV_FILE = "predictions.csv"
SUMMARY_FILE = "summary.json"
TIMELINE_FILE = "timeline.png"
OVERLAY_FILE = "overlay.mp4"

# Bytes in a file's name that are no UTF-8 become \udcXX, which JSON reads as the same name.
ESCAPED = "backslashreplace"

UNTRAINED_NOTICE = "weights are random: these predictions mean nothing"

CSV_COLUMNS = ("video", "clip", "start_s", "end_s", "head", "rank", "label", "score", "untrained", "about_s")

Labels = tuple[tuple[str, float], ...]
"""(label, score), best first."""

Status = Literal["complete", "partial", "interrupted", "failed"]


@dataclass(frozen=True)
class ClipRecord:
    """What a model said of one clip, as a line of `predictions.jsonl` has it.

    Attributes:
        video: the source, an address without its password.
        clip: number of the clip in its video, from 0.
        start_s, end_s: the clip in seconds of the video.
        topk: per head, its best classes.
        untrained: the weights were random, so the scores mean nothing.
        actions: the best combinations of one class of each head (`ClipPrediction.actions`); none where there are no such. A
            line has `actions` only where there are some.
        about_s: of a model that anticipates, the moment that all of this is about, seconds of the video; None: it is about
            the clip, and the line has no `about_s`.
    """

    video: str
    clip: int
    start_s: float
    end_s: float
    topk: tuple[Labels, ...]
    untrained: bool = False
    actions: Labels = ()
    about_s: float | None = None

    def to_json(self) -> str:
        """One line, without its end."""
        line: dict[str, Any] = {
            "video": self.video,
            "clip": self.clip,
            "start_s": round(self.start_s, 6),
            "end_s": round(self.end_s, 6),
        }
        if self.about_s is not None:
            line["about_s"] = round(self.about_s, 6)
        line["topk"] = [_plain(head) for head in self.topk]
        if self.actions:
            line["actions"] = _plain(self.actions)
        if self.untrained:
            line["untrained"] = True
        return json.dumps(line, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> ClipRecord:
        """Reads a line of `to_json`.

        Raises:
            ValueError: it is none.
        """
        try:
            data = json.loads(line)
            about_s = data.get("about_s")
            return cls(
                video=str(data["video"]),
                clip=int(data["clip"]),
                start_s=float(data["start_s"]),
                end_s=float(data["end_s"]),
                topk=tuple(_labels(head) for head in data["topk"]),
                untrained=bool(data.get("untrained", False)),
                actions=_labels(data.get("actions", ())),
                about_s=None if about_s is None else float(about_s),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no line of predictions ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class VideoResult:
    """How a video ended; `summary.json` holds it.

    Attributes:
        video: the source, an address without its password.
        folder: where its results are.
        status: "complete"; "partial" (the video is damaged: what could be read was recognised); "interrupted" (by the
            user); "failed" (by an error; the clips before it are recognised).
        num_clips, num_frames: clips recognised, frames decoded.
        start_s, end_s: first and last instant recognised, seconds of the video; both 0 without clips.
        elapsed_s: time that it took, without drawing.
        top: per head, the class that was the best one for the longest time; empty without clips.
        top_action: the same of the actions that the classes of several heads make; None where they make none.
        head_names: what the heads are called; empty where there is one.
        anticipation_s: what was said of a clip is about so many seconds after it; 0: about the clip.
        model: what the model is called.
        untrained: the weights were random.
        message: one line about what went wrong; None where nothing did.
        dropped_frames, reconnects: of live sources.
        num_persons, num_boxes: where people were looked for, how many were told apart and how often they were recognised.
        files: names of the files in the folder.
    """

    video: str
    folder: str
    status: Status
    num_clips: int
    num_frames: int
    start_s: float
    end_s: float
    elapsed_s: float
    top: tuple[str, ...] = ()
    top_action: str | None = None
    head_names: tuple[str, ...] = ()
    anticipation_s: float = 0.0
    model: str = ""
    untrained: bool = False
    message: str | None = None
    dropped_frames: int = 0
    reconnects: int = 0
    num_persons: int | None = None
    num_boxes: int | None = None
    files: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        """Seconds of video recognised."""
        return self.end_s - self.start_s

    @property
    def speed(self) -> float:
        """Seconds of video recognised per second; above 1 is faster than real time."""
        return self.duration_s / max(self.elapsed_s, 1e-9)

    def save(self) -> None:
        """Writes `summary.json` into the folder, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        path = Path(self.folder, SUMMARY_FILE)
        part = path.with_name(f"{path.name}.part")
        data = {name: value for name, value in dataclasses.asdict(self).items() if name != "folder"}
        if self.untrained:
            data["notice"] = UNTRAINED_NOTICE
        try:
            text = json.dumps(data, indent=2, ensure_ascii=False)
            part.write_text(text + "\n", encoding="utf-8", errors=ESCAPED)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def read_summary(folder: str | os.PathLike[str]) -> VideoResult:
    """How the video ended whose results are in a folder.

    Raises:
        FileNotFoundError: it has not ended, or its process died; or there are no results at all.
        ValueError: a damaged summary.
    """
    path = Path(folder, SUMMARY_FILE)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: recognition has not ended, or died; run memvit predict again")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        fields = {field.name for field in dataclasses.fields(VideoResult)} - {"folder"}
        values: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in data.items() if name in fields
        }
        return VideoResult(folder=os.fspath(folder), **values)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no summary ({error}); run memvit predict again") from error


def read_predictions(path: str | os.PathLike[str]) -> Iterator[ClipRecord]:
    """The clips in a `predictions.jsonl`, one after another; the file may still be growing.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is none of predictions; a last one without its end is left out.
    """
    path = Path(path)
    if path.is_dir():
        path = path / PREDICTIONS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: give a predictions.jsonl of memvit predict, or its folder")
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return  # it is being written
            try:
                record = ClipRecord.from_json(line)
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number}: {error}; remove the line or run memvit predict again"
                ) from error
            yield record


class ResultFolder:
    """Files in a folder that grow line by line; all that was written is on its way to the disk.

    Results that an earlier run left in the folder are removed. Two processes do not write into one folder at a time.

    Args:
        folder: made where missing.
        names: of the files to grow.
        stale: of further files of an earlier run.

    Raises:
        ValueError: the folder cannot be made, a file in it not be opened, or somebody else is writing there.
    """

    def __init__(self, folder: str | os.PathLike[str], names: Sequence[str], stale: Sequence[str] = ()) -> None:
        self.folder = Path(folder)
        self._files: dict[str, TextIO] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in names:  # to append: what somebody else is writing must not be cut off
                path = self.folder / name
                self._files[name] = open(path, "a", newline="", encoding="utf-8", errors=ESCAPED)  # noqa: SIM115
                _lock(self._files[name], self.folder)
            for file in self._files.values():
                if os.fstat(file.fileno()).st_size:
                    file.truncate(0)
            for name in stale:
                (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            self._close()
            raise cannot_write(self.folder, error) from error
        except ValueError:
            self._close()
            raise

    def append_line(self, name: str, line: str) -> None:
        """Appends a line to a file.

        Raises:
            ValueError: the disk is full or gone.
        """
        self._append(name, lambda file: file.write(line + "\n"))

    def append_rows(self, name: str, rows: Iterable[Sequence[object]]) -> None:
        """Appends rows to a CSV file.

        Raises:
            ValueError: the disk is full or gone.
        """
        self._append(name, lambda file: csv.writer(file, lineterminator="\n").writerows(rows))

    def remove(self) -> None:
        """Closes and removes the files, and the folder if nothing else is in it."""
        self._close()
        for name in self._files:
            (self.folder / name).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def _append(self, name: str, write: Callable[[TextIO], object]) -> None:
        try:
            write(self._files[name])
            self._files[name].flush()
        except OSError as error:
            self._close()
            raise cannot_write(self.folder, error) from error

    def _close(self) -> None:
        """Closes the files. All that was written is flushed already; what could not be fails here again."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()


def _lock(file: TextIO, folder: Path) -> None:
    """Keeps other processes from writing to a file until it is closed, where the system can.

    Raises:
        ValueError: another one is writing to it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"another process is writing its results to {folder}: wait for it, or choose another output folder"
        ) from error
    except OSError:
        return  # some network file systems have no locks


class ResultWriter(ResultFolder):
    """Writes `predictions.jsonl` and `predictions.csv`, clip by clip.

    The CSV has a row per class of every head, and with "action" as their head a row per action. Its last column, `about_s`, is
    empty unless the model anticipates.

    Args:
        folder: made where missing.
        head_names: per head, what the CSV calls it.

    Raises:
        ValueError: the folder cannot be made, or a file in it not be opened.
    """

    def __init__(self, folder: str | os.PathLike[str], head_names: Sequence[str]) -> None:
        super().__init__(folder, (PREDICTIONS_FILE, CSV_FILE), (SUMMARY_FILE, TIMELINE_FILE, OVERLAY_FILE))
        self.head_names = tuple(head_names)
        self.append_rows(CSV_FILE, [CSV_COLUMNS])

    def write(self, record: ClipRecord) -> None:
        """Appends a clip.

        Raises:
            ValueError: the disk is full or gone.
        """
        self.append_line(PREDICTIONS_FILE, record.to_json())
        clip = (record.video, record.clip, _seconds(record.start_s), _seconds(record.end_s))
        end = (str(record.untrained).lower(), "" if record.about_s is None else _seconds(record.about_s))
        heads = [*zip(self.head_names, record.topk, strict=True), (ACTION, record.actions)]
        self.append_rows(
            CSV_FILE,
            [
                (*clip, head, rank, label, short(score), *end)
                for head, classes in heads
                for rank, (label, score) in enumerate(classes, start=1)
            ],
        )


def cannot_write(path: str | os.PathLike[str], error: OSError) -> ValueError:
    """The error for results that cannot be written: which, why, and what to do."""
    place = error.filename or os.fspath(path)
    return ValueError(f"cannot write {place} ({error.strerror or error}): free space or choose another output folder")


def short(score: float) -> float:
    """Six digits are more than a score means."""
    return float(f"{score:.6g}")


def _seconds(time_s: float) -> str:
    return f"{time_s:.6f}".rstrip("0").rstrip(".")


def _plain(classes: Labels) -> list[dict[str, Any]]:
    return [{"label": label, "score": short(score)} for label, score in classes]


def _labels(classes: Iterable[dict[str, Any]]) -> Labels:
    return tuple((str(entry["label"]), float(entry["score"])) for entry in classes)
