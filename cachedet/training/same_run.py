"""Whether weights and states of one run fit another: on --resume and --init-from."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cachedet.config.run import TrainConfig
from cachedet.errors import CheckpointError
from cachedet.store.additions import grows
from cachedet.store.format.manifest import Manifest
from cachedet.structures import CategoryMap
from cachedet.training.checkpoint import Checkpoint, load_checkpoint
from cachedet.training.run_folder import RunFolder

_MOST_NAMED = 8  # differences, in one message
# A resumed run may change these keys: what the steps still to come compute hangs on none of them.
MAY_CHANGE_ON_RESUME = frozenset(
    {
        "max_steps", "device", "residency", "disk_cache", "eval_every", "early_stopping",
        "tensorboard", "checkpoint_every_seconds", "checkpoint_every_steps",
    }
)  # fmt: skip
# Keys of a detector that decide how it is taught and read out, not what its weights mean.
_NOT_OF_WEIGHTS = frozenset(
    {
        "focal_alpha", "focal_gamma", "huber_delta", "box_weight", "class_weight", "samples",
        "positive_fraction", "foreground_iou", "background_iou", "allow_low_quality", "nms_iou",
        "train_pre_nms", "train_post_nms", "test_pre_nms", "test_post_nms", "postprocess",
    }
)  # fmt: skip


def require_same_run(
    checkpoint: Checkpoint, config: TrainConfig, manifest: Manifest, *, where: Path
) -> None:
    """Resuming with other settings would silently be another run. Raises CheckpointError."""
    before = checkpoint.manifest
    changed = differing_keys(checkpoint.config, config, but=MAY_CHANGE_ON_RESUME)
    if changed:
        raise CheckpointError(
            f"cannot resume {where}: the config differs: {'; '.join(first_named(changed))}; give "
            "the same config and --set, or another --run"
        )
    if before.image_digests != manifest.image_digests and grows(before, manifest):
        raise CheckpointError(
            f"cannot resume {where}: images were added to the store since, and the order of a "
            "run's images hangs on all of them; start another --run from its weights with "
            "--init-from"
        )
    if before.withdrawn_digest != manifest.withdrawn_digest:
        raise CheckpointError(
            f"cannot resume {where}: images left the store or came back since (`cachedet relabel "
            "--withdraw`), and the order of a run's images hangs on all of them; start another "
            "--run from its weights with --init-from"
        )
    if before.block_fingerprint() != manifest.block_fingerprint() or before.added != manifest.added:
        same = replace(manifest, views=before.views, truth_digest=before.truth_digest)
        fields = "; ".join(before.differing_fields(same))
        raise CheckpointError(
            f"cannot resume {where}: it was trained on another store: "
            f"{fields or 'codec_digest (what the codec learnt)'}"
        )


def require_same_labels(
    checkpoint: Checkpoint,
    config: TrainConfig,
    manifest: Manifest,
    *,
    where: Path,
    changes: str,
    relabelled: bool,
) -> str:
    """A store may have been relabelled since; a note where a run goes on all the same, else "".

    `changes` says how the boxes differ; `relabelled`: the user knows, and wants to go on.
    Raises CheckpointError.
    """
    before = checkpoint.manifest
    if before.categories != manifest.categories:
        raise CheckpointError(
            f"cannot resume {where}: the store has other classes than when it was trained: "
            f"{before.categories.unlike(manifest.categories)}. The heads know theirs: train anew "
            "with another --run (--init-from takes weights of a run with the same classes)"
        )
    if before.truth_digest == manifest.truth_digest:
        return ""
    anew = "start another --run from its weights with --init-from"
    if config.sampling.kind != "uniform":
        raise CheckpointError(
            f"cannot resume {where}: the store was relabelled since ({changes}), and "
            f"sampling.kind={config.sampling.kind} draws images by their labels, so that its "
            f"epoch is another now; {anew}"
        )
    if not relabelled:
        raise CheckpointError(
            f"cannot resume {where}: the store was relabelled since ({changes}). The steps to come "
            "would learn from other boxes than those before: go on so with --resume --relabelled, "
            f"or {anew}"
        )
    return f"goes on with other labels than before ({changes})"


def load_initial_weights(source: Path, config: TrainConfig, manifest: Manifest) -> Checkpoint:
    """The checkpoint (of a run folder: its best) whose weights a new run starts from.

    Raises CheckpointError where its features, classes or detector are others.
    """
    path = RunFolder.open(source).best if source.is_dir() else source
    checkpoint = load_checkpoint(path)
    problem = _misfit(checkpoint, config, manifest)
    if problem is not None:
        raise CheckpointError(
            f"init_from {path} does not fit this run: {problem}; start from a run of the same "
            "detector on features of the same backbone, weights and classes"
        )
    return checkpoint


def differing_keys(before: BaseModel, now: BaseModel, *, but: Iterable[str] = ()) -> list[str]:
    """``"schedule.lr was 0.1, is 0.2"`` for each value that differs, keys in `but` left out."""
    old, new = (flatten(one.model_dump(mode="json", exclude=set(but))) for one in (before, now))
    absent = object()
    keys = [key for key in {**old, **new} if old.get(key, absent) != new.get(key, absent)]
    return [f"{key} was {_shown(old, key)}, is {_shown(new, key)}" for key in keys]


def first_named(changed: Sequence[str]) -> list[str]:
    """The first eight differences, and how many more there are."""
    more = len(changed) - _MOST_NAMED
    return [*changed[:_MOST_NAMED], *([f"and {more} more"] if more > 0 else [])]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"schedule": {"lr": 1}}`` -> ``{"schedule.lr": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _misfit(checkpoint: Checkpoint, config: TrainConfig, manifest: Manifest) -> str | None:
    """What keeps the weights from meaning the same here, in words."""
    field = manifest.incompatible_field(checkpoint.manifest)
    if field == "categories":
        return _describe_classes(checkpoint.categories, manifest.categories)
    if field is not None:
        theirs, ours = checkpoint.manifest.shown(field), manifest.shown(field)
        return f"{field} was {reprlib.repr(theirs)}, is {reprlib.repr(ours)}"
    theirs_of, ours_of = _trained_of(checkpoint.config), _trained_of(config)
    if theirs_of not in (None, ours_of):
        return f"it trained {theirs_of}, this run {ours_of or 'nothing of the backbone'}"
    changed = [
        f"detector.{line}"
        for line in differing_keys(checkpoint.config.detector, config.detector)
        if not _NOT_OF_WEIGHTS & set(line.split(" ", 1)[0].split("."))
    ]
    kind = [line for line in changed if line.startswith("detector.kind ")]
    return "; ".join(kind or changed) or None


def _trained_of(config: TrainConfig) -> str | None:
    """What of the backbone has weights of its own in a run; None where it is frozen."""
    if config.freeze_at is None:
        return None
    adapters = " with adapters" if config.stages.train == "adapters" else ""
    return f"the stages behind {config.freeze_at}{adapters} (freeze_at)"


def _describe_classes(theirs: CategoryMap, ours: CategoryMap) -> str:
    only_there = [name for name in theirs.names if name not in ours.names]
    only_here = [name for name in ours.names if name not in theirs.names]
    return (
        f"it has {len(theirs)} classes, the store {len(ours)} (only there: "
        f"{reprlib.repr(only_there)}, only here: {reprlib.repr(only_here)})"
    )


def _shown(values: Mapping[str, Any], key: str) -> str:
    return str(values[key]) if key in values else "not set"
