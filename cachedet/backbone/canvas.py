"""Networks that take images of one size alone: each image lies in the corner of a square.

BEiT has a table of positions for its own grid, Hiera one for its units; timm builds both for a
square. What an image leaves free is zero, as padding is everywhere, and is computed with it.

Letters: N images, C channels, H W input pixels, h w feature cells.
"""

from __future__ import annotations

import torch.nn.functional as F
from timm.models.beit import Beit
from timm.models.hiera import Hiera
from torch import Tensor, nn

from cachedet.errors import BackboneError
from cachedet.structures import FeatureSpec

_MULTIPLE = 32  # of pixels; the coarsest stride among these networks


def needs_canvas(model: object) -> bool:
    return isinstance(model, Beit | Hiera)


def has_shifted_windows(network: nn.Module) -> bool:
    """A Swin of any version: blocks that pad maps to windows and move them."""
    return any(
        hasattr(module, "window_size") and hasattr(module, "shift_size")
        for module in network.modules()
    )


def canvas_side(image_size: int) -> int:
    """Of the square that holds every padded view of images of `image_size`."""
    return -(-image_size // _MULTIPLE) * _MULTIPLE


class FixedCanvas(nn.Module):
    """A network behind a square of `side` pixels; its maps are cut to each image's cells."""

    def __init__(self, network: nn.Module, *, spec: FeatureSpec, side: int) -> None:
        super().__init__()
        self.network = network
        self._levels, self._side = spec.levels, side

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> maps (N, C, h, w). Raises BackboneError where an image is larger."""
        height, width = images.shape[2:]
        if max(height, width) > self._side:
            raise BackboneError(
                f"this network is built for images of at most {self._side} pixels a side, got "
                f"{height} x {width}; extract with a larger --image-size"
            )
        square = F.pad(images, (0, self._side - width, 0, self._side - height))
        maps = self.network(square)
        return [
            each if level.tokens else each[:, :, : height // level.stride, : width // level.stride]
            for level, each in zip(self._levels, maps, strict=True)
        ]
