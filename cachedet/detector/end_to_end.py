"""A detector with its backbone, or the last stages of it: losses and detections out.

From pixels it is what a cache replaces; from a cached level, its last stages learn with the heads.
Heads, losses and detections are the very same modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor, nn

from cachedet.detector.fixed_rows import Candidates, FixedDetections
from cachedet.detector.protocol import classifiers_of, normalizes_over_ranks, parts_of, run_detector
from cachedet.structures import Detections, Features, SizeHW, Targets

PIXELS = "pixels"  # the one map of a batch of images: (N, 3, H, W), normalised and padded


class EndToEndDetector(nn.Module):
    """Backbone, or stages of it, and heads as one module.

    A frozen backbone is no submodule: it is neither trained nor saved (law L7).
    """

    def __init__(
        self,
        *,
        backbone: Callable[..., Features],  # the maps `sources` -> C levels (N, C, h, w)
        heads: nn.Module,
        levels: Sequence[str],  # that the heads use
        learns: bool,  # whether the backbone is trained
        lr_scale: float,  # the backbone's learning rate, as a share of the heads'
        sources: Sequence[str] = (PIXELS,),  # the maps of a batch that the backbone takes
    ) -> None:
        super().__init__()
        self.heads = heads
        self.backbone = backbone if learns and isinstance(backbone, nn.Module) else None
        self.lr_scale = lr_scale
        self._run_backbone = (backbone,)  # in a tuple: modules in it are not registered
        self._levels = tuple(levels)
        self._sources = tuple(sources)
        if hasattr(heads, "propose"):  # the protocol asks whether there is such a method
            self.propose, self.max_proposals = self._propose, heads.max_proposals
        if hasattr(heads, "candidates"):  # likewise
            self.candidates, self.detect_rows = self._candidates, self._detect_rows

    @property
    def cut(self) -> str | None:
        """The level behind which stages learn; None where they do not, or the backbone is whole."""
        map_name, *_tokens = self._sources
        return map_name if self.backbone is not None and map_name != PIXELS else None

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

    def features(self, maps: Features) -> Features:
        """C levels that the heads use, from the maps of a batch."""
        taken = (maps[name] for name in self._sources)
        levels = {**maps, **self._run_backbone[0](*taken)}
        return {name: levels[name] for name in self._levels}

    def forward(self, features: Features, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Losses of the heads; `features` holds the maps that the backbone takes."""
        losses: dict[str, Tensor] = self.heads(self.features(features), targets)
        return losses

    def detect(
        self, features: Features, *, sizes_hw: Sequence[SizeHW], image_ids: Sequence[int]
    ) -> list[Detections]:
        """Detections of the heads; `features` holds the maps that the backbone takes."""
        maps = self.features(features)
        return run_detector(self.heads, maps, sizes_hw=sizes_hw, image_ids=image_ids)

    def _candidates(self, features: Features, sizes_hw: Tensor) -> Candidates:
        """Those of the heads; see `Detector`."""
        found: Candidates = cast(Any, self.heads).candidates(self.features(features), sizes_hw)
        return found

    def _detect_rows(self, features: Features, sizes_hw: Tensor) -> FixedDetections:
        """Those of the heads; see `Detector`."""
        found: FixedDetections = cast(Any, self.heads).detect_rows(
            self.features(features), sizes_hw
        )
        return found

    def _propose(
        self, features: Features, *, sizes_hw: Sequence[SizeHW], image_ids: Sequence[int]
    ) -> list[Detections]:
        """What the heads' first stage proposes."""
        maps = self.features(features)
        return run_detector(
            self.heads, maps, sizes_hw=sizes_hw, image_ids=image_ids, method="propose"
        )


def heads_of(detector: nn.Module) -> nn.Module:
    """The heads alone, where the detector has stages of a backbone in front of them."""
    return detector.heads if isinstance(detector, EndToEndDetector) else detector
