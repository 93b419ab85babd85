"""The picture of a timeline: which classes a video shows when, and which is the best one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from memvit.video.fonts import FAMILY, families
from memvit.video.layers import one_line
from memvit.video.overlay import format_percent, format_time
from memvit.video.time_bins import HeadScores, TimeBins

if TYPE_CHECKING:
    from memvit.video.timeline import Timeline

_WIDTH_IN, _ROW_IN, _TALL_ROW_IN, _GAP_IN, _DPI = 13.0, 0.34, 0.62, 0.18, 120
_INK, _DIM, _PAPER, _NO_SCORE = "#1b2430", "#6b7684", "#ffffff", "#eef1f5"
# In the top-1 band: classes that have no row of their own, in turn, and those that are not kept at all.
_OTHERS, _NOT_KEPT = ("#929ca9", "#7f8996"), "#d3d9e0"
_PALETTE = (
    *("#2f6fde", "#e4572e", "#2a9d5c", "#8e44ad", "#e0a100", "#17a2b8"),
    *("#d6336c", "#6d4c41", "#5c6bc0", "#7cb342", "#00897b", "#f06292"),
)
_TICK_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400)


def draw(timeline: Timeline) -> Figure:
    """Draws what was added to a timeline.

    Every class has a row, as strong in colour as its score. A band per head shows the best class of every time: below the
    rows, or above them where there are several heads; if the first leads, its band is taller than the others.
    """
    heads, bins = timeline.heads, timeline.bins
    drawn = _drawn_labels([head.labels for head in heads], timeline.max_labels)
    palette = itertools.cycle(_PALETTE)
    colors = [{label: next(palette) for label in labels} for labels in drawn]
    names = [_row_labels(timeline, h, labels) for h, labels in enumerate(drawn)]
    peaks = [np.nanmax(head.mean_scores(label)) for head, labels in zip(heads, drawn, strict=True) for label in labels]
    full_scale = _full_scale(max(peaks, default=0.0))
    layout = _Layout(drawn, timeline.first_leads)

    banner_in = 0.34 if timeline.notice else 0.0
    top_in, bottom_in, right_in = banner_in + 0.78, 0.52, 0.95
    height_in = top_in + layout.height_in + bottom_in
    figure = Figure(figsize=(_WIDTH_IN, height_in), dpi=_DPI, facecolor=_PAPER)
    left_in = 0.62 + max([_width_in(name, 9.5) for name in itertools.chain(*names)] + [0.9])
    width_in = _WIDTH_IN - left_in - right_in
    box = (left_in / _WIDTH_IN, bottom_in / height_in, width_in / _WIDTH_IN, layout.height_in / height_in)
    axes = figure.add_axes(box, facecolor=_PAPER)
    axes.set(xlim=(bins.start_s, bins.end_s), ylim=(layout.height_in, 0), autoscale_on=False)  # y: inches downwards

    for h, head in enumerate(heads):
        for label, name, top in zip(drawn[h], names[h], layout.strips[h], strict=True):
            _strip(axes, bins, top, _shades(head.mean_scores(label) / full_scale, colors[h][label]))
            peak = f"peak {format_percent(head.peak_score(label))}"
            _row_name(axes, top + _ROW_IN / 2, name, colors[h][label], peak)
        if drawn[h]:
            top, height = layout.bands[h]
            _band(axes, bins, head, top, height, colors[h])
            _row_name(axes, top + height / 2, _shorten(f"top-1 {head.name}".strip(), 34), None, "")
    _time_axis(axes, bins.start_s, bins.end_s)

    if timeline.notice:
        banner = figure.add_axes((0, 1 - banner_in / height_in, 1, banner_in / height_in), facecolor="#ffbe28")
        banner.set(xticks=[], yticks=[])
        banner.spines[:].set_visible(False)
        _text(banner, 0.5, 0.48, _shorten(timeline.notice, 120), 10.5, "#1e1600", weight="bold", ha="center")
    margin, title_y, summary_y = 0.3 / _WIDTH_IN, 1 - (top_in - 0.51) / height_in, 1 - (top_in - 0.24) / height_in
    _text(figure, margin, title_y, _shorten(timeline.title, 100), 13, _INK, weight="bold")
    _text(figure, margin, summary_y, _summary(timeline, full_scale), 9, _DIM)
    return figure


class _Layout:
    """Where rows and bands stand, in inches from the top of the plot.

    Args:
        drawn: per head, the classes that have a row. A head without any has no band either.
        first_leads: the band of the first head is taller.

    Attributes:
        strips: per head, the tops of its classes' rows.
        bands: per head, top and height of the band of its best class.
    """

    def __init__(self, drawn: list[list[str]], first_leads: bool) -> None:
        self.height_in = 0.0
        self.strips: list[list[float]] = []
        self.bands: list[tuple[float, float]] = []
        if len(drawn) == 1:
            self._place_strips(drawn[0])
            self._place_band(drawn[0], _ROW_IN)
            return
        for h, labels in enumerate(drawn):
            self._place_band(labels, _TALL_ROW_IN if first_leads and h == 0 else _ROW_IN)
        self.height_in += _GAP_IN
        for labels in drawn:
            self._place_strips(labels)

    def _place_band(self, labels: list[str], height_in: float) -> None:
        self.bands.append((self.height_in, height_in))
        self.height_in += height_in if labels else 0

    def _place_strips(self, labels: list[str]) -> None:
        self.strips.append([self.height_in + i * _ROW_IN for i in range(len(labels))])
        self.height_in += len(labels) * _ROW_IN + _GAP_IN


def _summary(timeline: Timeline, full_scale: float) -> str:
    clips = "1 clip" if timeline.num_clips == 1 else f"{timeline.num_clips:,} clips"
    span = f"{_tick_name(timeline.bins.start_s, 1)} to {_tick_name(timeline.bins.end_s, 1)}"
    facts = [f"{clips}, {span}", f"colour strength: score, full at {format_percent(full_scale)}", timeline.remark]
    return "   ·   ".join(filter(None, facts))


def _drawn_labels(heads: list[list[str]], max_labels: int) -> list[list[str]]:
    """The strongest classes of each head, as many of each as there is room for."""
    ranked = [(h, label) for rank in itertools.zip_longest(*heads) for h, label in enumerate(rank) if label is not None]
    chosen = set(ranked[:max_labels])
    return [[label for label in labels if (h, label) in chosen] for h, labels in enumerate(heads)]


def _row_labels(timeline: Timeline, h: int, labels: list[str]) -> list[str]:
    """What stands before the rows of a head: "verb: cut"; of one head, or of one that leads, the class alone."""
    name = timeline.heads[h].name
    is_alone = not name or (timeline.first_leads and h == 0)
    return [_shorten(label if is_alone else f"{name}: {label}", 34) for label in labels]


def _strip(axes: Axes, bins: TimeBins, top: float, rgb: np.ndarray, height: float = _ROW_IN) -> None:
    """One row of colours, (bins, 3), along the time axis."""
    end_s = bins.start_s + len(rgb) * bins.bin_s
    extent = (bins.start_s, end_s, top + height - _ROW_IN * 0.1, top + _ROW_IN * 0.1)
    axes.imshow(rgb[None], extent=extent, aspect="auto")


def _shades(strength: np.ndarray, color: str) -> np.ndarray:
    """(bins,) from 0 to 1 as (bins, 3): from the row's ground to its colour; paper where there was no clip."""
    amount = np.clip(np.nan_to_num(strength), 0, 1)[:, None] ** 0.85
    rgb = np.array(to_rgb(_NO_SCORE)) * (1 - amount) + np.array(to_rgb(color)) * amount
    rgb[np.isnan(strength)] = to_rgb(_PAPER)
    return rgb


def _band(axes: Axes, bins: TimeBins, head: HeadScores, top: float, height: float, colors: dict[str, str]) -> None:
    """The head's best class per bin in that class's colour, its name where there is room."""
    labels = head.labels
    best = head.best(labels)
    palette = [to_rgb(colors.get(label, _OTHERS[i % len(_OTHERS)])) for i, label in enumerate(labels)]
    rgb = np.array([*palette, to_rgb(_NOT_KEPT)])[best]
    rgb[~bins.is_covered] = to_rgb(_PAPER)
    _strip(axes, bins, top, rgb, height)
    in_per_s = axes.get_position().width * _WIDTH_IN / (bins.end_s - bins.start_s)
    for first, last in _runs(best):
        if best[first] >= 0:
            start_s = bins.start_s + first * bins.bin_s
            end_s = min(bins.start_s + last * bins.bin_s, bins.end_s)
            name, size = _fit(labels[best[first]], (end_s - start_s) * in_per_s - 0.1, height > _ROW_IN)
            _text(axes, (start_s + end_s) / 2, top + height / 2, name, size, "#ffffff", weight="bold", ha="center")


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last index, the last not included, of every run of equal values."""
    return itertools.pairwise([0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)])


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
    axes.tick_params(axis="x", colors=_DIM, labelsize=9, length=4, labelfontfamily=FAMILY)
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
    """Text as it is: no mathematics between dollar signs."""
    rest |= {"ha": ha, "va": "center", "fontsize": size, "color": color, "family": families(text), "parse_math": False}
    where.text(x, y, text, **rest)


def _shorten(text: str, max_chars: int) -> str:
    text = one_line(text)
    return text if len(text) <= max_chars else text[: max_chars - 1].rstrip() + "…"


def _fit(text: str, max_in: float, is_tall: bool) -> tuple[str, float]:
    """The text as far as it fits into a band, and its size; nothing where less than six letters would.

    A tall band has larger letters, and two lines where one is too wide.
    """
    if max_in < 0.1:
        return "", 8
    text = _shorten(text, 60)
    if is_tall:
        words = text.split()
        broken = [" ".join(words[:i]) + "\n" + " ".join(words[i:]) for i in range(1, len(words))]
        narrowest = min(broken, key=lambda form: _width_in(form, 10, "bold"), default=text)
        for form, size in ((text, 10), (narrowest, 10), (text, 8), (narrowest, 8)):
            if _width_in(form, size, "bold") <= max_in:
                return form, size
    cuts = (text, *(text[:n].rstrip() + "…" for n in range(len(text) - 1, 5, -1)))
    return next((cut for cut in cuts if _width_in(cut, 8, "bold") <= max_in), ""), 8


def _width_in(text: str, size: float, weight: str = "normal") -> float:
    """Inches; of several lines, those of the widest."""
    font = FontProperties(family=families(text), size=size, weight=weight)
    widths = [RendererAgg(1, 1, _DPI).get_text_width_height_descent(line, font, False)[0] for line in text.split("\n")]
    return max(widths) / _DPI
