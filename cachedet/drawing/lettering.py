"""Letters for drawings: in each script that a font here has, else as escapes that tell apart.

matplotlib's DejaVu Sans has Latin, Cyrillic, Greek, Arabic and more; for Chinese, Japanese, Korean,
Hindi, Thai or emoji the fonts of installed packages (the extra `fonts`: Noto Sans), then those of
the system are searched.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

from cachedet.text import as_ascii, printable, shorten

_LONGEST = 40  # characters of a text in a drawing
_SHORTEST = 10  # however small the image
_FONT_PACKAGES = ("justmytype.packs", "fontpkg.family")  # groups of entry points
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
        return [(_load(font, self._size), part) for font, part in _split(text)]


def drawable(text: str) -> str:
    """On one line, with an escape such as ``\\u732b`` for each letter that no font here has."""
    return "".join(letter if _font_of(letter) else as_ascii(letter) for letter in printable(text))


def plot_label(text: str) -> str:
    """For matplotlib, which has one font, formulas between dollars, and hides what starts with _"""
    label = "".join(
        letter if _has(_main_font(), letter) else as_ascii(letter) for letter in printable(text)
    )
    return shorten(label, _LONGEST).replace("$", "\\$").removeprefix("_")


@lru_cache(maxsize=1024)
def _split(text: str) -> tuple[tuple[str, str], ...]:
    """(font, part): of one font as far as it reaches, so that letters join and marks combine."""
    parts: list[tuple[str, str]] = []
    for is_main, letters in groupby(_clusters(text), key=lambda each: _has_all(_main_font(), each)):
        part = "".join(clusters := list(letters))
        whole = _main_font() if is_main else next(_fonts_with(part), None)
        if whole is not None:
            parts.append((whole, part))
            continue
        for cluster in clusters:
            font = next(_fonts_with(cluster), None) or _font_of(cluster[0]) or _main_font()
            parts.append((font, cluster))
    return tuple(parts)


def _clusters(text: str) -> list[str]:
    """Letters with the marks and joiners behind them, which mean nothing without them."""
    clusters: list[str] = []
    for letter in text:
        if clusters and unicodedata.category(letter) in ("Mn", "Mc", "Me", "Cf"):
            clusters[-1] += letter
        else:
            clusters.append(letter)
    return clusters


def _fonts_with(text: str) -> Iterator[str]:
    return (path for path in _other_fonts() if _has_all(path, text))


def _has_all(path: str, text: str) -> bool:
    """Joiners are for the letters beside them: a font without them has them all the same."""
    return all(_has(path, each) for each in text if unicodedata.category(each) != "Cf")


@cache
def _main_font() -> str:
    return str(font_manager.findfont("DejaVu Sans"))


@cache
def _other_fonts() -> tuple[str, ...]:
    """Paths of fonts of packages, then of the system's, upright ones of usual weight first."""
    entries = [
        entry
        for entry in font_manager.fontManager.ttflist
        if not entry.name.strip(".").lower().startswith(_NO_LETTERS)
    ]
    entries.sort(key=lambda each: (each.style != "normal", each.weight != 400, each.fname))
    return tuple(dict.fromkeys([*_packaged_fonts(), *(str(entry.fname) for entry in entries)]))


def _packaged_fonts() -> list[str]:
    """Fonts of installed packages that say they hold some; none of them is imported."""
    found: list[Path] = []
    for entry in (each for group in _FONT_PACKAGES for each in entry_points(group=group)):
        with suppress(ImportError, ValueError):
            spec = find_spec(entry.module.split(".")[0])
            for folder in (spec and spec.submodule_search_locations) or ():
                found += sorted(Path(folder).rglob("*.[to]tf"))
    return [str(path) for path in found if "italic" not in path.name.lower()]


@lru_cache(maxsize=4096)
def _font_of(letter: str) -> str | None:
    """Path of the first font that has the letter."""
    if _has(_main_font(), letter):
        return _main_font()
    if letter.isascii():
        return None
    return next((path for path in _other_fonts() if _has(path, letter)), None)


@lru_cache(maxsize=16384)
def _has(path: str, letter: str) -> bool:
    """Whether a font has the letter and Pillow can draw it: fonts of bitmaps have no other size."""
    return ord(letter) in _letters_in(path)


@lru_cache(maxsize=256)
def _letters_in(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap()) if _load(path, 16) else frozenset()
    except (OSError, RuntimeError):  # removed since matplotlib listed them, or damaged
        return frozenset()


@lru_cache(maxsize=64)
def _load(path: str, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.truetype(path, size)
    with suppress(OSError):  # one of a single weight; those of several may begin with the thinnest
        font.set_variation_by_name("Regular")
    return font
