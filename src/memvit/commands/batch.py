"""Many videos, one after another: what goes wrong with one stops none of the others."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from memvit.commands.inputs import expand, result_names
from memvit.commands.models import ChosenModel
from memvit.commands.terminal import progress_bar, reason, say, stdout_console
from memvit.online.results import OVERLAY_FILE, SUMMARY_FILE, UNTRAINED_NOTICE, VideoResult, read_summary
from memvit.online.runs import OnProgress, VideoSource
from memvit.report import REPORT_FILE, write_report
from memvit.video import LiveSource, is_live, open_video, without_password

logger = logging.getLogger(__name__)

Recognise = Callable[[str, VideoSource, Path, OnProgress], VideoResult]
"""Recognises a video: how it is named on the command line, what was opened, the folder for its results."""

INTERRUPTED = 130


@dataclass(frozen=True)
class Reading:
    """How videos are read: `start_s` to `end_s`, folders at `image_fps`, live sources as `LiveSource` says."""

    start_s: float = 0.0
    end_s: float | None = None
    image_fps: float = 30.0
    drop: Literal["oldest", "none"] = "oldest"
    max_attempts: int = 5

    def open(self, source: str) -> VideoSource:
        """Opens a video.

        Raises:
            VideoError: it cannot be.
        """
        if is_live(source) and not self.start_s and self.end_s is None:
            return LiveSource(source, drop=self.drop, max_attempts=self.max_attempts)
        return open_video(source, fps=self.image_fps, start_s=self.start_s, end_s=self.end_s)


class Batch:
    """Recognises videos and keeps account of them.

    Args:
        console: where messages and progress go.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.results: list[VideoResult] = []
        self.failed: list[str] = []
        self.untrained = False

    def expand(self, inputs: Sequence[str]) -> list[str]:
        """The videos that inputs stand for; those that stand for none have failed."""
        sources = []
        for source in inputs:
            try:
                sources += expand(source)
            except (ValueError, OSError) as error:
                self._fail(source, error)
        return sources

    def run(
        self,
        sources: Sequence[str],
        root: Path,
        reading: Reading,
        chosen: ChosenModel,
        recognise: Recognise,
        *,
        resume: Sequence[str] | None = None,
    ) -> int:
        """Recognises the videos, results in one folder each under `root`; returns the exit code.

        Args:
            sources: the videos.
            root: folder for the folders of results.
            reading: how videos are read.
            chosen: the model.
            recognise: does it.
            resume: leave out videos that an earlier run has done, with these files among its results; None: none.
        """
        num_done = 0
        for number, (source, name) in enumerate(zip(sources, result_names(sources), strict=True), start=1):
            folder = root / name
            done = None if resume is None else _result_of_earlier_run(source, folder, chosen.name, resume)
            if done is not None:
                self.results.append(done)
                num_done += 1
                continue
            earlier = _changed(folder)
            try:
                _check_place(source, folder)
                with reading.open(source) as video, progress_bar(self.console, name) as show:
                    self._warn_if_untrained(chosen)
                    (folder / REPORT_FILE).unlink(missing_ok=True)  # of an earlier run; it would show other results
                    result = recognise(source, video, folder, show)
            except KeyboardInterrupt:
                return self._interrupted(folder, earlier, len(sources) - number)
            except Exception as error:
                self._fail(source, error)
                self._add_what_is_there(folder, earlier)
                continue
            self.results.append(result)
            if not self.console.is_terminal and len(sources) > 1:
                say(self.console, f"{result.video}: {_clips(result.num_clips)}, {result.speed:.1f}x real time")
        if num_done:
            videos = "1 video was" if num_done == 1 else f"{num_done:,} videos were"
            say(self.console, f"{videos} done already in {root}")
        return self.report()

    def report(self) -> int:
        """Prints what became of all videos; returns the exit code."""
        if self.results:
            stdout_console().print(self._table())
        partial = [result.video for result in self.results if result.status == "partial"]
        if partial:
            say(self.console, f"damaged, and recognised as far as they can be read: {', '.join(partial)}", "yellow")
        if self.failed and len(self.failed) + len(self.results) > 1:
            say(self.console, f"failed: {', '.join(self.failed)}", "red")
        return 1 if self.failed or partial else 0

    def _warn_if_untrained(self, chosen: ChosenModel) -> None:
        if chosen.untrained and not self.untrained:
            self.untrained = True
            say(self.console, f"warning: {chosen.name}: {UNTRAINED_NOTICE}", "bold yellow")

    def _fail(self, source: str, error: Exception) -> None:
        name, text = without_password(source), reason(error)
        self.failed.append(name)
        say(self.console, f"error: {text if name in text else f'{name}: {text}'}", "red")
        logger.debug("where it comes from", exc_info=error)

    def _interrupted(self, folder: Path, earlier: float | None, num_left: int) -> int:
        self._add_what_is_there(folder, earlier)
        num_clips = sum(result.num_clips for result in self.results)
        left = f"; not begun: {num_left} more" if num_left else ""
        say(self.console, f"interrupted: {_clips(num_clips)} written to {folder.parent}{left}", "yellow")
        self.report()
        return INTERRUPTED

    def _add_what_is_there(self, folder: Path, earlier: float | None) -> None:
        """Accounts for a video that broke off, unless what is there is of an earlier run, whose summary was of that time."""
        if earlier is not None and _changed(folder) == earlier:
            say(self.console, f"warning: {folder} still holds the results of an earlier run", "yellow")
            return
        try:
            self.results.append(read_summary(folder))
        except (ValueError, OSError):
            return  # nothing was recognised

    def _table(self) -> Table:
        caption = UNTRAINED_NOTICE if any(result.untrained for result in self.results) else None
        table = Table(caption=caption, caption_style="bold yellow", caption_justify="left")
        table.add_column("video", overflow="fold")
        table.add_column("status")
        find_persons = any(result.num_persons is not None for result in self.results)
        for heading in ("clips", *(["people"] if find_persons else []), "duration", "speed"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column(_top_heading(self.results), overflow="fold")
        table.add_column("results", overflow="fold")
        for result in self.results:
            notes = [f"{result.dropped_frames:,} frames dropped"] if result.dropped_frames else []
            notes += [f"{result.reconnects} reconnections"] if result.reconnects else []
            notes += ["nobody was found"] if result.num_persons == 0 else []
            table.add_row(
                _plain(result.video),
                ", ".join([result.status, *notes]),
                f"{result.num_clips:,}",
                *([f"{result.num_persons or 0:,}"] if find_persons else []),
                f"{result.duration_s:,.1f} s",
                f"{result.speed:,.1f}x real time",
                _plain(_top(result)),
                _plain(result.folder),
            )
        return table


def _check_place(source: str, folder: Path) -> None:
    """Refuses results that would overwrite their own video.

    Raises:
        ValueError: they would.
    """
    path, target = Path(source).resolve(), folder.resolve()
    if path.is_dir() and target == path:
        raise ValueError(f"the results of {source} would go among its images: choose another --out")
    if path.is_file() and path.parent == target and path.name in (OVERLAY_FILE, REPORT_FILE):
        raise ValueError(f"the results of {source} would take its place: choose another --out")


def _changed(folder: Path) -> float | None:
    """When the summary in a folder was written; None: there is none."""
    try:
        return (folder / SUMMARY_FILE).stat().st_mtime
    except OSError:
        return None


def _result_of_earlier_run(source: str, folder: Path, model_name: str, files: Sequence[str]) -> VideoResult | None:
    """What an earlier run has made of a video, if it came to its end and neither video nor model have changed since."""
    try:
        result = read_summary(folder)
        is_older = not os.path.exists(source) or os.stat(source).st_mtime <= (folder / SUMMARY_FILE).stat().st_mtime
    except (ValueError, OSError):
        return None
    is_same = (result.video, result.model) == (without_password(source), model_name)
    has_all = all((folder / name).is_file() for name in files)
    return result if result.status in ("complete", "partial") and is_same and is_older and has_all else None


def add_report(result: VideoResult, source: str, image_fps: float, show: OnProgress) -> VideoResult:
    """Writes `report.html` beside the other results of a video, and lists it among them.

    Raises:
        ValueError: it cannot be written, or the video is too large for it.
    """
    path = write_report(result.folder, source, image_fps=image_fps, on_progress=show)
    files = tuple(dict.fromkeys((*result.files, path.name)))
    result = dataclasses.replace(result, files=files)
    result.save()
    return result


def _top_heading(results: Sequence[VideoResult]) -> str:
    what = "top class" if all(result.top_action is None for result in results) else "top action"
    ahead_s = max(result.anticipation_s for result in results)
    return f"{what}, {ahead_s:g} s ahead" if ahead_s else what


def _top(result: VideoResult) -> str:
    """What was the best for the longest time: of several heads the action first, then their classes, each on its line."""
    if not result.head_names:
        return ", ".join(result.top)
    heads = [f"{name}: {label}" for name, label in zip(result.head_names, result.top, strict=False)]
    return "\n".join([*filter(None, [result.top_action]), *heads])


def _clips(number: int) -> str:
    return "1 clip" if number == 1 else f"{number:,} clips"


def _plain(text: str) -> str:
    """Text that rich shall not take for markup."""
    from rich.markup import escape

    return escape(text)
