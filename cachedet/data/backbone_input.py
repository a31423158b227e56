"""From the pixels of an image to what the backbone sees of one view."""

from __future__ import annotations

import functools
import math
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cachedet.data.geometry import Geometry
from cachedet.structures import Preprocessing, SizeHW

Pixels: TypeAlias = NDArray[np.uint8] | Image.Image  # (H, W, 3), or RGB

_FILTER_REACH = 3  # pixels to either side, of Lanczos, the widest


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
