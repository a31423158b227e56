"""What a detector costs: parameters and FLOPs of each part, without a store and without running it.

FLOPs count a multiplication and an addition as two, in convolutions and matrix products; norms,
activations, RoIAlign, losses and suppression are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cachedet.config.detector import DetectorConfig
from cachedet.config.preset_costs import NUM_CLASSES, usual_input
from cachedet.config.presets import load_config
from cachedet.config.run import TrainConfig
from cachedet.data.views import round_up
from cachedet.detector.build import build_detector, choose_levels
from cachedet.detector.protocol import CostedPart
from cachedet.errors import InputError
from cachedet.flops import flop_counter
from cachedet.structures import FeatureSpec, LevelSpec, SizeHW
from cachedet.training.optimizer import count_trained
from cachedet.training.partial import make_trained_stages

if TYPE_CHECKING:
    from cachedet.backbone.split import Stages

_META = torch.device("meta")  # shapes without values: nothing is computed


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """Of one image; a training step is a forward and a backward."""

    name: str
    parameters: int
    forward_flops: int
    step_flops: int


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """What the trained part of a detector costs for one image of `size_hw` pixels."""

    features: FeatureSpec
    size_hw: SizeHW
    num_classes: int
    parts: tuple[PartCost, ...]
    left_out: str = ""  # what is trained besides and not counted

    @property
    def total(self) -> PartCost:
        return PartCost(
            name="all",
            parameters=sum(part.parameters for part in self.parts),
            forward_flops=sum(part.forward_flops for part in self.parts),
            step_flops=sum(part.step_flops for part in self.parts),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "features": self.features.to_json(),
            "size_hw": list(self.size_hw),
            "num_classes": self.num_classes,
            "parts": [vars(part) for part in self.parts],
            "total": vars(self.total),
            "left_out": self.left_out,
        }


def measure_config(
    config: TrainConfig,
    *,
    features: FeatureSpec,
    backbone: str | None,
    num_classes: int,
    size_hw: SizeHW,
    taps: int | Sequence[int] | None = None,
) -> ModelCost:
    """Cost of all that `config` trains: heads and, behind `freeze_at`, stages of the backbone.

    Of a timm model `backbone` the levels count, or its `taps`, and not `features`; without it
    stages are left out.

    Raises ConfigError, BackboneError: heads, stages and backbone do not fit together.
    """
    stages, left_out = None, ""
    if backbone is not None:
        from cachedet.backbone.frozen import load_backbone

        image_size = max(size_hw)
        features = load_backbone(
            backbone, weights="none", cut=config.freeze_at, taps=taps, image_size=image_size
        ).spec
        if config.freeze_at is not None:
            stages = make_trained_stages(
                config,
                backbone=backbone,
                network=features,
                image_size=image_size,
                weights=None,
                where=backbone,
            )
    elif config.freeze_at is not None:
        left_out = (
            f"the backbone's stages behind {config.freeze_at}, which freeze_at trains: name it "
            "with --backbone to count them"
        )
    cost = measure_model(
        config.detector, features=features, num_classes=num_classes, size_hw=size_hw, stages=stages
    )
    return replace(cost, left_out=left_out)


def measure_model(
    config: DetectorConfig,
    *,
    features: FeatureSpec,
    num_classes: int,
    size_hw: SizeHW,
    stages: Stages | None = None,
) -> ModelCost:
    """Cost of the detector of `config` on images of this size, padded as the cache pads them.

    `stages` are trained with it. Raises ConfigError where it cannot work on these features.
    """
    multiple = features.pad_multiple
    padded_hw = round_up(size_hw[0], multiple), round_up(size_hw[1], multiple)
    with _META:
        detector = build_detector(config, spec=features, num_classes=num_classes)
    levels = choose_levels(config, features)
    maps = {
        name: torch.empty(1, *shape, device=_META)
        for name, shape in levels.map_shapes(padded_hw).items()
    }
    parts = []
    if stages is not None:
        for name in set(stages.spec.names) & set(maps):
            maps[name].requires_grad_(True)  # the heads hand gradient on
        below = [torch.empty(1, *level.shape(padded_hw), device=_META) for level in stages.inputs]
        parts.append(_stages_part(stages.to(_META), below))
    parts += detector.costs(maps)
    return ModelCost(
        features=features,
        size_hw=padded_hw,
        num_classes=num_classes,
        parts=tuple(map(_measure, parts)),
    )


def measure_preset(name: str) -> ModelCost:
    """Cost of a preset on its usual input. Raises ConfigError on an unknown name."""
    usual = usual_input(name)
    return measure_model(
        load_config(name).detector,
        features=parse_features(usual.features),
        num_classes=NUM_CLASSES,
        size_hw=(usual.side, usual.side),
    )


def parse_features(text: str) -> FeatureSpec:
    """`C3:512:8,C4:1024:16` -> levels of that name, channels and stride. Raises InputError."""
    levels = []
    for item in text.split(","):
        fields = item.strip().split(":")
        try:
            name, channels, stride = fields
            levels.append(LevelSpec(name=name, channels=int(channels), stride=int(stride)))
        except ValueError as error:
            raise InputError(
                f"--features expects NAME:CHANNELS:STRIDE,..., such as C3:512:8, got {item!r}"
            ) from error
    try:
        return FeatureSpec(tuple(levels))
    except ValueError as error:
        raise InputError(f"--features: {error}") from error


def parse_size(text: str) -> SizeHW:
    """`1280`, a square, or `288x384`, height x width, in pixels. Raises InputError."""
    sides = text.lower().split("x")
    try:
        numbers = [int(side) for side in sides]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise InputError(
            f"--image-size expects 1280 or HEIGHTxWIDTH, such as 288x384, got {text!r}"
        )
    return numbers[0], numbers[-1]


def _stages_part(stages: Stages, below: list[Tensor]) -> CostedPart:
    """`below` is the map of the cut, and the tokens that belong to it."""

    def forward() -> Any:
        return stages(*below)

    name = f"stages behind {stages.cut}"
    return CostedPart(name=name, module=stages, forward=forward, step=forward)


def _measure(part: CostedPart) -> PartCost:
    forward, step = _count_flops(part.forward)
    if part.step is not part.forward:
        _, step = _count_flops(part.step)
    parameters = count_trained(part.module)
    return PartCost(name=part.name, parameters=parameters, forward_flops=forward, step_flops=step)


def _count_flops(run: Callable[[], Any]) -> tuple[int, int]:
    """FLOPs of a forward, and of a forward and its backward."""
    with flop_counter() as counter:
        outputs = _tensors_in(run())
        forward = int(counter.get_total_flops())
        torch.autograd.backward([output.sum() for output in outputs])
    return forward, int(counter.get_total_flops())


def _tensors_in(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    return [tensor for value in values for tensor in _tensors_in(value)]
