"""One recognition that a visitor asked for: its state, its clips as they come, its files."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from memvit.online.results import CSV_FILE, PREDICTIONS_FILE, SUMMARY_FILE, TIMELINE_FILE
from memvit.online.runs import Progress
from memvit.report.page import REPORT_FILE
from memvit.video import LiveEvent, LiveSource

Kind = Literal["file", "source", "camera"]
State = Literal["receiving", "waiting", "running", "complete", "partial", "stopped", "failed"]

UNFINISHED: frozenset[State] = frozenset({"receiving", "waiting", "running"})
RESULTS = (PREDICTIONS_FILE, CSV_FILE, TIMELINE_FILE, SUMMARY_FILE)

MAX_NAME = 120


class Job:
    """One recognition. The thread that runs it writes; those that serve visitors read.

    Args:
        id: nobody can guess it: who knows it may see the results.
        name: what the visitor calls the video. Nothing on the disk is called so.
        kind: an uploaded file; an address or camera that the server opens; the visitor's own camera.
        compare: recognise without memory as well.
        folder: its own, for all its files.

    Attributes:
        address: what the server opens, with its password; None for what visitors send.
        live: what to close for a live source to end.
        trouble: what is wrong with a live source at the moment, for its visitor; nothing: "".
        stopping: set when the visitor wants an end.
        watchers: connections that follow it.
        watched_s: when somebody last did, on the monotonic clock.
        picture: JPEG of what the model saw last; of live sources.
    """

    def __init__(self, id: str, name: str, kind: Kind, compare: bool, folder: Path) -> None:
        self.id = id
        self.name = name
        self.kind: Kind = kind
        self.compare = compare
        self.folder = folder
        self.state: State = "receiving"
        self.message: str | None = None
        self.done_s = 0.0
        self.total_s: float | None = None
        self.speed: float | None = None
        self.num_clips = 0
        self.address: str | None = None
        self.live: LiveSource | None = None
        self.trouble = ""
        self.stopping = threading.Event()
        self.ended_s: float | None = None
        self.watchers = 0
        self.watched_s = time.monotonic()
        self.picture: bytes | None = None
        self.making_report = threading.Lock()
        self._log = folder / "clips"

    @property
    def upload(self) -> Path:
        """Where the visitor's file is."""
        return self.folder / "upload"

    @property
    def results(self) -> Path:
        """Where what was recognised is."""
        return self.folder / "results"

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes."""
        return self.state not in UNFINISHED

    @property
    def has_video(self) -> bool:
        """Whether the video itself can be shown."""
        return self.kind == "file" and self.state != "receiving"

    def add_clip(self, clip: dict[str, Any]) -> None:
        """Writes down what was said of a clip. It goes to the disk: a day of clips does not fit in memory."""
        with open(self._log, "a", encoding="utf-8") as file:
            file.write(json.dumps(clip, ensure_ascii=False, allow_nan=False) + "\n")
        self.num_clips += 1

    def clips(self, first: int = 0) -> Iterator[str]:
        """The clips from number `first` on as JSON, those that are there by now."""
        if first >= self.num_clips:
            return
        with open(self._log, encoding="utf-8") as file:
            for number, line in enumerate(file):
                if line.endswith("\n") and number >= first:
                    yield line[:-1]

    def note_progress(self, progress: Progress) -> None:
        """How far it has come."""
        self.done_s, self.total_s = progress.done_s, progress.total_s
        self.speed = progress.done_s / max(progress.elapsed_s, 1e-9)

    def note_event(self, event: LiveEvent) -> None:
        """Something happened to the live source."""
        if event.kind in ("lost", "retry"):
            self.trouble = f"{event.message[:1].upper()}{event.message[1:]}. Trying again."
        elif event.kind != "dropped":
            self.trouble = ""

    def end(self, state: State, message: str | None = None) -> None:
        """Nothing more comes."""
        self.message, self.live, self.trouble, self.ended_s = message, None, "", time.monotonic()
        if state in ("complete", "partial") and self.total_s is None:
            self.total_s = self.done_s  # of a video that did not tell its length
        self.state = state  # last: who sees it sees the rest

    def files(self) -> list[str]:
        """Names of what can be downloaded."""
        if not self.has_ended or not self.results.is_dir():
            return []
        names = [name for name in RESULTS if (self.results / name).is_file()]
        return [*names, REPORT_FILE] if self.has_video and self.num_clips else names

    def describe(self, position: int, keep_s: float) -> dict[str, Any]:
        """What a visitor is told.

        Args:
            position: place in the queue while it waits, from 1.
            keep_s: how long it is kept once it has ended.
        """
        left_s = None if self.ended_s is None else max(self.ended_s + keep_s - time.monotonic(), 0.0)
        return {
            "id": self.id,
            "name": self.name,
            "kind": self.kind,
            "compare": self.compare,
            "state": "waiting" if self.state == "receiving" else self.state,
            "message": self.message,
            "trouble": self.trouble,
            "position": position,
            "done_s": round(self.done_s, 3),
            "total_s": None if self.total_s is None else round(self.total_s, 3),
            "speed": None if self.speed is None else round(self.speed, 2),
            "num_clips": self.num_clips,
            "has_video": self.has_video,
            "files": self.files(),
            "expires_s": None if left_s is None else round(left_s),
        }


def plain_name(name: str) -> str:
    """What to call a video of which a visitor gave a name: one short line, without folders."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    printable = "".join(character for character in last if character.isprintable()).strip()
    if len(printable) > MAX_NAME:
        printable = f"{printable[: MAX_NAME - 12]}…{printable[-11:]}"
    return printable or "video"
