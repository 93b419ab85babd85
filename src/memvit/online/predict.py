"""Recognise a whole video and keep what was found: lines as it happens, then a timeline, a summary and an overlay."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memvit.online.prediction import ClipPrediction
from memvit.online.recognizer import OnlineRecognizer
from memvit.online.results import (
    CSV_FILE,
    OVERLAY_FILE,
    PREDICTIONS_FILE,
    TIMELINE_FILE,
    UNTRAINED_NOTICE,
    ClipRecord,
    ResultWriter,
    VideoResult,
    read_predictions,
)
from memvit.online.runs import OnProgress, VideoRun, VideoSource, not_finite, opened, redraw, uninterrupted
from memvit.video import ImageFolderReader, LiveSource, VideoError, VideoReader
from memvit.video.overlay import OverlayRenderer
from memvit.video.timeline import Timeline

# A timeline shows no more classes than this, and no fewer than the user wants listed.
TIMELINE_CLASSES = 8


def predict_video(
    recognizer: OnlineRecognizer,
    video: str | os.PathLike[str] | VideoSource,
    folder: str | os.PathLike[str],
    *,
    topk: int = 5,
    overlay: bool = False,
    max_duration_s: float | None = None,
    head_names: Sequence[str] | None = None,
    model_name: str = "",
    untrained: bool = False,
    on_progress: OnProgress | None = None,
) -> VideoResult:
    """Recognises one video, clip by clip, and writes what was found into a folder.

    `predictions.jsonl` and `predictions.csv` grow with every clip; `timeline.png`, `overlay.mp4` and `summary.json`
    follow at the end. Nothing grows in memory, however long the video is. An overlay shows with every frame what was
    recognised in its clip, so it is drawn in a second pass over the video.

    Args:
        recognizer: the model and how clips are taken.
        video: a path or address, or what `memvit.video.open_video` gave, with a range of time or live options.
        folder: made where missing; results of an earlier run in it are replaced.
        topk: classes listed per clip and head.
        overlay: draw `overlay.mp4` as well; not of live sources.
        max_duration_s: end a live source after this time; files have a range.
        head_names: what to call the heads of a model with several; "head 1", "head 2", ... where left out.
        model_name: stands in the results.
        untrained: the weights are random, and every result says so.
        on_progress: called after every clip, and now and then while drawing.

    Returns:
        How it ended: "complete", or "partial" if the video is damaged.

    Raises:
        VideoError: the video cannot be read; the clips before the damage, if any, are written.
        ValueError: an option is out of range, results cannot be written, or the model's output is not finite.
        KeyboardInterrupt: passed on once everything is in order; the folder's summary then says "interrupted".
    """
    names = _head_names(recognizer, head_names)
    if topk < 1:
        raise ValueError(f"topk={topk}: list 1 class per clip or more")
    with opened(video) as source:
        if isinstance(source, LiveSource) and overlay:
            raise VideoError(
                f"{source.name} is live and cannot be read a second time for an overlay: record it and recognise the file, or "
                "leave out the overlay"
            )
        run = _Run(recognizer, source, Path(folder), names, topk, model_name, untrained, on_progress)
        with ResultWriter(folder, names) as writer, run.accounted(writer):
            run.recognise(writer, max_duration_s)
            run.save_pictures()
            if overlay:
                assert not isinstance(source, LiveSource)
                draw_overlay(source, folder, head_names=names, untrained=untrained, on_progress=on_progress)
    return run.result()


def draw_overlay(
    video: VideoReader | ImageFolderReader,
    folder: str | os.PathLike[str],
    *,
    head_names: Sequence[str] = ("",),
    untrained: bool = False,
    on_progress: OnProgress | None = None,
) -> Path:
    """Draws `overlay.mp4` from a video and the `predictions.jsonl` in a folder, in the video's own size and rate.

    A frame shows the classes of the clip it lies in, that is, what the model said once it had seen that clip to its end.

    Args:
        video: the video, with the range of time that was recognised.
        folder: holds the predictions, and gets the overlay.
        head_names: as for `predict_video`.
        untrained: say on every frame that the weights are random.
        on_progress: called now and then.

    Raises:
        VideoError: the video cannot be read.
        ValueError: the overlay cannot be written.
    """
    path = Path(folder, OVERLAY_FILE)
    info = video.info
    records = read_predictions(folder)
    renderer = OverlayRenderer(info.width, info.height, duration_s=info.duration_s)
    footer = UNTRAINED_NOTICE if untrained else None
    shown: ClipRecord | None = None
    following = next(records, None)

    def draw(rgb: np.ndarray, time_s: float) -> np.ndarray:
        nonlocal shown, following
        while following is not None and following.start_s <= time_s + 1e-6:
            shown, following = following, next(records, None)
        entries = _entries(shown, head_names) if shown is not None and time_s < shown.end_s else []
        return renderer.draw(rgb, entries, footer, time_s=time_s)

    redraw(video, path, draw, on_progress=on_progress)
    return path


class _Run(VideoRun):
    """One video on its way, clip by clip: also gathers what the timeline shows."""

    files = (PREDICTIONS_FILE, CSV_FILE, TIMELINE_FILE, OVERLAY_FILE)

    def __init__(
        self,
        recognizer: OnlineRecognizer,
        video: VideoSource,
        folder: Path,
        head_names: tuple[str, ...],
        topk: int,
        model_name: str,
        untrained: bool,
        on_progress: OnProgress | None,
    ) -> None:
        super().__init__(video, folder, model_name, untrained, on_progress)
        self.recognizer = recognizer
        self.head_names = head_names
        self.topk = topk
        title = f"{Path(self.name).name or self.name}  ·  {self.model_name}".removesuffix("  ·  ")
        notice = UNTRAINED_NOTICE if self.untrained else None
        self.timeline = Timeline(title=title, max_labels=TIMELINE_CLASSES, notice=notice)
        self.seconds_at_top: list[defaultdict[str, float]] = [defaultdict(float) for _ in self.head_names]

    def recognise(self, writer: ResultWriter, max_duration_s: float | None) -> None:
        """Everything up to the last clip."""
        stream = ("predict_video", self.name)
        # What waits here is not dropped when a live source is too fast: one clip of it is enough.
        prefetch = self.recognizer.grid.num_frames if isinstance(self.video, LiveSource) else 64
        frames = self.frames(max_duration_s)
        try:
            for prediction in self.recognizer.run(frames, stream, prefetch=prefetch, start_s=self.start_s):
                with uninterrupted():
                    self._take(prediction, writer)
        finally:
            if stream in self.recognizer.streams:  # it broke off: leave nothing behind
                self.recognizer.forget(stream)
                self.recognizer.finish(stream)
        self.note_damage()
        if not self.num_clips:
            raise VideoError(f"no frame came from {self.name}: check that it is sending")

    def save_pictures(self) -> None:
        """Draws what was recognised so far, if anything was."""
        if self.num_clips and not (self.folder / TIMELINE_FILE).exists():
            self.timeline.save(self.folder / TIMELINE_FILE)

    def findings(self) -> dict[str, Any]:
        """The class that was the best one for the longest time, per head."""
        return {"top": tuple(max(seconds, key=seconds.__getitem__) for seconds in self.seconds_at_top if seconds)}

    def _take(self, prediction: ClipPrediction, writer: ResultWriter) -> None:
        """Writes down one clip."""
        start_s, end_s = prediction.start_s, prediction.end_s
        if not all(np.isfinite(logits).all() for logits in prediction.logits):
            raise not_finite(self.name, start_s)
        best = tuple(tuple(head) for head in prediction.topk(max(self.topk, TIMELINE_CLASSES)))
        topk = tuple(head[: self.topk] for head in best)
        record = ClipRecord(self.name, prediction.clip, start_s, end_s, best, self.untrained)
        self.timeline.add(start_s, end_s, _entries(record, self.head_names))
        for seconds, head in zip(self.seconds_at_top, topk, strict=True):
            seconds[head[0][0]] += end_s - start_s
        writer.write(dataclasses.replace(record, topk=topk))
        self.has_come_to(end_s)


def _head_names(recognizer: OnlineRecognizer, given: Sequence[str] | None) -> tuple[str, ...]:
    """What heads are called: nothing, where there is one."""
    num_heads = len(recognizer.model.config.head.num_classes)
    if num_heads == 1:
        return ("",)
    if given is None:
        return tuple(f"head {i + 1}" for i in range(num_heads))
    if len(given) != num_heads or len(set(given)) != num_heads:
        raise ValueError(f"head_names={tuple(given)}: the model has {num_heads} heads, give each its own name")
    return tuple(given)


def _entries(record: ClipRecord, head_names: Sequence[str]) -> list[tuple[str, float]]:
    """All classes of a clip as pictures label them: "verb: cut" where there are several heads."""
    return [
        (f"{name}: {label}" if name else label, score)
        for name, head in zip(head_names, record.topk, strict=True)
        for label, score in head
    ]
