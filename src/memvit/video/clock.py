"""The time of pictures: 0 is the first one, wherever the clock of a file begins and however often it starts anew."""

from __future__ import annotations

import logging
import os
import stat
from fractions import Fraction
from functools import lru_cache

import av
from av.stream import Discard

logger = logging.getLogger(__name__)

# A clock that jumps back further than this was restarted (videos glued together); a smaller step is a glitch.
CLOCK_RESTART_S = 1.0

# These carry the clock of whoever encoded them, of 33 bits. Of recordings glued together every one keeps its own, and
# FFmpeg takes one that begins over a minute before the first for a clock that has run over, 26.5 hours later. Other
# containers are edited as one line of time, where hours without a picture are what they say: a camera that records when
# something moves.
JUMPING_FORMATS = frozenset({"mpegts", "mpeg"})
MAX_STEP_S = 10.0
MAX_STEP_PERIODS = 3.0  # a slow video steps further
MAX_READ_BYTES = 1 << 30  # some twenty seconds


class Clock:
    """Places the pictures of a video, in the order in which they are shown.

    Args:
        name: how messages call the video.
        format: FFmpeg's name of the container's format.
        time_base: of time stamps, seconds.
        period_s: from one picture to the next where nothing else is known.
        origin: time stamp of the first picture of the video; None: the first one to be placed is that.

    Attributes:
        last_s: of the picture placed last, None before there is one.
        is_restarted: whether the clock started anew somewhere.
    """

    def __init__(self, name: str, format: str, time_base: Fraction, period_s: float, origin: int | None = None) -> None:
        self.name = name
        self.time_base = time_base
        self.period_s = period_s
        self.origin = origin
        self.last_s: float | None = None
        self.is_restarted = False
        jumps = format in JUMPING_FORMATS
        self.max_step_s = max(MAX_STEP_S, MAX_STEP_PERIODS * period_s) if jumps else float("inf")
        self._shift_s = 0.0

    def time_of(self, stamp: int) -> float:
        """When a picture is shown if the clock does not start anew before it, seconds."""
        assert self.origin is not None
        return float((stamp - self.origin) * self.time_base) + self._shift_s

    def follows(self, stamp: int) -> bool:
        """Whether the clock has gone on, and not started anew, from the picture placed last to another one."""
        step_s = 0.0 if self.last_s is None else self.time_of(stamp) - self.last_s
        return -CLOCK_RESTART_S <= step_s <= self.max_step_s

    def place(self, stamp: int | None) -> float | None:
        """When the next picture is shown, seconds; None if it repeats the time of the one before."""
        after_s = 0.0 if self.last_s is None else self.last_s + self.period_s
        if stamp is None:
            time_s = after_s
        else:
            if self.origin is None:
                self.origin = stamp
            if not self.follows(stamp):
                self._restart(self.time_of(stamp), after_s)
            time_s = self.time_of(stamp)
        if self.last_s is not None and time_s <= self.last_s:
            logger.debug("%s: left out a frame that repeats the time %.3f s", self.name, time_s)
            return None
        self.last_s = time_s
        return time_s

    def _restart(self, time_s: float, after_s: float) -> None:
        if not self.is_restarted:
            message = "the clock of %s jumps from %.1f to %.1f s, as if recordings were joined: it goes on from %.1f s"
            logger.warning(message, self.name, self.last_s, time_s, after_s)
        self.is_restarted = True
        self._shift_s += after_s - time_s


def is_joined(path: str, max_step_s: float) -> bool:
    """Whether the clock of a file starts anew somewhere in it, or may. Reads all of it, the first time, without decoding.

    Args:
        path: of the file. Of what can be read once only, a pipe, and of a file so large that reading it keeps people waiting, the
            clock is trusted.
        max_step_s: as `Clock.max_step_s`.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_READ_BYTES:
        return False
    return _is_joined(path, status.st_size, status.st_mtime_ns, max_step_s)


@lru_cache(maxsize=4096)
def _is_joined(path: str, size: int, mtime_ns: int, max_step_s: float) -> bool:
    """As `is_joined`; size and time tell whether the file is still the one that was read."""
    last_s: float | None = None
    try:
        with av.open(f"file:{path}", "r") as container:
            stream = container.streams.best("video")
            for other in container.streams:
                if other is not stream:
                    other.discard = Discard.all
            for packet in container.demux(stream):
                if packet.dts is None or packet.time_base is None:
                    continue
                time_s = float(packet.dts * packet.time_base)
                # Pictures are shown some frames later than decoded: half the step of `Clock` leaves nothing out.
                if last_s is not None and not 0 <= time_s - last_s <= max_step_s / 2:
                    return True
                last_s = time_s
    except av.FFmpegError:  # then nobody knows
        return True
    return False
