"""How a run starts: its views, what must fit together, a new folder or the last checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from cachedet.config.detector import trains_masks
from cachedet.config.run import TrainConfig, ViewsConfig, dump_config, load_train_config
from cachedet.detector.end_to_end import EndToEndDetector
from cachedet.distributed.collective import from_first, world_size
from cachedet.distributed.data_parallel import describe_ranks
from cachedet.errors import CachedetError, CheckpointError, ConfigError, UnreadableConfigError
from cachedet.loading.sampling import resolve_views
from cachedet.store.format.manifest import Manifest
from cachedet.store.reader import FeatureStore
from cachedet.training.checkpoint import Checkpoint, load_checkpoint
from cachedet.training.checkpoint_writer import load_last
from cachedet.training.partial import describe_stages
from cachedet.training.records import require_tensorboard
from cachedet.training.run_folder import RunFolder, TrainingData, set_aside
from cachedet.training.run_log import STARTED
from cachedet.training.same_run import (
    load_initial_weights,
    require_same_labels,
    require_same_run,
)
from cachedet.training.trainer import Trainer

_log = logging.getLogger("cachedet.training")

_OTHER_VALIDATION = (
    "the validation store has other labels than when the run was last started: AP before and after "
    "cannot be compared, and best.pt may be the best on those before"
)


@contextmanager
def sole_run(folder: RunFolder, *, resume: bool) -> Iterator[None]:
    """Inside, no other process trains in the folder; rank 0 holds it for all.

    Raises InputError while another one does, CheckpointError where there is no run to resume, or
    the folder cannot be made.
    """

    def hold() -> None:
        if resume and not folder.is_begun():
            folder.require_run()
        held.enter_context(folder.owned())

    with ExitStack() as held:
        from_first(hold)
        yield


def pin_views(
    config: TrainConfig, store: FeatureStore, folder: RunFolder, *, goes_on: bool
) -> dict[str, float]:
    """The probability of each single view.

    Families, and "all there are" (no `views`), mean the views the store held when the run started:
    a run that goes on finds those in its folder.

    Raises ConfigError: views the store lacks or, for a run that goes on, that it did not start
    with; CheckpointError: the store no longer holds those of the run.
    """
    held, where = store.manifest.views, store.location
    started = None
    if goes_on and folder.config.is_file() and not folder.is_begun():
        started = _views_of_run(folder)
    if started is not None:
        gone = [view for view in started if view not in held]
        if gone:
            raise CheckpointError(
                f"cannot resume {folder.root}: it trains on views {', '.join(started)}, and "
                f"{where} has no {', '.join(gone)}: they were pruned, or it is another store. "
                "Give the store of the run, or add the views with `cachedet extract --views`"
            )
        held, where = tuple(started), f"{where} as the run found it"
    return resolve_views(config.views, held=held, where=where)


def _views_of_run(folder: RunFolder) -> ViewsConfig:
    """What config.yaml says, or a checkpoint where a crash has left nothing of it to read.

    Raises CheckpointError where the system does not let it be read.
    """
    try:
        views = _read_config(folder).views
    except ConfigError:
        views = None
    for path in (folder.last, folder.previous):
        if not views:
            with suppress(CachedetError):  # said when it is loaded
                views = load_checkpoint(path).config.views
    return views


def require_fit(config: TrainConfig, store: FeatureStore, validation: FeatureStore | None) -> None:
    """Refuse what would be found out after hours, or never.

    Raises:
        CheckpointError: features or classes of the two stores differ.
        ConfigError: validation images without boxes, a metric that nobody computes, masks that
            are not there, or TensorBoard that is not installed.
    """
    if config.tensorboard:
        require_tensorboard()
    if validation is not None:
        _require_same_features(store.manifest, validation.manifest)
        if not np.any(~validation.annotations.crowd):
            raise ConfigError(
                f"the validation store {validation.location} holds no boxes (crowds aside), so "
                "that AP is undefined; validate on images with boxes, or leave --val out"
            )
    stopping = config.early_stopping
    if stopping is not None and stopping.metric != "loss" and validation is None:
        raise ConfigError(
            f"early_stopping on {stopping.metric} needs a validation store: give --val, or --set "
            "early_stopping.metric=loss"
        )
    if trains_masks(config.detector) and store.annotations.masks is None:
        raise ConfigError(
            "detector.mask_head needs masks, the store's annotations have none; extract from an "
            "annotation file with `segmentation`, or remove detector.mask_head"
        )


def start_or_continue(
    folder: RunFolder,
    config: TrainConfig,
    trainer: Trainer,
    manifest: Manifest,
    *,
    data: TrainingData,
    resume: bool,
    relabelled: bool,
    restarts: int,
) -> None:
    """Make the run folder or read its last state, and bring every rank's trainer there.

    Only rank 0 touches the folder: the state travels to the others, which need not see its disk.
    With `resume` there must be a run; one that a signal ended before its first step starts now.
    Where torchrun has started the processes anew (`restarts` times), they continue the run that is
    there, or start it again where it had saved nothing yet.
    `data` is what it learns from now; with `relabelled` its boxes may have changed since.

    Raises CheckpointError: the folder does not fit.
    """

    def open_folder() -> tuple[Checkpoint | None, Checkpoint | None]:
        again = restarts > 0 and not resume and folder.config.is_file()
        if again:
            folder.log(f"the launcher started the processes anew (restart {restarts})")
        if (resume and not folder.is_begun()) or (again and folder.has_state()):
            last = _open_last(folder, config, manifest, data=data, relabelled=relabelled)
            return last, None
        if resume:
            _log.info("nothing was saved before the run ended: it starts again")
        return None, _create(folder, config, trainer, manifest, again=again)

    last, initial = from_first(open_folder)
    if last is not None:
        trainer.restore(last)
    elif initial is not None:
        trainer.start_from(initial)


def _open_last(
    folder: RunFolder,
    config: TrainConfig,
    manifest: Manifest,
    *,
    data: TrainingData,
    relabelled: bool,
) -> Checkpoint:
    RunFolder.open(folder.root)
    checkpoint, note = load_last(folder)
    require_same_run(checkpoint, config, manifest, where=folder.last)
    before = read_noted(folder)
    labels = require_same_labels(
        checkpoint,
        config,
        manifest,
        where=folder.last,
        changes=data.changes_since(before),
        relabelled=relabelled,
    )
    is_other = before is not None and data.validation and before.validation != data.validation
    validated = _OTHER_VALIDATION if before is not None and before.validation and is_other else ""
    for line in filter(None, (note, labels, validated, _repair_config(folder, checkpoint))):
        _log.warning("note: %s", line)
        folder.log(line)
    folder.log(f"resumed at step {checkpoint.step}")
    if world_size() > 1:
        folder.log(describe_ranks(config.schedule.batch_size))
    return checkpoint


def read_noted(folder: RunFolder) -> TrainingData | None:
    """What the run noted of its data; None where it did not, or that is damaged."""
    with suppress(CheckpointError):
        return TrainingData.read(folder)
    return None


def _repair_config(folder: RunFolder, checkpoint: Checkpoint) -> str:
    """Write config.yaml anew where a crash has left nothing to read; a note on that, else "".

    Raises CheckpointError where the system does not let it be read, or set aside.
    """
    try:
        _read_config(folder)
    except ConfigError as error:
        aside = set_aside(folder.config)
        folder.write_config(dump_config(checkpoint.config))
        return f"{error}; set aside as {aside.name}, and written anew from {checkpoint.name}"
    return ""


def _read_config(folder: RunFolder) -> TrainConfig:
    """Raises ConfigError on what is no config; CheckpointError where it cannot be read."""
    try:
        return load_train_config(folder.config)
    except UnreadableConfigError as error:
        raise CheckpointError(
            f"{error}; that is no damage, and nothing was changed. Repair the cause (permissions, "
            "the disk or network) and run the same command again"
        ) from error


def _create(
    folder: RunFolder, config: TrainConfig, trainer: Trainer, manifest: Manifest, *, again: bool
) -> Checkpoint | None:
    """The weights to start from; `again`: the folder is of this run, which has saved nothing."""
    initial = None
    if config.init_from is not None:
        initial = load_initial_weights(Path(config.init_from), config, manifest)
    text = dump_config(config)
    is_made = again and folder.config.read_text(encoding="utf-8") == text
    if not is_made:
        RunFolder.create(folder.root)
    folder.log(f"{STARTED} {manifest.fingerprint()}")  # first: it says whose config.yaml that is
    if not is_made:
        folder.write_config(text)
    folder.log(config.schedule.describe_lr())
    if isinstance(trainer.detector, EndToEndDetector) and config.freeze_at is not None:
        trained = f"trains {describe_stages(config, trainer.detector)}"
        _log.info(trained)
        folder.log(trained)
    folder.log(f"on {trainer.device}, {str(trainer.autocast or torch.float32)[6:]}")
    if world_size() > 1:
        folder.log(describe_ranks(config.schedule.batch_size))
    if initial is not None:
        folder.log(f"weights of {config.init_from}, step {initial.step}")
    return initial


def _require_same_features(train: Manifest, validation: Manifest) -> None:
    """Validation features must come from the same backbone and classes. Raises CheckpointError."""
    field = train.incompatible_field(validation)
    if field == "categories":
        raise CheckpointError(
            "the validation store has other classes than the training store: "
            f"{validation.categories.unlike(train.categories, where='for training')}; give both "
            "annotation files the same `categories` (a class may be without boxes), and extract "
            "anew what has changed"
        )
    if field is not None:
        raise CheckpointError(
            f"the validation store differs in {field}: expected {train.shown(field)}, got "
            f"{validation.shown(field)}; extract both stores with the same options"
        )
