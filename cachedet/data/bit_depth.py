"""Images of any bit depth as RGB of 8 bits.

- 16-bit greys are divided by 257, not clipped, and where they hold 14 bits or fewer a note says so.
- 32-bit integers are taken as 16 bits where all are 0 to 65535, with a note; else it is an error.
- Floats are multiplied by 255 where all are 0 to 1, taken as they are where the largest is 2 to
  255, both with a note; anything else (NaN too) is an error.
- A TIFF of which 0 is white is turned into one of which 0 is black; beyond 8 bits with a note.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from cachedet.errors import BadImageError

_STRIP_PIXELS = 1 << 24  # converted at once
_FEW_BITS = 14  # of 16
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a TIFF's tag


def to_rgb(image: Image.Image, *, is_deep: bool) -> tuple[NDArray[np.uint8], str | None]:
    """Pixels (H, W, 3) and a note; in strips, so that a giant is not in memory several times."""
    scale, offset, note = 1.0, 0.0, None
    if image.mode.startswith("I"):
        scale, note = 1 / 257, _note_on_integers(image)
    elif image.mode == "F":
        scale, note = _scale_of_floats(image)
    elif is_deep:  # Pillow keeps the upper 8 bits
        note = _note_on_bits(256 * _brightest(image) + 255)
    if _is_negative(image):
        scale, offset = -scale, 255.0
        note = "; ".join(filter(None, (note, "0 is white in it, so that it was inverted")))
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    if rows >= height:
        return _strip_to_rgb(image, scale, offset), note
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        pixels[top : top + rows] = _strip_to_rgb(strip, scale, offset)
    return pixels, note


def _is_negative(image: Image.Image) -> bool:
    """Pillow inverts up to 8 bits itself."""
    photometric = image.tag_v2.get(_PHOTOMETRIC) if isinstance(image, TiffImageFile) else None
    return photometric == _WHITE_IS_ZERO and (image.mode.startswith("I") or image.mode == "F")


def _strip_to_rgb(image: Image.Image, scale: float, offset: float) -> NDArray[np.uint8]:
    if image.mode.startswith("I") or image.mode == "F":
        greys = np.asarray(image, dtype=np.float64) * scale + offset
        return np.repeat(greys.clip(0, 255).round().astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        over_black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        image = Image.alpha_composite(over_black, rgba)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _note_on_integers(image: Image.Image) -> str | None:
    is_negative = _is_negative(image)
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise BadImageError(
            f"its integers range from {low} to {high}, expected 16 bits, 0 to 65535; save it with "
            "8 or 16 bits"
        )
    if image.mode == "I" and image.format == "TIFF":
        taken = f"its 32-bit integers, {low} to {high}, are taken as 16 bits (divided by 257)"
        return "; ".join(filter(None, (taken, _note_on_bits(high, is_negative=is_negative))))
    return _note_on_bits(high, is_negative=is_negative)


def _scale_of_floats(image: Image.Image) -> tuple[float, str]:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if 0 <= low <= high <= 1:
        return 255.0, f"its floats, {low:g} to {high:g}, are multiplied by 255"
    if low >= 0 and 2 <= high <= 255:
        return 1.0, f"its floats, {low:g} to {high:g}, are taken as 0 to 255"
    raise BadImageError(
        f"its floats range from {low:g} to {high:g}, expected 0 to 1 or 0 to 255; save it with 8 "
        "or 16 bits"
    )


def _note_on_bits(high: int, *, is_negative: bool = False) -> str | None:
    """Where cameras of 10 to 14 bits were saved as 16 without scaling."""
    bits = high.bit_length()
    if not 0 < bits <= _FEW_BITS:
        return None
    look = "bright" if is_negative else "dark"
    return f"only {bits} of its 16 bits are used (up to {high} of 65535), so that it is {look}"


def _brightest(image: Image.Image) -> int:
    colours = [band for band in image.getbands() if band != "A"]
    return max(int(np.asarray(image.getchannel(band)).max()) for band in colours)
