"""Read streams step by step: what a thread or a worker process does for a loader."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import NamedTuple

import av
import numpy as np
import torch
from torch import Tensor

from memvit.datasets.augmentation import Augmentation
from memvit.datasets.clips import IGNORED, Annotation, Video, VideoDataset
from memvit.datasets.decoding import ClipDecoder
from memvit.datasets.streams import NOTHING, Segment, Stream, after, draws
from memvit.datasets.views import View, centre_view, clip_boxes

# What goes wrong with a video, as opposed to the program.
VIDEO_ERRORS = (ValueError, OSError, av.FFmpegError)

NO_BOXES = np.zeros((0, 4), np.float32)


class Trouble(NamedTuple):
    """What could not be read of a video.

    Attributes:
        video: its name.
        why: one line.
        lost: whether clips of it are missing.
    """

    video: str
    why: str
    lost: bool


@dataclass
class StreamClip:
    """One clip of a stream; filler unless something is put in.

    Attributes:
        annotation: with boxes in pixels of the clip; labels of filler are all `IGNORED`.
        starts: memory is to be forgotten before.
        pixels: uint8 (3, T, H, W) RGB; ``None`` for filler, and once stacked with those of other streams.
        present: whether it is no filler.
        video: name, "" at the end of a stream.
        start_s: when the clip starts in its video.
        troubles: what could not be read.
        opened: whether a video was opened for this clip.
        frame_boxes: float32 (n, 4), the annotation's boxes as fractions of the frame.
    """

    annotation: Annotation
    starts: bool
    pixels: Tensor | None = None
    present: bool = False
    video: str = ""
    start_s: float = 0.0
    troubles: list[Trouble] = field(default_factory=list)
    opened: bool = False
    frame_boxes: np.ndarray = field(default_factory=lambda: NO_BOXES)


@dataclass(frozen=True)
class ClipSource:
    """Everything that decides how the clips of a pass are made; goes to worker processes.

    Attributes:
        dataset: the videos.
        starts_s: per video, when its clips start.
        blank: annotation of filler.
        crop_size: pixels.
        keep_aspect: clips show whole frames.
        augmentation: what is drawn at random, if anything.
        seed, epoch: with the video and the stream, decide what is drawn.
    """

    dataset: VideoDataset
    starts_s: Sequence[np.ndarray]
    blank: Annotation
    crop_size: int
    keep_aspect: bool
    augmentation: Augmentation | None
    seed: int
    epoch: int

    def read(self, number: int, stream: Stream, first_step: int, num_steps: int) -> Generator[StreamClip, None, None]:
        """The clips ``first_step`` to ``num_steps`` of a stream, filler where it has ended.

        Args:
            number: of the stream among those of all processes.
            stream: what it shows.
            first_step: how many of its clips were read before.
            num_steps: clips of the longest stream.
        """
        num_left = num_steps - first_step
        for segment, num_read in after(stream, first_step):
            if segment.video == NOTHING:
                yield from (StreamClip(self.blank, starts=True) for _ in range(segment.num_clips - num_read))
            else:
                yield from self._read_segment(number, segment, num_read)
            num_left -= segment.num_clips - num_read
        for _ in range(num_left):
            yield StreamClip(self.blank, starts=True)

    def _read_segment(self, number: int, segment: Segment, num_read: int) -> Iterator[StreamClip]:
        video = self.dataset.videos[segment.video]
        starts_s = self.starts_s[segment.video][segment.first + num_read : segment.end].tolist()
        views: dict[int, View] = {}

        def view(height: int, width: int, clip: int) -> View:
            views[clip] = self._view(height, width, self._key(number, video, starts_s[clip]))
            return views[clip]

        taken_s = self._taken_s(number, video, starts_s)
        decoder = ClipDecoder(video, taken_s, self.dataset.timing, view, self._shifts_s(number, video, starts_s))
        lost = False
        with closing(_clips_or_trouble(decoder)) as clips:
            for index, start_s in enumerate(starts_s):
                made = StreamClip(
                    self.blank, index + num_read == 0, video=video.name, start_s=start_s, opened=index == 0
                )
                pixels = None if lost else next(clips)
                if isinstance(pixels, Trouble):
                    lost = True
                    made.troubles.append(pixels)
                elif pixels is not None:
                    key = self._key(number, video, start_s)
                    self._fill(made, pixels, self.dataset.annotate(video, start_s), views.pop(index), key)
                if index == len(starts_s) - 1:
                    made.troubles += [trouble for trouble in clips if isinstance(trouble, Trouble)]
                yield made

    def _key(self, number: int, video: Video, start_s: float) -> tuple[object, ...]:
        """What the draws for a clip depend on."""
        per_clip = self.augmentation is not None and self.augmentation.per_clip
        return (self.seed, self.epoch, video.name, number, float(start_s) if per_clip else None)

    def _view(self, height: int, width: int, key: tuple[object, ...]) -> View:
        if self.augmentation is None:
            return centre_view(height, width, self.crop_size, keep_aspect=self.keep_aspect)
        return self.augmentation.view(height, width, self.crop_size, draws("view", *key))

    def _taken_s(self, number: int, video: Video, starts_s: Sequence[float]) -> Sequence[float]:
        """When the clips that start then are taken instead, seconds; in general no longer in order of time."""
        if self.augmentation is None or not self.augmentation.clip_jitter:
            return starts_s
        taken_s = []
        for start_s in starts_s:
            earlier_s, later_s = self.dataset.annotate(video, start_s).room_s
            drawn = draws("clip", self.seed, self.epoch, video.name, number, start_s).uniform(-earlier_s, later_s)
            taken_s.append(start_s + self.augmentation.clip_jitter * float(drawn))
        return taken_s

    def _shifts_s(self, number: int, video: Video, starts_s: Sequence[float]) -> np.ndarray | None:
        """By how much frames are taken later than they would be, seconds (clips, frames)."""
        if self.augmentation is None or not self.augmentation.frame_jitter:
            return None
        timing = self.dataset.timing
        drawn = [
            draws("frames", self.seed, self.epoch, video.name, number, start_s).uniform(-1, 1, timing.num_frames)
            for start_s in starts_s
        ]
        return np.stack(drawn) * (self.augmentation.frame_jitter * timing.period_s)

    def _fill(
        self, made: StreamClip, pixels: np.ndarray, annotation: Annotation, view: View, key: tuple[object, ...]
    ) -> None:
        """Put a clip in the place of filler: apply what is drawn, bring boxes into its pixels."""
        clip = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # (T, 3, H, W)
        labels, boxes = annotation.labels, annotation.boxes
        if boxes is not None:
            made.frame_boxes = boxes
            boxes, inside = clip_boxes(view.boxes(boxes), view.height, view.width)
            labels = tuple(label[inside] for label in labels)
            made.frame_boxes = made.frame_boxes[inside]
        if self.augmentation is not None:
            clip, moved, inside = self.augmentation.change(
                clip, NO_BOXES if boxes is None else boxes, draws("change", *key)
            )
            if boxes is not None:
                boxes, labels = moved, tuple(label[inside] for label in labels)
                made.frame_boxes = made.frame_boxes[inside]
        made.pixels, made.present = clip.transpose(0, 1), True
        made.annotation = Annotation(labels, boxes)


def blank_annotation(annotation: Annotation) -> Annotation:
    """What filler carries, from the annotation of any clip: no boxes, labels that are ignored."""
    if annotation.boxes is not None:
        return Annotation(tuple(label[:0] for label in annotation.labels), NO_BOXES)
    return Annotation(tuple(np.full_like(label, IGNORED) for label in annotation.labels))


def _clips_or_trouble(decoder: ClipDecoder) -> Generator[np.ndarray | Trouble, None, None]:
    """The clips of a video, then what was wrong with it, if anything: a trouble in place of a clip means clips are lost."""
    name, num_planned = decoder.video.name, len(decoder.starts_s)
    num_read = 0
    try:
        for clip in decoder:
            num_read += 1
            yield clip
    except VIDEO_ERRORS as error:
        yield Trouble(name, str(error), lost=num_read < num_planned)
        return
    if num_read < num_planned:
        why = decoder.warning or (
            f"{decoder.video.path} ends at {decoder.last_s:.1f} s, before its clip at {decoder.starts_s[num_read]:.1f} s: "
            "replace the file, or correct its duration in the annotations"
        )
        yield Trouble(name, why, lost=True)
    elif decoder.warning:
        yield Trouble(name, decoder.warning, lost=False)


@dataclass
class Part:
    """One step of some consecutive streams of a rank: what a thread or a worker process hands over.

    Attributes:
        pixels: uint8 (n, 3, T, H, W) of those streams that show a clip; ``None`` if none does.
        clips: per stream, everything else about its clip.
    """

    pixels: Tensor | None
    clips: list[StreamClip]


def read_parts(
    source: ClipSource, numbers: Sequence[int], streams: Sequence[Stream], first_step: int, num_steps: int
) -> Iterator[Part]:
    """Read some streams side by side.

    Args:
        source: how clips are made.
        numbers: of the streams among those of all processes.
        streams: what they show.
        first_step: the first step to read.
        num_steps: of the pass.

    Raises:
        ValueError: clips of one step have different sizes.
    """
    with ExitStack() as stack:
        readers = []
        for number, stream in zip(numbers, streams, strict=True):
            reader = source.read(number, stream, first_step, num_steps)
            stack.callback(reader.close)
            readers.append(reader)
        for clips in zip(*readers, strict=True):
            pixels = _stack([clip.pixels for clip in clips if clip.pixels is not None])
            yield Part(pixels, [dataclasses.replace(clip, pixels=None) for clip in clips])


def check_sizes(clips: Sequence[Tensor]) -> None:
    """Refuse clips (3, T, H, W) that do not fit into one batch.

    Raises:
        ValueError: their sizes differ.
    """
    sizes = sorted({(clip.shape[-1], clip.shape[-2]) for clip in clips})
    if len(sizes) > 1:
        listed = ", ".join(f"{width}x{height}" for width, height in sizes)
        raise ValueError(
            f"videos of different shapes (clips of {listed} pixels) cannot share a batch when keep_aspect keeps their "
            "shapes: use batch_size=1, or leave keep_aspect out to take the centre"
        )


def _stack(clips: Sequence[Tensor]) -> Tensor | None:
    if not clips:
        return None
    check_sizes(clips)
    stacked = torch.empty(len(clips), *clips[0].shape, dtype=torch.uint8)
    for row, clip in zip(stacked, clips, strict=True):
        row.copy_(clip)
    return stacked
