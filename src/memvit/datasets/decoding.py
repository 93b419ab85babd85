"""Decode the clips of one video in order, each frame once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path

import numpy as np

from memvit.datasets.clips import ClipTiming, Video
from memvit.datasets.views import View
from memvit.video.errors import VideoError
from memvit.video.frames import Frame
from memvit.video.images import ImageFolderReader, NumberedImages
from memvit.video.reader import VideoReader
from memvit.video.sampling import ClipSampler

# The frame on display at an instant comes before it. How far before is not known until it is read.
FIRST_BACK_OFF_S = 1.0


class ClipDecoder:
    """Iterate over consecutive clips of a video.

    The video is decoded from the first clip on in one pass, whether clips overlap or not, and only frames that are
    shown are converted to RGB. Instants before the video show its first frame, instants after it its last one. Where the
    video ends a whole clip or more before a clip begins, the iteration ends early.

    Args:
        video: which one.
        starts_s: when the clips start, ascending.
        timing: of the clips.
        view: which part of a frame a clip shows: of (height, width, number of the clip among ``starts_s``), height and
            width those of the video's first frame in pixels.
        shifts_s: by how much the frames of the clips are taken later, (clips, frames), as of `ClipSampler`.

    Attributes:
        warning: what of the video could not be read, if it was read to its end; ``None`` for a whole video.
        last_s: time of the newest frame.
    """

    def __init__(
        self,
        video: Video,
        starts_s: Sequence[float],
        timing: ClipTiming,
        view: Callable[[int, int, int], View],
        shifts_s: np.ndarray | None = None,
    ) -> None:
        self.video = video
        self.starts_s = starts_s
        self.warning: str | None = None
        self.last_s = 0.0
        self._timing = timing
        self._view = view
        self._shifts_s = shifts_s

    def __iter__(self) -> Iterator[np.ndarray]:
        """The clips, each (T, H, W, 3) uint8 RGB.

        Raises:
            VideoError: the video cannot be opened, or nothing in it can be decoded.
            OSError: reading failed.
        """
        sampler: ClipSampler[Frame] = ClipSampler(
            self.starts_s, self._timing.num_frames, self._timing.period_s, self._shifts_s
        )
        views: dict[int, View] = {}
        clips: dict[int, list[np.ndarray]] = {}
        num_given = 0

        def add(shown: list[tuple[int, int, Frame]]) -> Iterator[np.ndarray]:
            nonlocal num_given
            # A frame shown more than once is converted once, unless clips look at different parts of it.
            converted: dict[View, np.ndarray] = {}
            for clip, _, frame in shown:
                if clip not in views:
                    views[clip] = self._view(reader.info.height, reader.info.width, clip)
                view = views[clip]
                if view not in converted:
                    converted[view] = view.frame(frame)
                clips.setdefault(clip, []).append(converted[view])
            while num_given < sampler.num_complete:
                yield np.stack(clips.pop(num_given))
                num_given += 1

        with _frames_for(self.video, sampler) as (reader, frames):
            for frame in frames:
                yield from add(sampler.push(frame))
                self.last_s = frame.time_s
                if sampler.complete:
                    break
            else:
                yield from add(sampler.finish(self._timing.duration_s))
            # Only at its end does a reader know what was lost; that may be just behind the last clip.
            if self.video.duration_s - self.last_s <= self._timing.duration_s:
                for frame in frames:
                    self.last_s = frame.time_s
            self.warning = reader.warning


@contextmanager
def _frames_for(
    video: Video, sampler: ClipSampler[Frame]
) -> Iterator[tuple[VideoReader | ImageFolderReader, Iterator[Frame]]]:
    """Open a video at the frame that the first clip shows first: wherever decoding begins, clips show the same frames."""
    back_off_s = FIRST_BACK_OFF_S
    while True:
        start_s = max(0.0, sampler.earliest_s - back_off_s)
        with _open(video, start_s) as reader:
            frames = iter(reader)
            assert isinstance(frames, Generator)
            with closing(frames):
                first = _first(frames, needed=start_s == 0)
                if first is not None and (start_s == 0 or not sampler.begins_before(first)):
                    yield reader, chain([first], frames)
                    return
        back_off_s *= 8


def _first(frames: Iterator[Frame], needed: bool) -> Frame | None:
    """The first frame. That there is none is no error as long as it can be looked for further back."""
    try:
        return next(frames)
    except VideoError:
        if needed:
            raise
        return None


def _open(video: Video, start_s: float) -> VideoReader | ImageFolderReader:
    if video.images is None and not Path(video.path).is_dir():
        # Many videos are read at a time, so threads within each would only get into each other's way.
        return VideoReader(video.path, start_s, threads=1)
    if not video.duration_s > 0:
        raise VideoError(
            f"{video.path} is a folder of images but its duration is {video.duration_s} s: give its duration"
        )
    images = NumberedImages.counted(video.path) if video.images is None else video.images
    return ImageFolderReader(video.path, images.num_frames / video.duration_s, start_s, images=images)
