"""One stream on its way through the model: which frames wait, which clip they make, what is remembered."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memvit.models.config import HeadConfig
from memvit.models.memory import Memory
from memvit.models.memvit import MeMViT
from memvit.online.prediction import ClipPrediction, newest_time
from memvit.video import Frame


@dataclass(frozen=True)
class ClipGrid:
    """Which instants make a clip.

    Attributes:
        num_frames: frames of a clip.
        stride: frames from the start of a clip to the start of the next.
        period_s: seconds between two frames.
    """

    num_frames: int
    stride: int
    period_s: float


@dataclass(frozen=True)
class FrameClip:
    """A clip that has its frames: (H, W, 3) uint8 each, fewer than `num_frames` at the end of a stream."""

    frames: list[np.ndarray]
    start_s: float
    end_s: float


@dataclass(frozen=True)
class ReadyClip:
    """A clip for the model: (3, T, H, W), normalised; its last frames may repeat the one before them."""

    stream: Hashable
    clip: Tensor
    start_s: float
    end_s: float
    num_repeated: int = 0

    def prediction(
        self, number: int, logits: tuple[np.ndarray, ...], head: HeadConfig, period_s: float
    ) -> ClipPrediction:
        """What the logits of this clip, the `number`-th of its stream, say, and about when."""
        newest, seen_s = -1, self.end_s
        if head.task == "frames":
            num_frames, num_times = self.clip.shape[1], len(logits[0])
            newest = newest_time(num_frames - self.num_repeated, num_frames, num_times)
            last_frame = (newest + 1) * num_frames / num_times - 1
            seen_s = self.start_s + last_frame * period_s
        about_s = seen_s + head.anticipation_s if head.anticipation_s > 0 else None
        return ClipPrediction(self.stream, number, self.start_s, self.end_s, logits, head, about_s, newest)


@dataclass
class StreamState:
    """What is kept of one stream: at most a clip of frames, and its memory.

    Attributes:
        start_s: when the grid of sampled frames starts.
        next_index: index on that grid of the frame to come next.
        frames: frames that wait for their clip to be complete.
        num_new: frames at the end of `frames` that no clip has shown yet; below zero, frames still to be passed over.
        num_clips: clips recognised.
        num_pushed: frames pushed without a time.
        clip_size: (frames, height, width) of the clips that filled the memory.
        memory: of this stream alone; None before its first clip.
    """

    grid: ClipGrid
    start_s: float = 0.0
    next_index: int = 0
    frames: list[np.ndarray] = field(default_factory=list)
    num_new: int = 0
    num_clips: int = 0
    num_pushed: int = 0
    clip_size: tuple[int, ...] = ()
    memory: Memory | None = None

    def time_of(self, index: int) -> float:
        """The instant of a grid index, in seconds."""
        return self.start_s + index * self.grid.period_s

    def stamp(
        self, name: Hashable, pairs: Iterable[tuple[Frame | np.ndarray, float | None]], newest_s: float, fps: float
    ) -> list[Frame]:
        """The frames with their times, all checked before any is taken, so that an error loses none.

        Args:
            name: of the stream.
            pairs: frames, and their times where these are known.
            newest_s: the time of the frame before them.
            fps: the rate of frames without times.

        Raises:
            ValueError: a frame of another shape or type, or one that does not come after the one before it.
        """
        stamped: list[Frame] = []
        num_pushed = self.num_pushed
        for frame, time_s in pairs:
            if isinstance(frame, np.ndarray):
                if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
                    raise ValueError(
                        f"stream {name!r}: a frame must be (H, W, 3) uint8 RGB, not {frame.shape} {frame.dtype}"
                    )
                if time_s is None:
                    time_s = num_pushed / fps
                    num_pushed += 1
                frame = Frame(
                    time_s, frame.copy()
                )  # it waits here, and cameras are often read into one array again and again
            elif time_s is not None:
                frame = Frame(time_s, frame.picture, frame.sample_aspect)
            if not newest_s < frame.time_s < math.inf:
                raise ValueError(
                    f"stream {name!r}: a frame at {frame.time_s} s does not come after the one at {newest_s} s; push frames in "
                    "order of time"
                )
            newest_s = frame.time_s
            stamped.append(frame)
        self.num_pushed = num_pushed
        return stamped

    def add(self, index: int, pixels: np.ndarray) -> list[FrameClip]:
        """Puts a sampled frame into its clip; gives the clips that this completes, mostly none."""
        complete: list[FrameClip] = []
        if self.frames and self.frames[0].shape != pixels.shape:
            complete += self.flush()
            self.frames, self.num_new = [], 0
        self.next_index = index + 1
        self.num_new += 1
        if self.num_new <= 0:  # the stride is longer than a clip: what lies between clips is passed over
            return complete
        self.frames.append(pixels)
        if len(self.frames) == self.grid.num_frames:
            complete.append(self._clip())
            self.frames = self.frames[self.grid.stride :]
            self.num_new = min(0, self.grid.num_frames - self.grid.stride)
        return complete

    def flush(self) -> list[FrameClip]:
        """The last clip, if frames wait that no clip has shown."""
        return [self._clip()] if self.num_new > 0 else []

    def restart(self, start_s: float) -> list[FrameClip]:
        """Starts the grid anew after a gap; what waits becomes a clip of its own."""
        last = self.flush()
        self.frames, self.num_new, self.start_s, self.next_index = [], 0, start_s, 0
        return last

    def _clip(self) -> FrameClip:
        end = self.next_index
        return FrameClip(list(self.frames), self.time_of(end - len(self.frames)), self.time_of(end))

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors."""
        return {
            "start_s": self.start_s,
            "counters": [self.next_index, self.num_new, self.num_clips, self.num_pushed],
            "frames": torch.from_numpy(np.stack(self.frames)) if self.frames else torch.empty(0, dtype=torch.uint8),
            "clip_size": list(self.clip_size),
            "memory": None if self.memory is None else self.memory.state_dict(),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], grid: ClipGrid, model: MeMViT) -> StreamState:
        """Restores a stream for a model.

        Raises:
            ValueError: the memory is of another model.
        """
        next_index, num_new, num_clips, num_pushed = state["counters"]
        restored = cls(
            grid, state["start_s"], next_index, list(state["frames"].numpy()), num_new, num_clips, num_pushed
        )
        if state["memory"] is not None:
            restored.clip_size = tuple(state["clip_size"])
            restored.memory = model.new_memory(1, *restored.clip_size).load_state_dict(state["memory"])
        return restored
