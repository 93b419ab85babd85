"""The segments of a video, to be looked up by time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memvit.datasets.clips import IGNORED, ClipTiming

EPSILON_S = 1e-6  # absorbs float arithmetic where a segment begins exactly in the middle of a clip


def last_frames_s(timing: ClipTiming) -> np.ndarray:
    """When the last frame of each token time of a clip is shown, seconds from the clip's start, float64 (num_times,)."""
    frames_per_time = timing.num_frames / timing.num_times
    return (np.arange(1, timing.num_times + 1) * frames_per_time - 1) * timing.period_s


class Spans:
    """Segments and their classes, to be looked up by time.

    Args:
        spans: start and end in seconds, and the classes, of every segment; sorted.
        num_classes: of the head.
        multi_label: whether several can be true at a time.
    """

    def __init__(self, spans: Sequence[tuple[float, float, list[int]]], num_classes: int, multi_label: bool) -> None:
        self.starts_s = np.array([start_s for start_s, _, _ in spans], np.float64)
        self.ends_s = np.array([end_s for _, end_s, _ in spans], np.float64)
        self.classes = [classes for _, _, classes in spans]
        self.num_classes = num_classes
        self.multi_label = multi_label
        self.longest_s = float(np.max(self.ends_s - self.starts_s, initial=0.0))

    def at(self, time_s: float) -> list[int]:
        """Which segments an instant lies in; if one class can be true at a time, the latest of them."""
        time_s += EPSILON_S
        first = int(np.searchsorted(self.starts_s, time_s - self.longest_s - EPSILON_S))
        end = int(np.searchsorted(self.starts_s, time_s, side="right"))
        found = [i for i in range(first, end) if time_s < self.ends_s[i]]
        return found if self.multi_label else found[-1:]

    def within(self, start_s: float, end_s: float) -> list[int]:
        """Which segments tell what a clip shows."""
        if end_s <= start_s:
            return []
        middle = self.at((start_s + end_s) / 2)
        if middle and not self.multi_label:
            return middle
        first = int(np.searchsorted(self.starts_s, start_s - self.longest_s - EPSILON_S))
        end = int(np.searchsorted(self.starts_s, end_s))
        starts_s, ends_s = self.starts_s[first:end], self.ends_s[first:end]
        overlap_s = np.minimum(ends_s, end_s) - np.maximum(starts_s, start_s)
        enough = np.flatnonzero(overlap_s >= np.minimum(ends_s - starts_s, end_s - start_s) / 2 - EPSILON_S)
        if self.multi_label:
            return sorted({*middle, *(first + enough).tolist()})
        # Rounded, so that float arithmetic does not decide between equal ones.
        return [int(first + enough[np.argmax(overlap_s[enough].round(6))])] if len(enough) else []

    def label(self, found: Sequence[int]) -> np.ndarray:
        """The classes of segments: int64 (), or float32 (classes,) if several can be true at a time."""
        classes = [index for i in found for index in self.classes[i]]
        if not self.multi_label:
            return np.array(classes[0] if classes else IGNORED, np.int64)
        row = np.full(self.num_classes, 0 if classes else IGNORED, np.float32)
        row[classes] = 1
        return row
