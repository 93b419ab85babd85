"""Read the frames of a video file in presentation order, from any moment, whatever state the file is in."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction
from types import TracebackType
from typing import Self

import av
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.frame import PictureType
from av.video.stream import VideoStream

from memvit.video.clock import JUMPING_FORMATS, Clock, is_joined
from memvit.video.errors import VideoError, check_file, check_range, empty_range, without_password
from memvit.video.frames import Frame, VideoInfo
from memvit.video.skipping import skip_unseen

logger = logging.getLogger(__name__)

REENCODE = "re-encode it, for example: ffmpeg -i VIDEO -c:v libx264 new.mp4"
REMOTE_TIMEOUT_S = 30.0
DEFAULT_FPS = 25.0  # for frames without timestamps in a stream that does not tell its rate either

# Demuxers give up after a broken packet but can be asked again; without progress this often, the rest is lost.
MAX_DEMUX_FAILURES = 16

# These store no time per picture: FFmpeg's estimates after a seek differ from those on the way there.
UNTIMED_FORMATS = frozenset({"mpeg", "mpegvideo", "h264", "hevc", "m4v"})

# Of formats whose clock may start anew, an end that leaves fewer bits a second was not reached by the clock that began.
MIN_BIT_RATE = 100_000

# How much earlier than declared a whole video may end. A duration of the container may be that of longer sound.
SLACK_S = 1.0
CONTAINER_SLACK = 0.1


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Size, rate, duration, codec and rotation of a video file, from its header and its first frame.

    Raises:
        VideoError: as :class:`VideoReader` does.
    """
    with VideoReader(path) as reader:
        return reader.info


class VideoReader:
    """Iterate over the frames of a video file with ``start_s <= time_s < end_s``, in presentation order.

    Times count from the first frame of the video, which is at 0, and strictly increase: a frame that repeats the time
    of the one before it is left out, and where the clock of a video starts anew (recordings glued together) it goes
    on from the frame before. That is where it steps back by more than a second and, in MPEG transport and program
    streams, on by more than 10 s or 3 frames: a gap in such a stream is closed, one in another container is kept.
    Frames without timestamps are placed at the average rate.

    Reading from ``start_s`` seeks to a keyframe before it and gives the same frames as reading from the beginning; a
    file that cannot seek is decoded from the beginning. So is a transport stream whose clock starts anew somewhere:
    to know, it is read through, once per process, before the first seek (of an address, and of more than a gigabyte, the
    clock is trusted).

    A broken video gives the frames that are readable; what was lost is then in :attr:`warning` (and logged).

    Args:
        path: the file; an ``http(s)`` address of a file works too.
        start_s: where to start, in seconds.
        end_s: where to stop, in seconds; ``None`` reads to the end.
        threads: of the decoder; 1 suits programs that read many videos at a time, ``None`` takes all cores.
        max_pixels: refuse larger pictures, which cost memory, where videos come from strangers; ``None`` takes all.

    Attributes:
        info: what is known about the video.
        warning: one line about what could not be read; ``None`` before the end of an iteration and for a whole video.

    Raises:
        VideoError: on opening, if there is no such video or nothing in it can be decoded; on iterating, if no frame
            lies in the wanted range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        start_s: float = 0.0,
        end_s: float | None = None,
        *,
        threads: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        check_range(start_s, end_s)
        if threads is not None and threads < 1:
            raise VideoError(f"threads={threads} cannot decode: give at least 1, or None for all cores")
        self._source = os.fspath(path)
        self.path = without_password(self._source)
        self.start_s = start_s
        self.end_s = end_s
        self.warning: str | None = None
        self._closed = False
        self._threads = threads
        self._max_pixels = max_pixels
        decoder = _Decoder(self._source, threads, max_pixels)
        self._decoder: _Decoder | None = decoder
        first = decoder.first
        self.info = VideoInfo(
            path=self.path,
            width=first.width,
            height=first.height,
            average_fps=decoder.fps,
            duration_s=decoder.duration_s,
            codec=decoder.stream.codec_context.name,
            rotation=first.rotation,
        )

    def __iter__(self) -> Iterator[Frame]:
        return self.read()

    def read(self, shows: Callable[[float, float], bool] | None = None) -> Generator[Frame, None, None]:
        """Iterate over the frames, or over those that somebody looks at.

        Args:
            shows: whether anybody looks at what is on display from one time to another (s), as `TimeSampler.shows`; None: always.
                Frames at which nobody does may be left out, which saves decoding them; the first and the last one of the range
                come all the same.
        """
        if self._closed:
            raise VideoError(f"{self.path} was closed: open it again to read it")
        self.warning = None
        # The first pass goes on with the decoder that read the first frame; another pass needs a fresh one.
        decoder, self._decoder = self._decoder, None
        return self._read(decoder or _Decoder(self._source, self._threads, self._max_pixels), shows)

    def _read(self, decoder: _Decoder, shows: Callable[[float, float], bool] | None) -> Generator[Frame, None, None]:
        num_frames = 0
        last_s = 0.0
        try:
            for frame in decoder.frames_from(self.start_s):
                if self._closed:
                    return
                last_s = frame.time_s
                if last_s < self.start_s:
                    continue
                if self.end_s is not None and last_s >= self.end_s:
                    break
                num_frames += 1
                # Whoever samples the video goes by its first and its last frame, too.
                decoder.shows = shows and _or_last(shows, self.end_s)
                yield frame
            self.warning = decoder.warning()
        finally:
            decoder.close()
        if self.warning:
            logger.warning("%s", self.warning)
        if not num_frames:
            raise VideoError(empty_range(self.path, self.start_s, self.end_s, last_s))

    def close(self) -> None:
        """Stop reading. Safe to call from another thread and more than once."""
        self._closed = True
        # A running iteration owns its decoder and closes it itself: FFmpeg may be busy in it right now.
        decoder, self._decoder = self._decoder, None
        if decoder is not None:
            decoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _or_last(shows: Callable[[float, float], bool], end_s: float | None) -> Callable[[float, float], bool]:
    return lambda from_s, until_s: (end_s is not None and until_s >= end_s) or shows(from_s, until_s)


def open_container(
    source: str,
    *,
    format: str | None = None,
    options: dict[str, str] | None = None,
    timeout_s: float | None = None,
    name: str | None = None,
) -> tuple[InputContainer, VideoStream]:
    """Open a container and its video stream, ready to decode.

    Args:
        source: what FFmpeg opens.
        format: FFmpeg's name of the input format, where it cannot tell by itself.
        options: options for FFmpeg's demuxer and protocol.
        timeout_s: give up after this long without data.
        name: how messages name the source.

    Raises:
        av.FFmpegError: FFmpeg cannot open the source.
        VideoError: there is no video stream in it, or none that can be decoded.
    """
    name = name or source
    scheme, separator, rest = source.partition("://")
    source = f"{scheme.lower()}{separator}{rest}" if separator else source  # FFmpeg knows no HTTP:// of a telephone
    container = av.open(source, "r", format=format, options=options, timeout=timeout_s)
    stream = container.streams.best("video")
    # Cover art of music files is stored as a video stream of one picture.
    if not isinstance(stream, VideoStream) or Disposition.attached_pic in stream.disposition:
        container.close()
        raise VideoError(f"{name} has no video stream: pass a file with pictures, this one has only sound or data")
    if stream.codec_context is None:
        container.close()
        raise VideoError(f"{name} has a video codec that this FFmpeg does not know: {REENCODE}")
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all
    stream.thread_type = "AUTO"
    return container, stream


class _Decoder:
    """One pass over the video stream of a file: its frames, wherever it starts and whatever is broken."""

    def __init__(self, path: str, threads: int | None = None, max_pixels: int | None = None) -> None:
        self.source = path
        self.path = without_password(path)
        self.threads = threads
        self.max_pixels = max_pixels
        self.shows: Callable[[float, float], bool] | None = None  # from when on pictures may be skipped
        self._open()
        rate = self.stream.guessed_rate or self.stream.average_rate
        average = self.stream.average_rate or rate
        self.fps = float(average) if average else None
        self.format = self.container.format.name
        self.period_s = 1 / float(rate) if rate else 1 / DEFAULT_FPS
        self.time_base = self.stream.time_base or Fraction(1, 1)
        self.sample_aspect = float(self.stream.sample_aspect_ratio or 1)
        # AVI stores when pictures are decoded, not when they are shown. With B-frames these are not in the same order,
        # but as many pictures come out of the decoder as go in: a picture is shown when the next one goes in.
        self.decode_times = self.format == "avi" and self.stream.codec_context.has_b_frames
        self._start_over()
        self._frames = self._timed(self._pictures())
        try:
            first = next(self._frames, None)
        except BaseException:
            self.close()
            raise
        if first is None:
            reason = self.reason or "it holds no packets"
            self.close()
            raise VideoError(f"no frame of {self.path} could be decoded ({reason}): the file is damaged, copy it again")
        self.first: Frame = first

    def _open(self) -> None:
        self.container, self.stream = _open_file(self.source)
        # FFmpeg changes these while it reads on, and a decoder of several threads reads ahead.
        self.declared = self.stream.start_time, self.stream.duration
        codec = self.stream.codec_context
        if self.threads is not None:
            codec.thread_count = self.threads
        if self.max_pixels is not None:
            if codec.width * codec.height > self.max_pixels:
                size = f"{codec.width}x{codec.height}"
                self.container.close()
                raise VideoError(
                    f"{self.path} has pictures of {size}: at most {self.max_pixels:,} pixels are taken; scale it down"
                )
            codec.options = {"max_pixels": str(self.max_pixels)}  # should they grow on the way

    def _start_over(self, origin: int | None = None) -> None:
        self.clock = Clock(self.path, self.format, self.time_base, self.period_s, origin)
        self.end_s = 0.0
        self.reached_end = False
        self.num_damaged = 0
        self.damaged_at_s = 0.0
        self.reason = ""

    @property
    def duration_s(self) -> float | None:
        """Time from the first frame to the end that the container declares; ``None`` if it does not."""
        if self.clock.is_restarted or (self._is_thin and self._is_joined()):
            return None
        own_s = self._own_duration_s()
        if own_s is not None:
            return own_s
        if not self.container.duration:
            return None
        end_s = (self.container.duration + (self.container.start_time or 0)) / av.time_base
        return end_s - float((self.clock.origin or 0) * self.time_base)

    def _own_duration_s(self) -> float | None:
        """The duration declared for the video stream alone; that of the container may be the sound's."""
        origin = self.clock.origin
        try:
            # Matroska: 00:01:02.500000000
            hours, minutes, seconds = self.stream.metadata.get("DURATION", "").split(":")
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds) - float((origin or 0) * self.time_base)
        except ValueError:
            pass
        start, duration = self.declared
        if not duration:
            return None
        late = 0 if start is None or origin is None else start - origin
        return float((late + duration) * self.time_base)

    @property
    def _is_thin(self) -> bool:
        """Whether the declared end looks like that of another clock than the one at the beginning."""
        return self.format in JUMPING_FORMATS and 0 < self.container.bit_rate < MIN_BIT_RATE

    def _is_joined(self) -> bool:
        """Whether the clock of the file starts anew somewhere in it."""
        if self.format not in JUMPING_FORMATS or "://" in self.source:
            return False
        return is_joined(self.source, self.clock.max_step_s)

    def frames_from(self, start_s: float) -> Iterator[Frame]:
        """The frames of the video beginning with one at or before ``start_s``; the first frame if there is none."""
        if start_s <= self.first.time_s or self.clock.origin is None:
            yield self.first
            yield from self._frames
            return
        back_off_s = 0.0
        while start_s - back_off_s > 0:
            frames = self._seek(start_s - back_off_s)
            if frames is None:
                break
            found = next(frames, None)
            # Formats without an index seek by guessing and may land too late; some pictures of a stream can only be
            # decoded from further back. Either way, an earlier keyframe helps.
            if found is not None and found.time_s <= start_s and _is_self_contained(found):
                yield found
                yield from frames
                return
            back_off_s = max(1.0, 4 * back_off_s)
        self.close()
        self._open()
        self._start_over()
        yield from self._timed(self._pictures())

    def _seek(self, time_s: float) -> Iterator[Frame] | None:
        """The frames from the keyframe that the container finds at or before ``time_s``; ``None`` if it cannot."""
        origin = self.clock.origin
        assert origin is not None
        if self.format in UNTIMED_FORMATS or self._is_joined():
            return None
        try:
            self.container.seek(origin + int(time_s / self.time_base), stream=self.stream)
        except av.FFmpegError as error:
            logger.debug("%s cannot seek to %.2f s (%s)", self.path, time_s, error.strerror)
            return None
        self._start_over(origin)
        return self._timed(self._pictures(from_keyframe=True))

    def _pictures(self, from_keyframe: bool = False) -> Iterator[av.VideoFrame]:
        """Decode to the end. After a seek, leave out what cannot be decoded from the keyframe it landed on."""
        earliest: int | None = None
        waiting = from_keyframe
        failures = 0
        while failures <= MAX_DEMUX_FAILURES:
            try:
                packets = self.container.demux(self.stream)
                for packet in skip_unseen(packets, self.stream.codec_context, self._seen):
                    if waiting and not packet.is_keyframe:
                        continue
                    if waiting:
                        waiting, earliest = False, packet.dts if self.decode_times else packet.pts
                    if packet.is_corrupt:
                        self._damage("damaged data")
                    for picture in self._decode(packet):
                        stamp = self._stamp(picture)
                        if earliest is None or stamp is None or stamp >= earliest:
                            failures = 0
                            yield picture
                self.reached_end = True
                return
            except av.FFmpegError as error:
                self._damage(str(error.strerror))
                failures += 1
        yield from self._decode(None)
        self.reached_end = True

    def _seen(self) -> Callable[[int, int | None], bool] | None:
        """What tells whether a picture is seen, by its time stamp and the next one's; None: nothing does."""
        shows, clock = self.shows, self.clock
        is_timed = self.format not in UNTIMED_FORMATS and not self.decode_times and not clock.is_restarted
        if shows is None or clock.origin is None or not is_timed:
            return None

        def is_seen(stamp: int, following: int | None) -> bool:
            # Packets are ahead of pictures: where the clock will have started anew, times are not known yet.
            if following is None or not clock.follows(stamp):
                return True
            return shows(clock.time_of(stamp), clock.time_of(following))

        return is_seen

    def _decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        try:
            return self.stream.decode(packet)
        except av.error.EOFError:  # the decoder was flushed before
            return []
        except av.FFmpegError as error:
            self._damage(str(error.strerror))
            return []

    def _stamp(self, picture: av.VideoFrame) -> int | None:
        return picture.dts if self.decode_times else picture.pts

    def _damage(self, reason: str) -> None:
        if not self.num_damaged:
            self.damaged_at_s, self.reason = self.clock.last_s or 0.0, reason
        self.num_damaged += 1

    def _timed(self, pictures: Iterator[av.VideoFrame]) -> Iterator[Frame]:
        """Place pictures in time; the clock starts with the first one unless a seek kept it."""
        for picture in pictures:
            stamp = self._stamp(picture)
            if stamp is None and self.clock.last_s is None and self.clock.origin is not None:
                return  # after a seek, only a picture that knows its time tells where that led
            time_s = self.clock.place(stamp)
            if time_s is None:
                continue
            shown_s = float((picture.duration or 0) * self.time_base)
            self.end_s = time_s + max(shown_s, self.period_s)
            if picture.is_corrupt:
                self._damage("damaged picture")
            yield Frame(time_s, picture, self.sample_aspect)

    def warning(self) -> str | None:
        """One line about what was lost so far, or ``None``."""
        problems = []
        if self.num_damaged:
            more = f" and in {self.num_damaged - 1} more packets or pictures" if self.num_damaged > 1 else ""
            problems.append(f"is damaged at {self.damaged_at_s:.1f} s ({self.reason}){more}")
        duration_s = self.duration_s
        if self.reached_end and duration_s:
            slack_s = (
                SLACK_S if self._own_duration_s() or len(self.container.streams) == 1 else CONTAINER_SLACK * duration_s
            )
            if duration_s - self.end_s > max(SLACK_S, slack_s):
                problems.append(f"ends at {self.end_s:.1f} s although the container promises {duration_s:.1f} s")
        if not problems:
            return None
        return f"{self.path} {' and '.join(problems)}: what could be read was used, copy it again to get the rest"

    def close(self) -> None:
        self.container.close()


def _is_self_contained(frame: Frame) -> bool:
    """Whether decoding can start at a frame. Streams that refresh bit by bit mark places where it only begins to."""
    assert isinstance(frame.picture, av.VideoFrame)
    return frame.picture.pict_type not in (PictureType.P, PictureType.B)


def _open_file(path: str) -> tuple[InputContainer, VideoStream]:
    """Open a file (or the address of one), with a message for everything that a path can be instead of a video."""
    remote = "://" in path
    if not remote:
        check_file(path)
    try:
        # The prefix keeps FFmpeg from taking a colon in a file name for a protocol.
        source, timeout_s = (path, REMOTE_TIMEOUT_S) if remote else (f"file:{path}", None)
        container, stream = open_container(source, timeout_s=timeout_s, name=without_password(path))
    except av.FFmpegError as error:
        raise VideoError(
            f"cannot read {without_password(path)} as a video ({error.strerror}): it is damaged, cut off or no video; "
            f"see whether a player opens it, copy it again or {REENCODE}"
        ) from error
    if container.format.name == "tty":  # FFmpeg draws text files as pictures of a terminal
        container.close()
        raise VideoError(f"{path} is a text file: pass a video")
    return container, stream
