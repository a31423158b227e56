"""Any module that gives maps as a frozen backbone: torchvision's, Hugging Face's, one's own.

Letters: N images, C channels, H W input pixels, h w feature cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.errors import BackboneError
from cachedet.structures import FeatureSpec, LevelSpec, Preprocessing

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Colour = tuple[float, float, float]


def wrap_backbone(
    module: nn.Module,
    *,
    name: str,
    levels: Sequence[LevelSpec],
    mean: Colour = _IMAGENET_MEAN,
    std: Colour = _IMAGENET_STD,
    interpolation: str = "bicubic",
) -> FrozenBackbone:
    """A module that gives multi-scale maps, frozen, for `extract(backbone=...)`.

    Its weights are digested as they are now and never change: eval mode, no gradients.

    Args:
        module: takes images (N, 3, H, W) float32 whose sides are multiples of the coarsest stride;
            returns a list, a tuple or a dict of maps (N, C, h, w), h = H / stride. Of a dict the
            maps are taken by the levels' names, of an output with `feature_maps` those.
        name: written into the store, where it stands for this network.
        levels: what it returns, fine to coarse: name, channels and stride of each.
        mean, std: of RGB in 0..1, taken off and divided by; ImageNet's by default.
        interpolation: "bicubic", "bilinear" or "nearest", for resizing images.

    Raises:
        BackboneError: something else than a module, or levels out of order. Maps of other shapes
            than declared are found when the first image is extracted.

    Examples:
        >>> body = torchvision.models._utils.IntermediateLayerGetter(resnet, {"layer2": "C3"})
        >>> level = cachedet.LevelSpec(name="C3", channels=512, stride=8)
        >>> backbone = cachedet.wrap_backbone(body, name="resnet50_tv", levels=[level])
        >>> cachedet.extract(backbone=backbone, images=..., annotations=..., store="train.zarr")
    """
    if not isinstance(module, nn.Module):
        raise BackboneError(
            f"expected a backbone, a torch.nn.Module, got {type(module).__name__}; the name of a "
            "timm model needs no wrapping"
        )
    try:
        spec = FeatureSpec(tuple(levels))
    except ValueError as error:
        raise BackboneError(f"backbone {name!r}: {error}") from error
    kind = type(module)
    return FrozenBackbone(
        name=name,
        model=_ListedMaps(module, name=name, spec=spec),
        spec=spec,
        is_nhwc=False,
        preprocessing=Preprocessing(mean=mean, std=std, interpolation=interpolation),
        weights=f"given as an object, {kind.__module__}.{kind.__qualname__}",
    )


class _ListedMaps(nn.Module):
    """Puts what a module returns into the order of the declared levels."""

    def __init__(self, module: nn.Module, *, name: str, spec: FeatureSpec) -> None:
        super().__init__()
        self.module = module
        self._name, self._spec = name, spec

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> maps (N, C, h, w). Raises BackboneError where they are no maps."""
        output: Any = self.module(images)
        output = getattr(output, "feature_maps", output)
        names = self._spec.names
        if isinstance(output, Mapping):
            missing = [level for level in names if level not in output]
            if missing:
                raise BackboneError(
                    f"backbone {self._name!r} declares {', '.join(names)} and returned a dict with "
                    f"{', '.join(map(repr, output))}: {missing[0]!r} is missing"
                )
            output = [output[level] for level in names]
        if not isinstance(output, Sequence) or len(output) != len(names):
            what = f"{len(output)} maps" if isinstance(output, Sequence) else type(output).__name__
            raise BackboneError(
                f"backbone {self._name!r} declares {len(names)} levels ({', '.join(names)}), so a "
                f"list or dict of as many maps (N, C, h, w) was expected, got {what}"
            )
        for level, feature_map in zip(names, output, strict=True):
            if not isinstance(feature_map, Tensor) or feature_map.ndim != 4:
                shape = getattr(feature_map, "shape", type(feature_map).__name__)
                raise BackboneError(
                    f"backbone {self._name!r}: expected {level} as a map (N, C, h, w), got {shape}"
                )
        return list(output)
