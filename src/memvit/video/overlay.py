"""Predictions drawn onto frames: a panel of labels with score bars, the time, and a banner where one is due.

Text and boxes are rendered once per set of predictions; per frame only the pixels under them are blended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from memvit.video.layers import Layer, fit_text, load_font, one_line, rounded_box

Entries = Sequence[tuple[str, float]]
"""Labels with their scores in [0, 1], best first."""

_MAX_ENTRIES = 10
_MIN_FONT_PX = 9
_MIN_BANNER_FONT_PX = 7  # smaller than is comfortable, but better read than cut off
_PANEL_COLOR = (14, 17, 23, 178)
_TRACK_COLOR = (255, 255, 255, 26)
_TOP_BAR_COLOR = (56, 132, 255, 235)
_BAR_COLOR = (120, 150, 190, 130)
_TEXT_COLOR = (255, 255, 255, 255)
_DIM_TEXT_COLOR = (222, 227, 235, 255)
_BANNER_COLOR = (255, 190, 40, 240)
_BANNER_TEXT_COLOR = (30, 22, 0, 255)
_PROGRESS_COLOR = (56, 132, 255, 255)


class OverlayRenderer:
    """Draws predictions onto the frames of one video.

    Keeps what it rendered last, so a call with the predictions of the call before only blends. Not for several threads
    at once.

    Args:
        width: of the frames, pixels.
        height: of the frames, pixels.
        duration_s: the video's length, seconds; with it, a thin line at the bottom shows how far the video has come.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, width: int, height: int, *, duration_s: float | None = None) -> None:
        if width < 1 or height < 1:
            raise ValueError(f"cannot draw on frames of {width}x{height} pixels; both must be 1 or more")
        self.width = width
        self.height = height
        self.duration_s = duration_s
        self._font_px = max(_MIN_FONT_PX, round(0.036 * min(width, height)))
        self._margin = max(2, round(0.6 * self._font_px))
        self._rendered: dict[str, tuple[object, Layer | None]] = {}

    def draw(
        self, rgb: np.ndarray, entries: Entries, footer: str | None = None, *, time_s: float | None = None
    ) -> np.ndarray:
        """Return a copy of a frame with the predictions on it.

        Args:
            rgb: uint8 (height, width, 3); left as it is.
            entries: labels with scores in [0, 1], in the order to be drawn; as many as fit are drawn, 10 at most. None
                are fine.
            footer: what has to be plain to every viewer ("untrained weights"), drawn as a banner along the bottom.
            time_s: where in the video the frame is, seconds; drawn in the upper right corner.

        Raises:
            ValueError: the frame is not uint8 of that shape, or a score is not finite.
        """
        self.check(rgb)
        frame = rgb.copy()
        banner = self._layer("banner", footer or None)
        panel = self._layer("panel", (tuple(entries), banner is not None) if len(entries) else None)
        clock = self._layer("clock", None if time_s is None else format_time(time_s))
        for layer in (panel, clock, banner):
            if layer is not None:
                layer.blend_into(frame)
        if self.duration_s and time_s is not None:
            done = min(max(time_s / self.duration_s, 0.0), 1.0)
            thickness = max(2, self.height // 180)
            frame[-thickness:, : round(done * self.width)] = _PROGRESS_COLOR[:3]
        return frame

    def check(self, rgb: np.ndarray) -> None:
        """Refuses what is no frame of the renderer's size.

        Raises:
            ValueError: the frame is not uint8 of that shape.
        """
        if rgb.shape != (self.height, self.width, 3) or rgb.dtype != np.uint8:
            raise ValueError(
                f"the overlay was made for uint8 frames ({self.height}, {self.width}, 3), not {rgb.dtype} {rgb.shape}; "
                "make one OverlayRenderer per frame size"
            )

    def occupied(self, footer: str | None, time_s: float | None) -> list[tuple[int, int, int, int]]:
        """Where `draw` puts the banner and the clock: left, top, right, bottom in pixels, the last two not included."""
        layers = (
            self._layer("banner", footer or None),
            self._layer("clock", None if time_s is None else format_time(time_s)),
        )
        return [(a.left, a.top, a.left + a.width, a.top + a.height) for a in layers if a is not None]

    def _layer(self, name: str, key: object) -> Layer | None:
        last_key, layer = self._rendered.get(name, (None, None))
        if key != last_key:
            layer = None if key is None else getattr(self, f"_render_{name}")(key)
            self._rendered[name] = (key, layer)
        return layer

    @property
    def _banner_height(self) -> int:
        return min(round(1.9 * self._font_px), self.height)

    def _render_banner(self, text: str) -> Layer:
        font_px = self._font_px
        image = Image.new("RGBA", (self.width, self._banner_height), _BANNER_COLOR)
        text, room = one_line(text), self.width - 2 * self._margin
        font = load_font("DejaVuSans-Bold.ttf", font_px)
        while font_px > _MIN_BANNER_FONT_PX and font.getlength(text) > room:
            font_px -= 1
            font = load_font("DejaVuSans-Bold.ttf", font_px)
        text = fit_text(text, font, room)
        center = (self.width / 2, self._banner_height / 2)
        ImageDraw.Draw(image).text(center, text, fill=_BANNER_TEXT_COLOR, font=font, anchor="mm")
        return Layer.of(image, left=0, top=self.height - self._banner_height)

    def _render_clock(self, text: str) -> Layer | None:
        font = load_font("DejaVuSans.ttf", self._font_px)
        pad = max(2, round(0.45 * self._font_px))
        width = math.ceil(font.getlength(text)) + 2 * pad
        height = round(1.2 * self._font_px) + pad
        if width + 2 * self._margin > self.width or height + 2 * self._margin > self.height:
            return None
        image = rounded_box(width, height, radius=pad, color=_PANEL_COLOR)
        ImageDraw.Draw(image).text((width / 2, height / 2), text, fill=_TEXT_COLOR, font=font, anchor="mm")
        return Layer.of(image, left=self.width - self._margin - width, top=self._margin)

    def _render_panel(self, key: tuple[tuple[tuple[str, float], ...], bool]) -> Layer | None:
        entries, has_banner = key
        for label, score in entries:
            if not math.isfinite(score):
                raise ValueError(f"the score of {label!r} is {score}; only finite scores can be drawn")
        font_px, margin = self._font_px, self._margin
        pad, row_gap = max(2, round(0.5 * font_px)), max(1, round(0.22 * font_px))
        row_height = round(1.5 * font_px)
        room = self.height - 2 * margin - 2 * pad - (self._banner_height if has_banner else 0) + row_gap
        num_rows = min(len(entries), _MAX_ENTRIES, room // (row_height + row_gap))
        # The clock stands to the right of the panel.
        width = min(max(round(0.36 * self.width), 16 * font_px), self.width - 2 * margin - 5 * font_px)
        if num_rows < 1 or width < 5 * font_px:
            return None
        height = num_rows * (row_height + row_gap) - row_gap + 2 * pad
        image = rounded_box(width, height, radius=pad, color=_PANEL_COLOR)
        for i, (label, score) in enumerate(entries[:num_rows]):
            row = _render_row(label, min(max(score, 0.0), 1.0), width - 2 * pad, row_height, font_px, is_top=i == 0)
            image.alpha_composite(row, (pad, pad + i * (row_height + row_gap)))
        return Layer.of(image, left=margin, top=margin)


def draw_predictions(
    rgb: np.ndarray, scores: Entries, *, time_s: float | None = None, footer: str | None = None
) -> np.ndarray:
    """Return a copy of one frame with predictions on it; for many frames `OverlayRenderer` is faster.

    Args:
        rgb: uint8 (height, width, 3).
        scores: labels with scores in [0, 1], best first.
        time_s: where in the video the frame is, seconds.
        footer: a banner's text.

    Raises:
        ValueError: the frame is not uint8 (height, width, 3), or a score is not finite.
    """
    if rgb.ndim != 3:
        raise ValueError(f"cannot draw on an array of shape {rgb.shape}; give a frame, uint8 (height, width, 3)")
    return OverlayRenderer(rgb.shape[1], rgb.shape[0]).draw(rgb, scores, footer, time_s=time_s)


def format_time(time_s: float) -> str:
    """A time as a player shows it: m:ss, from an hour on h:mm:ss, cut to whole seconds."""
    sign, seconds = ("-", int(-time_s)) if time_s <= -1 else ("", int(max(time_s, 0)))
    hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
    return f"{sign}{hours}:{minutes:02}:{seconds:02}" if hours else f"{sign}{minutes}:{seconds:02}"


def format_percent(score: float) -> str:
    """A score in percent, with one decimal place below 10%."""
    return f"{100 * score:.0f}%" if score >= 0.0995 or score == 0 else f"{100 * score:.1f}%"


def _render_row(label: str, score: float, width: int, height: int, font_px: int, *, is_top: bool) -> Image.Image:
    """One prediction, RGBA: its bar as long as its score, the label and the score in percent upon it."""
    row = rounded_box(width, height, radius=height // 5, color=_TRACK_COLOR)
    bar_width = round(score * width)
    if bar_width:
        # Cut from a full bar, so that a short one keeps the track's rounded corner instead of bulging beyond it.
        bar = rounded_box(width, height, radius=height // 5, color=_TOP_BAR_COLOR if is_top else _BAR_COLOR)
        row.paste(bar.crop((0, 0, bar_width, height)), (0, 0))
    font = load_font("DejaVuSans-Bold.ttf" if is_top else "DejaVuSans.ttf", font_px)
    color = _TEXT_COLOR if is_top else _DIM_TEXT_COLOR
    pad = max(2, round(0.35 * font_px))
    percent = format_percent(score)
    draw = ImageDraw.Draw(row)
    draw.text((width - pad, height / 2), percent, fill=color, font=font, anchor="rm")
    room = width - 3 * pad - font.getlength(percent)
    draw.text((pad, height / 2), fit_text(one_line(label), font, room), fill=color, font=font, anchor="lm")
    return row
