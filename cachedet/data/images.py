"""Image files: the one rule from any file to RGB pixels, and from pixels to backbone input.

The rule: the first frame, decoded strictly (a truncated file is an error, never half an image);
turned upright by its EXIF orientation (a broken orientation counts as upright and is reported);
16-bit greys divided by 257, not clipped; palette, grey, 1-bit and CMYK converted by Pillow;
transparent pixels laid over black. The annotation file's width and height must be those of the
upright image.
"""

from __future__ import annotations

import functools
import hashlib
import io
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from cachedet.data.coco import CocoDataset
from cachedet.data.geometry import Geometry
from cachedet.errors import BadImageError
from cachedet.structures import Preprocessing

# Once for the process (filters are not kept per thread): what Pillow warns of is checked here.
warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_PIXELS = 170_000_000  # just below where Pillow itself refuses to decode
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LISTED = 20  # bad files named in one message


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """What one reading of all image files gave."""

    contents: NDArray[np.uint64]  # (N,) hash of each file's bytes; 0 where it cannot be read
    bad: tuple[tuple[int, str], ...]  # row, reason
    notes: tuple[tuple[int, str], ...]  # row, what was noticed; the image is used


def decode_image(path: Path) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) RGB by the rule of this module. Raises BadImageError naming the file."""
    try:
        return decode_bytes(path.read_bytes())[0]
    except OSError as error:
        raise BadImageError(f"{path}: {error.strerror or error}") from error
    except BadImageError as error:
        raise BadImageError(f"{path}: {error}") from error


def decode_bytes(content: bytes) -> tuple[NDArray[np.uint8], str | None]:
    """Pixels (H, W, 3) RGB, and a note where something was odd but harmless.

    Raises BadImageError (without the file's name): not an image, truncated, or too large.
    """
    if not content:
        raise BadImageError("the file is empty")
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}x{image.height}"
                raise BadImageError(f"{size} pixels are more than the limit of {MAX_PIXELS}")
            image.load()
            orientation, note = _orientation(image)
            upright = _to_rgb(image)
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError("not an image") from error
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError) as error:
        reason = str(error).strip() or "it cannot be decoded"
        raise BadImageError(reason.splitlines()[0]) from error
    if orientation in _UPRIGHT:
        upright = upright.transpose(_UPRIGHT[orientation])
    return np.asarray(upright), note


def make_input(
    pixels: NDArray[np.uint8], geometry: Geometry, preprocessing: Preprocessing
) -> Tensor:
    """Pixels (H, W, 3) -> normalised input (3, *geometry.padded_hw) float32, padded with zeros.

    Only the pixels of the window are computed. The filter still sees the image around it, so they
    are those of resizing the whole image and cutting, within rounding (2 of 255).
    """
    height, width = geometry.valid_hw
    resample = Image.Resampling[preprocessing.interpolation.upper()]
    window = geometry.window_in_image() if geometry.is_window else None
    image = Image.fromarray(pixels)
    resized = np.asarray(image.resize((width, height), resample, box=window))
    if geometry.flip:
        resized = resized[:, ::-1]
    padded = np.zeros((3, *geometry.padded_hw), dtype=np.float32)
    for channel, values in enumerate(_normalised_values(preprocessing)):
        np.take(values, resized[..., channel], out=padded[channel, :height, :width], mode="clip")
    return torch.from_numpy(padded)


@functools.lru_cache(maxsize=8)
def _normalised_values(preprocessing: Preprocessing) -> NDArray[np.float32]:
    """(3, 256): what each of the 256 values of a channel becomes; looking up beats computing."""
    values = torch.arange(256, dtype=torch.float32).div_(255)
    mean = torch.tensor(preprocessing.mean).view(3, 1)
    std = torch.tensor(preprocessing.std).view(3, 1)
    table: NDArray[np.float32] = ((values - mean) / std).numpy()
    return table


def scan_images(
    dataset: CocoDataset, *, workers: int, on_progress: Callable[[int], None] | None = None
) -> Scan:
    """Read and decode every image once, in threads: hashes, and all bad files at once."""
    findings = []
    with ThreadPoolExecutor(workers, thread_name_prefix="scan") as readers:
        rows = range(len(dataset.annotations))
        for finding in readers.map(lambda row: _inspect(dataset, row), rows):
            findings.append(finding)
            if on_progress is not None:
                on_progress(1)
    contents = np.array([content_hash for content_hash, _, _ in findings], dtype=np.uint64)
    bad = [(row, fault) for row, (_, fault, _) in enumerate(findings) if fault is not None]
    notes = [(row, note) for row, (_, _, note) in enumerate(findings) if note is not None]
    return Scan(contents=contents, bad=tuple(bad), notes=tuple(notes))


def require_good(dataset: CocoDataset, scan: Scan) -> None:
    """Raises BadImageError that lists the bad files, if there are any."""
    if not scan.bad:
        return
    listed = [f"  {dataset.path_of(row)}: {fault}" for row, fault in scan.bad[:_LISTED]]
    more = len(scan.bad) - len(listed)
    raise BadImageError(
        f"{len(scan.bad)} of {len(dataset.annotations)} images cannot be used:",
        *listed,
        *([f"  and {more} more"] if more else []),
        "Nothing was written. Repair the files, or leave them out with --on-bad-image skip",
    )


def _inspect(dataset: CocoDataset, row: int) -> tuple[int, str | None, str | None]:
    """Content hash, fault and note of one image file."""
    try:
        content = dataset.path_of(row).read_bytes()
    except OSError as error:
        return 0, error.strerror or str(error), None
    content_hash = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    try:
        pixels, note = decode_bytes(content)
    except BadImageError as error:
        return content_hash, str(error), None
    height, width = dataset.annotations.size_of(row)
    if pixels.shape[:2] != (height, width):
        upright = f"{pixels.shape[1]}x{pixels.shape[0]}"
        return content_hash, f"annotated as {width}x{height}, the upright file is {upright}", note
    return content_hash, None, note


def _orientation(image: Image.Image) -> tuple[int, str | None]:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # broken EXIF makes Pillow raise many types
        return 1, f"EXIF cannot be read ({type(error).__name__}); taken as upright"
    if orientation == 1 or orientation in _UPRIGHT:
        return orientation, None
    return 1, f"EXIF orientation {orientation!r} is invalid (1 to 8); taken as upright"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        greys = np.asarray(image, dtype=np.float64)
        scale = 257.0 if image.mode.startswith("I") else 1.0
        image = Image.fromarray((greys / scale).clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        over_black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(over_black, rgba).convert("RGB")
    return image.convert("RGB")
