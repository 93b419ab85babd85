"""The panel of an overlay: labels with score bars, those of several heads one below the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from memvit.video.fonts import load_font
from memvit.video.layers import fit_text, one_line, rounded_box

Entries = Sequence[tuple[str, float]]
"""Labels with their scores in [0, 1], best first."""

PANEL_COLOR = (14, 17, 23, 178)
TEXT_COLOR = (255, 255, 255, 255)
_DIM_TEXT_COLOR = (222, 227, 235, 255)
_NAME_COLOR = (200, 208, 220, 255)
_HEADING_COLOR = (255, 206, 92, 255)
_TRACK_COLOR = (255, 255, 255, 26)
_TOP_BAR_COLOR = (56, 132, 255, 235)
_BAR_COLOR = (120, 150, 190, 130)

_MAX_ENTRIES = 10
_MAX_OF_GROUPS = (3, 2)  # with groups: what stands above them, and each of them
_LEAD_SCALE = 1.35


@dataclass(frozen=True)
class Panel:
    """What a panel says.

    Attributes:
        entries: in the order to be drawn.
        groups: of further heads, the name and the entries of each; the best of `entries` is then drawn larger.
        heading: a line above all of it, say when it is about; empty: none.
    """

    entries: tuple[tuple[str, float], ...] = ()
    groups: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] = ()
    heading: str = ""

    def __post_init__(self) -> None:
        for label, score in (entry for entries in self._all for entry in entries):
            if not math.isfinite(score):
                raise ValueError(f"the score of {label!r} is {score}; only finite scores can be drawn")

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(self._all)

    @property
    def _all(self) -> list[tuple[tuple[str, float], ...]]:
        return [self.entries, *(entries for _, entries in self.groups)]


@dataclass(frozen=True)
class _Row:
    """One label: of `entries` (group 0) or of a group (from 1), its rank from 0 there."""

    group: int
    rank: int
    label: str
    score: float
    font_px: int

    @property
    def height(self) -> int:
        return round(1.5 * self.font_px)


def wanted_width(panel: Panel, font_px: int, frame_width: int) -> int:
    """How wide a panel would be if there is room for it: about a third of the frame, and enough for some words."""
    if not panel.groups:
        return max(round(0.36 * frame_width), 16 * font_px)
    # Actions are two names long, and the names of heads stand before theirs.
    return max(round(0.42 * frame_width), 22 * font_px)


def render_panel(panel: Panel, font_px: int, width: int, max_height: int) -> Image.Image | None:
    """A panel, RGBA, with as many entries as fit; None where there is no room for one.

    Where there is not room for all, the best of every group comes before the second of any.

    Args:
        panel: what it says.
        font_px: of its letters.
        width, max_height: pixels.
    """
    pad, row_gap = max(2, round(0.5 * font_px)), max(1, round(0.22 * font_px))
    heading_height = round(1.35 * font_px) + row_gap if panel.heading else 0
    rows = _choose_rows(panel, font_px, max_height - 2 * pad - heading_height + row_gap, row_gap)
    if not rows or width < 5 * font_px:
        return None
    tops, bottom = _place(rows, pad + heading_height, row_gap)
    image = rounded_box(width, bottom + pad, radius=pad, color=PANEL_COLOR)
    draw = ImageDraw.Draw(image)
    if panel.heading:
        font = load_font("DejaVuSans-Bold.ttf", font_px, panel.heading)
        text = fit_text(one_line(panel.heading), font, width - 2 * pad)
        draw.text((pad, pad + (heading_height - row_gap) / 2), text, fill=_HEADING_COLOR, font=font, anchor="lm")
    name_font = load_font("DejaVuSans.ttf", font_px, "".join(name for name, _ in panel.groups))
    names_px = max((math.ceil(name_font.getlength(one_line(name))) for name, _ in panel.groups), default=0)
    names_px = min(names_px, round(0.3 * width))
    for row, top in zip(rows, tops, strict=True):
        left = pad
        if row.group:
            left += names_px + pad
            if row.rank == 0:
                name = fit_text(one_line(panel.groups[row.group - 1][0]), name_font, names_px)
                draw.text((pad, top + row.height / 2), name, fill=_NAME_COLOR, font=name_font, anchor="lm")
        is_top = row.rank == 0 and (row.group == 0 or not panel.entries)
        drawn = render_row(row.label, row.score, width - pad - left, row.height, row.font_px, font_px, is_top=is_top)
        image.alpha_composite(drawn, (left, top))
    return image


def _choose_rows(panel: Panel, font_px: int, room: int, row_gap: int) -> list[_Row]:
    """The rows that fit into a height, in the order to be drawn."""
    chosen: list[_Row] = []
    for row in _by_importance(panel, font_px):
        rows = sorted([*chosen, row], key=lambda row: (row.group, row.rank))
        if _place(rows, 0, row_gap)[1] + row_gap > room:
            break
        chosen = rows
    return chosen


def _by_importance(panel: Panel, font_px: int) -> Iterator[_Row]:
    """All rows that may be drawn, the most important first."""
    lists = [panel.entries, *(entries for _, entries in panel.groups)]
    limits = [_MAX_ENTRIES] if not panel.groups else [_MAX_OF_GROUPS[0], *[_MAX_OF_GROUPS[1]] * len(panel.groups)]
    if panel.groups and not panel.entries:
        limits = [_MAX_ENTRIES // len(panel.groups)] * len(lists)
    for rank in range(max(limits)):
        for group, entries in enumerate(lists):
            if rank < min(len(entries), limits[group]):
                is_lead = bool(panel.groups) and group == rank == 0
                yield _Row(group, rank, *entries[rank], round(_LEAD_SCALE * font_px) if is_lead else font_px)


def _place(rows: Sequence[_Row], top: int, row_gap: int) -> tuple[list[int], int]:
    """The top of every row, and the bottom of the last; groups stand a little apart."""
    tops = []
    bottom = top - row_gap
    for i, row in enumerate(rows):
        begins_group = i > 0 and row.group != rows[i - 1].group
        tops.append(bottom + (3 if begins_group else 1) * row_gap)
        bottom = tops[-1] + row.height
    return tops, bottom


def format_percent(score: float) -> str:
    """A score in percent, with one decimal place below 10%."""
    return f"{100 * score:.0f}%" if score >= 0.0995 or score == 0 else f"{100 * score:.1f}%"


def render_row(
    label: str, score: float, width: int, height: int, font_px: int, min_font_px: int, *, is_top: bool
) -> Image.Image:
    """One prediction, RGBA: its bar as long as its score, the label and the score in percent upon it.

    A label that is too long is set in smaller letters, down to `min_font_px`, before its end is cut off.
    """
    row = rounded_box(width, height, radius=height // 5, color=_TRACK_COLOR)
    bar_width = round(min(max(score, 0.0), 1.0) * width)
    if bar_width:
        # Cut from a full bar, so that a short one keeps the track's rounded corner instead of bulging beyond it.
        bar = rounded_box(width, height, radius=height // 5, color=_TOP_BAR_COLOR if is_top else _BAR_COLOR)
        row.paste(bar.crop((0, 0, bar_width, height)), (0, 0))
    family = "DejaVuSans-Bold.ttf" if is_top else "DejaVuSans.ttf"
    color = TEXT_COLOR if is_top else _DIM_TEXT_COLOR
    label, percent = one_line(label), format_percent(min(max(score, 0.0), 1.0))
    pad = max(2, round(0.35 * font_px))
    font, label_font = load_font(family, font_px), load_font(family, font_px, label)
    while font_px > min_font_px and label_font.getlength(label) + font.getlength(percent) + 3 * pad > width:
        font_px -= 1
        font, label_font = load_font(family, font_px), load_font(family, font_px, label)
    draw = ImageDraw.Draw(row)
    draw.text((width - pad, height / 2), percent, fill=color, font=font, anchor="rm")
    room = width - 3 * pad - font.getlength(percent)
    draw.text((pad, height / 2), fit_text(label, label_font, room), fill=color, font=label_font, anchor="lm")
    return row
