"""Which frames the clips around moments of a video show: frames come one by one, clips overlap or leave gaps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from memvit.online.persons import Moment
from memvit.video import Frame
from memvit.video.sampling import TOLERANCE_S

# Annotators round times and containers round durations: how long after the last frame a given moment may lie.
END_SLACK_S = 0.5


@dataclass(frozen=True)
class Look:
    """The frame on display at a moment."""

    moment: Moment
    frame: Frame


@dataclass(frozen=True)
class KeyframeClip:
    """The clip around a keyframe: its frames, converted."""

    moment: Moment
    frames: list[np.ndarray]


@dataclass
class _Open:
    """A moment on its way: not looked at yet, or a keyframe whose clip is not complete."""

    moment: Moment
    is_looked_at: bool = False
    frames: list[np.ndarray] = field(default_factory=list)


class KeyframeSampler:
    """Chooses the frames of moments, and of the clips that keyframes are the middle of, in constant memory.

    A clip shows the video at `num_frames` instants, `period_s` apart, the keyframe at the first instant of its second half,
    as `memvit.datasets.AvaDataset` has it. The frame of an instant is the one on display then, as `TimeSampler` chooses it;
    before the first frame of the video that is the first, after the last the last.

    Args:
        moments: ascending, maybe without end.
        num_frames: instants of a clip.
        period_s: time between them.
        convert: makes a frame what clips hold; called once for a frame that is shown several times in a row.
    """

    def __init__(
        self, moments: Iterator[Moment], num_frames: int, period_s: float, convert: Callable[[Frame], np.ndarray]
    ) -> None:
        self.num_frames = num_frames
        self.period_s = period_s
        self._lead_s = num_frames * period_s / 2
        self._moments = moments
        self._next = next(moments, None)
        self._open: deque[_Open] = deque()
        self._convert = convert
        self._converted: tuple[Frame, np.ndarray] | None = None
        self._held: Frame | None = None
        self._tolerance_s = min(TOLERANCE_S, period_s / 4)

    def push(self, frame: Frame) -> Iterator[Look | KeyframeClip]:
        """Takes the next frame; gives what is complete now, in order: a keyframe's look comes before its clip."""
        shown, self._held = frame if self._held is None else self._held, frame
        before_s = frame.time_s - self._tolerance_s
        while self._next is not None and self._next.time_s - self._lead_s < before_s:
            self._take_next()
        yield from self._show(shown, before_s)

    def finish(self) -> Iterator[Look | KeyframeClip]:
        """Ends the video: the moments up to its last frame, and those that were given a little after it."""
        held, self._held = self._held, None
        if held is None:
            return
        last_s = held.time_s + self._tolerance_s
        while self._next is not None and self._next.time_s <= last_s + END_SLACK_S:
            self._take_next()
        self._open = deque(
            open_
            for open_ in self._open
            if open_.moment.time_s <= last_s + (END_SLACK_S if open_.moment.is_given else 0.0)
        )
        yield from self._show(held, math.inf)

    def _take_next(self) -> None:
        assert self._next is not None
        self._open.append(_Open(self._next))
        self._next = next(self._moments, None)

    def _show(self, frame: Frame, before_s: float) -> Iterator[Look | KeyframeClip]:
        """Gives a frame to all instants that are left before a time."""
        for open_ in self._open:
            if not open_.is_looked_at and open_.moment.time_s < before_s:
                open_.is_looked_at = True
                yield Look(open_.moment, frame)
            if open_.moment.is_keyframe:
                start_s = open_.moment.time_s - self._lead_s
                while len(open_.frames) < self.num_frames and start_s + len(open_.frames) * self.period_s < before_s:
                    open_.frames.append(self._convert_once(frame))
        while self._open and self._is_complete(self._open[0]):
            done = self._open.popleft()
            if done.moment.is_keyframe:
                yield KeyframeClip(done.moment, done.frames)

    def _is_complete(self, open_: _Open) -> bool:
        return open_.is_looked_at and (not open_.moment.is_keyframe or len(open_.frames) == self.num_frames)

    def _convert_once(self, frame: Frame) -> np.ndarray:
        if self._converted is None or self._converted[0] is not frame:
            self._converted = frame, self._convert(frame)
        return self._converted[1]
