"""One video on its way into a folder of results: what recognising clips and recognising people have in common."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Literal

import numpy as np

from memvit.online.results import SUMMARY_FILE, ResultFolder, Status, VideoResult, cannot_write
from memvit.video import Frame, ImageFolderReader, LiveSource, Prefetcher, VideoError, VideoReader, open_video
from memvit.video.writer import VideoWriter

VideoSource = VideoReader | ImageFolderReader | LiveSource

MAX_OVERLAY_FPS = 240.0
LIVE_GRACE_S = 1.0


@dataclass(frozen=True)
class Progress:
    """How far one video has come.

    Attributes:
        stage: "recognising", then "drawing" the overlay.
        done_s, total_s: seconds of video behind us, and of all of it; None where nobody knows.
        num_frames: decoded so far in this stage.
        elapsed_s: time since the stage began.
    """

    stage: Literal["recognising", "drawing"]
    done_s: float
    total_s: float | None
    num_frames: int
    elapsed_s: float


OnProgress = Callable[[Progress], None]


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Lets Ctrl-C wait, so that what is written down and what is counted agree; only where it would be noticed at all."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed = False

    def note(_: int, __: FrameType | None) -> None:
        nonlocal pressed
        pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt


class VideoRun:
    """One video on its way: how far it has come, and what its summary will say.

    Args:
        video: what is read.
        folder: where results go.
        model_name: stands in the summary.
        untrained: the weights are random.
        on_progress: called now and then.
        name: what results and messages call the video; its path or address where None.

    Attributes:
        name: of the video, an address without its password.
        message: one line about what is worth knowing; the video is damaged if `is_damaged`.
        num_frames, num_clips: decoded and recognised so far.
        start_s, end_s: what was recognised so far, seconds of the video.
    """

    files: ClassVar[tuple[str, ...]] = ()  # names of those that there may be, besides the summary

    def __init__(
        self,
        video: VideoSource,
        folder: Path,
        model_name: str,
        untrained: bool,
        on_progress: OnProgress | None,
        name: str | None = None,
    ) -> None:
        self.video = video
        self.folder = folder
        self.model_name = model_name
        self.untrained = untrained
        self._own_name = video.name if isinstance(video, LiveSource) else video.path
        self.name = self._own_name if name is None else name
        self.status: Status = "interrupted"
        self.message: str | None = None
        self.is_damaged = False
        self.num_frames = self.num_clips = 0
        self.start_s = self.end_s = 0.0 if isinstance(video, LiveSource) else video.start_s
        self.elapsed_s = 0.0
        self._began_s = time.monotonic()
        self._total_s = total_s(video)
        self._on_progress = on_progress

    def frames(self, max_duration_s: float | None = None) -> Iterator[Frame]:
        """The frames of the video, counted; a live source ends after `max_duration_s`."""
        timer: threading.Timer | None = None
        try:
            for frame in self.video:
                if isinstance(self.video, LiveSource) and max_duration_s is not None:
                    if timer is None:  # should the source fall silent, its times alone would not end it
                        timer = threading.Timer(max_duration_s + LIVE_GRACE_S, self.video.close)
                        timer.daemon = True
                        timer.start()
                    if frame.time_s >= max_duration_s:
                        return
                self.num_frames += 1
                yield frame
        finally:
            if timer is not None:
                timer.cancel()

    def has_come_to(self, end_s: float) -> None:
        """Notes that one more clip is recognised, up to `end_s`, and reports it."""
        self.num_clips += 1
        self.end_s = end_s
        self.elapsed_s = time.monotonic() - self._began_s
        if self._on_progress is not None:
            done_s = end_s - (0.0 if isinstance(self.video, LiveSource) else self.video.start_s)
            self._on_progress(Progress("recognising", done_s, self._total_s, self.num_frames, self.elapsed_s))

    def note_damage(self) -> None:
        """Takes down what of the video could not be read, once it was read to its end."""
        warning = None if isinstance(self.video, LiveSource) else self.video.warning
        self.message, self.is_damaged = warning and self._renamed(warning), warning is not None

    @contextlib.contextmanager
    def accounted(self, writer: ResultFolder) -> Iterator[None]:
        """Sees to it that the folder says how the block ended: well, on a damaged video, with an error, by the user.

        Raises:
            ValueError: the summary cannot be written; and whatever the block raises.
        """
        try:
            yield
            self.status = "partial" if self.is_damaged else "complete"
        except BaseException as error:
            self._end_badly(writer, error)
            raise
        try:
            self.result().save()
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def result(self) -> VideoResult:
        """How things stand."""
        live = self.video if isinstance(self.video, LiveSource) else None
        return VideoResult(
            video=self.name,
            folder=os.fspath(self.folder),
            status=self.status,
            num_clips=self.num_clips,
            num_frames=self.num_frames,
            start_s=self.start_s if self.num_clips else 0.0,
            end_s=self.end_s if self.num_clips else 0.0,
            elapsed_s=round(self.elapsed_s, 3),
            model=self.model_name,
            untrained=self.untrained,
            message=self.message,
            dropped_frames=live.dropped_frames if live else 0,
            reconnects=live.reconnects if live else 0,
            files=(*(name for name in self.files if (self.folder / name).exists()), SUMMARY_FILE),
            **self.findings(),
        )

    def findings(self) -> dict[str, Any]:
        """What was found, as further fields of `VideoResult`."""
        return {}

    def save_pictures(self) -> None:
        """Draws what needs no second look at the video."""

    def _renamed(self, message: str) -> str:
        return message.replace(self._own_name, self.name)

    def _end_badly(self, writer: ResultFolder, error: BaseException) -> None:
        """Leaves a folder that says what happened; none at all if nothing was recognised."""
        interrupted = isinstance(error, KeyboardInterrupt | GeneratorExit | SystemExit)
        self.status = "interrupted" if interrupted else "failed"
        # What comes up here, on a full disk for instance, must not hide the error that brought us here.
        with contextlib.suppress(OSError, ValueError):
            if not self.num_clips and not interrupted:
                writer.remove()
                return
            if not interrupted:
                self.message = self._renamed(" ".join(str(error).split())) or type(error).__name__
            self.save_pictures()
        with contextlib.suppress(OSError):
            self.result().save()


@contextlib.contextmanager
def opened(video: str | os.PathLike[str] | VideoSource) -> Iterator[VideoSource]:
    """Opens a video for the block; one that is open already stays so.

    Raises:
        VideoError: it cannot be opened.
    """
    if not isinstance(video, str | os.PathLike):
        yield video
        return
    source = open_video(video)
    try:
        yield source
    finally:
        source.close()


def check_second_look(video: VideoSource, purpose: str) -> None:
    """Refuses what cannot be read a second time: live sources and pipes.

    Args:
        video: what was opened.
        purpose: what it would be read again for, such as "a report".

    Raises:
        VideoError: it cannot.
    """
    if isinstance(video, LiveSource):
        what = f"{video.name} is live"
    elif os.path.exists(video.path) and stat.S_ISFIFO(os.stat(video.path).st_mode):
        what = f"{video.path} is a pipe"
    else:
        return
    raise VideoError(
        f"{what} and cannot be read a second time for {purpose}: record it and recognise the file, or leave out {purpose}"
    )


def redraw(
    video: VideoReader | ImageFolderReader,
    path: Path,
    draw: Callable[[np.ndarray, float], np.ndarray],
    *,
    scale: int = 1,
    on_progress: OnProgress | None = None,
) -> None:
    """Reads a video again and writes it with something drawn upon it, in its own rate.

    Args:
        video: the video, with the range of time that was recognised.
        path: of the video to write.
        draw: makes a frame, (H, W, 3) uint8, and its time what is written, of the same size.
        scale: how many times larger what is written is.
        on_progress: called now and then.

    Raises:
        VideoError: the video cannot be read.
        ValueError: it cannot be written.
    """
    info, began_s, length_s = video.info, time.monotonic(), total_s(video)
    width, height = info.width * scale, info.height * scale
    fps = min(info.average_fps or 30.0, MAX_OVERLAY_FPS)
    pictures = ((frame.time_s, frame.rgb(height, width)) for frame in video)
    try:
        with VideoWriter(path, width, height, fps) as writer, Prefetcher(pictures) as ahead:
            for time_s, rgb in ahead:
                if writer.coincides(time_s):  # nobody could see both; the writer's clock is coarser than some videos'
                    continue
                writer.write(draw(rgb, time_s), time_s)
                if on_progress is not None and writer.num_frames % 16 == 0:
                    elapsed_s = time.monotonic() - began_s
                    done_s = time_s - video.start_s
                    on_progress(Progress("drawing", done_s, length_s, writer.num_frames, elapsed_s))
    except OSError as error:
        raise cannot_write(path, error) from error


def total_s(video: VideoSource) -> float | None:
    """How long the range of time is that is read; None where the video does not tell: it may end before its range does."""
    if isinstance(video, LiveSource) or not video.info.duration_s:
        return None
    end_s = video.info.duration_s if video.end_s is None else min(video.end_s, video.info.duration_s)
    return max(end_s - video.start_s, 0.0)


def not_finite(name: str, start_s: float) -> ValueError:
    """The error for a model that says nothing about a clip: which video, and what to do."""
    return ValueError(
        f"{name}: the model's output for the clip at {start_s:.2f} s is NaN or infinite: use float32, or other weights"
    )
