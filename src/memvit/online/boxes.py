"""Online recognition of what people do: keyframe by keyframe, with memory (paper section 5.1)."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from memvit.datasets.views import View, centre_view
from memvit.models.config import HeadConfig
from memvit.models.memory import Memory
from memvit.models.memvit import MeMViT
from memvit.online.engine import StepEngine, evaluating
from memvit.online.keyframes import KeyframeClip, KeyframeSampler, Look
from memvit.online.persons import Moment, Person, PersonSource
from memvit.online.prediction import activate, best_classes
from memvit.video import ClipTransform, Frame, Prefetcher

LOOK_SIDE = 800  # pixels of the short side; detectors see no more of larger frames


@dataclass(frozen=True)
class Sighting:
    """Who is there at a moment."""

    moment: Moment
    persons: tuple[Person, ...]


@dataclass(frozen=True)
class KeyframePrediction:
    """What people do at a keyframe.

    Attributes:
        keyframe: its number, from 0.
        time_s: when, seconds of the video.
        persons: who is there; nobody, sometimes.
        logits: (persons, classes), raw.
    """

    keyframe: int
    time_s: float
    persons: tuple[Person, ...]
    logits: np.ndarray
    head: HeadConfig

    @property
    def scores(self) -> np.ndarray:
        """Softmax or sigmoid of the logits, as the head says, (persons, classes)."""
        return activate(self.logits, self.head.activation)

    def topk(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """Per person, the `k` best (action, score), best first."""
        return [best_classes(scores, self.head, k) for scores in self.scores]


class BoxRecognizer:
    """Runs a model of boxes over videos: at every keyframe, what everybody who is there does.

        recognizer = BoxRecognizer(model)
        persons = DetectedPersons(create_detector())
        for prediction in recognizer.run(open_video("kitchen.mp4"), persons):
            print(prediction.time_s, prediction.persons, prediction.topk(1))

    Every keyframe is the middle of a clip of `num_frames` frames, `sampling_rate / fps` seconds apart, of which the whole
    picture is seen, its short side scaled to the model's `crop_size`. Keyframes without people are seen as well, so that
    memory holds them. Space is constant, however long the video is.

    Args:
        model: of task "boxes", with one head; put into eval mode.
        fps: frame rate that `sampling_rate` refers to; the model's own where None.
        sampling_rate: a clip takes every so-many-th frame; the model's own where None.
        dtype: run under autocast in this dtype; None or float32: as the model is.

    Raises:
        ValueError: a model of another task, or a rate of 0 or less.
    """

    def __init__(
        self,
        model: MeMViT,
        fps: float | None = None,
        sampling_rate: int | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = model.config
        if config.head.task != "boxes":
            unit = {"clip": "clips", "frames": "the token times of clips"}[config.head.task]
            raise ValueError(f"this model classifies {unit}, not boxes: use memvit predict, or OnlineRecognizer")
        if len(config.head.num_classes) != 1:
            raise ValueError(f"this model has {len(config.head.num_classes)} heads: detection takes models with one")
        fps = config.fps if fps is None else fps
        sampling_rate = config.sampling_rate if sampling_rate is None else sampling_rate
        for name, value in (("fps", fps), ("sampling_rate", sampling_rate)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be above 0")
        self.model = evaluating(model)
        self.period_s = sampling_rate / fps
        self.dtype = None if dtype in (None, torch.float32) else dtype
        self.engine = StepEngine(self.model, self.dtype)
        self.transform = ClipTransform(config.crop_size, tuple(config.mean), tuple(config.std))  # type: ignore[arg-type]

    def run(
        self,
        frames: Iterable[Frame],
        persons: PersonSource,
        *,
        start_s: float | None = None,
        prefetch: int = 4,
        on_sighting: Callable[[Sighting], None] | None = None,
    ) -> Iterator[KeyframePrediction]:
        """Recognises a whole video; decoding and scaling run ahead in a thread.

        Args:
            frames: of `memvit.video.open_video`, or any iterable.
            persons: who is where in this video.
            start_s: where keyframes begin; None: where the source does.
            prefetch: clips and frames that may wait for the model.
            on_sighting: called with everybody seen at every moment, keyframe or not, before what they do is known.

        Yields:
            Predictions, in order of time.

        Raises:
            VideoError: the frames are much wider than high, or the reverse, or cannot be read.
        """
        start_s = getattr(frames, "start_s", 0.0) if start_s is None else start_s
        memory: Memory | None = None
        sightings: deque[Sighting] = deque()  # of keyframes whose clips are not complete
        number = 0
        prepared = self._prepare(frames, persons.moments(start_s), persons.needs_pixels)
        with Prefetcher(prepared, prefetch) as ahead:
            for item in ahead:
                if isinstance(item, _Picture):
                    sighting = Sighting(item.moment, persons.find(item.moment, item.pixels))
                    if on_sighting is not None:
                        on_sighting(sighting)
                    if item.moment.is_keyframe:
                        sightings.append(sighting)
                else:
                    prediction, memory = self._recognize(item, sightings.popleft(), number, memory)
                    yield prediction
                    number += 1

    def _prepare(
        self, frames: Iterable[Frame], moments: Iterator[Moment], needs_pixels: bool
    ) -> Iterator[_Picture | _Clip]:
        """What the decoding thread does: chooses frames and scales them."""
        remaining = iter(frames)
        first = next(remaining, None)
        if first is None:
            return
        config = self.model.config
        view = centre_view(first.height, first.width, config.crop_size, keep_aspect=True)
        sampler = KeyframeSampler(moments, config.num_frames, self.period_s, view.frame)

        def prepare(shown: Iterator[Look | KeyframeClip]) -> Iterator[_Picture | _Clip]:
            for item in shown:
                if isinstance(item, Look):
                    yield _Picture(item.moment, _pixels(item.frame) if needs_pixels else None)
                else:
                    yield _Clip(item.moment, self.transform.clip(item.frames), view)

        for frame in itertools.chain([first], remaining):
            yield from prepare(sampler.push(frame))
        yield from prepare(sampler.finish())

    @torch.inference_mode()
    def _recognize(
        self, clip: _Clip, sighting: Sighting, number: int, memory: Memory | None
    ) -> tuple[KeyframePrediction, Memory]:
        weight = self.model.norm.weight
        clips = self.engine.to_device(clip.clip[None])
        height, width = clips.shape[-2:]
        corners = np.array([person.corners for person in sighting.persons]).reshape(-1, 4)
        boxes = torch.from_numpy(clip.view.boxes(corners).clip(0, (width, height, width, height)))
        with torch.autocast(weight.device.type, self.dtype, enabled=self.dtype is not None):
            logits, memory = self.model(clips, memory, boxes=[boxes.to(weight.device, weight.dtype)])
        assert isinstance(logits, torch.Tensor)
        prediction = KeyframePrediction(
            keyframe=number,
            time_s=clip.moment.time_s,
            persons=sighting.persons,
            logits=logits.float().cpu().numpy(),
            head=self.model.config.head,
        )
        return prediction, memory


@dataclass(frozen=True)
class _Picture:
    """What is on display at a moment, (H, W, 3) uint8; None where nobody looks at it."""

    moment: Moment
    pixels: np.ndarray | None


@dataclass(frozen=True)
class _Clip:
    """The clip around a keyframe, (3, T, H, W), normalised, and which part of the frames it shows."""

    moment: Moment
    clip: torch.Tensor
    view: View


def _pixels(frame: Frame) -> np.ndarray:
    """A frame as detectors see it, (H, W, 3) uint8, its short side no longer than `LOOK_SIDE`."""
    scale = min(1.0, LOOK_SIDE / min(frame.height, frame.width))
    return frame.rgb(round(frame.height * scale), round(frame.width * scale))
