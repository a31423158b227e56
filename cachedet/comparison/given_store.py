"""A store that a comparison was given: it is only read, and refused where it does not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.config.run import ExtractConfig
from cachedet.data.coco import CocoDataset
from cachedet.data.label_changes import compare_labels
from cachedet.data.sections import listed
from cachedet.data.views import TRAINING_VIEWS, parse_views, short_names
from cachedet.errors import InputError
from cachedet.progress import count_of
from cachedet.store.files.locations import shown
from cachedet.store.reader import FeatureStore


def require_fitting(
    store: FeatureStore,
    config: ExtractConfig,
    dataset: CocoDataset,
    network: FrozenBackbone,
    *,
    option: str,
    has_weights: bool,
) -> None:
    """Hold a store against what would be extracted in its place.

    `network` is what `config` names; without `has_weights` its weights are not looked at. `option`
    is the one that named the store. What it holds beside that is left alone.

    Raises:
        InputError: it holds other features, images or labels; names all that differs.
        MissingFeatureError: it is unfinished.
    """
    differs = [
        *_differing_features(store, config, network, has_weights=has_weights),
        *_differing_images(store, config, dataset),
    ]
    where = f"{option} {shown(str(config.store))}"
    if differs:
        raise InputError(
            f"{where} is not what is asked for. {'; '.join(differs)}. Give the options and "
            "annotations that it was extracted with (`cachedet info` shows them), or leave "
            f"{option} out: the features are then extracted into --out"
        )
    store.require_complete(_views_of(config))


def identity_of(store: FeatureStore, config: ExtractConfig) -> str:
    """What cells of one comparison have to share: features of the wanted views, and labels."""
    wanted = replace(store.manifest, views=_views_of(config), stages_digest="")
    return wanted.fingerprint()[:12]


def _differing_features(
    store: FeatureStore, config: ExtractConfig, network: FrozenBackbone, *, has_weights: bool
) -> list[str]:
    held, differs = store.manifest, []
    for name, there, here in (
        ("--backbone", held.backbone, network.name),
        ("--image-size", held.image_size, config.image_size),
        ("--codec", held.codec, config.codec),
    ):
        if there != here:
            differs.append(f"{name}: {there} there, {here} here")
    if held.spec != network.spec:
        wanted = replace(held, spec=network.spec).shown("spec")
        differs.append(f"levels: {held.shown('spec')} there, {wanted} here")
    is_same = held.backbone != network.name or held.weights_digest == network.digest
    if has_weights and not is_same:
        differs.append(f"--weights: {held.weights} there, {network.weights} here, which differ")
    if lacking := [view for view in _views_of(config) if view not in held.views]:
        names = (", ".join(short_names(views)) for views in (held.views, lacking))
        differs.append("--views: {} there, which lacks {}".format(*names))
    return differs


def _differing_images(
    store: FeatureStore, config: ExtractConfig, dataset: CocoDataset
) -> list[str]:
    """Its images and their labels against the annotation file's."""
    held, given = store.annotations, dataset.annotations
    if held.categories != given.categories:
        return [f"classes: {held.categories.unlike(given.categories, where='here')}"]
    row_of = {name: row for row, name in enumerate(given.file_names)}
    skipped = {name for name, _ in store.manifest.skipped}
    more = [name for name in held.file_names if name not in row_of]
    lacking = sorted(row_of.keys() - set(held.file_names))
    if config.on_bad_image == "skip":
        lacking = [name for name in lacking if name not in skipped]
    differs = []
    if more:
        number = count_of(len(more), "image")
        differs.append(f"it has {number} that {config.annotations} lacks ({listed(more)})")
    if lacking:
        number = count_of(len(lacking), "image")
        why = ", as --on-bad-image skip left them out" if skipped.issuperset(lacking) else ""
        differs.append(f"it lacks {number} of {config.annotations} ({listed(lacking)}){why}")
    if differs:
        return differs
    same = given.keep_rows([row_of[name] for name in held.file_names])
    if not np.array_equal(held.sizes_hw, same.sizes_hw):
        return [f"{config.annotations} gives other sizes of its images"]
    return compare_labels(held, same).lines()


def _views_of(config: ExtractConfig) -> tuple[str, ...]:
    return tuple(view.name for view in parse_views(config.views or TRAINING_VIEWS))
