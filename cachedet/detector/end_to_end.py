"""A detector with its backbone: pixels in, losses and detections out.

What a cache replaces. Heads, losses and detections are the very same modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from cachedet.detector.protocol import classifiers_of, normalizes_over_ranks, parts_of, run_detector
from cachedet.structures import Detections, Features, SizeHW, Targets

PIXELS = "pixels"  # the one map of a batch of images: (N, 3, H, W), normalised and padded


class EndToEndDetector(nn.Module):
    """Backbone and heads as one module.

    A frozen backbone is no submodule: it is neither trained nor saved (law L7).
    """

    def __init__(
        self,
        *,
        backbone: Callable[[Tensor], Features],  # (N, 3, H, W) -> C levels (N, C, h, w)
        heads: nn.Module,
        levels: Sequence[str],  # that the heads use
        learns: bool,  # whether the backbone is trained
        lr_scale: float,  # the backbone's learning rate, as a share of the heads'
    ) -> None:
        super().__init__()
        self.heads = heads
        self.backbone = backbone if learns and isinstance(backbone, nn.Module) else None
        self.lr_scale = lr_scale
        self._run_backbone = (backbone,)  # in a tuple: modules in it are not registered
        self._levels = tuple(levels)

    @property
    def normalizes_over_ranks(self) -> bool:
        return normalizes_over_ranks(self.heads)

    def parts(self) -> list[nn.Module]:
        """What is worth compiling of the heads."""
        return parts_of(self.heads)

    def classifiers(self) -> list[nn.Module]:
        """The last layers of the heads."""
        return classifiers_of(self.heads)

    def lr_scales(self) -> list[tuple[nn.Module, float]]:
        """Heads at the schedule's rate, and the backbone where it learns."""
        backbone = [] if self.backbone is None else [(self.backbone, self.lr_scale)]
        return [(self.heads, 1.0), *backbone]

    def features(self, pixels: Tensor) -> Features:
        """C levels that the heads use."""
        maps = self._run_backbone[0](pixels)
        return {name: maps[name] for name in self._levels}

    def forward(self, features: Features, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Losses of the heads; `features` holds the images under PIXELS."""
        losses: dict[str, Tensor] = self.heads(self.features(features[PIXELS]), targets)
        return losses

    def detect(
        self, features: Features, *, sizes_hw: Sequence[SizeHW], image_ids: Sequence[int]
    ) -> list[Detections]:
        """Detections of the heads; `features` holds the images under PIXELS."""
        maps = self.features(features[PIXELS])
        return run_detector(self.heads, maps, sizes_hw=sizes_hw, image_ids=image_ids)
