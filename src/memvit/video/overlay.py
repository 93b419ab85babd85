"""Predictions drawn onto frames: a panel of labels with score bars, the time, and a banner where one is due.

Text and boxes are rendered once per set of predictions; per frame only the pixels under them are blended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from memvit.video.fonts import load_font
from memvit.video.layers import Layer, fit_text, one_line, rounded_box
from memvit.video.panel import PANEL_COLOR, TEXT_COLOR, Entries, Panel, format_percent, render_panel, wanted_width

__all__ = ["Entries", "OverlayRenderer", "draw_predictions", "format_percent", "format_time"]

_MIN_FONT_PX = 9
_MIN_BANNER_FONT_PX = 7  # smaller than is comfortable, but better read than cut off
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
        self,
        rgb: np.ndarray,
        entries: Entries,
        footer: str | None = None,
        *,
        groups: Sequence[tuple[str, Entries]] = (),
        heading: str = "",
        time_s: float | None = None,
    ) -> np.ndarray:
        """Return a copy of a frame with the predictions on it.

        Args:
            rgb: uint8 (height, width, 3); left as it is.
            entries: labels with scores in [0, 1], in the order to be drawn; as many as fit are drawn, 10 at most. None
                are fine.
            footer: what has to be plain to every viewer ("untrained weights"), drawn as a banner along the bottom.
            groups: of a model with several heads, the name and the entries of each, drawn below `entries`: these are what
                the heads say together, and the first of them is drawn larger.
            heading: a line above the entries, if there are any.
            time_s: where in the video the frame is, seconds; drawn in the upper right corner.

        Raises:
            ValueError: the frame is not uint8 of that shape, or a score is not finite.
        """
        self.check(rgb)
        frame = rgb.copy()
        banner = self._layer("banner", footer or None)
        says = Panel(tuple(entries), tuple((name, tuple(of_group)) for name, of_group in groups), heading)
        panel = self._layer("panel", None if says.is_empty else (says, banner is not None))
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

    @property
    def _clock_height(self) -> int:
        return round(1.2 * self._font_px) + max(2, round(0.45 * self._font_px))

    def _render_banner(self, text: str) -> Layer:
        font_px = self._font_px
        image = Image.new("RGBA", (self.width, self._banner_height), _BANNER_COLOR)
        text, room = one_line(text), self.width - 2 * self._margin
        font = load_font("DejaVuSans-Bold.ttf", font_px, text)
        while font_px > _MIN_BANNER_FONT_PX and font.getlength(text) > room:
            font_px -= 1
            font = load_font("DejaVuSans-Bold.ttf", font_px, text)
        text = fit_text(text, font, room)
        center = (self.width / 2, self._banner_height / 2)
        ImageDraw.Draw(image).text(center, text, fill=_BANNER_TEXT_COLOR, font=font, anchor="mm")
        return Layer.of(image, left=0, top=self.height - self._banner_height)

    def _render_clock(self, text: str) -> Layer | None:
        font = load_font("DejaVuSans.ttf", self._font_px)
        pad = max(2, round(0.45 * self._font_px))
        width = math.ceil(font.getlength(text)) + 2 * pad
        height = self._clock_height
        if width + 2 * self._margin > self.width or height + 2 * self._margin > self.height:
            return None
        image = rounded_box(width, height, radius=pad, color=PANEL_COLOR)
        ImageDraw.Draw(image).text((width / 2, height / 2), text, fill=TEXT_COLOR, font=font, anchor="mm")
        return Layer.of(image, left=self.width - self._margin - width, top=self._margin)

    def _render_panel(self, key: tuple[Panel, bool]) -> Layer | None:
        panel, has_banner = key
        font_px, margin = self._font_px, self._margin
        wanted, beside_clock = wanted_width(panel, font_px, self.width), self.width - 2 * margin - 5 * font_px
        places = [(min(wanted, beside_clock), margin)]
        if panel.groups and wanted > beside_clock:  # rather below the clock
            places.insert(0, (min(wanted, self.width - 2 * margin), margin + self._clock_height + margin // 2))
        bottom = self.height - margin - (self._banner_height if has_banner else 0)
        for width, top in places:
            image = render_panel(panel, font_px, width, bottom - top)
            if image is not None:
                return Layer.of(image, left=margin, top=top)
        return None


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
