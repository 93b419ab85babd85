"""Frames in, a video file out: streaming, atomic, with the frames' own timestamps where they have them."""

from __future__ import annotations

import contextlib
import math
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream

Codec = Literal["h264", "mpeg4"]

# What may encode each codec, best first. MPEG-4 Part 2 is part of every FFmpeg build; libx264 is not.
_ENCODERS: dict[str, tuple[str, ...]] = {"h264": ("libx264", "libopenh264", "mpeg4"), "mpeg4": ("mpeg4",)}
_CONTAINERS = (".mp4", ".mov", ".m4v", ".mkv")

_MAX_TICKS_PER_S = 65_535  # the most that MPEG-4 Part 2 can express
_BT709 = 1  # FFmpeg's code for BT.709 as matrix, primaries and transfer function
_MPEG_RANGE = 1


class VideoWriter:
    """Encodes RGB frames to a video file, one at a time, in constant memory.

    The file appears under its name only when the `with` block ends well; until then it grows as `NAME.part.SUFFIX` in
    the same folder, which an error removes. A file already under that name stays whole until then.

    Args:
        path: the file to write; .mp4, .mov, .m4v or .mkv.
        width: of the frames, pixels. An odd size is encoded one larger, its edge repeated (yuv420p needs even sizes).
        height: of the frames, pixels; likewise.
        fps: frames per second of frames written without a time.
        codec: "h264" (falls back to MPEG-4 where this FFmpeg cannot encode H.264) or "mpeg4".

    Raises:
        ValueError: the path, a size, the rate or the codec cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        width: int,
        height: int,
        fps: float | Fraction,
        codec: Codec = "h264",
    ) -> None:
        self.path = Path(path)
        self.width = width
        self.height = height
        self.num_frames = 0
        if width < 1 or height < 1:
            raise ValueError(f"{self.path}: cannot write frames of {width}x{height} pixels; both must be 1 or more")
        if codec not in _ENCODERS:
            raise ValueError(f"{self.path}: unknown codec {codec!r}; use one of {', '.join(_ENCODERS)}")
        self._rate = _as_rate(fps, self.path)
        self._time_base = _time_base(self._rate)
        self._frame_ticks = 1 / (self._rate * self._time_base)
        self._next_tick = Fraction(0)
        self._last_pts: int | None = None
        self._first_s: float | None = None
        self._part = _part_path(self.path)
        self._closed = False
        self._to_yuv = VideoReformatter()  # kept: setting one up per frame costs as much as its work
        try:
            _check_folder(self.path)
            self._container = av.open(os.fspath(self._part), "w", options=_container_options(self.path))
            self._stream = self._open_stream(codec)
            self._container.start_encoding()
        except (OSError, av.FFmpegError) as error:
            self.discard()
            reason = error.strerror or error
            raise ValueError(f"{self.path}: cannot write a video here ({reason}); choose another name") from error
        except BaseException:
            self.discard()
            raise

    def write(self, rgb: np.ndarray, time_s: float | None = None) -> None:
        """Append one frame.

        Args:
            rgb: uint8 (height, width, 3).
            time_s: when the frame is shown, seconds on a clock of the caller's: the first frame is shown at the video's
                beginning and the others relative to it. Later than the frame before. None: 1 / fps after the frame
                before.

        Raises:
            ValueError: the frame's shape or type, or its time, does not fit; or the writer is closed.
        """
        if self._closed:
            raise ValueError(f"{self.path}: the video is closed; write frames inside the `with` block")
        if rgb.shape != (self.height, self.width, 3) or rgb.dtype != np.uint8:
            raise ValueError(
                f"{self.path}: frame {self.num_frames} is {rgb.dtype} {rgb.shape}; "
                f"this video takes uint8 ({self.height}, {self.width}, 3)"
            )
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(_pad_to_even(rgb)), format="rgb24")
        # Left to itself swscale converts with BT.601 whatever the size, and players then guess by size.
        frame = self._to_yuv.reformat(frame, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range="MPEG")
        frame.pts = self._pts(time_s)
        frame.time_base = self._time_base
        self._mux(frame)
        self.num_frames += 1

    def coincides(self, time_s: float) -> bool:
        """Whether a frame of that time would be shown at the very moment of the one before, as times are rounded."""
        if self._first_s is None or not math.isfinite(time_s):
            return False
        return round((time_s - self._first_s) / self._time_base) == self._last_pts

    def close(self) -> None:
        """Finish the file and give it its name. Closing twice does nothing.

        Raises:
            ValueError: no frame was written; nothing is left on disk.
        """
        if self._closed:
            return
        if self.num_frames == 0:
            self.discard()
            raise ValueError(f"{self.path}: no frame was written, so there is no video; write one frame or more")
        try:
            self._mux(None)
            self._closed = True
            self._container.close()
            os.replace(self._part, self.path)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Give up: close without a video and remove what was written so far."""
        self._closed = True
        if hasattr(self, "_container"):
            with contextlib.suppress(OSError, av.FFmpegError):  # a full disk fails here again
                self._container.close()
        with contextlib.suppress(OSError):
            self._part.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
        else:
            self.close()

    def _open_stream(self, codec: Codec) -> VideoStream:
        errors = []
        for encoder in _ENCODERS[codec]:
            try:
                av.Codec(encoder, "w")
            except ValueError as error:  # this FFmpeg was built without it
                errors.append(f"{encoder}: {error}")
                continue
            options = {"preset": "veryfast", "crf": "20"} if encoder == "libx264" else {}
            stream = self._container.add_stream(encoder, rate=self._rate, options=options)
            assert isinstance(stream, VideoStream)
            context = stream.codec_context
            context.width = self.width + self.width % 2
            context.height = self.height + self.height % 2
            context.pix_fmt = "yuv420p"
            context.time_base = stream.time_base = self._time_base
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _MPEG_RANGE
            # Decoding order is then showing order. MP4 takes a video's length from the former: with B-frames and
            # uneven times it comes out too short, and players stop early.
            context.max_b_frames = 0
            if encoder != "libx264":  # these default to a fixed, low bit rate
                context.bit_rate = int(0.2 * context.width * context.height * max(float(self._rate), 1.0))
            try:
                context.open()
            except av.FFmpegError as error:
                raise ValueError(
                    f"{self.path}: {encoder} cannot encode {self.width}x{self.height} pixels at "
                    f"{float(self._rate):g} fps ({error.strerror}); choose another size or rate"
                ) from error
            return stream
        raise ValueError(f"{self.path}: this FFmpeg cannot encode {codec} ({'; '.join(errors)}); reinstall PyAV")

    def _pts(self, time_s: float | None) -> int:
        if time_s is not None:
            if not math.isfinite(time_s):
                raise ValueError(f"{self.path}: frame {self.num_frames} has time_s={time_s}; it must be finite")
            if self._first_s is None:
                # Whatever the caller's clock says now is this place in the video. Most often that is its beginning:
                # players dislike a late start, and MP4 drops frames before 0.
                self._first_s = time_s - float(self._next_tick * self._time_base)
            self._next_tick = Fraction(round((time_s - self._first_s) / self._time_base))
        pts = round(self._next_tick)
        if self._last_pts is not None and pts <= self._last_pts:
            raise ValueError(
                f"{self.path}: frame {self.num_frames} has time_s={time_s}, not later than the frame before it; "
                "write frames in the order of their times"
            )
        self._last_pts = pts
        self._next_tick += self._frame_ticks  # exact, so that rounding does not add up to a drift
        return pts

    def _mux(self, frame: VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            # Encoders leave it open; a container then has to guess how long the last frame lasts.
            packet.duration = packet.duration or round(self._frame_ticks)
            self._container.mux(packet)


def _as_rate(fps: float | Fraction, path: Path) -> Fraction:
    if math.isfinite(fps):
        rate = Fraction(fps).limit_denominator(100_000)  # 29.97002997 is 30000/1001
        if 0 < rate <= 1000:
            return rate
    raise ValueError(f"{path}: cannot write at fps={fps}; it must be above 0 and at most 1000")


def _time_base(rate: Fraction) -> Fraction:
    """A tick of which a frame lasts a whole number, as fine as every codec allows."""
    ticks_per_s = _MAX_TICKS_PER_S // rate.numerator * rate.numerator
    return Fraction(1, ticks_per_s or _MAX_TICKS_PER_S)


def _part_path(path: Path) -> Path:
    """The name under which `path` grows: its suffix stays last, by which FFmpeg chooses the container."""
    if path.suffix.lower() not in _CONTAINERS:
        raise ValueError(f"{path}: no video container has the suffix {path.suffix!r}; use {', '.join(_CONTAINERS)}")
    return path.with_name(f"{path.stem}.part{path.suffix}")


def _check_folder(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{path}: this is a folder; give the name of a video file")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{path}: the folder {path.parent} is not writable; choose another folder")


def _container_options(path: Path) -> dict[str, str]:
    """Index first in MP4 and its kin, so that a browser can play the file while it loads."""
    return {} if path.suffix.lower() == ".mkv" else {"movflags": "+faststart"}


def _pad_to_even(rgb: np.ndarray) -> np.ndarray:
    height, width = rgb.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return rgb
    return np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
