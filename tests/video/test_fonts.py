from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

from memvit.video import fonts
from memvit.video.overlay import draw_predictions
from memvit.video.timeline import draw_timeline


def make_font(path: Path, characters: str) -> Path:
    """A font in which every one of the characters is a black square."""
    pen = TTGlyphPen(None)
    for place, point in enumerate([(0, 0), (0, 800), (800, 800), (800, 0)]):
        (pen.lineTo if place else pen.moveTo)(point)
    pen.closePath()
    names = {ord(c): f"uni{ord(c):04X}" for c in characters}
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", *names.values()])
    font.setupCharacterMap(names)
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), **dict.fromkeys(names.values(), pen.glyph())})
    font.setupHorizontalMetrics(dict.fromkeys([".notdef", *names.values()], (1000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return path


@pytest.fixture
def the_machine_has(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Gives the machine the fonts of a test, and no others."""

    def have(*paths: Path) -> None:
        fonts._others.cache_clear()
        monkeypatch.setattr(fonts, "_candidates", lambda: paths)
        monkeypatch.setattr(fonts, "_told", set())

    yield have
    fonts._others.cache_clear()


def test_what_dejavu_lacks_comes_from_fonts_of_the_machine(
    tmp_path: Path, the_machine_has: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    the_machine_has(make_font(tmp_path / "Few.ttf", "視"), make_font(tmp_path / "Many.ttf", "視頻 a"))
    assert fonts.load_font("DejaVuSans.ttf", 20, "視頻 a").getname() == ("Many", "Regular")
    assert fonts.load_font("DejaVuSans.ttf", 20, "視 a").getname() == ("Few", "Regular")
    assert fonts.load_font("DejaVuSans-Bold.ttf", 20, "Ünïcödé, бокс…").getname() == ("DejaVu Sans", "Bold")
    assert fonts.families("視頻") == ["DejaVu Sans", "Many"]
    assert fonts.families("cut") == ["DejaVu Sans"]
    frame = np.full((360, 640, 3), 128, np.uint8)
    with_font = draw_predictions(frame, [("視頻", 0.5)])
    assert not caplog.text
    the_machine_has()
    assert (with_font != draw_predictions(frame, [("視頻", 0.5)])).any()


def test_characters_that_no_font_has_are_told_once(
    the_machine_has: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    the_machine_has()
    assert fonts.load_font("DejaVuSans.ttf", 20, "cut 視頻").getname() == ("DejaVu Sans", "Book")
    assert fonts.families("視頻 分類") == ["DejaVu Sans"]
    (record,) = caplog.records
    assert "no font of this machine has 視頻: boxes" in record.getMessage()


def test_labels_that_dejavu_lacks_are_drawn_without_complaint(
    tmp_path: Path, the_machine_has: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [(i, i + 1.0, [("視頻 cut", 0.9)]) for i in range(4)]
    pictures = []
    for paths in ((), (make_font(tmp_path / "Squares.ttf", "視頻"),)):
        the_machine_has(*paths)
        caplog.clear()
        draw_timeline(tmp_path / "timeline.png", rows, title="標題" if not paths else "視頻")
        pictures.append(np.asarray(Image.open(tmp_path / "timeline.png").convert("RGB")))
    assert not caplog.text
    assert (pictures[0] != pictures[1]).any()
