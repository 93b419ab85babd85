"""A data set of small encoded videos whose frames carry their number, and what a clip of it should show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from memvit.datasets.clips import Annotation, Batch, ClipTiming, Task, Video
from memvit.video.writer import VideoWriter

FPS = 10
HEIGHT, WIDTH = 48, 64
TIMING = ClipTiming(num_frames=4, period_s=0.2, stride_s=0.8, num_times=2)


def picture(video: int, frame: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(height, width, 3) uint8: red counts frames in steps of 4, green videos in steps of 20; left is dark in blue."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0], rgb[..., 1] = 20 + 4 * (frame % 50), 20 + 20 * (video % 10)
    rgb[:, width // 2 :, 2] = 200
    return rgb


def write(path: Path, video: int, num_frames: int, size: tuple[int, int] = (HEIGHT, WIDTH), fps: int = FPS) -> Video:
    """Encode a video of that many frames."""
    with VideoWriter(path, size[1], size[0], fps) as writer:
        for frame in range(num_frames):
            writer.write(picture(video, frame, *size))
    return Video(path.stem, str(path), num_frames / fps)


def frames_of(clip: Tensor) -> list[int]:
    """Which frames (modulo 50) a clip (3, T, H, W) shows."""
    return [round((float(red) - 20) / 4) for red in clip[0].float().mean((-2, -1))]


def video_of(clip: Tensor) -> int:
    """Which video (modulo 10) a clip (3, T, H, W) shows."""
    return round((float(clip[1].float().mean()) - 20) / 20)


def visits(batches: Sequence[Batch]) -> list[tuple[str, float]]:
    """(video, start) of every clip that is present, in order of steps, then streams."""
    return [
        (video, start_s)
        for batch in batches
        for video, start_s, present in zip(batch.videos, batch.start_s, batch.present.tolist(), strict=True)
        if present
    ]


@dataclass
class CountedVideos:
    """Videos cut every ``timing.stride_s``; a clip's label is the index of its video and (frames) of its times."""

    videos: list[Video]
    timing: ClipTiming = TIMING
    task: Task = "clip"
    classes: tuple[tuple[str, ...], ...] = (tuple("abcdefghij"),)
    multi_label: bool = False
    starts_s: dict[str, list[float]] = field(default_factory=dict)
    boxes: np.ndarray | None = None

    def clip_starts(self, video: Video) -> np.ndarray:
        if video.name in self.starts_s:
            return np.array(self.starts_s[video.name])
        return np.arange(max(1, round(video.duration_s / self.timing.stride_s))) * self.timing.stride_s

    def annotate(self, video: Video, start_s: float) -> Annotation:
        label = next(index for index, other in enumerate(self.videos) if other.name == video.name)
        if self.task == "boxes":
            assert self.boxes is not None
            return Annotation((np.arange(len(self.boxes)),), self.boxes)
        return Annotation((np.full(self.timing.num_times if self.task == "frames" else (), label, np.int64),))
