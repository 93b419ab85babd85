"""The font of labels: DejaVu, so that pictures look alike on every machine; what it lacks comes from the machine's fonts."""

from __future__ import annotations

import logging
import unicodedata
from dataclasses import replace
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

logger = logging.getLogger(__name__)

FAMILY = "DejaVu Sans"
_NO_FONTS = ("lastresort", "dejavu")  # of boxes alone; and what lacks the characters
_MAX_NAMED = 20


def load_font(name: str, size_px: int, text: str = "") -> ImageFont.FreeTypeFont:
    """A font that comes with matplotlib; for a text with characters that it lacks, one of the system that has most of them."""
    others = _others(_lacking(text))
    return _load(others[0] if others else _of_matplotlib(name), size_px)


def families(text: str) -> list[str]:
    """The fonts of a text for matplotlib, which takes every character from the first one that has it."""
    return [FAMILY, *(_family(path) for path in _others(_lacking(text)))]


def _of_matplotlib(name: str) -> Path:
    return Path(matplotlib.get_data_path(), "fonts", "ttf", name)


def _lacking(text: str) -> frozenset[str]:
    """The visible characters of a text that DejaVu lacks."""
    if text.isascii():
        return frozenset()
    known = _characters(_of_matplotlib("DejaVuSans-Bold.ttf"))  # the regular one has more
    return frozenset(c for c in text if ord(c) not in known and unicodedata.category(c)[0] not in "CZ")


@cache
def _others(lacking: frozenset[str]) -> tuple[Path, ...]:
    """Fonts of the system that have the characters, those that have most of them first."""
    chosen = []
    while lacking:
        counts = {path: sum(ord(c) in _characters(path) for c in lacking) for path in _candidates()}
        best = max(counts, key=lambda path: counts[path], default=None)
        if best is None or not counts[best]:
            _tell(lacking)
            break
        chosen.append(best)
        lacking = frozenset(c for c in lacking if ord(c) not in _characters(best))
    return tuple(chosen)


@cache
def _candidates() -> tuple[Path, ...]:
    """Fonts of the system, plain ones without serifs first. matplotlib's own list may be older than they are."""
    from matplotlib import font_manager  # looks for fonts when it is imported

    fonts = []
    for path in map(Path, font_manager.findSystemFonts()):
        try:
            font = FT2Font(str(path))
        except (OSError, RuntimeError):  # not for FreeType
            continue
        name = f"{font.family_name}{path.stem}".lower().replace(" ", "")
        if font.scalable and not any(word in name for word in _NO_FONTS):
            is_plain = font.style_name in ("Regular", "Book", "Normal", "Medium")
            fonts.append((not is_plain, "serif" in name.replace("sansserif", ""), "sans" not in name, path))
    return tuple(path for *_, path in sorted(fonts))


@cache
def _characters(path: Path) -> frozenset[int]:
    return frozenset(FT2Font(str(path)).get_charmap())


@cache
def _family(path: Path) -> str:
    """The name by which matplotlib then knows a font."""
    from matplotlib import font_manager

    font = FT2Font(str(path))
    entry = font_manager.ttfFontProperty(font)
    # Bold letters come from the same file: matplotlib would warn that there are none.
    font_manager.fontManager.ttflist += [replace(entry, weight=weight) for weight in (400, 700)]
    return font.family_name


@cache
def _load(path: Path, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size_px)


_told: set[str] = set()


def _tell(lacking: frozenset[str]) -> None:
    """Says, once, what is drawn as boxes."""
    if not _told:
        named = "".join(sorted(lacking)[:_MAX_NAMED]) + ("…" if len(lacking) > _MAX_NAMED else "")
        logger.warning("no font of this machine has %s: boxes are drawn instead, install a font with them", named)
    _told.update(lacking)
