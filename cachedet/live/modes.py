"""The ways to train a detector on the same images: what is trained, and on which batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from cachedet.augmentation.steps import make_pixel_augment
from cachedet.backbone.frozen import load_backbone
from cachedet.backbone.trained import BatchNorm, TrainedBackbone
from cachedet.config.run import ONLY_CACHED, TrainConfig
from cachedet.detector.build import build_detector, choose_levels
from cachedet.detector.end_to_end import PIXELS, EndToEndDetector
from cachedet.device import choose_device
from cachedet.errors import ConfigError, InputError
from cachedet.extraction.inputs import InputLoader, make_inputs
from cachedet.live.image_loader import ImageLoader
from cachedet.live.mode_names import Mode, cut_of, needs_cache
from cachedet.loading.loader import BatchLoader, FeatureLoader, make_planner, make_run_loader
from cachedet.loading.sampling import resolve_views
from cachedet.store.reader import FeatureStore
from cachedet.structures import Batch
from cachedet.training.partial import build_partial_detector_of
from cachedet.training.trainer import Trainer, make_trainer, make_trainer_of


@dataclass(frozen=True, kw_only=True)
class BackboneTraining:
    """How a pretrained backbone learns.

    One that starts from random weights learns at the rate of the heads and trains its batch norms,
    whose statistics mean nothing.
    """

    lr_scale: float = 0.1  # learning rate as a share of the heads'
    batch_norm: BatchNorm = "frozen"


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingMode:
    """What one mode trains, and on what. The trainer's step includes all that the mode costs."""

    trainer: Trainer
    loader: BatchLoader


def make_training_mode(
    mode: Mode,
    config: TrainConfig,
    *,
    store: FeatureStore,  # says which images, views and boxes there are, and what the backbone was
    images: Path,  # folder of the image files
    weights: str,  # pretrained ones, as `extract --weights` takes them
    total_steps: int,  # length of the schedule
    backbone: BackboneTraining | None = None,  # how it learns in the mode tuned
) -> TrainingMode:
    """Everything for one mode, seeded: heads start from the same weights in all modes.

    In the mode cached heads learn on the store's features, in partial_C4 stages behind C4 with
    them (`config` has freeze_at), in live on a frozen backbone that runs
    in every step; in tuned the backbone learns too, in scratch it does so from random weights. The
    views of `config` are those of the store.

    Raises:
        ConfigError: a config that the modes cannot share.
        InputError: the backbone's weights are not those of the store.
        BackboneError: the backbone cannot be had.
    """
    require_shared(config, partial=cut_of(mode) is not None)
    if needs_cache(mode):
        loader = make_run_loader(config, store)
        torch.manual_seed(config.seed)
        trainer = make_trainer(
            config,
            manifest=store.manifest,
            total_steps=total_steps,
            detector=build_partial_detector_of(config, store),
        )
        return TrainingMode(trainer=trainer, loader=loader)
    detector = _make_end_to_end(mode, config, store, weights, backbone or BackboneTraining())
    image_loader = ImageLoader(
        plans=make_planner(config, store),
        views=tuple(resolve_views(config.views, held=store.manifest.views, where=store.location)),
        store=store,
        inputs=inputs_of(store, images),
        device=choose_device(config.device),
        augment=make_pixel_augment(config.augment, name=PIXELS, spec=store.manifest.spec),
        seed=config.seed,
    )
    trainer = make_trainer_of(detector, config, total_steps=total_steps)
    return TrainingMode(trainer=trainer, loader=image_loader)


def image_batches(
    store: FeatureStore, *, images: Path, view: str, batch_size: int, device: torch.device
) -> Iterator[tuple[list[int], Batch]]:
    """Every image of `store` once, from its file: rows, and pixels for an `EndToEndDetector`."""
    loader = ImageLoader(
        plans=FeatureLoader(
            store, views=[view], levels=store.manifest.spec.names, batch_size=batch_size, seed=0
        ),
        views=(view,),
        store=store,
        inputs=inputs_of(store, images),
        device=device,
        fresh=False,
    )
    for keys, batch in zip(loader.plan(0), loader.epoch(0), strict=True):
        yield [int(row) for _, row in keys], batch.to(device)


def inputs_of(store: FeatureStore, images: Path) -> InputLoader:
    """Reads the images that the store's features were computed from, in the same way."""
    manifest = store.manifest
    return make_inputs(
        store.annotations,
        images=images,
        image_size=manifest.image_size,
        pad_multiple=manifest.pad_multiple,
        preprocessing=manifest.preprocessing,
        contents=store.contents,
    )


def require_shared(config: TrainConfig, *, partial: bool = False) -> None:
    """Refuse what only cached features can have. Raises ConfigError.

    With `partial` the config is that of a cell which trains stages from the cache.
    """
    for key, default in ONLY_CACHED.items():
        if partial and key in ("freeze_at", "stages"):
            continue
        if (value := getattr(config, key)) != default:
            raise ConfigError(
                f"{key} is {value!r}: all modes start from the same new heads, train all of them "
                f"and take the same schedule; leave {key} out"
            )


def _make_end_to_end(
    mode: Mode, config: TrainConfig, store: FeatureStore, weights: str, training: BackboneTraining
) -> EndToEndDetector:
    manifest, is_new = store.manifest, mode == "scratch"
    frozen = load_backbone(
        manifest.backbone,
        weights="none" if is_new else weights,
        levels=manifest.spec,
        image_size=manifest.image_size,
        device=choose_device(config.device),
        seed=config.seed if is_new else 0,
    )
    if not is_new and frozen.digest != manifest.weights_digest:
        raise InputError(
            f"the weights of {frozen.name} ({frozen.weights}) are not those that "
            f"{store.location} was extracted with ({manifest.weights}): their digests "
            "differ. Name the same --weights for both"
        )
    batch_norm: BatchNorm = "trained" if is_new else training.batch_norm
    torch.manual_seed(config.seed)  # the heads start as those of the cached mode
    return EndToEndDetector(
        backbone=frozen if mode == "live" else TrainedBackbone(frozen, batch_norm=batch_norm),
        heads=build_detector(
            config.detector, spec=manifest.spec, num_classes=len(manifest.categories)
        ),
        levels=choose_levels(config.detector, manifest.spec).names,
        learns=mode != "live",
        lr_scale=1.0 if is_new else training.lr_scale,
    )
