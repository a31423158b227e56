"""Image files: the one rule from any file to RGB pixels.

The rule: a regular file of at most MAX_NBYTES, of a format in FORMATS and at most MAX_PIXELS; the
first frame, decoded strictly (a truncated file is an error, never half an image); turned upright
by its EXIF orientation (a broken orientation counts as upright and is reported); palette, grey,
1-bit and CMYK converted by Pillow; transparent pixels laid over black; 8 bits a channel, see
`bit_depth`.

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
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from cachedet.allocator import return_free_memory
from cachedet.data.bit_depth import to_rgb
from cachedet.data.geometry import Geometry
from cachedet.data.regular_files import open_regular
from cachedet.data.wholeness import require_covered, require_whole
from cachedet.errors import BadImageError
from cachedet.progress import StageProgress
from cachedet.structures import SizeHW
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
_MANY_HEADERS = 1000  # of which a progress line tells
_HEADER_READERS = 8  # threads: they wait for the disk
_REDUCTIONS = (8, 4, 2)  # that libjpeg decodes at
_LEAST_REDUCED = 2  # long sides of the base view; below, the filter of `make_input` would show
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_ORIENTATION = 0x0112


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
        upright, scaled = to_rgb(image, is_deep=is_deep)
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
