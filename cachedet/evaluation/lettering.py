"""Letters for drawings: in each script that a font here has, else as escapes that tell apart.

matplotlib's DejaVu Sans has Latin, Cyrillic, Greek, Arabic and more; for Chinese, Japanese, Korean,
Hindi or emoji the fonts of the system are searched.
"""

from __future__ import annotations

from functools import cache, lru_cache
from itertools import groupby

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

from cachedet.text import as_ascii, printable, shorten

_LONGEST = 40  # characters of a text in a drawing
_SHORTEST = 10  # however small the image
_NO_LETTERS = ("last resort", "adobe blank")  # fonts with one box for all of a script


class Lettering:
    """Measures and draws texts in letters of one size, in pixels."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._ascent, descent = _load(_main_font(), size).getmetrics()
        self.height = self._ascent + descent  # of a line

    def fit(self, text: str, width: float) -> str:
        """The text as it can be drawn, its middle cut out until it fits into `width`."""
        whole = drawable(text)
        most = min(len(whole), _LONGEST)
        shown = shorten(whole, most)
        while most > _SHORTEST and self.width(shown) > width:
            most -= 1
            shown = shorten(whole, most)
        return shown

    def width(self, text: str) -> float:
        """The width of what `fit` gave."""
        return sum(font.getlength(part) for font, part in self._runs(text))

    def draw(
        self,
        canvas: ImageDraw.ImageDraw,
        at: tuple[float, float],
        text: str,
        *,
        fill: tuple[int, int, int],
    ) -> None:
        """Draw what `fit` gave; `at` is the upper left corner of its line."""
        x, y = at
        for font, part in self._runs(text):
            canvas.text((x, y + self._ascent), part, font=font, fill=fill, anchor="ls")
            x += font.getlength(part)

    def _runs(self, text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        """The parts of a text that one font has."""
        runs = groupby(text, key=_font_of)
        return [(_load(font or _main_font(), self._size), "".join(part)) for font, part in runs]


def drawable(text: str) -> str:
    """On one line, with an escape such as ``\\u732b`` for each letter that no font here has."""
    return "".join(letter if _font_of(letter) else as_ascii(letter) for letter in printable(text))


def plot_label(text: str) -> str:
    """For matplotlib, which has one font, formulas between dollars, and hides what starts with _"""
    label = "".join(
        letter if _has(_main_font(), letter) else as_ascii(letter) for letter in printable(text)
    )
    return shorten(label, _LONGEST).replace("$", "\\$").removeprefix("_")


@cache
def _main_font() -> str:
    return str(font_manager.findfont("DejaVu Sans"))


@cache
def _other_fonts() -> tuple[str, ...]:
    """Paths of the system's fonts, upright ones of usual weight first."""
    entries = [
        entry
        for entry in font_manager.fontManager.ttflist
        if not entry.name.strip(".").lower().startswith(_NO_LETTERS)
    ]
    entries.sort(key=lambda each: (each.style != "normal", each.weight != 400, each.fname))
    return tuple(dict.fromkeys(str(entry.fname) for entry in entries))


@lru_cache(maxsize=4096)
def _font_of(letter: str) -> str | None:
    """Path of the first font that has the letter."""
    if _has(_main_font(), letter):
        return _main_font()
    if letter.isascii():
        return None
    return next((path for path in _other_fonts() if _has(path, letter)), None)


def _has(path: str, letter: str) -> bool:
    """Whether a font has the letter and Pillow can draw it: fonts of bitmaps have no other size."""
    try:
        return bool(FT2Font(path).get_char_index(ord(letter))) and bool(_load(path, 16))
    except (OSError, RuntimeError):  # removed since matplotlib listed them, or damaged
        return False


@lru_cache(maxsize=64)
def _load(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)
