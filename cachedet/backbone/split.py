"""A network cut behind one of its levels: a trunk that stays frozen, and the stages behind it.

What a trunk gives can be kept in a store, and the stages trained from it: trunk and stages one
after the other give the whole network's maps, bit for bit on a CPU. Both are chains of the
network's own modules. A plain ViT is cut between two blocks. Networks whose features timm takes in
another way than module after module (several resolutions side by side, hooks) cannot be cut.

Letters: N images, C channels, h w feature cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cachedet.backbone.frozen import FrozenBackbone, load_backbone
from cachedet.backbone.taps import ViTTaps
from cachedet.backbone.vit import TappedViT, ViTBlocks, is_plain_vit
from cachedet.backbone.weights import shape_of
from cachedet.errors import BackboneError
from cachedet.structures import Features, FeatureSpec

_FAMILIES = (
    "EfficientNet, MobileNet, ResNet, RegNet, ConvNeXt and Swin families can be cut, plain ViTs "
    "(behind a block: L8), and other networks whose stages follow each other"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitBackbone:
    """The two parts of a network."""

    trunk: nn.Module  # images (N, 3, H, W) -> maps of the levels up to the cut
    stages: Stages


class _Chain(nn.ModuleDict):
    """Modules one after the other; the outputs behind some of them are its maps."""

    def __init__(self, modules: Mapping[str, nn.Module], *, taps: Iterable[str]) -> None:
        super().__init__(modules)
        self._taps = frozenset(taps)

    def forward(self, x: Tensor) -> list[Tensor]:
        """One map for each tap, in the network's own memory order."""
        maps = []
        for name, module in self.items():
            x = module(x)
            if name in self._taps:
                maps.append(x)
        return maps


class Stages(nn.Module):
    """What a network computes behind a level: from that level's map to the maps above it."""

    def __init__(
        self, layers: _Chain | ViTBlocks, *, cut: str, network: FeatureSpec, is_nhwc: bool
    ) -> None:
        super().__init__()
        self.layers = layers
        self.cut = cut
        kept, taken = network.up_to(cut), network.with_tokens(cut)
        self.inputs = tuple(level for level in kept if level.name in taken)  # that it takes
        self.spec = FeatureSpec(network.levels[len(kept) :])  # the levels that it gives
        self.is_nhwc = is_nhwc

    def forward(self, *maps: Tensor) -> Features:
        """Maps (N, C, h, w) of `inputs` -> those of `spec`."""
        if self.is_nhwc:
            maps = tuple(each.permute(0, 2, 3, 1).contiguous() for each in maps)
        maps = tuple(self.layers(*maps))
        if self.is_nhwc:
            maps = tuple(each.permute(0, 3, 1, 2) for each in maps)
        return {name: each.contiguous() for name, each in zip(self.spec.names, maps, strict=True)}

    def load(self, weights: Mapping[str, Tensor], *, where: str) -> None:
        """Take the initial weights from those of `stage_weights`, named as there.

        Raises BackboneError, which calls them `where`.
        """
        wanted = self.layers.state_dict()
        problems = [
            f"{name} is {shape_of(weights.get(name))}, expected {shape_of(tensor)}"
            for name, tensor in wanted.items()
            if shape_of(weights.get(name)) != shape_of(tensor)
        ]
        if problems:
            raise BackboneError(
                f"{where} does not hold the weights of the stages behind {self.cut}: "
                f"{'; '.join(problems[:3])} ({len(problems)} of {len(wanted)} tensors); another "
                "version of timm may have built the network: extract again into a new --store"
            )
        self.layers.load_state_dict({name: weights[name] for name in wanted})


def stage_weights(backbone: FrozenBackbone) -> dict[str, Tensor]:
    """Weights and statistics of all that lies behind the first level, for cuts at any level.

    Raises BackboneError where the network cannot be cut.
    """
    return split_backbone(backbone, backbone.spec.names[0]).stages.layers.state_dict()


def make_stages(name: str, *, spec: FeatureSpec, cut: str, image_size: int) -> Stages:
    """The stages of the timm model `name`, whose levels are `spec`, with random weights.

    Raises BackboneError: the network has other levels, or cannot be cut there.
    """
    with torch.random.fork_rng(devices=[]):  # heads start as they do without stages
        backbone = load_backbone(name, weights="none", levels=spec, image_size=image_size)
    if backbone.spec != spec:
        raise BackboneError(
            f"this timm builds {name} with levels {backbone.spec.to_json()}, the store was "
            f"extracted with {spec.to_json()}; install the version that the store names"
        )
    return split_backbone(backbone, cut).stages


def split_backbone(backbone: FrozenBackbone, cut: str) -> SplitBackbone:
    """Cut a network behind the level `cut`, such as "C4"; its modules are shared, not copied.

    Raises BackboneError: no such level, none behind it, or a network that cannot be cut.
    """
    names = backbone.spec.maps.names
    if cut not in names[:-1]:
        raise BackboneError(_no_such_cut(backbone, cut))
    kept = names.index(cut) + 1
    trunk, behind = _cut_network(backbone, kept)
    stages = Stages(behind, cut=cut, network=backbone.spec, is_nhwc=backbone.is_nhwc)
    split = SplitBackbone(trunk=trunk.eval(), stages=stages.eval())
    _require_equal(backbone, split)
    return split


def freeze_trunk(backbone: FrozenBackbone, cut: str) -> FrozenBackbone:
    """What the network computes up to the level `cut`; it keeps the whole network's digest.

    Raises BackboneError where the network cannot be cut there.
    """
    trunk = split_backbone(backbone, cut).trunk
    return FrozenBackbone(
        name=backbone.name,
        model=trunk,
        spec=backbone.spec.up_to(cut),
        is_nhwc=backbone.is_nhwc,
        preprocessing=backbone.preprocessing,
        weights=backbone.weights,
        digest=backbone.digest,
    )


def _no_such_cut(backbone: FrozenBackbone, cut: str) -> str:
    names = backbone.spec.maps.names
    cuts = ", ".join(names[:-1]) or f"and it gives {names[0]} alone"
    vit: Any = getattr(backbone.model, "model", None)
    hint = (
        f"; a plain ViT is cut behind a block: L1 to L{len(vit.blocks) - 1}"
        if is_plain_vit(vit)
        else ""
    )
    return (
        f"{backbone.name} cannot be cut at {cut!r}: expected one of its levels but the last, "
        f"{cuts}{hint}"
    )


def _cut_network(
    backbone: FrozenBackbone, kept: int
) -> tuple[_Chain | TappedViT, _Chain | ViTBlocks]:
    """What gives the first `kept` maps, and what lies behind. Raises BackboneError."""
    if isinstance(backbone.model, TappedViT):
        return backbone.model.cut(kept)
    modules, taps = _sequence_of(backbone)
    end = list(modules).index(taps[kept - 1]) + 1
    parts = list(modules.items())
    return _Chain(dict(parts[:end]), taps=taps[:kept]), _Chain(dict(parts[end:]), taps=taps[kept:])


def _sequence_of(backbone: FrozenBackbone) -> tuple[dict[str, nn.Module], list[str]]:
    """The modules in the order they run, and those behind which the levels are taken."""
    model: Any = backbone.model
    kind = type(model).__name__
    if kind == "FeatureListNet":
        return dict(model.items()), list(model.return_layers)
    if kind in ("EfficientNetFeatures", "MobileNetV3Features") and model.feature_hooks is None:
        stem = {name: child for name, child in model.named_children() if name != "blocks"}
        blocks = {f"blocks_{number}": block for number, block in enumerate(model.blocks)}
        behind = [list(stem)[-1], *blocks]  # stage 0 is the stem
        return {**stem, **blocks}, [behind[stage] for stage in sorted(model._stage_out_idx)]
    if isinstance(backbone.model, ViTTaps):
        raise BackboneError(
            f"{backbone.name} cannot be cut behind taps: these are normed, and no block goes on "
            "from them. Levels without --taps can be (--levels L8,C4)"
        )
    raise BackboneError(
        f"{backbone.name} cannot be cut: timm gives its features through {kind}. {_FAMILIES}"
    )


def _is_same(one: Tensor, other: Tensor) -> bool:
    """To the bit on a CPU; kernels of an accelerator may sum in another order from call to call."""
    if one.device.type == "cpu" or one.shape != other.shape:
        return torch.equal(one, other)
    return bool((one - other).abs().max() <= 1e-3 * one.abs().max())


@torch.no_grad()
def _require_equal(backbone: FrozenBackbone, split: SplitBackbone) -> None:
    """Trunk and stages must give the network's own maps. Raises BackboneError."""
    parameter = next(backbone.parameters())
    side = backbone.spec.pad_multiple
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, 2 * side, 3 * side, generator=generator).to(parameter)
    try:
        whole = backbone.in_float32()(images)
        below = split.trunk(images)
        if backbone.is_nhwc:
            below = [each.permute(0, 3, 1, 2) for each in below]
        maps = [*below, *split.stages(*below[-len(split.stages.inputs) :]).values()]
        is_equal = all(map(_is_same, whole.values(), maps))
    except (AttributeError, RuntimeError, TypeError):  # a stage takes more than one map
        is_equal = False
    if not is_equal:
        raise BackboneError(
            f"{backbone.name} cannot be cut at {split.stages.cut}: what lies behind it takes more "
            f"than that level's map. {_FAMILIES}"
        )
