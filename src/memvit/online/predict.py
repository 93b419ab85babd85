"""Recognise a whole video and keep what was found: lines as it happens, then a timeline, a summary and an overlay."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from memvit.online.prediction import ClipPrediction
from memvit.online.recognizer import OnlineRecognizer
from memvit.online.results import (
    CSV_FILE,
    OVERLAY_FILE,
    PREDICTIONS_FILE,
    SUMMARY_FILE,
    TIMELINE_FILE,
    UNTRAINED_NOTICE,
    ClipRecord,
    ResultWriter,
    Status,
    VideoResult,
    cannot_write,
    read_predictions,
)
from memvit.video import Frame, ImageFolderReader, LiveSource, Prefetcher, VideoError, VideoReader, open_video
from memvit.video.overlay import OverlayRenderer
from memvit.video.timeline import Timeline
from memvit.video.writer import VideoWriter

VideoSource = VideoReader | ImageFolderReader | LiveSource

# A timeline shows no more classes than this, and no fewer than the user wants listed.
TIMELINE_CLASSES = 8
MAX_OVERLAY_FPS = 240.0
LIVE_GRACE_S = 1.0


@dataclass(frozen=True)
class Progress:
    """How far one video has come.

    Attributes:
        stage: "recognising", then "drawing" the overlay.
        done_s, total_s: seconds of video behind us, and of all of it; None where nobody knows.
        num_frames: decoded so far in this stage.
        elapsed_s: time since the stage began.
    """

    stage: Literal["recognising", "drawing"]
    done_s: float
    total_s: float | None
    num_frames: int
    elapsed_s: float


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
    on_progress: Callable[[Progress], None] | None = None,
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
    with contextlib.ExitStack() as opened:
        source: VideoSource
        if isinstance(video, str | os.PathLike):
            source = open_video(video)
            opened.callback(source.close)
        else:
            source = video
        if isinstance(source, LiveSource) and overlay:
            raise VideoError(
                f"{source.name} is live and cannot be read a second time for an overlay: record it and recognise the file, or "
                "leave out the overlay"
            )
        run = _Run(recognizer, source, Path(folder), names, topk, max_duration_s, model_name, untrained, on_progress)
        writer = opened.enter_context(ResultWriter(folder, names))
        try:
            run.recognise(writer)
            run.save_timeline()
            if overlay:
                assert not isinstance(source, LiveSource)
                draw_overlay(source, folder, head_names=names, untrained=untrained, on_progress=on_progress)
            run.status = "partial" if run.message else "complete"
        except BaseException as error:
            run.end_badly(writer, error)
            raise
    result = run.result()
    try:
        result.save()
    except OSError as error:
        raise cannot_write(result.folder, error) from error
    return result


def draw_overlay(
    video: VideoReader | ImageFolderReader,
    folder: str | os.PathLike[str],
    *,
    head_names: Sequence[str] = ("",),
    untrained: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
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
    began_s, total_s = time.monotonic(), _total_s(video)
    shown: ClipRecord | None = None
    following = next(records, None)
    pictures = ((frame.time_s, frame.rgb(info.height, info.width)) for frame in video)
    fps = min(info.average_fps or 30.0, MAX_OVERLAY_FPS)
    try:
        with VideoWriter(path, info.width, info.height, fps) as writer, Prefetcher(pictures) as ahead:
            for time_s, rgb in ahead:
                while following is not None and following.start_s <= time_s + 1e-6:
                    shown, following = following, next(records, None)
                entries = _entries(shown, head_names) if shown is not None and time_s < shown.end_s else []
                writer.write(renderer.draw(rgb, entries, footer, time_s=time_s), time_s)
                if on_progress is not None and writer.num_frames % 16 == 0:
                    elapsed_s = time.monotonic() - began_s
                    done_s = time_s - video.start_s
                    on_progress(Progress("drawing", done_s, total_s, writer.num_frames, elapsed_s))
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


@dataclass
class _Run:
    """One video on its way: what the results of `predict_video` are made of."""

    recognizer: OnlineRecognizer
    video: VideoSource
    folder: Path
    head_names: tuple[str, ...]
    topk: int
    max_duration_s: float | None
    model_name: str
    untrained: bool
    on_progress: Callable[[Progress], None] | None
    status: Status = "interrupted"
    message: str | None = None
    num_frames: int = 0
    num_clips: int = 0
    elapsed_s: float = 0.0
    timeline: Timeline = field(init=False)
    seconds_at_top: list[defaultdict[str, float]] = field(init=False)

    def __post_init__(self) -> None:
        self.is_live = isinstance(self.video, LiveSource)
        self.name = self.video.name if isinstance(self.video, LiveSource) else self.video.path
        self.start_s = 0.0 if isinstance(self.video, LiveSource) else self.video.start_s
        title = f"{Path(self.name).name or self.name}  ·  {self.model_name}".removesuffix("  ·  ")
        notice = UNTRAINED_NOTICE if self.untrained else None
        self.timeline = Timeline(title=title, max_labels=TIMELINE_CLASSES, notice=notice)
        self.seconds_at_top = [defaultdict(float) for _ in self.head_names]

    def recognise(self, writer: ResultWriter) -> None:
        """Everything up to the last clip."""
        began_s, total_s = time.monotonic(), _total_s(self.video)
        stream = ("predict_video", self.name)
        try:
            # What waits here is not dropped when a live source is too fast: one clip of it is enough.
            prefetch = self.recognizer.grid.num_frames if self.is_live else 64
            for prediction in self.recognizer.run(self._frames(), stream, prefetch=prefetch, start_s=self.start_s):
                self._take(prediction, writer)
                self.elapsed_s = time.monotonic() - began_s
                if self.on_progress is not None:
                    done_s = self.timeline.end_s - self.start_s
                    self.on_progress(Progress("recognising", done_s, total_s, self.num_frames, self.elapsed_s))
        finally:
            if stream in self.recognizer.streams:  # it broke off: leave nothing behind
                self.recognizer.forget(stream)
                self.recognizer.finish(stream)
        self.message = None if isinstance(self.video, LiveSource) else self.video.warning
        if not self.num_clips:
            raise VideoError(f"no frame came from {self.name}: check that it is sending")

    def save_timeline(self) -> None:
        """Draws what was recognised so far, if anything was."""
        if self.num_clips:
            self.timeline.save(self.folder / TIMELINE_FILE)

    def end_badly(self, writer: ResultWriter, error: BaseException) -> None:
        """Leaves a folder that says what happened; none at all if nothing was recognised."""
        interrupted = isinstance(error, KeyboardInterrupt | GeneratorExit | SystemExit)
        self.status = "interrupted" if interrupted else "failed"
        # What comes up here, on a full disk for instance, must not hide the error that brought us here.
        with contextlib.suppress(OSError, ValueError):
            if not self.num_clips and not interrupted:
                writer.remove()
                return
            if not interrupted:
                self.message = " ".join(str(error).split()) or type(error).__name__
            if not (self.folder / TIMELINE_FILE).exists():
                self.save_timeline()
        with contextlib.suppress(OSError):
            self.result().save()

    def result(self) -> VideoResult:
        """How things stand."""
        files = (PREDICTIONS_FILE, CSV_FILE, TIMELINE_FILE, OVERLAY_FILE)
        live = self.video if isinstance(self.video, LiveSource) else None
        return VideoResult(
            video=self.name,
            folder=os.fspath(self.folder),
            status=self.status,
            num_clips=self.num_clips,
            num_frames=self.num_frames,
            start_s=self.timeline.start_s,
            end_s=self.timeline.end_s,
            elapsed_s=round(self.elapsed_s, 3),
            top=tuple(max(seconds, key=seconds.__getitem__) for seconds in self.seconds_at_top if seconds),
            model=self.model_name,
            untrained=self.untrained,
            message=self.message,
            dropped_frames=live.dropped_frames if live else 0,
            reconnects=live.reconnects if live else 0,
            files=(*(name for name in files if (self.folder / name).exists()), SUMMARY_FILE),
        )

    def _take(self, prediction: ClipPrediction, writer: ResultWriter) -> None:
        """Writes down one clip."""
        start_s, end_s = prediction.start_s, prediction.end_s
        if not all(np.isfinite(logits).all() for logits in prediction.logits):
            raise ValueError(
                f"{self.name}: the model's output for the clip at {start_s:.2f} s is NaN or infinite: use float32, or other "
                "weights"
            )
        best = tuple(tuple(head) for head in prediction.topk(max(self.topk, TIMELINE_CLASSES)))
        topk = tuple(head[: self.topk] for head in best)
        record = ClipRecord(self.name, prediction.clip, start_s, end_s, best, self.untrained)
        self.timeline.add(start_s, end_s, _entries(record, self.head_names))
        for seconds, head in zip(self.seconds_at_top, topk, strict=True):
            seconds[head[0][0]] += end_s - start_s
        writer.write(dataclasses.replace(record, topk=topk))
        self.num_clips += 1

    def _frames(self) -> Iterator[Frame]:
        """The frames, counted; a live source ends when it shall."""
        timer: threading.Timer | None = None
        try:
            for frame in self.video:
                if self.is_live and self.max_duration_s is not None:
                    if timer is None:  # should the source fall silent, its times alone would not end it
                        timer = threading.Timer(self.max_duration_s + LIVE_GRACE_S, self.video.close)
                        timer.daemon = True
                        timer.start()
                    if frame.time_s >= self.max_duration_s:
                        return
                self.num_frames += 1
                yield frame
        finally:
            if timer is not None:
                timer.cancel()


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


def _total_s(video: VideoSource) -> float | None:
    """How long the range of time is that is read, as far as known."""
    if isinstance(video, LiveSource):
        return None
    ends = [end_s for end_s in (video.end_s, video.info.duration_s) if end_s]
    return max(min(ends) - video.start_s, 0.0) if ends else None
