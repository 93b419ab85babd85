"""Scores of classes over a video's time, in constant memory."""

from __future__ import annotations

import math

import numpy as np

_FIRST_BIN_S = 1 / 16


class TimeBins:
    """A fixed number of bins of time, which double their width when the video outgrows them.

    Args:
        num_bins: an even number.
        start_s: where the first bin begins, seconds; where the first clip does if None.

    Attributes:
        start_s, end_s: from the beginning of the first bin to the end of the last clip, seconds.
        bin_s: the width of a bin.
        covered_s: how much of each bin clips cover, (num_bins,); more than its width where they overlap.
    """

    def __init__(self, num_bins: int, start_s: float | None = None) -> None:
        self.start_s = self.end_s = start_s or 0.0
        self.bin_s = _FIRST_BIN_S
        self.covered_s = np.zeros(num_bins)
        self._has_start = start_s is not None

    @property
    def num_used(self) -> int:
        """The bins up to `end_s`."""
        return math.ceil((self.end_s - self.start_s) / self.bin_s)

    @property
    def is_covered(self) -> np.ndarray:
        """In which bins there was a clip, bool (num_used,)."""
        # A sliver of a clip in a bin is a rounding error, not a prediction.
        return self.covered_s[: self.num_used] > 1e-6 * self.bin_s

    def cover(self, start_s: float, end_s: float) -> tuple[slice, np.ndarray, int]:
        """Takes in the time of a clip.

        Returns:
            Its bins; how much of each it covers, seconds; how often the bins doubled first to make room for it.

        Raises:
            ValueError: it begins before the first bin.
        """
        if not self._has_start:
            self.start_s = self.end_s = start_s
            self._has_start = True
        if start_s < self.start_s:
            raise ValueError(
                f"a clip from {start_s} s lies before the first one ({self.start_s} s); add clips in order"
            )
        self.end_s = max(self.end_s, end_s)
        doublings = 0
        while self.end_s - self.start_s > len(self.covered_s) * self.bin_s:
            merge_pairs(self.covered_s)
            self.bin_s *= 2
            doublings += 1
        first = int((start_s - self.start_s) / self.bin_s)
        last = min(math.ceil((end_s - self.start_s) / self.bin_s), len(self.covered_s))
        edges = self.start_s + np.arange(first, last + 1) * self.bin_s
        overlap_s = np.maximum(np.minimum(edges[1:], end_s) - np.maximum(edges[:-1], start_s), 0)
        self.covered_s[first:last] += overlap_s
        return slice(first, last), overlap_s, doublings


def merge_pairs(seconds: np.ndarray) -> None:
    """Adds up neighbouring bins, (..., bins), in place; the second half becomes empty."""
    half = seconds.shape[-1] // 2
    seconds[..., :half] = seconds[..., ::2] + seconds[..., 1::2]
    seconds[..., half:] = 0


class HeadScores:
    """What one head said of its classes over time; only the classes with the highest peaks are kept.

    Args:
        name: of the head.
        bins: of time, which several heads share.
        max_tracked: classes kept. A class dropped for a stronger one begins anew should it come back.
    """

    def __init__(self, name: str, bins: TimeBins, max_tracked: int) -> None:
        self.name = name
        self._bins = bins
        num_bins = len(bins.covered_s)
        self._slots: dict[str, int] = {}
        self._peaks = np.zeros(max_tracked)
        self._sums = np.zeros((max_tracked, num_bins))  # score x seconds
        # The best of the classes not kept, so that no lesser class passes for the best.
        self._best_lost = np.zeros(num_bins)

    @property
    def labels(self) -> list[str]:
        """The classes kept, those drawn first in front: by the geometric mean of their mean and their peak score."""
        means = self._sums.sum(axis=1) / max(float(self._bins.covered_s.sum()), 1e-12)
        strength = {label: means[slot] * self._peaks[slot] for label, slot in self._slots.items()}
        return sorted(strength, key=lambda label: -strength[label])

    def add(self, where: slice, overlap_s: np.ndarray, label: str, score: float) -> None:
        """Takes in the score of a class in the bins of a clip, as `TimeBins.cover` gives them."""
        slot = self._slot(label, score)
        if slot is None:
            lost = self._best_lost[where]
            np.maximum(lost, score * overlap_s, out=lost)
            return
        self._sums[slot, where] += score * overlap_s
        self._peaks[slot] = max(self._peaks[slot], score)

    def double_bins(self) -> None:
        """Follows the bins, which doubled their width."""
        merge_pairs(self._sums)
        merge_pairs(self._best_lost)

    def mean_scores(self, label: str) -> np.ndarray:
        """A class's mean score per bin, (bins up to the end,); NaN where there was no clip.

        Raises:
            KeyError: the class is not among `labels`.
        """
        covered = self._bins.is_covered
        sums = self._sums[self._slots[label], : len(covered)]
        return np.divide(sums, self._bins.covered_s[: len(covered)], np.full(len(covered), np.nan), where=covered)

    def best(self, labels: list[str]) -> np.ndarray:
        """Which of some classes scores highest, int (bins up to the end,): its index; -1 where it is none of them.

        Raises:
            KeyError: a class is not among `labels`.
        """
        num_bins = self._bins.num_used
        sums = self._sums[[self._slots[label] for label in labels], :num_bins]
        index, highest = sums.argmax(axis=0), sums.max(axis=0)
        return np.where((highest > 0) & (highest >= self._best_lost[:num_bins]), index, -1)

    def peak_score(self, label: str) -> float:
        """A class's highest score in any clip since it is kept.

        Raises:
            KeyError: the class is not among `labels`.
        """
        return float(self._peaks[self._slots[label]])

    def _slot(self, label: str, score: float) -> int | None:
        """Where the class is kept; the class with the lowest peak makes room for one that scores higher."""
        if label in self._slots:
            return self._slots[label]
        if len(self._slots) < len(self._peaks):
            slot = len(self._slots)
        else:
            # By peak: by mean, classes that come late in a long video would never get in.
            slot = int(np.argmin(self._peaks))
            if score <= self._peaks[slot]:
                return None
            weakest = next(old for old, at in self._slots.items() if at == slot)
            np.maximum(self._best_lost, self._sums[slot], out=self._best_lost)
            del self._slots[weakest]
            self._sums[slot] = self._peaks[slot] = 0
        self._slots[label] = slot
        return slot
