"""A detector whose backbone stages behind a cached level learn with its heads.

The stages start from the weights that the features were computed with, which the store keeps. Only
here, and only where a config has `freeze_at`, training builds a part of the backbone (law L1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from cachedet.config.run import StagesConfig, TrainConfig
from cachedet.detector.build import build_detector, choose_levels
from cachedet.detector.end_to_end import EndToEndDetector
from cachedet.distributed.collective import world_size
from cachedet.errors import BackboneError, ConfigError
from cachedet.store.format.manifest import Manifest
from cachedet.store.reader import FeatureStore
from cachedet.structures import FeatureSpec
from cachedet.training.optimizer import count_trained

if TYPE_CHECKING:
    from cachedet.backbone.split import Stages


def build_partial_detector(
    config: TrainConfig, manifest: Manifest, *, weights: Mapping[str, Tensor] | None, where: str
) -> EndToEndDetector:
    """Stages behind `freeze_at` and heads, to be trained on the levels up to it.

    `weights` are the initial ones of the stages, as the store `where` has them; None leaves random
    ones, for those of a checkpoint.

    Raises:
        ConfigError: nothing of the stages would be trained, or the heads do not fit the levels.
        BackboneError: the network cannot be cut there, or the weights are those of another.
    """
    network, levels = manifest.network, choose_levels(config.detector, manifest.network).names
    last = network.maps.names[-1]
    if last not in levels:
        raise ConfigError(
            f"detector.levels leaves out {last}, so that the stages which make it would be run and "
            f"trained for nothing: name {last} there, or extract with --levels "
            f"{','.join(levels)} into a new store"
        )
    stages = make_trained_stages(
        config,
        backbone=manifest.backbone,
        network=network,
        image_size=manifest.image_size,
        weights=weights,
        where=where,
    )
    return EndToEndDetector(
        backbone=stages,
        heads=build_detector(config.detector, spec=network, num_classes=len(manifest.categories)),
        levels=levels,
        learns=True,
        lr_scale=config.stages.lr_scale,
        sources=[level.name for level in stages.inputs],
    )


def make_trained_stages(
    config: TrainConfig,
    *,
    backbone: str,  # name of a timm model
    network: FeatureSpec,  # all levels that it gives
    image_size: int,
    weights: Mapping[str, Tensor] | None,
    where: str,
) -> Stages:
    """The stages alone, those of their weights set to move that `config` trains.

    Raises as `build_partial_detector`.
    """
    try:
        from cachedet.backbone.split import make_stages
    except ImportError as error:
        raise BackboneError(
            f"freeze_at {config.freeze_at} trains stages of {backbone}, which timm builds and "
            f"which cannot be imported here ({error}): `pip install timm`, or leave freeze_at out"
        ) from error
    assert config.freeze_at is not None
    stages = make_stages(backbone, spec=network, cut=config.freeze_at, image_size=image_size)
    if weights is not None:
        stages.load(weights, where=where)
    _choose_trained(stages, config.stages)
    return stages


def require_stages(detector: nn.Module, config: TrainConfig) -> None:
    """Raises ConfigError where `freeze_at` asks for stages that the given `detector` lacks."""
    cut = detector.cut if isinstance(detector, EndToEndDetector) else None
    if config.freeze_at not in (None, cut):
        found = "trains none" if cut is None else f"has those behind {cut}"
        raise ConfigError(
            f"freeze_at is {config.freeze_at}, and the detector that was given as an object, a "
            f"{type(detector).__name__}, {found}: stages are trained only inside a detector that "
            "cachedet builds from the config; leave freeze_at out, or detector"
        )


def build_partial_detector_of(config: TrainConfig, store: FeatureStore) -> nn.Module | None:
    """`build_partial_detector` with the store's weights; None where no stages are trained."""
    if config.freeze_at is None:
        return None
    return build_partial_detector(
        config, store.manifest, weights=store.read_stages(), where=store.location
    )


def describe_stages(config: TrainConfig, detector: EndToEndDetector) -> str:
    """For a person: what learns of the backbone, and in numbers."""
    assert config.freeze_at is not None
    assert detector.backbone is not None
    ours, heads = count_trained(detector.backbone), count_trained(detector.heads)
    return (
        f"{config.stages.describe(config.freeze_at)}, {ours:,} parameters of the backbone and "
        f"{heads:,} of the heads"
    )


def _choose_trained(stages: Stages, config: StagesConfig) -> None:
    """Say which weights of the stages move. Raises ConfigError where none would."""
    from cachedet.backbone.stage_adapters import insert_adapters
    from cachedet.backbone.trained import freeze_batch_norms, train_norms_only

    stages.requires_grad_(True)
    if config.train == "norms":
        train_norms_only(stages)
    elif config.train == "adapters":
        adapters = insert_adapters(stages)
        if config.batch_norm == "frozen":
            stages.requires_grad_(False)
        else:
            train_norms_only(stages)
        for adapter in adapters:
            adapter.requires_grad_(True)
    if config.batch_norm == "frozen":
        freeze_batch_norms(stages)
    elif world_size() > 1:
        raise ConfigError(
            f"stages.batch_norm: trained takes the statistics of one process's images, and "
            f"{world_size()} processes share each batch: leave it frozen, or train in one process"
        )
    if not any(parameter.requires_grad for parameter in stages.parameters()):
        raise ConfigError(
            f"stages.train is {config.train} and stages.batch_norm {config.batch_norm}: the stages "
            "have no norms that this trains, so that nothing would be trained; set stages.train: "
            "all, or stages.batch_norm: trained where they have batch norms"
        )
