"""Recognising what a visitor gave, in a thread of its own, with the model that all of them share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from memvit.app.camera import write_picture
from memvit.app.job import Job
from memvit.models.memvit import MeMViT
from memvit.online.engine import StepEngine
from memvit.online.predict import predict_video
from memvit.online.prediction import ClipPrediction
from memvit.online.recognizer import OnlineRecognizer
from memvit.online.results import short
from memvit.online.runs import VideoSource
from memvit.online.stream import ReadyClip
from memvit.video import VideoError

logger = logging.getLogger(__name__)

TOPK = 10
WENT_WRONG = "Something went wrong on the server; its log has the details."


class Stopped(KeyboardInterrupt):
    """The visitor, or the server's end, stops a recognition: what `predict_video` takes for an interruption."""


class WatchedRecognizer(OnlineRecognizer):
    """A recognizer of one stream that hands on every clip, if wanted with what the model says of it without its past.

    Args:
        model, engine: as for `OnlineRecognizer`; the engine is shared.
        on_clip: called with the clip, what was said of it, and what without memory (None unless `compare`).
        compare: run every clip a second time, with an empty memory.
        rates: how clips are taken, as for `OnlineRecognizer`.
    """

    def __init__(
        self,
        model: MeMViT,
        engine: StepEngine,
        on_clip: Callable[[ReadyClip, ClipPrediction, ClipPrediction | None], None],
        *,
        compare: bool = False,
        **rates: Any,
    ) -> None:
        super().__init__(model, engine=engine, **rates)
        self._on_clip = on_clip
        self._compare = compare

    def recognize(self, ready: Sequence[ReadyClip]) -> list[ClipPrediction]:
        """As `OnlineRecognizer.recognize`, clip by clip."""
        predictions: list[ClipPrediction] = []
        for clip in ready:
            predictions += super().recognize([clip])
            without = self._without_memory(clip, predictions[-1].clip) if self._compare else None
            self._on_clip(clip, predictions[-1], without)
        return predictions

    def _without_memory(self, clip: ReadyClip, number: int) -> ClipPrediction:
        with torch.inference_mode():
            empty = self.model.new_memory(1, *clip.clip.shape[1:])
        logits, _ = self.engine.step([clip.clip], [empty])
        return clip.prediction(number, tuple(head[0] for head in logits), self.model.config.head, self.grid.period_s)


def recognise(
    job: Job,
    open_source: Callable[[], VideoSource],
    model: MeMViT,
    engine: StepEngine,
    *,
    rates: Mapping[str, Any],
    max_duration_s: float,
    on_clip: Callable[[], None],
    **options: Any,
) -> None:
    """Runs a job to its end, whatever that is, and says in the job how it ended.

    A visitor is told in a sentence what is wrong with a video; of anything else, that the server's log has the details.

    Args:
        job: gets the clips and the end.
        open_source: gives what is read, which is closed at the end; live sources are in `job.live` by then.
        model, engine: shared by all jobs.
        rates: how clips are taken, as for `OnlineRecognizer`.
        max_duration_s: a live source ends after it.
        on_clip: called after every clip.
        options: as `predict_video` takes them.
    """

    def take(clip: ReadyClip, prediction: ClipPrediction, without: ClipPrediction | None) -> None:
        if job.live is None and job.stopping.is_set():  # a live source is closed instead
            raise Stopped
        if job.kind != "file":
            job.picture = write_picture(_newest_picture(clip, recognizer))
        if not all(np.isfinite(logits).all() for logits in prediction.logits):
            return  # `predict_video` says what is wrong
        job.add_clip(_describe(prediction, without))
        on_clip()

    try:
        recognizer = WatchedRecognizer(model, engine, take, compare=job.compare, **rates)
        with open_source() as source:
            if job.stopping.is_set():  # before there was anything to close
                raise Stopped
            if job.live is not None:
                recognizer.max_gap_s = recognizer.grid.num_frames * recognizer.grid.period_s
            result = predict_video(
                recognizer,
                source,
                job.results,
                topk=TOPK,
                max_duration_s=max_duration_s,
                on_progress=job.note_progress,
                name=job.name,
                **options,
            )
        assert result.status in ("complete", "partial")
        job.end("partial" if result.status == "partial" else "complete", result.message)
    except Stopped:
        job.end("stopped")
    except VideoError as error:
        if job.stopping.is_set():
            job.end("stopped")
            return
        logger.info("%s (%s) cannot be recognised: %s", job.id[:8], job.name, error)
        job.end("failed", plain_reason(error, job))
    except Exception:
        logger.exception("%s (%s) failed", job.id[:8], job.name)
        job.end("failed", WENT_WRONG)


def plain_reason(error: Exception, job: Job) -> str:
    """What is wrong with a video, for its visitor: where it lies on the server is nothing to them."""
    text = " ".join(str(error).split()).replace(str(job.upload), job.name).replace(str(job.folder), job.name)
    return text if text.startswith(job.name) else text[:1].upper() + text[1:]


def _describe(prediction: ClipPrediction, without: ClipPrediction | None) -> dict[str, Any]:
    return {
        "clip": prediction.clip,
        "start_s": round(prediction.start_s, 4),
        "end_s": round(prediction.end_s, 4),
        "about_s": None if prediction.about_s is None else round(prediction.about_s, 4),
        **_classes(prediction),
        "without": None if without is None else _classes(without),
    }


def _classes(prediction: ClipPrediction) -> dict[str, Any]:
    return {
        "topk": [_listed(head) for head in prediction.topk(TOPK)],
        "actions": _listed(prediction.actions(TOPK)),
    }


def _listed(classes: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"label": label, "score": short(score)} for label, score in classes]


def _newest_picture(clip: ReadyClip, recognizer: OnlineRecognizer) -> np.ndarray:
    """What the model saw last, (H, W, 3) uint8 RGB."""
    newest = clip.clip[:, clip.clip.shape[1] - clip.num_repeated - 1]  # (3, H, W)
    std, mean = (torch.tensor(values).view(3, 1, 1) for values in (recognizer.transform.std, recognizer.transform.mean))
    pixels: np.ndarray = newest.mul(std).add(mean).mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return pixels
