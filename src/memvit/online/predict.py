"""Recognise a whole video and keep what was found: lines as it happens, then a timeline, a summary and an overlay."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memvit.models.config import ACTION
from memvit.online.prediction import ClipPrediction, has_actions
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
from memvit.online.runs import (
    OnProgress,
    VideoRun,
    VideoSource,
    check_second_look,
    not_finite,
    opened,
    redraw,
    uninterrupted,
)
from memvit.video import ImageFolderReader, LiveSource, VideoError, VideoReader
from memvit.video.overlay import OverlayRenderer
from memvit.video.timeline import Timeline

# A timeline shows no more classes than this; of several heads, and of what they say together, this many of each.
TIMELINE_CLASSES, TIMELINE_CLASSES_EACH, MAX_TIMELINE_CLASSES = 8, 4, 24


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
    name: str | None = None,
) -> VideoResult:
    """Recognises one video, clip by clip, and writes what was found into a folder.

    `predictions.jsonl` and `predictions.csv` grow with every clip; `timeline.png`, `overlay.mp4` and `summary.json`
    follow at the end. Nothing grows in memory, however long the video is. An overlay shows with every frame what was
    recognised in its clip, so it is drawn in a second pass over the video.

    The classes of several heads make actions (`ClipPrediction.actions`), which are written beside them. What a model that
    anticipates says of a clip is written with the time that it is about, drawn at that time in the timeline, and shown in
    the overlay from the end of the clip on.

    Args:
        recognizer: the model and how clips are taken.
        video: a path or address, or what `memvit.video.open_video` gave, with a range of time or live options.
        folder: made where missing; results of an earlier run in it are replaced.
        topk: classes listed per clip and head, and actions per clip.
        overlay: draw `overlay.mp4` as well; not of live sources.
        max_duration_s: end a live source after this time; files have a range.
        head_names: what to call the heads of a model with several; where left out, as its config does, or "head 1", "head 2".
        model_name: stands in the results.
        untrained: the weights are random, and every result says so.
        on_progress: called after every clip, and now and then while drawing.
        name: what the results call the video; its path or address where None.

    Returns:
        How it ended: "complete", or "partial" if the video is damaged.

    Raises:
        VideoError: the video cannot be read; the clips before the damage, if any, are written.
        ValueError: an option is out of range, results cannot be written, or the model's output is not finite.
        KeyboardInterrupt: passed on once everything is in order; the folder's summary then says "interrupted".
    """
    names = head_names_of(recognizer, head_names)
    if topk < 1:
        raise ValueError(f"topk={topk}: list 1 class per clip or more")
    with opened(video) as source:
        if overlay:
            check_second_look(source, "an overlay")
        run = _Run(recognizer, source, Path(folder), names, topk, model_name, untrained, on_progress, name)
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

    A frame shows the classes of the clip it lies in, that is, what the model said once it had seen that clip to its end. What
    a model that anticipates said at the end of a clip is shown from then on until it said the next, with the time left.

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
        while following is not None and _shown_span(following)[0] <= time_s + 1e-6:
            shown, following = following, next(records, None)
        if shown is None or time_s >= _shown_span(shown)[1]:
            return renderer.draw(rgb, (), footer, time_s=time_s)
        heading = "" if shown.about_s is None else _when(shown.about_s - time_s)
        if len(head_names) == 1:
            return renderer.draw(rgb, shown.topk[0], footer, heading=heading, time_s=time_s)
        groups = list(zip(head_names, shown.topk, strict=True))
        return renderer.draw(rgb, shown.actions, footer, groups=groups, heading=heading, time_s=time_s)

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
        name: str | None,
    ) -> None:
        super().__init__(video, folder, model_name, untrained, on_progress, name)
        self.recognizer = recognizer
        self.head_names = head_names
        self.topk = topk
        title = f"{Path(self.name).name or self.name}  ·  {self.model_name}".removesuffix("  ·  ")
        self.head = recognizer.model.config.head
        rows = (ACTION, *head_names) if has_actions(self.head) else head_names
        each = TIMELINE_CLASSES if len(rows) == 1 else TIMELINE_CLASSES_EACH
        ahead_s = self.head.anticipation_s
        self.timeline = Timeline(
            title=title,
            max_labels=min(each * len(rows), MAX_TIMELINE_CLASSES),
            notice=UNTRAINED_NOTICE if self.untrained else None,
            remark=f"drawn at the time that it is about, {ahead_s:g} s after what was seen" if ahead_s else "",
            heads=rows,
            first_leads=has_actions(self.head),
            start_s=self.start_s if ahead_s else None,
        )
        self.seconds_at_top: list[defaultdict[str, float]] = [defaultdict(float) for _ in rows]

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
        """The class that was the best one for the longest time, per head, and the action."""
        top = [max(seconds, key=seconds.__getitem__) for seconds in self.seconds_at_top if seconds]
        action = top.pop(0) if top and has_actions(self.head) else None
        return {
            "top": tuple(top),
            "top_action": action,
            "head_names": self.head_names if len(self.head_names) > 1 else (),
            "anticipation_s": self.head.anticipation_s,
        }

    def _take(self, prediction: ClipPrediction, writer: ResultWriter) -> None:
        """Writes down one clip."""
        start_s, end_s = prediction.start_s, prediction.end_s
        if not all(np.isfinite(logits).all() for logits in prediction.logits):
            raise not_finite(self.name, start_s)
        num_best = max(self.topk, TIMELINE_CLASSES)
        best = tuple(tuple(head) for head in prediction.topk(num_best))
        actions = tuple(prediction.actions(num_best))
        rows = (actions, *best) if actions else best
        self.timeline.add(*self._span(prediction), *rows)
        for seconds, row in zip(self.seconds_at_top, rows, strict=True):
            seconds[row[0][0]] += end_s - start_s
        writer.write(
            ClipRecord(
                video=self.name,
                clip=prediction.clip,
                start_s=start_s,
                end_s=end_s,
                topk=tuple(head[: self.topk] for head in best),
                untrained=self.untrained,
                actions=actions[: self.topk],
                about_s=prediction.about_s,
            )
        )
        self.has_come_to(end_s)

    def _span(self, prediction: ClipPrediction) -> tuple[float, float]:
        """When the timeline shows a prediction: during its clip, or around the moment that it is about.

        The moments of two clips are as far apart as their ends, so they share the time between them.
        """
        if prediction.about_s is None:
            return prediction.start_s, prediction.end_s
        new_s = max(prediction.end_s - max(prediction.start_s, self.end_s), self.recognizer.grid.period_s)
        return max(prediction.about_s - new_s / 2, self.timeline.bins.start_s), prediction.about_s + new_s / 2


def head_names_of(recognizer: OnlineRecognizer, given: Sequence[str] | None = None) -> tuple[str, ...]:
    """What heads are called: nothing, where there is one."""
    head = recognizer.model.config.head
    num_heads = len(head.num_classes)
    if num_heads == 1:
        return ("",)
    if given is None:
        return head.names or tuple(f"head {i + 1}" for i in range(num_heads))
    if len(given) != num_heads or len(set(given)) != num_heads:
        raise ValueError(f"head_names={tuple(given)}: the model has {num_heads} heads, give each its own name")
    if ACTION in given:
        raise ValueError(f"head_names={tuple(given)}: {ACTION!r} is what the heads say together, give another name")
    return tuple(given)


def _shown_span(record: ClipRecord) -> tuple[float, float]:
    """From when to when the overlay shows what was said of a clip, unless the next takes its place.

    What is coming was not known before the end of the clip. What a clip shows is true during the clip.
    """
    return (record.start_s, record.end_s) if record.about_s is None else (record.end_s, math.inf)


def _when(ahead_s: float) -> str:
    """When something is expected that is so many seconds ahead."""
    tenths = round(10 * ahead_s)
    if tenths == 0:
        return "expected now"
    return f"expected in {tenths / 10:.1f} s" if tenths > 0 else f"expected {-tenths / 10:.1f} s ago"
