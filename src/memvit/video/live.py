"""Receive frames from a camera or a network stream, through drop-outs and slow consumers."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

import av

from memvit.video.errors import VideoError, without_password
from memvit.video.frames import Frame, VideoInfo
from memvit.video.prefetch import Channel
from memvit.video.reader import open_container

logger = logging.getLogger(__name__)

FILE_SUFFIXES = (".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi")
PLAYLISTS = frozenset({"hls", "dash"})  # whose addresses are files of a known size that name others

EventKind = Literal["connected", "lost", "reconnected", "retry", "dropped", "gave_up", "ended"]

MAX_BACKOFF_S = 30.0
MAX_EVENTS = 1000
CLOSE_TIMEOUT_S = 1.0
DROP_REPORT_PERIOD_S = 5.0

# A decoder that joins in the middle of a stream shows garbage until the next keyframe. Streams without keyframes
# (intra refresh) exist, so the wait has an end.
MAX_PACKETS_TO_KEYFRAME = 300

END_TOLERANCE_S = 1.0  # between the last frame of a recording and its declared end

# Clocks of cameras are set while they run. A step beyond this that the wall clock did not make as well is no time.
MAX_CLOCK_STEP_S = 5.0

# The first connection fails for good when trying again cannot help.
HOPELESS = (
    av.error.ProtocolNotFoundError,
    av.error.OptionNotFoundError,
    av.error.DemuxerNotFoundError,
    av.error.HTTPBadRequestError,
    av.error.HTTPUnauthorizedError,
    av.error.HTTPForbiddenError,
    av.error.HTTPNotFoundError,
    FileNotFoundError,
    PermissionError,
)


def is_live(source: str) -> bool:
    """Whether a source is a stream or a camera rather than a file.

    Addresses (``rtsp://``, ``udp://``, ``http://`` ...) and video devices (``/dev/video0``) are live. An ``http(s)``
    address whose path ends like a file of known length (``.mp4``, ``.mkv``, ``.webm`` ...) is a file: it can be sought
    in and ends. So is ``file://``.
    """
    if re.match(r"/dev/video\d+$", source):
        return True
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source):
        return False
    scheme, _, rest = source.partition("://")
    if scheme.lower() == "file":
        return False
    if scheme.lower() not in ("http", "https"):
        return True
    return not urlsplit(f"//{rest}").path.lower().endswith(FILE_SUFFIXES)


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """Something that happened to a live source.

    Attributes:
        kind: ``connected``, ``lost``, ``reconnected``, ``retry`` (an attempt failed), ``dropped``, ``gave_up``, or
            ``ended`` (a recording was read to its end).
        time_s: when, on the clock of the frames.
        message: one line that says what.
    """

    kind: EventKind
    time_s: float
    message: str


class LiveSource:
    """Iterate over the frames of a live stream.

    A thread receives and decodes from the first iteration on, until :meth:`close`. A connection that breaks, ends or
    falls silent is made again, after a pause that doubles with every failed attempt; ``time_s`` then goes on by the
    wall clock, so the time that was missed is in it, and the size of the frames may change. Times strictly increase.

    An address may turn out to hold a recording (a finished playlist, a file): what it says of its length tells. It is read
    once and whole, by the times in it, as fast as the consumer takes it.

    The iteration ends when the source is closed, and after a recording; with ``max_attempts=0``, when its only connection
    ends.

    Args:
        url: an address that FFmpeg knows, or a device such as ``/dev/video0``.
        max_attempts: give up after this many failed attempts in a row; 0 never connects again.
        backoff_s: pause before the second attempt in a row; doubled for each that follows, up to 30 s.
        drop: when the consumer is slower than the source and the queue is full, ``oldest`` drops the oldest waiting
            frames (:attr:`dropped_frames`); ``none`` lets the source wait.
        queue_size: how many decoded frames may wait for the consumer.
        format: FFmpeg's name of the input format; known for devices.
        options: options for FFmpeg's demuxer and protocol, such as ``{"rtsp_transport": "udp"}``.
        timeout_s: a connection without data for this long is broken.
        on_event: called with every event, in the receiving thread.

    Attributes:
        info: the current connection's video; ``None`` before the first frame.
        is_recording: whether the current connection is to a recording.
        reconnects: how often a lost connection was made again.
        dropped_frames: frames dropped because the consumer was too slow.
        damaged_packets: packets that could not be decoded.
        events: the last events, oldest first.

    Raises:
        VideoError: while iterating, when connecting failed ``max_attempts`` times in a row, at once if the first
            connection cannot ever work (no such address or device, access denied), or when a recording breaks off.
    """

    def __init__(
        self,
        url: str,
        *,
        max_attempts: int = 5,
        backoff_s: float = 1.0,
        drop: Literal["oldest", "none"] = "oldest",
        queue_size: int = 32,
        format: str | None = None,
        options: dict[str, str] | None = None,
        timeout_s: float = 10.0,
        on_event: Callable[[LiveEvent], None] | None = None,
    ) -> None:
        if drop not in ("oldest", "none"):
            raise VideoError(f"drop={drop!r} is unknown: choose 'oldest' or 'none'")
        if max_attempts < 0 or backoff_s < 0 or not timeout_s > 0:
            raise VideoError("max_attempts and backoff_s must be 0 or more and timeout_s above 0")
        self.url = url
        self.name = without_password(url)
        self.max_attempts = max_attempts
        self.backoff_s = backoff_s
        self.drop = drop
        self.timeout_s = timeout_s
        self.on_event = on_event
        self.info: VideoInfo | None = None
        self.is_recording = False
        self._declared_s = 0.0
        self.reconnects = 0
        self.dropped_frames = 0
        self.damaged_packets = 0
        self.events: deque[LiveEvent] = deque(maxlen=MAX_EVENTS)
        self._format = format or ("v4l2" if url.startswith("/dev/video") else None)
        # RTP over UDP loses packets silently where a camera is not on the same switch.
        self._options = {"rtsp_transport": "tcp"} if url.lower().startswith(("rtsp://", "rtsps://")) else {}
        self._options |= options or {}
        self._frames: Channel[Frame] = Channel(queue_size)
        self._clock = _Clock()
        self._connected_once = False
        self._drops_reported = (0, 0.0)
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[Frame]:
        with self._start:
            if self._thread is None and not self._frames.closed:
                self._thread = threading.Thread(target=self._run, name="memvit-live", daemon=True)
                self._thread.start()
        return iter(self._frames)

    def close(self) -> None:
        """Stop receiving and end the iteration. Safe to call from another thread and more than once.

        Returns after a second at the latest; a thread that still waits for the network then ends by itself within
        ``timeout_s``.
        """
        self._frames.close()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        try:
            self._receive_until_closed()
        except BaseException as error:
            self._frames.finish(error)
        else:
            self._frames.finish()

    def _receive_until_closed(self) -> None:
        failures = 0
        while not self._frames.closed:
            began_s = time.monotonic()
            reason, num_frames, hopeless = self._receive()
            if self._frames.closed:
                return
            if num_frames and self.is_recording:
                if reason is not None and not self._has_come_to_its_end():
                    message = (
                        f"gave up on {self.name}, which broke off at {self._clock.last_s:.1f} s ({reason}): try again"
                    )
                    self._report("gave_up", message)
                    raise VideoError(message)
                self._report("ended", f"{self.name} has ended: it is a recording")
                return
            reason = reason or "the stream ended"
            if num_frames:
                failures = 0
                self._report("lost", f"lost {self.name} ({reason})")
                if self.max_attempts == 0:
                    return
            else:
                failures += 1
                self._report("retry", f"no frames from {self.name} ({reason}), attempt {failures}")
            if failures >= self.max_attempts or (hopeless and not self._connected_once):
                attempts = "1 attempt" if failures == 1 else f"{failures} attempts"
                message = f"gave up on {self.name} after {attempts} ({reason}): check the address and that it is up"
                self._report("gave_up", message)
                raise VideoError(message)
            if failures:
                pause_s = min(self.backoff_s * 2 ** (failures - 1), MAX_BACKOFF_S)
            else:  # at once, unless it is an address whose connections end as soon as they begin
                pause_s = max(self.backoff_s - (time.monotonic() - began_s), 0.0)
            self._frames.wait_closed(pause_s)

    def _receive(self) -> tuple[str | None, int, bool]:
        """One connection: why it broke off, None if it did not, after how many frames, and whether another is hopeless."""
        num_frames = 0
        try:
            container, stream = open_container(
                self.url, format=self._format, options=self._options, timeout_s=self.timeout_s, name=self.name
            )
        except VideoError as error:
            return str(error), 0, False
        except av.FFmpegError as error:
            return _reason(error), 0, isinstance(error, HOPELESS)
        with container:
            time_base = stream.time_base or Fraction(1, 1)
            self.is_recording = _is_recording(container, self.url)
            self._declared_s = (container.duration or 0) / av.time_base
            self._clock.connect(float(stream.guessed_rate or 0) or 25.0)
            sample_aspect = float(stream.sample_aspect_ratio or 1)
            try:
                for picture in self._pictures(container, stream):
                    pts_s = None if picture.pts is None else float(picture.pts * time_base)
                    frame = Frame(self._clock.time_of(pts_s), picture, sample_aspect)
                    if not num_frames:
                        self._welcome(frame, stream)
                    num_frames += 1
                    if not self._deliver(frame):
                        break
            except av.FFmpegError as error:
                return _reason(error), num_frames, False
        return None, num_frames, False

    def _has_come_to_its_end(self) -> bool:
        """Whether a recording was read as far as it says it goes; servers may hang up then in any way."""
        return 0 < self._declared_s <= self._clock.last_s + END_TOLERANCE_S

    def _pictures(
        self, container: av.container.InputContainer, stream: av.video.stream.VideoStream
    ) -> Iterator[av.VideoFrame]:
        """Decode from the first keyframe on, and what the decoder still holds when the connection breaks."""
        num_skipped = 0
        waiting = True
        broken: av.FFmpegError | None = None
        try:
            for packet in container.demux(stream):
                if self._frames.closed:
                    return
                if waiting and not packet.is_keyframe and num_skipped < MAX_PACKETS_TO_KEYFRAME:
                    num_skipped += 1
                    continue
                waiting = False
                yield from self._decode(stream, packet)
        except av.FFmpegError as error:
            broken = error
        if not waiting:
            yield from self._decode(stream, None)
        if broken is not None:
            raise broken

    def _decode(self, stream: av.video.stream.VideoStream, packet: av.Packet | None) -> list[av.VideoFrame]:
        try:
            return stream.decode(packet)
        except av.error.EOFError:  # the decoder was emptied at the end of the stream
            return []
        except av.FFmpegError as error:
            self.damaged_packets += 1
            logger.debug("%s: damaged packet (%s)", self.name, error.strerror)
            return []

    def _welcome(self, frame: Frame, stream: av.video.stream.VideoStream) -> None:
        """The first frame of a connection has come."""
        rate = float(stream.average_rate or 0) or None
        self.info = VideoInfo(
            self.name, frame.width, frame.height, rate, None, stream.codec_context.name, frame.rotation
        )
        size = f"{frame.width}x{frame.height} {self.info.codec}"
        if self._connected_once:
            self.reconnects += 1
            self._report("reconnected", f"receiving {self.name} again ({size})")
        else:
            self._report("connected", f"receiving {self.name} ({size})")
        self._connected_once = True

    def _deliver(self, frame: Frame) -> bool:
        if self.drop == "none" or self.is_recording:
            return self._frames.put(frame)
        self.dropped_frames += self._frames.put_newest(frame)
        reported, at_s = self._drops_reported
        now_s = time.monotonic()
        if self.dropped_frames > reported and now_s - at_s >= DROP_REPORT_PERIOD_S:
            self._drops_reported = (self.dropped_frames, now_s)
            self._report(
                "dropped", f"the consumer is slower than {self.name}: {self.dropped_frames} frames dropped so far"
            )
        return not self._frames.closed

    def _report(self, kind: EventKind, message: str) -> None:
        is_good = kind in ("connected", "reconnected", "ended")
        logger.log(logging.INFO if is_good else logging.WARNING, "%s", message)
        event = LiveEvent(kind, self._clock.now_s(), message)
        self.events.append(event)
        if self.on_event is not None:
            self.on_event(event)


class _Clock:
    """Turns the timestamps of successive connections into one time that begins at 0 and only increases."""

    def __init__(self) -> None:
        self._began: float | None = None  # wall clock of time 0
        self._last_s: float | None = None
        self._last_wall = 0.0
        self._offset_s: float | None = None
        self._period_s = 0.04

    def now_s(self) -> float:
        """Wall-clock time since the first frame."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    @property
    def last_s(self) -> float:
        """Time of the last frame."""
        return self._last_s or 0.0

    def connect(self, fps: float) -> None:
        """Forget how the timestamps of the last connection relate to time."""
        self._offset_s = None
        self._period_s = 1 / fps

    def time_of(self, pts_s: float | None) -> float:
        """Time of the frame that has come just now; ``pts_s`` is its timestamp on the clock of its connection."""
        wall = time.monotonic()
        if self._last_s is None or self._began is None:
            self._began, time_s = wall, 0.0
        else:
            next_s = self._last_s + self._period_s
            time_s = next_s if pts_s is None else pts_s + (self._offset_s or 0.0)
            step_s = time_s - self._last_s
            restarted = step_s <= 0 or step_s > max(MAX_CLOCK_STEP_S, 2 * (wall - self._last_wall))
            if self._offset_s is None or restarted:
                time_s = max(wall - self._began, next_s)
                self._offset_s = None
        if self._offset_s is None and pts_s is not None:
            self._offset_s = time_s - pts_s
        self._last_s, self._last_wall = time_s, wall
        return time_s


def _is_recording(container: av.container.InputContainer, url: str) -> bool:
    """Whether a connection is to something that has an end already: it declares how long, or over HTTP how large, it is."""
    if container.duration:
        return container.duration > 0
    is_web = url.lower().startswith(("http://", "https://"))
    return is_web and not PLAYLISTS & set(container.format.name.split(",")) and container.size > 0


def _reason(error: av.FFmpegError) -> str:
    """FFmpeg's words for an error without the address, which may hold a password."""
    if isinstance(error, av.error.ExitError):
        return "no data for too long"
    return str(error.strerror)
