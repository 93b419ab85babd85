"""People drawn onto frames: a box in a colour of their own, and beside it what they do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import ImageDraw

from memvit.video.fonts import load_font
from memvit.video.layers import Layer, fit_text, one_line, rounded_box
from memvit.video.overlay import OverlayRenderer, format_percent

MAX_ROWS = 4
MIN_SIDE_PX = 360  # smaller videos are enlarged before anything is written on them
_MIN_FONT_PX = 12
_PANEL_COLOR = (14, 17, 23, 205)
_TEXT_COLOR = (255, 255, 255, 255)
_DIM_TEXT_COLOR = (222, 227, 235, 255)
_EDGE_COLOR = np.array((14, 17, 23), np.uint8)

# Colours that differ from one another and from most pictures; people get them in turn.
_COLORS = (
    *((255, 196, 0), (64, 156, 255), (255, 92, 92), (60, 208, 112), (226, 120, 255), (0, 214, 214)),
    *((255, 140, 40), (160, 224, 32), (255, 120, 180), (150, 140, 255), (210, 170, 120), (120, 220, 180)),
)


Rows = tuple[tuple[str, float], ...]
"""What somebody does, with scores, best first."""


@dataclass(frozen=True)
class PersonBox:
    """Somebody in a frame.

    Attributes:
        track: the person's number, which chooses the colour.
        corners: x1, y1, x2, y2 as fractions of the frame's width and height.
        entries: what the person does, with scores, best first; may be empty.
    """

    track: int
    corners: tuple[float, float, float, float]
    entries: Rows = ()


class Rect(NamedTuple):
    """A rectangle in pixels, its right and lower edges not in it."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> int:
        """Pixels; 0 where an edge lies beyond the opposite one."""
        return max(self.right - self.left, 0) * max(self.bottom - self.top, 0)

    def shared(self, other: Rect) -> int:
        """Pixels in both."""
        return Rect(
            max(self.left, other.left),
            max(self.top, other.top),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        ).area


def enlargement(width: int, height: int) -> int:
    """How many times larger frames should be drawn so that labels can be read: 1 for all but small videos."""
    return math.ceil(MIN_SIDE_PX / min(width, height))


class BoxOverlayRenderer:
    """Draws people onto the frames of one video.

    A label stands beside its box, inside the frame, and where there is room not upon other labels; it keeps its side of the
    box as long as it can. Keeps what it rendered last, so it is not for several threads at once.

    Args:
        width: of the frames, pixels.
        height: of the frames, pixels.
        duration_s: the video's length, seconds; with it, a thin line at the bottom shows how far the video has come.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, width: int, height: int, *, duration_s: float | None = None) -> None:
        self.width = width
        self.height = height
        self._frame = OverlayRenderer(width, height, duration_s=duration_s)
        self._font_px = max(_MIN_FONT_PX, round(0.03 * min(width, height)))
        self._line_px = max(3, round(0.006 * min(width, height)))
        self._labels: dict[tuple[int, Rows], Layer] = {}
        self._sides: dict[int, int] = {}

    def draw(
        self, rgb: np.ndarray, persons: Sequence[PersonBox], footer: str | None = None, *, time_s: float | None = None
    ) -> np.ndarray:
        """Return a copy of a frame with people on it.

        Args:
            rgb: uint8 (height, width, 3); left as it is.
            persons: who is there.
            footer: what has to be plain to every viewer, drawn as a banner along the bottom.
            time_s: where in the video the frame is, seconds; drawn in the upper right corner.

        Raises:
            ValueError: the frame is not uint8 of that shape.
        """
        self._frame.check(rgb)
        frame = rgb.copy()
        boxes = [self._rect(person.corners) for person in persons]
        for person, box in zip(persons, boxes, strict=True):
            _outline(frame, box, self._line_px, _color(person.track))
        taken = [Rect(*area) for area in self._frame.occupied(footer, time_s)]
        for layer in self._place(persons, boxes, taken):
            layer.blend_into(frame)
        return self._frame.draw(frame, [], footer, time_s=time_s)

    def _place(self, persons: Sequence[PersonBox], boxes: Sequence[Rect], taken: Sequence[Rect]) -> list[Layer]:
        """The labels of people, each where it hides least; people keep the side where their label was."""
        keys = [(person.track, person.entries[:MAX_ROWS]) for person in persons]
        self._labels = {key: self._labels.get(key) or self._render(*key) for key in keys}
        placed: list[Rect] = list(taken)
        layers = []
        sides = {}
        for index, (person, layer) in enumerate(zip(persons, (self._labels[key] for key in keys), strict=True)):
            others = [box for other, box in enumerate(boxes) if other != index]
            places = self._places(boxes[index], layer, placed)
            costs = [self._cost(place, side, person.track, boxes[index], others, placed) for side, place in places]
            side, place = places[int(np.argmin(costs))]
            sides[person.track] = side
            placed.append(place)
            layers.append(layer.moved(place.left, place.top))
        self._sides = sides
        return layers

    def _places(self, box: Rect, label: Layer, placed: Sequence[Rect]) -> list[tuple[int, Rect]]:
        """Where a label may stand, (side, place), the best first if nothing else were there."""
        w, h, gap = label.width, label.height, 1
        right, bottom = box.right - w, box.bottom - h
        corners = [
            *((box.left, box.top - h - gap), (right, box.top - h - gap)),  # above
            *((box.left, box.bottom + gap), (right, box.bottom + gap)),  # below
            *((box.right + gap, box.top), (box.left - w - gap, box.top)),  # beside
            *((box.left + self._line_px, bottom - self._line_px), (right - self._line_px, bottom - self._line_px)),
            *((box.left + self._line_px, box.top + self._line_px), (right - self._line_px, box.top + self._line_px)),
        ]
        places = [(side, self._inside(left, top, w, h)) for side, (left, top) in enumerate(corners)]
        # Next to labels that are in the way of these.
        for side, place in list(places):
            for other in placed:
                if place.shared(other):
                    places.append((side, self._inside(place.left, other.top - h - gap, w, h)))
                    places.append((side, self._inside(place.left, other.bottom + gap, w, h)))
        return places

    def _cost(
        self, place: Rect, side: int, track: int, box: Rect, others: Sequence[Rect], placed: Sequence[Rect]
    ) -> float:
        """How bad a place is: labels upon labels most, then upon people's heads, then far from the box."""
        area = max(place.area, 1)
        hidden = sum(place.shared(other) for other in placed) / area
        hides = 2.0 if hidden else 0.0
        heads = sum(place.shared(_head(other)) for other in others) / area
        own = place.shared(_head(box)) / area
        gap_x = max(place.left - box.right, box.left - place.right, 0)
        gap_y = max(place.top - box.bottom, box.top - place.bottom, 0)
        far = (gap_x + gap_y) / (4 * self._font_px)
        moved = 0.35 if self._sides.get(track, side) != side else 0.0
        return hides + 10 * hidden + 1.5 * heads + own + far + moved + 0.08 * side

    def _inside(self, left: int, top: int, width: int, height: int) -> Rect:
        """A rectangle moved so that it is inside the frame."""
        left, top = max(min(left, self.width - width), 0), max(min(top, self.height - height), 0)
        return Rect(left, top, left + width, top + height)

    def _rect(self, corners: tuple[float, float, float, float]) -> Rect:
        x1, y1, x2, y2 = corners
        left, top = round(x1 * self.width), round(y1 * self.height)
        return Rect(left, top, max(round(x2 * self.width), left + 1), max(round(y2 * self.height), top + 1))

    def _render(self, track: int, entries: Rows) -> Layer:
        """A label: the person's number on the person's colour, and a row for everything the person does."""
        font_px = self._font_px
        pad, row_px = max(2, round(0.3 * font_px)), round(1.35 * font_px)
        regular, bold = load_font("DejaVuSans.ttf", font_px), load_font("DejaVuSans-Bold.ttf", font_px)
        rows = [(one_line(label), format_percent(score)) for label, score in entries]
        number = str(track)
        tab = math.ceil(bold.getlength(number)) + 2 * pad
        percent_px = max((math.ceil(bold.getlength(percent)) for _, percent in rows), default=0)
        room = max(0.45 * self.width, 12 * font_px) - tab - percent_px - 4 * pad
        styles = ["DejaVuSans-Bold.ttf", *["DejaVuSans.ttf"] * len(rows)]
        fonts = [load_font(style, font_px, name) for style, (name, _) in zip(styles, rows, strict=False)]
        names = [fit_text(name, font, room) for font, (name, _) in zip(fonts, rows, strict=True)]
        lengths = [font.getlength(name) for font, name in zip(fonts, names, strict=True)]
        width = tab + (math.ceil(max(lengths)) + percent_px + 4 * pad if rows else 0)
        height = max(len(rows), 1) * row_px + pad
        color = _color(track)
        image = rounded_box(min(width, self.width), min(height, self.height), radius=pad, color=_PANEL_COLOR)
        # The tab is cut off the left of a panel in the person's colour, and so keeps its round corners.
        panel = rounded_box(*image.size, radius=pad, color=(*color, 255))
        image.paste(panel.crop((0, 0, tab, height)), (0, 0))
        draw = ImageDraw.Draw(image)
        middle = (pad + row_px) / 2
        draw.text((tab / 2, middle), number, fill=_ink(color), font=bold, anchor="mm")
        for i, (name, (_, percent)) in enumerate(zip(names, rows, strict=True)):
            font, ink = (bold, _TEXT_COLOR) if i == 0 else (regular, _DIM_TEXT_COLOR)
            draw.text((tab + pad, middle + i * row_px), name, fill=ink, font=fonts[i], anchor="lm")
            draw.text((width - pad, middle + i * row_px), percent, fill=ink, font=font, anchor="rm")
        return Layer.of(image, 0, 0)


def _head(box: Rect) -> Rect:
    """The upper third of a box."""
    return box._replace(bottom=box.top + (box.bottom - box.top) // 3)


def _color(track: int) -> tuple[int, int, int]:
    return _COLORS[(track - 1) % len(_COLORS)]


def _ink(color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Black or white, whichever is easier to read on a colour."""
    red, green, blue = color
    return (16, 16, 16, 255) if 0.3 * red + 0.59 * green + 0.11 * blue > 110 else _TEXT_COLOR


def _outline(frame: np.ndarray, box: Rect, line_px: int, color: tuple[int, int, int]) -> None:
    """Draws a rectangle along the inside of a box, with a thin dark edge within that sets it off from light pictures."""
    _hollow(frame, Rect(*(edge + d * line_px for edge, d in zip(box, (1, 1, -1, -1), strict=True))), 1, _EDGE_COLOR)
    _hollow(frame, box, line_px, np.array(color, np.uint8))


def _hollow(frame: np.ndarray, box: Rect, line_px: int, color: np.ndarray) -> None:
    height, width = frame.shape[:2]
    left, top = max(box.left, 0), max(box.top, 0)
    right, bottom = min(box.right, width), min(box.bottom, height)
    if right <= left or bottom <= top:
        return
    patch = frame[top:bottom, left:right]
    patch[:line_px] = patch[-line_px:] = color
    patch[:, :line_px] = patch[:, -line_px:] = color
