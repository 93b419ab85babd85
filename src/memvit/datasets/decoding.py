"""Decode the clips of one video, each frame once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np

from memvit.datasets.augmentation import GREY
from memvit.datasets.clips import ClipTiming, Video
from memvit.datasets.views import View
from memvit.video.errors import VideoError
from memvit.video.frames import Frame
from memvit.video.images import ImageFolderReader, NumberedImages
from memvit.video.reader import VideoReader
from memvit.video.sampling import TOLERANCE_S, ClipSampler

# The frame on display at an instant comes before it. How far before is not known until it is read.
FIRST_BACK_OFF_S = 1.0


class ClipDecoder:
    """Iterate over clips of a video.

    The video is decoded from the earliest clip on in one pass, whether clips overlap or not, and only frames that are shown
    are converted to RGB. Of a video that is images, only those that are shown are read.

    Instants before the video show its first frame, instants after it its last one. A clip that lies wholly before the video
    shows nothing, not even the first frame, which its last instant comes before: it is grey (`GREY`), which is about 0 once
    normalised, so that it looks like neither a dark scene nor a bright one. Where the video ends a whole clip or more before
    a clip and all that follow it begin, the iteration ends early.

    Args:
        video: which one.
        starts_s: when the clips start. They are given in this order; one that starts before another that comes earlier in it
            is kept until then.
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
        instants_s = np.asarray(starts_s, np.float64)[:, None] + np.arange(timing.num_frames) * timing.period_s
        self._instants_s = instants_s if shifts_s is None else instants_s + shifts_s  # (clips, T)
        self._shifts_s = shifts_s
        # As of `ClipSampler`, the frame of an instant may come this much after it.
        self._tolerance_s = min(TOLERANCE_S, timing.period_s / 4)

    def __iter__(self) -> Iterator[np.ndarray]:
        """The clips, each (T, H, W, 3) uint8 RGB.

        Raises:
            VideoError: the video cannot be opened, or nothing in it can be decoded.
            OSError: reading failed.
        """
        timing = self._timing
        before_video = self._instants_s[:, -1] < -self._tolerance_s
        by_start = np.argsort(self.starts_s, kind="stable")
        seen = by_start[~before_video[by_start]]  # which clip each of the sampler's is
        starts_s = [self.starts_s[clip] for clip in seen]
        shifts_s = None if self._shifts_s is None else self._shifts_s[seen]
        sampler: ClipSampler[Frame] = ClipSampler(starts_s, timing.num_frames, timing.period_s, shifts_s)
        with self._frames_for(sampler, seen) as (reader, frames):
            clips = _Clips(
                timing.num_frames, before_video, lambda clip: self._view(reader.info.height, reader.info.width, clip)
            )
            for frame in frames:
                clips.add((int(seen[number]), shown) for number, _, shown in sampler.push(frame))
                yield from clips.take(len(self.starts_s))
                self.last_s = frame.time_s
                if sampler.complete:
                    break
            else:
                num_begun = self._num_begun()
                rest = ((int(seen[number]), shown) for number, _, shown in sampler.finish(float("inf")))
                clips.add((clip, shown) for clip, shown in rest if clip < num_begun)
                yield from clips.take(num_begun)
            # Only at its end does a reader know what was lost; that may be just behind the last clip.
            if self.video.duration_s - self.last_s <= timing.duration_s:
                for frame in frames:
                    self.last_s = frame.time_s
            self.warning = reader.warning

    def _num_begun(self) -> int:
        """How many clips there are up to the last one that begins before a whole clip has passed since the last frame."""
        begun = np.flatnonzero(np.asarray(self.starts_s) <= self.last_s + self._timing.duration_s)
        return int(begun[-1]) + 1 if len(begun) else 0

    @contextmanager
    def _frames_for(
        self, sampler: ClipSampler[Frame], seen: np.ndarray
    ) -> Iterator[tuple[VideoReader | ImageFolderReader, Iterator[Frame]]]:
        """Open the video at the frame that is shown first: wherever decoding begins, clips show the same frames."""
        images = _images_of(self.video)
        if images is not None:
            with self._open_images(images, seen) as reader, closing(_iterate(reader)) as frames:
                yield reader, frames
            return
        back_off_s = FIRST_BACK_OFF_S
        while True:
            start_s = max(0.0, sampler.earliest_s - back_off_s)
            # Many videos are read at a time, so threads within each would only get into each other's way.
            with (
                VideoReader(self.video.path, start_s, threads=1) as video,
                closing(video.read(sampler.shows)) as frames,
            ):
                first = _first(frames, needed=start_s == 0)
                if first is not None and (start_s == 0 or not sampler.begins_before(first)):
                    yield video, chain([first], frames)
                    return
            back_off_s *= 8

    def _open_images(self, images: NumberedImages, seen: np.ndarray) -> ImageFolderReader:
        """A reader of the images that some clips show."""
        video = self.video
        if images.fps is None and not video.duration_s > 0:
            raise VideoError(
                f"{video.path} holds images but their duration is {video.duration_s} s: give it, or how many there are a second"
            )
        fps = images.num_frames / video.duration_s if images.fps is None else images.fps
        times_s = images.numbers / fps
        wanted = np.unique(np.searchsorted(times_s[1:] - self._tolerance_s, self._instants_s[seen], side="right"))
        return ImageFolderReader(video.path, fps, images=images, wanted=wanted)


class _Clips:
    """Puts clips together from the frames that they show, and hands them out in order.

    Args:
        num_frames: of a clip.
        before_video: bool (clips,): which of them show nothing.
        view: which part of a frame a clip shows.
    """

    def __init__(self, num_frames: int, before_video: np.ndarray, view: Callable[[int], View]) -> None:
        self.num_frames = num_frames
        self.before_video = before_video
        self.view = cache(view)
        self.num_taken = 0
        self._frames: dict[int, list[np.ndarray]] = {}

    def add(self, shown: Iterable[tuple[int, Frame]]) -> None:
        """Takes what clips show next, as (clip, frame)."""
        # A frame shown more than once is converted once, unless clips look at different parts of it.
        converted: dict[tuple[float, View], np.ndarray] = {}
        for clip, frame in shown:
            view = self.view(clip)
            if (frame.time_s, view) not in converted:
                converted[frame.time_s, view] = view.frame(frame)
            self._frames.setdefault(clip, []).append(converted[frame.time_s, view])

    def take(self, num_clips: int) -> Iterator[np.ndarray]:
        """The clips that are complete and come next, up to a number of them."""
        while self.num_taken < num_clips:
            clip = self.num_taken
            if self.before_video[clip]:
                view = self.view(clip)
                yield np.full((self.num_frames, view.height, view.width, 3), GREY, np.uint8)
            elif len(self._frames.get(clip, ())) == self.num_frames:
                yield np.stack(self._frames.pop(clip))
            else:
                return
            self.num_taken += 1


def _iterate(reader: ImageFolderReader) -> Generator[Frame, None, None]:
    frames = iter(reader)
    assert isinstance(frames, Generator)
    return frames


def _first(frames: Iterator[Frame], needed: bool) -> Frame | None:
    """The first frame. That there is none is no error as long as it can be looked for further back."""
    try:
        return next(frames)
    except VideoError:
        if needed:
            raise
        return None


def _images_of(video: Video) -> NumberedImages | None:
    if video.images is None and Path(video.path).is_dir():
        return NumberedImages.counted(video.path)
    return video.images
