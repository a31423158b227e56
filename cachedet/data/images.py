"""Image files: the one rule from any file to RGB pixels, and from pixels to backbone input.

The rule: a regular file of at most MAX_NBYTES, of a format in FORMATS and at most MAX_PIXELS; the
first frame, decoded strictly (a truncated file is an error, never half an image); turned upright
by its EXIF orientation (a broken orientation counts as upright and is reported); palette, grey,
1-bit and CMYK converted by Pillow; transparent pixels laid over black. Colours have 8 bits:

- 16-bit greys are divided by 257, not clipped, and where they hold 14 bits or fewer a note says so.
- 32-bit integers are taken as 16 bits where all are 0 to 65535, with a note; else it is an error.
- Floats are multiplied by 255 where all are 0 to 1, taken as they are where the largest is 2 to
  255, both with a note; anything else (NaN too) is an error.
- A TIFF of which 0 is white is turned into one of which 0 is black; beyond 8 bits with a note.

A JPEG that is going to be scaled down is decoded at a half, a quarter or an eighth of its sides
where that divides them and leaves at least twice the long side of the base view: several times as
fast, and the pixels of the view differ by 0.3 of 255 on average.

Threads decode at most MAX_PIXELS at once, so that giants wait for each other: some 8 bytes of
memory a pixel (up to 20 in JPEG 2000, AVIF and WebP, as their decoders hold it all). The
annotation file's width and height must be those of the upright image.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from cachedet.allocator import return_free_memory
from cachedet.data.geometry import Geometry
from cachedet.data.regular_files import open_regular
from cachedet.data.wholeness import require_covered, require_whole
from cachedet.errors import BadImageError
from cachedet.progress import StageProgress
from cachedet.structures import Preprocessing, SizeHW
from cachedet.text import printable

# Once for the process (filters are not kept per thread): what Pillow warns of is checked here.
warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_PIXELS = 170_000_000  # just below where Pillow itself refuses to decode
MAX_NBYTES = 512 << 20  # of a file: what so many pixels take without any compression
# Pictures only: other formats that Pillow knows start programs, open other files, or have no
# signature. JPEG includes MPO; HEIF is there with cachedet[heif].
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_LARGE_FILE = 64 << 20  # of these one is in memory at a time
_GIANT = 32_000_000  # pixels; of smaller images threads may keep the memory
_STRIP_PIXELS = 1 << 24  # converted at once
_FEW_BITS = 14  # of 16
_MANY_HEADERS = 1000  # of which a progress line tells
_HEADER_READERS = 8  # threads: they wait for the disk
_REDUCTIONS = (8, 4, 2)  # that libjpeg decodes at
_LEAST_REDUCED = 2  # long sides of the base view; below that the filter of `make_input` would show
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_FILTER_REACH = 3  # pixels to either side, of Lanczos, the widest
_ORIENTATION = 0x0112
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a TIFF's tag


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedImage:
    """An upright image, of all its pixels or reduced."""

    pixels: NDArray[np.uint8]  # (H, W, 3) RGB
    image_hw: SizeHW  # of the file: that of `pixels`, or 2, 4 or 8 times it
    note: str | None = None  # where something was odd but harmless
    is_turned: bool = False  # by its EXIF orientation

    @property
    def is_reduced(self) -> bool:
        return self.pixels.shape[:2] != self.image_hw

    def suffices(self, geometry: Geometry) -> bool:
        """Whether a view of it has the detail that one of all pixels has."""
        height, width = self.pixels.shape[:2]
        enough = geometry.scaled_hw[0] <= height and geometry.scaled_hw[1] <= width
        return enough or not self.is_reduced


def decode_image(path: Path) -> NDArray[np.uint8]:
    """All pixels (H, W, 3) RGB by the rule of this module. Raises BadImageError naming the file."""
    return decode_file(path).pixels


def decode_file(path: Path, *, image_size: int | None = None) -> DecodedImage:
    """What `decoded` gives of a file. Raises BadImageError naming it."""
    try:
        with opened(path) as content, decoded(content, image_size=image_size) as image:
            return image
    except BadImageError as error:
        raise BadImageError(f"{printable(path)}: {error}") from error


def decode_bytes(content: bytes) -> tuple[NDArray[np.uint8], str | None]:
    """All pixels (H, W, 3) RGB, and a note where something was odd but harmless.

    Raises BadImageError (without the file's name): not an image, truncated, or too large.
    """
    with decoded(content) as image:
        return image.pixels, image.note


@dataclass(frozen=True, kw_only=True, eq=False)
class GiantImage:
    """All pixels of a giant as Pillow holds them: an array beside them would be as large again."""

    pixels: Image.Image  # upright RGB
    image_hw: SizeHW

    def suffices(self, geometry: Geometry) -> bool:
        """As of DecodedImage."""
        return True


def decode_giant(content: bytes) -> GiantImage | None:
    """A JPEG or TIFF of many pixels; None where it is no giant, or must be turned or converted.

    Raises BadImageError as `decode_bytes` does.
    """
    with contextlib.ExitStack() as held, _reasons(content):
        image = Image.open(io.BytesIO(content), formats=_formats())
        is_plain = image.format in ("JPEG", "MPO", "TIFF") and image.mode == "RGB"
        is_deep = ";16" in str(image.tile)
        is_giant = image.width * image.height > _GIANT
        if not (is_giant and is_plain) or is_deep or _orientation(image.getexif)[0] != 1:
            image.close()
            return None
        _load(image, content, held)
        return GiantImage(pixels=image, image_hw=(image.height, image.width))


Pixels: TypeAlias = NDArray[np.uint8] | Image.Image  # (H, W, 3), or RGB


@contextlib.contextmanager
def opened(path: Path) -> Iterator[bytes]:
    """The bytes of an image file; of large files one at a time is inside.

    Raises BadImageError (without the file's name) where there is none, or it cannot be read.
    """
    try:
        descriptor = open_regular(path)
    except OSError as error:
        raise BadImageError(error.strerror or str(error)) from error
    except ValueError as error:  # NUL, or half a pair of surrogates
        raise BadImageError("no file can have this name") from error
    with open(descriptor, "rb") as file:
        nbytes = os.fstat(descriptor).st_size
        with room_for(nbytes):
            try:
                content = file.read(nbytes)
            except OSError as error:
                raise BadImageError(error.strerror or str(error)) from error
            except MemoryError as error:
                raise BadImageError(_NO_MEMORY) from error
            yield content


def room_for(nbytes: int) -> AbstractContextManager[object]:
    """To hold a file of so many bytes: only one thread holds large ones.

    Raises BadImageError where it has too many.
    """
    if nbytes > MAX_NBYTES:
        raise BadImageError(f"{nbytes:,} bytes are more than the limit of {MAX_NBYTES:,}")
    return _large_files if nbytes > _LARGE_FILE else nullcontext()


@contextlib.contextmanager
def decoded(content: bytes, *, image_size: int | None = None) -> Iterator[DecodedImage]:
    """The image in a file's bytes; other giants are not decoded before the block has ended.

    `image_size` is the long side of the base view it is wanted for; None: all pixels are wanted.
    Raises BadImageError as `decode_bytes` does.
    """
    with contextlib.ExitStack() as held:
        yield _decode(content, image_size, held)


class _Room:
    """What all threads together have in hand: who finds too little left waits."""

    def __init__(self) -> None:
        self._used = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, amount: int, *, of: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + amount <= of)
            self._used += amount
        try:
            yield
        finally:
            if amount > _GIANT:
                return_free_memory()
            with self._changed:
                self._used -= amount
                self._changed.notify_all()


_NO_MEMORY = "there is not enough memory to decode it"
_large_files = threading.RLock()
_pixels_in_hand = _Room()


def _decode(content: bytes, image_size: int | None, held: contextlib.ExitStack) -> DecodedImage:
    # `closing` frees the memory at once
    with (
        _reasons(content),
        contextlib.closing(Image.open(io.BytesIO(content), formats=_formats())) as image,
    ):
        width, height = image.size
        is_deep = image.format in ("PNG", "TIFF") and ";16" in str(image.tile)
        _load(image, content, held, image_size=image_size)
        orientation, odd = _orientation(image.getexif)
        upright, scaled = _to_rgb(image, is_deep=is_deep)
    return DecodedImage(
        pixels=_turned(upright, orientation),
        image_hw=(width, height) if orientation >= 5 else (height, width),
        note="; ".join(filter(None, (odd, scaled))) or None,
        is_turned=orientation != 1,
    )


@contextlib.contextmanager
def _reasons(content: bytes) -> Iterator[None]:
    """Whatever a decoder raises becomes a BadImageError."""
    if not content:
        raise BadImageError("the file is empty")
    try:
        yield
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError(_unread(content)) from error
    except Exception as error:  # a decoder that meets damage may raise anything
        raise BadImageError(_reason(error)) from error


def _load(
    image: ImageFile.ImageFile,
    content: bytes,
    held: contextlib.ExitStack,
    *,
    image_size: int | None = None,
) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImageError(f"{width}x{height} pixels are more than the limit of {MAX_PIXELS}")
    _reduce(image, image_size)
    held.enter_context(_pixels_in_hand.taken(image.width * image.height, of=MAX_PIXELS))
    require_covered(image)
    image.load()
    require_whole(image, content)


def _reduce(image: ImageFile.ImageFile, image_size: int | None) -> None:
    """Have a JPEG decoded at a fraction of its sides, where so many pixels are not wanted."""
    if image_size is None or image.format not in ("JPEG", "MPO"):
        return
    width, height = image.size
    for factor in _REDUCTIONS:
        divides = width % factor == 0 == height % factor
        if divides and max(width, height) >= factor * _LEAST_REDUCED * image_size:
            image.draft(None, (width // factor, height // factor))
            return


def _unread(content: bytes) -> str:
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS:
        if "HEIF" in _formats():
            return "a HEIC image that is damaged or truncated"
        return "a HEIC image: reading it needs pip install 'cachedet[heif]', or save it as JPEG"
    return f"not an image of a format that is read ({', '.join(_formats())})"


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return _NO_MEMORY
    text = (str(error).strip() or "it cannot be decoded").splitlines()[0]
    is_plain = isinstance(error, (OSError, SyntaxError, ValueError, Image.DecompressionBombError))
    return text if is_plain else f"it cannot be decoded ({type(error).__name__}: {text})"


def read_sizes(paths: Sequence[Path]) -> list[SizeHW | None]:
    """Height and width of upright images, of their headers alone; None where there is no image."""
    progress = StageProgress("read sizes", total=len(paths), unit="images")
    sizes = []
    with (
        ThreadPoolExecutor(_HEADER_READERS, thread_name_prefix="sizes") as readers,
        progress if len(paths) >= _MANY_HEADERS else nullcontext() as shown,
    ):
        for size in readers.map(_read_size, paths):
            sizes.append(size)
            if shown is not None:
                shown.advance()
    return sizes


def _read_size(path: Path) -> SizeHW | None:
    try:
        with open(open_regular(path), "rb") as file:
            looks_behind = _has_late_text(file)
            with Image.open(file, formats=_formats()) as image:
                width, height = image.size
                # A PNG without EXIF would be decoded whole, to look behind its pixels.
                kind = type(image) if image.format != "PNG" or looks_behind else Image.Image
                orientation, _ = _orientation(partial(kind.getexif, image))
    except Exception:  # the look at all images says what is wrong with it
        return None
    return (width, height) if orientation >= 5 else (height, width)


def _has_late_text(file: BinaryIO) -> bool:
    """Whether it is a PNG of chunks behind its pixels, which may tell its orientation."""
    is_png, is_behind, found = file.read(8) == b"\x89PNG\r\n\x1a\n", False, False
    while is_png and not found and len(head := file.read(8)) == 8 and head[4:] != b"IEND":
        is_behind |= head[4:] == b"IDAT"
        found = is_behind and head[4:] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    file.seek(0)
    return found


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow has, with what is installed beside it."""
    Image.init()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Endings of file names, as ``.jpg``, of the formats that are decoded."""
    read = (*_formats(), "MPO")  # first, as it registers endings, too
    known = Image.registered_extensions().items()
    return frozenset(ending for ending, name in known if name in read)


def make_input(pixels: Pixels, geometry: Geometry, preprocessing: Preprocessing) -> Tensor:
    """Pixels (H, W, 3) -> normalised input (3, *geometry.padded_hw) float32, padded with zeros.

    `pixels` are those of the image, or of one reduced as `decoded` does. Only the pixels of the
    window are computed. The filter still sees the image around it, so they are those of resizing
    the whole image and cutting, within rounding (2 of 255).
    """
    height, width = geometry.valid_hw
    resized = resize(pixels, geometry, interpolation=preprocessing.interpolation)
    if geometry.colour is not None:
        resized = geometry.colour.apply(resized)
    padded = np.zeros((3, *geometry.padded_hw), dtype=np.float32)
    for channel, values in enumerate(_normalised_values(preprocessing)):
        np.take(values, resized[..., channel], out=padded[channel, :height, :width], mode="clip")
    return torch.from_numpy(padded)


def resize(pixels: Pixels, geometry: Geometry, *, interpolation: str) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) -> the valid part of the view (*geometry.valid_hw, 3), without padding."""
    height, width = geometry.valid_hw
    resample = Image.Resampling[interpolation.upper()]
    window = None
    if geometry.is_window:
        reduction = geometry.image_hw[0] // _size_of(pixels)[0]
        x1, y1, x2, y2 = (edge / reduction for edge in geometry.window_in_image())
        window = (x1, y1, x2, y2)
        if geometry.is_cut_out:
            pixels, window = _cut_out(pixels, window, size_hw=(height, width))
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    resized = np.asarray(image.resize((width, height), resample, box=window))
    return resized[:, ::-1] if geometry.flip else resized


def nbytes_of(pixels: Pixels) -> int:
    """In memory; Pillow has four bytes for a pixel."""
    return 4 * pixels.width * pixels.height if isinstance(pixels, Image.Image) else pixels.nbytes


def _size_of(pixels: Pixels) -> SizeHW:
    if isinstance(pixels, Image.Image):
        return pixels.height, pixels.width
    return pixels.shape[0], pixels.shape[1]


def _cut_out(
    pixels: Pixels, window: tuple[float, float, float, float], *, size_hw: SizeHW
) -> tuple[Pixels, tuple[float, float, float, float]]:
    """What the filter sees of a window, and the window in it: Pillow copies all it is given."""
    x1, y1, x2, y2 = window
    reach_x = math.ceil(_FILTER_REACH * max(1.0, (x2 - x1) / size_hw[1])) + 1
    reach_y = math.ceil(_FILTER_REACH * max(1.0, (y2 - y1) / size_hw[0])) + 1
    left, top = max(0, math.floor(x1) - reach_x), max(0, math.floor(y1) - reach_y)
    bottom, right = math.ceil(y2) + reach_y, math.ceil(x2) + reach_x
    inside = x1 - left, y1 - top, x2 - left, y2 - top
    if not isinstance(pixels, Image.Image):
        return pixels[top:bottom, left:right], inside
    box = left, top, min(right, pixels.width), min(bottom, pixels.height)
    return pixels.crop(box), inside


@functools.lru_cache(maxsize=8)
def _normalised_values(preprocessing: Preprocessing) -> NDArray[np.float32]:
    """(3, 256): what each of the 256 values of a channel becomes; looking up beats computing."""
    values = torch.arange(256, dtype=torch.float32).div_(255)
    mean = torch.tensor(preprocessing.mean).view(3, 1)
    std = torch.tensor(preprocessing.std).view(3, 1)
    table: NDArray[np.float32] = ((values - mean) / std).numpy()
    return table


def _orientation(read_exif: Callable[[], Image.Exif]) -> tuple[int, str | None]:
    try:
        orientation = read_exif().get(_ORIENTATION, 1)
    except Exception as error:  # broken EXIF makes Pillow raise many types
        return 1, f"EXIF cannot be read ({type(error).__name__}); taken as upright"
    if orientation in range(1, 9):
        return orientation, None
    return 1, f"EXIF orientation {orientation!r} is invalid (1 to 8); taken as upright"


def _turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Upright: first swap the axes (5 to 8), then turn over what comes from the other end."""
    if orientation == 1:
        return pixels
    swapped = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(swapped[rows, columns])


def _to_rgb(image: Image.Image, *, is_deep: bool) -> tuple[NDArray[np.uint8], str | None]:
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
