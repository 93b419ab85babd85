"""Choose the frames that a fixed-rate grid of instants shows, by their timestamps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Generic, Protocol, TypeVar

import numpy as np

# Matroska and FLV round times to 1 ms, so a frame meant for an instant can be stamped up to 1 ms after it once the
# (also rounded) time of the first frame is subtracted; the rest absorbs float arithmetic. Frames that belong to the
# next instant are much further away: 1/1000 s would take a video of 900 fps.
TOLERANCE_S = 1.1e-3


class Timed(Protocol):
    """Anything with a presentation time."""

    @property
    def time_s(self) -> float:
        """Presentation time in seconds."""


F = TypeVar("F", bound=Timed)


class TimeSampler(Generic[F]):
    """Show a video at the instants ``t_k = start_s + k * period_s``, whatever its own frame rate.

    The frame of an instant is the one on display then: the last with ``time_s <= t_k``, give or take
    :data:`TOLERANCE_S`. Instants before the first frame show the first frame; a slow video shows a frame repeatedly.

    A frame is known to be the one on display only when the next one comes, so the sampler holds on to one frame,
    :attr:`pending`, and nothing else. To resume elsewhere, save :meth:`state_dict` and :attr:`pending`.

    Args:
        period_s: time between instants.
        start_s: the first instant.
        max_gap_s: when nothing comes for longer than this (a live stream that was gone), do not fill the gap with the
            frame before it but start the grid anew, with ``k = 0`` at the frame after it. ``None`` always fills.

    Attributes:
        pending: the newest frame, whose instants are not all known yet; ``None`` before the first.
        restarted: whether the last :meth:`push` started the grid anew. What that call returned is of the old grid.
    """

    def __init__(self, period_s: float, start_s: float = 0.0, max_gap_s: float | None = None) -> None:
        if not 0 < period_s < float("inf"):
            raise ValueError(f"period_s={period_s} is no time between frames: give seconds, more than 0")
        if max_gap_s is not None and not max_gap_s > 0:
            raise ValueError(f"max_gap_s={max_gap_s} would start over at every frame: give seconds, more than 0")
        self.period_s = period_s
        self.start_s = start_s
        self.max_gap_s = max_gap_s
        self.pending: F | None = None
        self.restarted = False
        self._next_index = 0
        self._tolerance_s = min(TOLERANCE_S, period_s / 4)

    @property
    def next_index(self) -> int:
        """The first ``k`` that has not been given a frame."""
        return self._next_index

    def time_of(self, index: int) -> float:
        """The instant ``t_k`` in seconds. Multiplied, not added up, so hours of video do not drift."""
        return self.start_s + index * self.period_s

    def shows(self, from_s: float, until_s: float) -> bool:
        """Whether there is an instant at which a frame that is on display from one time to another is shown."""
        # A little more than that, as times in files are rounded.
        index = max(0, math.ceil((from_s - 2 * self._tolerance_s - self.start_s) / self.period_s))
        return self.time_of(index) < until_s + self._tolerance_s

    def push(self, frame: F) -> list[tuple[int, F]]:
        """Take the next frame; returns the instants before it with their frames, in order.

        Raises:
            ValueError: the frame is not later than the one before it.
        """
        self.restarted = False
        held, self.pending = self.pending, frame
        if held is None:
            return self._show(frame, frame.time_s - self._tolerance_s)
        if not frame.time_s > held.time_s:
            self.pending = held
            raise ValueError(
                f"frame at {frame.time_s:.6f} s does not come after {held.time_s:.6f} s: push frames in order of time"
            )
        if self.max_gap_s is None or frame.time_s - held.time_s <= self.max_gap_s:
            return self._show(held, frame.time_s - self._tolerance_s)
        last = self._show_until(held, held.time_s)
        self.start_s, self._next_index, self.restarted = frame.time_s, 0, True
        return last

    def finish(self, end_s: float | None = None) -> list[tuple[int, F]]:
        """End the video: the instants up to the last frame, and those before ``end_s`` if that is given.

        Returns nothing if there was no frame. The sampler then holds no frame any more.
        """
        held, self.pending = self.pending, None
        self.restarted = False
        if held is None:
            return []
        shown = self._show_until(held, held.time_s)
        if end_s is not None:
            shown += self._show(held, end_s - self._tolerance_s)
        return shown

    def state_dict(self) -> dict[str, float | int]:
        """The state besides :attr:`pending`, as plain numbers."""
        return {"start_s": self.start_s, "next_index": self._next_index}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Continue from :meth:`state_dict`; set :attr:`pending` to the frame that was saved with it."""
        self.start_s = float(state["start_s"])
        self._next_index = int(state["next_index"])

    def _show(self, frame: F, before_s: float) -> list[tuple[int, F]]:
        """Give ``frame`` to the instants that are left before a time."""
        shown = []
        while self.time_of(self._next_index) < before_s:
            shown.append((self._next_index, frame))
            self._next_index += 1
        return shown

    def _show_until(self, frame: F, last_s: float) -> list[tuple[int, F]]:
        """Give ``frame`` to the instants that are left up to a time, that time included."""
        shown = []
        while self.time_of(self._next_index) <= last_s + self._tolerance_s:
            shown.append((self._next_index, frame))
            self._next_index += 1
        return shown


class ClipSampler(Generic[F]):
    """Show a video in clips of ``num_frames`` instants, ``period_s`` apart, that begin where they are told.

    Clips may overlap, leave gaps, begin before the video and reach beyond its end; each frame is pushed once for all of
    them. The frame of an instant is the one that :class:`TimeSampler` shows.

    Args:
        starts_s: the first instant of each clip, ascending.
        num_frames: instants of a clip.
        period_s: time between instants.
        shifts_s: by how much instants come later than that, (clips, num_frames), each less than a period apart from its
            neighbours' so that they stay in order; ``None``: not at all.

    Attributes:
        pending: the newest frame, whose instants are not all known yet; ``None`` before the first.
        num_complete: how many clips are complete; they are completed in order.
    """

    def __init__(
        self, starts_s: Sequence[float], num_frames: int, period_s: float, shifts_s: np.ndarray | None = None
    ) -> None:
        if not 0 < period_s < float("inf"):
            raise ValueError(f"period_s={period_s} is no time between frames: give seconds, more than 0")
        if num_frames < 1:
            raise ValueError(f"num_frames={num_frames} is no clip: give at least 1")
        if any(later < start for start, later in pairwise(starts_s)):
            raise ValueError(f"clips start at {list(starts_s)} s, out of order: sort them")
        self.starts_s = [float(start_s) for start_s in starts_s]
        self.num_frames = num_frames
        self.period_s = period_s
        if shifts_s is not None and (np.diff(shifts_s, axis=1) < -period_s).any():
            raise ValueError("shifts_s would change the order of the frames of a clip: shift by half a period at most")
        self._shifts_s = shifts_s
        self.earliest_s = min(
            (start_s + self._shift_s(clip, 0) for clip, start_s in enumerate(self.starts_s)), default=0.0
        )
        self.pending: F | None = None
        self.num_complete = 0
        self._next_index = [0] * len(self.starts_s)
        self._tolerance_s = min(TOLERANCE_S, period_s / 4)
        self._slack_s = 0.0 if shifts_s is None else float(np.abs(shifts_s).max(initial=0.0))

    @property
    def complete(self) -> bool:
        """Whether all clips are complete."""
        return self.num_complete == len(self.starts_s)

    def shows(self, from_s: float, until_s: float) -> bool:
        """Whether a clip shows a frame that is on display from one time to another."""
        # A little more than that, as times in files are rounded.
        place = int(np.searchsorted(self._instants_s, from_s - 2 * self._tolerance_s))
        return place < len(self._instants_s) and bool(self._instants_s[place] < until_s + self._tolerance_s)

    @cached_property
    def _instants_s(self) -> np.ndarray:
        """All instants of all clips, ascending."""
        instants_s = np.add.outer(np.asarray(self.starts_s), np.arange(self.num_frames) * self.period_s)
        if self._shifts_s is not None:
            instants_s = instants_s + self._shifts_s
        return np.unique(instants_s)

    def begins_before(self, frame: F) -> bool:
        """Whether the first clip shows what comes before a frame."""
        return bool(self.starts_s) and self.earliest_s < frame.time_s - self._tolerance_s

    def push(self, frame: F) -> list[tuple[int, int, F]]:
        """Take the next frame; returns what is known now as (clip, instant, frame), in order for every clip."""
        held, self.pending = self.pending, frame
        # Before the first frame of a video, that frame is shown.
        return self._show(frame if held is None else held, frame.time_s - self._tolerance_s, float("inf"))

    def finish(self, slack_s: float) -> list[tuple[int, int, F]]:
        """End the video: its last frame is shown to the end of each clip that begins at most ``slack_s`` after it."""
        held, self.pending = self.pending, None
        return [] if held is None else self._show(held, float("inf"), held.time_s + slack_s)

    def _show(self, frame: F, before_s: float, starting_by_s: float) -> list[tuple[int, int, F]]:
        shown = []
        for clip in range(self.num_complete, len(self.starts_s)):
            start_s = self.starts_s[clip]
            if start_s > starting_by_s or start_s - self._slack_s >= before_s:
                break
            index = self._next_index[clip]
            while index < self.num_frames and start_s + index * self.period_s + self._shift_s(clip, index) < before_s:
                shown.append((clip, index, frame))
                index += 1
            self._next_index[clip] = index
        while self.num_complete < len(self.starts_s) and self._next_index[self.num_complete] == self.num_frames:
            self.num_complete += 1
        return shown

    def _shift_s(self, clip: int, index: int) -> float:
        return 0.0 if self._shifts_s is None else float(self._shifts_s[clip, index])
