"""Find people in a whole video, recognise what they do, and keep it: lines as it happens, then a summary and an overlay."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from memvit.online.boxes import BoxRecognizer, Sighting
from memvit.online.detections import (
    AVA_FILE,
    BOXES_FILE,
    DETECTIONS_FILE,
    DetectionRecord,
    DetectionWriter,
    read_detections,
    read_seen_boxes,
)
from memvit.online.persons import PersonSource
from memvit.online.results import OVERLAY_FILE, UNTRAINED_NOTICE, VideoResult
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
from memvit.online.trajectories import Trajectories
from memvit.video import ImageFolderReader, LiveSource, VideoError, VideoReader
from memvit.video.box_overlay import BoxOverlayRenderer, PersonBox, Rows, enlargement

NOBODY = "nobody was found"


def detect_video(
    recognizer: BoxRecognizer,
    video: str | os.PathLike[str] | VideoSource,
    find_persons: Callable[[VideoReader | ImageFolderReader], PersonSource],
    folder: str | os.PathLike[str],
    *,
    topk: int = 5,
    min_score: float = 0.001,
    overlay: bool = True,
    threshold: float = 0.3,
    csv_name: str | None = None,
    first_second: float = 0.0,
    model_name: str = "",
    untrained: bool = False,
    on_progress: OnProgress | None = None,
) -> VideoResult:
    """Recognises what the people in one video do, and writes it into a folder.

    `detections.jsonl`, `detections.csv` and `boxes.csv` grow with every keyframe; `overlay.mp4`, for which the video is read
    a second time, and `summary.json` follow at the end. Nothing grows in memory, however long the video is.

    Args:
        recognizer: the model and how clips are taken.
        video: a path or address, or what `memvit.video.open_video` gave, with a range of time.
        find_persons: says who is where in the video once it is open, `lambda video: DetectedPersons(detector)`.
        folder: made where missing; results of an earlier run in it are replaced.
        topk: actions listed per person.
        min_score: actions of a lower score are left out of `detections.csv`.
        overlay: draw `overlay.mp4`.
        threshold: actions of a lower score are not drawn.
        csv_name: what the tables call the video; the folder's name where None.
        first_second: what they call its beginning.
        model_name: stands in the results.
        untrained: the weights are random, and every result says so.
        on_progress: called after every keyframe, and now and then while drawing.

    Returns:
        How it ended: "complete", also if nobody was found, or "partial" if the video is damaged.

    Raises:
        VideoError: the video cannot be read, or is live; the keyframes before the damage, if any, are written.
        ValueError: an option is out of range, results cannot be written, all boxes that were given lie outside the video, or
            the model's output is not finite.
        KeyboardInterrupt: passed on once everything is in order; the folder's summary then says "interrupted".
    """
    check_scores(topk, min_score, threshold)
    with opened(video) as source:
        if isinstance(source, LiveSource):
            raise VideoError(
                f"{source.name} is live, and people are found in files only: record it and give the file (memvit predict can "
                "watch live)"
            )
        if overlay:
            check_second_look(source, "an overlay")
        run = _Run(source, Path(folder), model_name, untrained, on_progress)
        persons = find_persons(source)
        writer = DetectionWriter(
            folder,
            run.name,
            csv_name or Path(folder).name,
            first_second=first_second,
            topk=topk,
            min_score=min_score,
            untrained=untrained,
        )
        with writer, run.accounted(writer):
            run.recognise(recognizer, persons, writer)
            if overlay:
                draw_overlay(
                    source,
                    folder,
                    period_s=persons.period_s,
                    end_s=run.last_look_s,
                    threshold=threshold,
                    first_second=first_second,
                    untrained=untrained,
                    on_progress=on_progress,
                )
    return run.result()


def check_scores(topk: int, min_score: float, threshold: float) -> None:
    """Refuses options of `detect_video` that make no sense.

    Raises:
        ValueError: one does.
    """
    if topk < 1:
        raise ValueError(f"topk={topk}: list 1 action per person or more")
    for name, value in (("min_score", min_score), ("threshold", threshold)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} is no score: give 0 to 1")


def draw_overlay(
    video: VideoReader | ImageFolderReader,
    folder: str | os.PathLike[str],
    *,
    period_s: float,
    end_s: float,
    threshold: float = 0.3,
    first_second: float = 0.0,
    untrained: bool = False,
    on_progress: OnProgress | None = None,
) -> Path:
    """Draws `overlay.mp4` from a video and the detections in a folder, in the video's own rate; small videos are enlarged.

    Boxes move from where a person was seen to where the person was seen next. Beside them stands what the person did at the
    nearest keyframe.

    Args:
        video: the video, with the range of time that was recognised.
        folder: holds the detections, and gets the overlay.
        period_s: from one look for people to the next.
        end_s: when the last look was.
        threshold: actions of a lower score are not drawn.
        first_second: what the tables call the video's beginning.
        untrained: say on every frame that the weights are random.
        on_progress: called now and then.

    Raises:
        VideoError: the video cannot be read.
        ValueError: the overlay cannot be written.
    """
    path = Path(folder, OVERLAY_FILE)
    info = video.info
    scale = enlargement(info.width, info.height)
    renderer = BoxOverlayRenderer(info.width * scale, info.height * scale, duration_s=info.duration_s)
    footer = UNTRAINED_NOTICE if untrained else None
    trajectories = Trajectories(read_seen_boxes(folder, first_second), period_s, end_s)
    actions = _Actions(read_detections(folder), threshold)

    def draw(rgb: np.ndarray, time_s: float) -> np.ndarray:
        doing = actions.at(time_s)
        persons = [PersonBox(track, box, doing.get(track, ())) for track, box in trajectories.at(time_s).items()]
        return renderer.draw(rgb, persons, footer, time_s=time_s)

    redraw(video, path, draw, scale=scale, on_progress=on_progress)
    return path


class _Actions:
    """What everybody does at any time, asked in order: as at the nearest of the two keyframes around it that has them."""

    def __init__(self, records: Iterator[DetectionRecord], threshold: float) -> None:
        self._records = records
        self._threshold = threshold
        self._before: DetectionRecord | None = None
        self._after = next(records, None)

    def at(self, time_s: float) -> dict[int, Rows]:
        while self._after is not None and self._after.time_s <= time_s:
            self._before, self._after = self._after, next(self._records, None)
        around = [record for record in (self._before, self._after) if record is not None]
        doing: dict[int, Rows] = {}
        for record in sorted(around, key=lambda record: -abs(record.time_s - time_s)):  # the nearest last
            for person, actions in zip(record.persons, record.actions, strict=True):
                doing[person.track] = tuple(action for action in actions if action[1] >= self._threshold)
        return doing


class _Run(VideoRun):
    """One video on its way, keyframe by keyframe."""

    files = (DETECTIONS_FILE, AVA_FILE, BOXES_FILE, OVERLAY_FILE)

    def __init__(
        self, video: VideoSource, folder: Path, model_name: str, untrained: bool, on_progress: OnProgress | None
    ) -> None:
        super().__init__(video, folder, model_name, untrained, on_progress)
        self.last_look_s = self.start_s
        self.num_persons = self.num_boxes = 0
        self._best: Counter[str] = Counter()

    def recognise(self, recognizer: BoxRecognizer, persons: PersonSource, writer: DetectionWriter) -> None:
        """Everything up to the last keyframe."""

        def see(sighting: Sighting) -> None:
            self.last_look_s = sighting.moment.time_s
            self.num_persons = persons.num_persons
            writer.see(sighting)

        for prediction in recognizer.run(self.frames(), persons, start_s=self.start_s, on_sighting=see):
            if not np.isfinite(prediction.logits).all():
                raise not_finite(self.name, prediction.time_s)
            with uninterrupted():
                record = writer.write(prediction)
                self._best.update(actions[0][0] for actions in record.actions)
                self.num_boxes += len(record.persons)
                self.has_come_to(prediction.time_s)
        self.note_damage()
        if not self.num_persons and self.message is None:
            self.message = NOBODY

    def findings(self) -> dict[str, Any]:
        """The action that most boxes show, and how many people there are."""
        best = [action for action, _ in self._best.most_common(1)]
        return {"top": tuple(best), "num_persons": self.num_persons, "num_boxes": self.num_boxes}
