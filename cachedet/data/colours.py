"""Colours of a view: one affine map of RGB, and a blur.

Brightness and contrast scale all channels, saturation and hue scale and turn the two chroma axes
of YIQ, in which luma stays as it is. A `Colour` is drawn from six uniform numbers within the ranges
below; what numbers those are is the business of `views`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

BRIGHTNESS = (0.7, 1.3)
CONTRAST = (0.7, 1.3)
SATURATION = (0.5, 1.5)
HUE = (-0.05, 0.05)  # of a full turn
GREY = 0.1  # share of draws without any colour
BLURRED = 0.5  # share of draws with a blur
MOST_BLUR = 0.003  # its standard deviation over the long side of the view

# Luma, in-phase and quadrature of RGB, as NTSC has them.
_TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]],
)
_TO_YIQ[1:] -= _TO_YIQ[1:].mean(axis=1, keepdims=True)  # so that greys have no chroma at all
_TO_RGB = np.linalg.inv(_TO_YIQ)


@dataclass(frozen=True, kw_only=True)
class Colour:
    """How the colours of a view differ from those of the image; the defaults change nothing."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0  # 0: grey
    hue: float = 0.0  # in full turns
    blur: float = 0.0  # standard deviation over the long side

    @classmethod
    def drawn(cls, numbers: Sequence[float]) -> Colour:
        """Of six numbers in [0, 1), for brightness, contrast, saturation, hue, blur and grey."""
        brightness, contrast, saturation, hue, blur, grey = numbers
        return cls(
            brightness=_between(BRIGHTNESS, brightness),
            contrast=_between(CONTRAST, contrast),
            saturation=0.0 if grey < GREY else _between(SATURATION, saturation),
            hue=_between(HUE, hue),
            blur=MOST_BLUR * max(0.0, 1 - (1 - blur) / BLURRED),
        )

    def matrix(self) -> NDArray[np.float64]:
        """(3, 3): what becomes of RGB, but for the grey that contrast adds."""
        angle = 2 * math.pi * self.hue
        turn = self.saturation * np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        chroma = np.eye(3)
        chroma[1:, 1:] = turn
        result: NDArray[np.float64] = self.brightness * self.contrast * (_TO_RGB @ chroma @ _TO_YIQ)
        return result

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pixels (H, W, 3) RGB -> the same shape; contrast is about their mean luma."""
        blurred = self._blur(pixels)
        flat = blurred.reshape(-1, 3)
        luma = float(_TO_YIQ[0] @ flat.mean(axis=0, dtype=np.float64))
        grey = (1 - self.contrast) * self.brightness * luma
        changed = flat.astype(np.float32) @ self.matrix().T.astype(np.float32)
        changed += np.float32(grey + 0.5)  # rounded by cutting
        return changed.clip(0, 255, out=changed).astype(np.uint8).reshape(pixels.shape)

    def _blur(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.blur == 0:
            return pixels
        blur = ImageFilter.GaussianBlur(self.blur * max(pixels.shape[:2]))
        return np.asarray(Image.fromarray(pixels).filter(blur))


def is_grey(pixels: NDArray[np.uint8]) -> bool:
    """Whether all channels of pixels (H, W, 3) are the same."""
    red, others = pixels[..., :1], pixels[..., 1:]
    return bool((others == red).all())


def _between(limits: tuple[float, float], at: float) -> float:
    low, high = limits
    return low + (high - low) * at
