"""What every data set gives: videos, the clips that they are cut into, and what is known about each clip."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from memvit.video.images import NumberedImages

Task = Literal["clip", "frames", "boxes"]

# A label that carries neither loss nor metric; of several labels per clip (multi-label), a row of it.
IGNORED = -1


@dataclass(frozen=True)
class Video:
    """One video of a data set.

    Attributes:
        name: as the annotations call it.
        path: of the file, or of a folder of images.
        duration_s: seconds.
        height, width: of its frames, pixels; 0 where unknown.
        images: of a folder of images, which of them are which frames; None: they are counted.
    """

    name: str
    path: str
    duration_s: float
    height: int = 0
    width: int = 0
    images: NumberedImages | None = None


@dataclass(frozen=True)
class ClipTiming:
    """Which instants a clip shows.

    Attributes:
        num_frames: frames of a clip.
        period_s: seconds between two of them.
        stride_s: seconds from the start of a clip to the start of the next.
        num_times: token times of a clip, each with a label in the task "frames".
    """

    num_frames: int
    period_s: float
    stride_s: float
    num_times: int

    @property
    def duration_s(self) -> float:
        """Seconds that a clip covers."""
        return self.num_frames * self.period_s


@dataclass(frozen=True)
class Annotation:
    """What is known about one clip.

    Attributes:
        labels: per head, the class: int64 of shape () for the task "clip", (num_times,) for "frames", (n,) for "boxes";
            `IGNORED` where there is none. With several labels at a time float32 of one more axis, (..., classes), of 0
            and 1, or all `IGNORED`.
        boxes: for the task "boxes", (n, 4) x1, y1, x2, y2 as fractions of the frame's width and height; n may be 0.
        room_s: how much earlier and how much later the clip could be taken and still show what its labels say, seconds, both
            0 or more. Training with `Augmentation.clip_jitter` makes use of it.
    """

    labels: tuple[np.ndarray, ...]
    boxes: np.ndarray | None = None
    room_s: tuple[float, float] = (0.0, 0.0)


class VideoDataset(Protocol):
    """Videos with annotations. Must be picklable: worker processes get a copy.

    Attributes:
        task: what is labelled: clips, the token times in them, or boxes.
        classes: per head, the names of its classes.
        multi_label: whether several classes of a head can be true at a time.
        timing: of the clips.
        videos: in a fixed order.
    """

    task: Task
    classes: tuple[tuple[str, ...], ...]
    multi_label: bool
    timing: ClipTiming

    @property
    def videos(self) -> Sequence[Video]:
        """The videos, in a fixed order."""
        ...

    def clip_starts(self, video: Video) -> np.ndarray:
        """When the clips of a video start, float64 seconds, ascending. A clip may reach beyond the video at either end."""
        ...

    def annotate(self, video: Video, start_s: float) -> Annotation:
        """What is known about the clip of a video that starts then."""
        ...


@runtime_checkable
class GroupedDataset(VideoDataset, Protocol):
    """A data set in which several clips answer one question: those inside a segment, or the views of a video.

    What a model says of the clips of a group is averaged, and the group is measured.

    Attributes:
        num_groups: how many there are.
    """

    num_groups: int

    def group(self, video: str, start_s: float) -> int:
        """The group of the clip of a video that starts then; -1: none, its answer does not count."""
        ...

    def measure(self, scores: Sequence[np.ndarray], answered: np.ndarray) -> dict[str, float]:
        """The metrics of the data set, in percent.

        Args:
            scores: per head, float32 (num_groups, classes): the mean score of a group's clips, from 0 to 1.
            answered: bool (num_groups,): which groups any clip was seen of; the scores of the others are 0.
        """
        ...


@dataclass
class Batch:
    """Clip t of B streams.

    Attributes:
        clips: uint8 (B, 3, T, H, W), RGB.
        starts: bool (B,), the stream starts a video here (or starts itself): its memory is to be forgotten before.
        present: bool (B,), False: no clip but filler (the stream has ended, or its video could not be read), without loss
            and metric.
        labels: per head as in `Annotation`, with B in front; for boxes all boxes of the batch one after another.
        boxes: for the task "boxes", per clip float32 (n_i, 4), x1, y1, x2, y2 in pixels of the clip.
        videos: per clip, the name of its video; "" for filler at the end of a stream.
        start_s: per clip, when it starts in its video.
        epoch: which pass over the data this is, from 0.
        step: which batch of the pass, from 0.
        failures: what could not be read since the batch before: (video, why).
        frame_boxes: the boxes as the annotations have them, fractions of the frame's width and height.
    """

    clips: Tensor
    starts: Tensor
    present: Tensor
    labels: tuple[Tensor, ...]
    boxes: list[Tensor] | None
    videos: list[str]
    start_s: list[float]
    epoch: int
    step: int
    failures: list[tuple[str, str]] = field(default_factory=list)
    frame_boxes: list[Tensor] | None = None

    def __len__(self) -> int:
        return self.clips.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """A copy on a device."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=non_blocking)
            return type(value)(map(move, value)) if isinstance(value, list | tuple) else value

        return dataclasses.replace(self, **{f.name: move(getattr(self, f.name)) for f in dataclasses.fields(self)})

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, from which copies to a GPU need not be waited for."""

        def pin(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.pin_memory()
            return type(value)(map(pin, value)) if isinstance(value, list | tuple) else value

        return dataclasses.replace(self, **{f.name: pin(getattr(self, f.name)) for f in dataclasses.fields(self)})
