"""Classes over a video's time as one picture, from any number of clips in constant memory."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from memvit.video.layers import one_line
from memvit.video.overlay import format_percent, format_time

_FIRST_BIN_S = 1 / 16
_MAX_HEADS = 4

_WIDTH_IN, _ROW_IN, _DPI = 13.0, 0.34, 120
_INK, _DIM, _PAPER, _NO_SCORE = "#1b2430", "#6b7684", "#ffffff", "#eef1f5"
# In the top-1 band: classes that have no row of their own, in turn, and those that are not kept at all.
_OTHERS, _NOT_KEPT = ("#929ca9", "#7f8996"), "#d3d9e0"
_PALETTE = (
    *("#2f6fde", "#e4572e", "#2a9d5c", "#8e44ad", "#e0a100", "#17a2b8"),
    *("#d6336c", "#6d4c41", "#5c6bc0", "#7cb342", "#00897b", "#f06292"),
)
_TICK_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400)


class Timeline:
    """Gathers the scores of clips into bins of time, and draws them.

    The bins are fixed in number and double their width when the video outgrows them, and only the classes with the
    highest peaks are kept: memory does not grow with the video. Where clips overlap their scores are averaged, each
    weighted by the time it covers.

    Args:
        title: stands above the picture.
        max_labels: classes drawn, each in its own row.
        notice: what has to be plain to every viewer ("untrained weights"), drawn as a banner.
        num_bins: bins of time, an even number.
        max_tracked: classes kept. A class dropped for a stronger one begins anew should it come back.

    Raises:
        ValueError: a count is out of range.
    """

    def __init__(
        self,
        *,
        title: str = "",
        max_labels: int = 8,
        notice: str | None = None,
        num_bins: int = 2048,
        max_tracked: int = 64,
    ) -> None:
        if num_bins < 2 or num_bins % 2:
            raise ValueError(f"num_bins={num_bins}: bins merge in pairs; use an even number, 2 or more")
        if not 1 <= max_labels <= max_tracked:
            raise ValueError(f"max_labels={max_labels} must lie between 1 and max_tracked={max_tracked}")
        self.title = title
        self.max_labels = max_labels
        self.notice = notice
        self.num_clips = 0
        self.start_s = 0.0
        self.end_s = 0.0
        self.bin_s = _FIRST_BIN_S
        self._slots: dict[str, int] = {}
        self._peaks = np.zeros(max_tracked)
        self._sums = np.zeros((max_tracked, num_bins))  # score x seconds
        self._covered_s = np.zeros(num_bins)
        # Per head, the best of the classes not kept, so that no lesser class passes for the best.
        self._best_lost = {"": np.zeros(num_bins)}

    @property
    def labels(self) -> list[str]:
        """The classes kept, those drawn first in front: by the geometric mean of their mean and their peak score."""
        means = self._sums.sum(axis=1) / max(float(self._covered_s.sum()), 1e-12)
        strength = {label: means[slot] * self._peaks[slot] for label, slot in self._slots.items()}
        return sorted(strength, key=lambda label: -strength[label])

    def add(self, start_s: float, end_s: float, scores: Sequence[tuple[str, float]]) -> None:
        """Take in one clip.

        Args:
            start_s: where the clip begins, seconds; not before the beginning of the first clip.
            end_s: where it ends, after `start_s`.
            scores: its classes, each once, with scores of 0 or more. Classes left out count as 0.

        Raises:
            ValueError: the times are not in that order, or a score is negative or not finite.
        """
        if not (math.isfinite(start_s) and math.isfinite(end_s) and start_s < end_s):
            raise ValueError(f"a clip from {start_s} s to {end_s} s has no length; give start_s < end_s, both finite")
        for label, score in scores:
            if not (math.isfinite(score) and score >= 0):
                raise ValueError(f"the score of {label!r} at {start_s} s is {score}; it must be finite and 0 or more")
        if self.num_clips == 0:
            self.start_s = start_s
        if start_s < self.start_s:
            raise ValueError(
                f"a clip from {start_s} s lies before the first one ({self.start_s} s); add clips in order"
            )
        self.num_clips += 1
        self.end_s = max(self.end_s, end_s) if self.num_clips > 1 else end_s
        while self.end_s - self.start_s > len(self._covered_s) * self.bin_s:
            self._double_bins()

        first = int((start_s - self.start_s) / self.bin_s)
        last = min(math.ceil((end_s - self.start_s) / self.bin_s), len(self._covered_s))
        edges = self.start_s + np.arange(first, last + 1) * self.bin_s
        overlap_s = np.maximum(np.minimum(edges[1:], end_s) - np.maximum(edges[:-1], start_s), 0)
        self._covered_s[first:last] += overlap_s
        for label, score in scores:
            slot = self._slot(label, score)
            if slot is None:
                lost = self._lost(label)[first:last]
                np.maximum(lost, score * overlap_s, out=lost)
                continue
            self._sums[slot, first:last] += score * overlap_s
            self._peaks[slot] = max(self._peaks[slot], score)

    def mean_scores(self, label: str) -> np.ndarray:
        """A class's mean score per bin, (bins up to `end_s`,); NaN where there was no clip.

        Raises:
            KeyError: the class is not among `labels`.
        """
        covered_s = self._covered_s[: self._num_bins_used]
        # A sliver of a clip in a bin is a rounding error, not a prediction.
        covered = covered_s > 1e-6 * self.bin_s
        sums = self._sums[self._slots[label], : len(covered_s)]
        return np.divide(sums, covered_s, np.full(len(covered_s), np.nan), where=covered)

    def best(self, labels: list[str]) -> np.ndarray:
        """Which of a head's classes scores highest, int (bins up to `end_s`,): its index; -1 where it is none of them.

        Raises:
            KeyError: a class is not among `labels`.
        """
        num_bins = self._num_bins_used
        sums = self._sums[[self._slots[label] for label in labels], :num_bins]
        heads = {_head_name(label) for label in labels}
        lost = [sums_lost[:num_bins] for head, sums_lost in self._best_lost.items() if not head or head in heads]
        index, highest = sums.argmax(axis=0), sums.max(axis=0)
        return np.where((highest > 0) & (highest >= np.max(lost, axis=0)), index, -1)

    def peak_score(self, label: str) -> float:
        """A class's highest score in any clip since it is kept.

        Raises:
            KeyError: the class is not among `labels`.
        """
        return float(self._peaks[self._slots[label]])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Draw what was added so far into a PNG file, which appears whole or not at all.

        Raises:
            ValueError: no clip was added, or the file cannot be written.
        """
        path = Path(path)
        if self.num_clips == 0:
            raise ValueError(f"{path}: there is no clip to draw; add one or more")
        part = path.with_name(f"{path.name}.part")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the label shows boxes, as it must
                _draw(self).savefig(part, format="png", facecolor=_PAPER)
            os.replace(part, path)
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(f"{path}: cannot write the picture ({reason}); choose another file") from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink()

    @property
    def _num_bins_used(self) -> int:
        return math.ceil((self.end_s - self.start_s) / self.bin_s)

    def _double_bins(self) -> None:
        half = len(self._covered_s) // 2
        for seconds in (self._covered_s, self._sums, *self._best_lost.values()):
            seconds[..., :half] = seconds[..., ::2] + seconds[..., 1::2]
            seconds[..., half:] = 0
        self.bin_s *= 2

    def _lost(self, label: str) -> np.ndarray:
        head = _head_name(label)
        if head not in self._best_lost and len(self._best_lost) <= _MAX_HEADS:
            self._best_lost[head] = np.zeros_like(self._covered_s)
        return self._best_lost.get(head, self._best_lost[""])

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
            np.maximum(self._lost(weakest), self._sums[slot], out=self._lost(weakest))
            del self._slots[weakest]
            self._sums[slot] = self._peaks[slot] = 0
        self._slots[label] = slot
        return slot


def draw_timeline(
    path_png: str | os.PathLike[str],
    rows: Iterable[tuple[float, float, Sequence[tuple[str, float]]]],
    *,
    title: str,
    max_labels: int = 8,
    notice: str | None = None,
) -> None:
    """Draw which classes were seen when.

    Args:
        path_png: the picture to write.
        rows: (start_s, end_s, [(label, score), ...]) per clip, in order; read once, so an iterator will do.
        title: stands above the picture.
        max_labels: classes drawn.
        notice: a banner's text.

    Raises:
        ValueError: there are no rows, a row is not valid (see `Timeline.add`), or the file cannot be written.
    """
    timeline = Timeline(title=title, max_labels=max_labels, notice=notice)
    for start_s, end_s, scores in rows:
        timeline.add(start_s, end_s, scores)
    timeline.save(path_png)


def _heads(labels: list[str]) -> dict[str, list[str]]:
    """The classes of each head: of "verb" those like "verb: cut"; of a single head all, its name left empty."""
    heads: dict[str, list[str]] = {}
    for label in labels:
        heads.setdefault(_head_name(label), []).append(label)
    return heads if "" not in heads and len(heads) <= _MAX_HEADS else {"": labels}


def _head_name(label: str) -> str:
    return label.partition(": ")[0] if ": " in label else ""


def _draw(timeline: Timeline) -> Figure:
    heads = _heads(timeline.labels)
    drawn = _drawn_labels(list(heads.values()), timeline.max_labels)
    colors = {label: _PALETTE[i % len(_PALETTE)] for i, label in enumerate(drawn)}
    names = {label: _shorten(label, 34) for label in drawn}
    full_scale = _full_scale(max((float(np.nanmax(timeline.mean_scores(label))) for label in drawn), default=0.0))

    banner_in = 0.34 if timeline.notice else 0.0
    top_in, gap_in, bottom_in, right_in = banner_in + 0.78, 0.18, 0.52, 0.95
    rows_in = (len(drawn) + len(heads)) * _ROW_IN + gap_in
    height_in = top_in + rows_in + bottom_in
    figure = Figure(figsize=(_WIDTH_IN, height_in), dpi=_DPI)
    left_in = 0.62 + max([_width_in(name, 9.5) for name in names.values()] + [0.9])
    width_in = _WIDTH_IN - left_in - right_in
    box = (left_in / _WIDTH_IN, bottom_in / height_in, width_in / _WIDTH_IN, rows_in / height_in)
    axes = figure.add_axes(box, facecolor=_PAPER)
    axes.set(xlim=(timeline.start_s, timeline.end_s), ylim=(rows_in, 0), autoscale_on=False)  # y: inches downwards

    for i, label in enumerate(drawn):
        _strip(axes, timeline, i * _ROW_IN, _shades(timeline.mean_scores(label) / full_scale, colors[label]))
        peak = f"peak {format_percent(timeline.peak_score(label))}"
        _row_name(axes, (i + 0.5) * _ROW_IN, names[label], colors[label], peak)
    for i, (head, labels) in enumerate(heads.items()):
        top = (len(drawn) + i) * _ROW_IN + gap_in
        _band(axes, timeline, top, head, labels, colors)
        _row_name(axes, top + _ROW_IN / 2, _shorten(f"top-1 {head}".strip(), 34), None, "")
    _time_axis(axes, timeline.start_s, timeline.end_s)

    if timeline.notice:
        banner = figure.add_axes((0, 1 - banner_in / height_in, 1, banner_in / height_in), facecolor="#ffbe28")
        banner.set(xticks=[], yticks=[])
        banner.spines[:].set_visible(False)
        _text(banner, 0.5, 0.48, _shorten(timeline.notice, 120), 10.5, "#1e1600", weight="bold", ha="center")
    margin, title_y, summary_y = 0.3 / _WIDTH_IN, 1 - (top_in - 0.51) / height_in, 1 - (top_in - 0.24) / height_in
    clips = "1 clip" if timeline.num_clips == 1 else f"{timeline.num_clips:,} clips"
    span = f"{_tick_name(timeline.start_s, 1)} to {_tick_name(timeline.end_s, 1)}"
    summary = f"{clips}, {span}   ·   colour strength: score, full at {format_percent(full_scale)}"
    _text(figure, margin, title_y, _shorten(timeline.title, 100), 13, _INK, weight="bold")
    _text(figure, margin, summary_y, summary, 9, _DIM)
    return figure


def _drawn_labels(heads: list[list[str]], max_labels: int) -> list[str]:
    """The strongest classes, of each head as many as there is room for, head by head."""
    ranked = [label for rank in itertools.zip_longest(*heads) for label in rank if label is not None]
    chosen = set(ranked[:max_labels])
    return [label for labels in heads for label in labels if label in chosen]


def _strip(axes: Axes, timeline: Timeline, top: float, rgb: np.ndarray) -> None:
    """One row of colours, (bins, 3), along the time axis."""
    end_s = timeline.start_s + len(rgb) * timeline.bin_s
    extent = (timeline.start_s, end_s, top + _ROW_IN * 0.9, top + _ROW_IN * 0.1)
    axes.imshow(rgb[None], extent=extent, aspect="auto")


def _shades(strength: np.ndarray, color: str) -> np.ndarray:
    """(bins,) from 0 to 1 as (bins, 3): from the row's ground to its colour; paper where there was no clip."""
    amount = np.clip(np.nan_to_num(strength), 0, 1)[:, None] ** 0.85
    rgb = np.array(to_rgb(_NO_SCORE)) * (1 - amount) + np.array(to_rgb(color)) * amount
    rgb[np.isnan(strength)] = to_rgb(_PAPER)
    return rgb


def _band(axes: Axes, timeline: Timeline, top: float, head: str, labels: list[str], colors: dict[str, str]) -> None:
    """The head's best class per bin in that class's colour, its name where there is room."""
    best = timeline.best(labels)
    palette = [to_rgb(colors.get(label, _OTHERS[i % len(_OTHERS)])) for i, label in enumerate(labels)]
    rgb = np.array([*palette, to_rgb(_NOT_KEPT)])[best]
    rgb[np.isnan(timeline.mean_scores(labels[0]))] = to_rgb(_PAPER)
    _strip(axes, timeline, top, rgb)
    in_per_s = axes.get_position().width * _WIDTH_IN / (timeline.end_s - timeline.start_s)
    for first, last in itertools.pairwise([0, *(np.flatnonzero(np.diff(best)) + 1), len(best)]):
        if best[first] >= 0:
            start_s = timeline.start_s + first * timeline.bin_s
            end_s = min(timeline.start_s + last * timeline.bin_s, timeline.end_s)
            name = labels[best[first]].removeprefix(f"{head}: ")
            name = _shorten_to(name, (end_s - start_s) * in_per_s - 0.1)
            _text(axes, (start_s + end_s) / 2, top + _ROW_IN / 2, name, 8, "#ffffff", weight="bold", ha="center")


def _row_name(axes: Axes, y: float, name: str, color: str | None, note: str) -> None:
    across = axes.get_yaxis_transform()
    inch = 1 / (axes.get_position().width * _WIDTH_IN)  # as a share of the axes
    if color is not None:
        axes.plot([-0.13 * inch], [y], "s", color=color, markersize=7, transform=across, clip_on=False)
    _text(axes, -0.26 * inch, y, name, 9.5, _INK if color else _DIM, ha="right", transform=across)
    _text(axes, 1 + 0.1 * inch, y, note, 8, _DIM, transform=across)


def _time_axis(axes: Axes, start_s: float, end_s: float) -> None:
    step_s = next((step for step in _TICK_STEPS_S if (end_s - start_s) / step <= 11), 0.0)
    step_s = step_s or math.ceil((end_s - start_s) / 11 / 86_400) * 86_400
    ticks = np.arange(math.ceil(start_s / step_s - 1e-9), math.floor(end_s / step_s + 1e-9) + 1) * step_s
    axes.set_xticks(ticks, [_tick_name(tick, step_s) for tick in ticks])
    axes.tick_params(axis="x", colors=_DIM, labelsize=9, length=4, labelfontfamily="DejaVu Sans")
    axes.set_yticks([])
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_color(_DIM)


def _tick_name(time_s: float, step_s: float) -> str:
    if step_s >= 1:
        return format_time(round(time_s, 6))
    tenths = round(abs(time_s) * 10)
    return ("-" if time_s < 0 and tenths else "") + f"{format_time(tenths // 10)}.{tenths % 10}"


def _full_scale(highest: float) -> float:
    """The score drawn in full colour: a round number not far above the highest."""
    if highest > 0.5 or highest <= 0:
        return max(1.0, highest)
    power = 10.0 ** math.floor(math.log10(highest))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= highest * (1 - 1e-9))


def _text(
    where: Axes | Figure, x: float, y: float, text: str, size: float, color: str, *, ha: str = "left", **rest: Any
) -> None:
    """Text as it is: no mathematics between dollar signs, in the font that comes with matplotlib."""
    rest |= {"ha": ha, "va": "center", "fontsize": size, "color": color, "family": "DejaVu Sans", "parse_math": False}
    where.text(x, y, text, **rest)


def _shorten(text: str, max_chars: int) -> str:
    text = one_line(text)
    return text if len(text) <= max_chars else text[: max_chars - 1].rstrip() + "…"


def _shorten_to(text: str, max_in: float) -> str:
    """The text as far as it fits, at the size of a band; nothing where less than six letters would."""
    if max_in < 0.1:
        return ""
    text = _shorten(text, 60)
    cuts = (text, *(text[:n].rstrip() + "…" for n in range(len(text) - 1, 5, -1)))
    return next((cut for cut in cuts if _width_in(cut, 8, "bold") <= max_in), "")


def _width_in(text: str, size: float, weight: str = "normal") -> float:
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    return RendererAgg(1, 1, _DPI).get_text_width_height_descent(text, font, False)[0] / _DPI
