"""One cell of a comparison: one mode with one config and seed, trained and scored."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from cachedet.comparison.results import RESULT, CellKey, CellResult
from cachedet.comparison.scoring import Scorer, figures_of
from cachedet.comparison.step_plan import StepPlan, keep_peak_memory, plan_steps, time_left
from cachedet.config.run import TrainConfig
from cachedet.evaluation.plots import plot_training
from cachedet.live.modes import BackboneTraining, TrainingMode, make_training_mode
from cachedet.loading.sampling import resolve_views
from cachedet.store.format.manifest import Manifest
from cachedet.store.reader import FeatureStore
from cachedet.training.loop import run_session
from cachedet.training.optimizer import count_trained
from cachedet.training.run_folder import RunFolder, TrainingData
from cachedet.training.start import start_or_continue


class Interrupted(Exception):
    """A signal ended the training of a cell, which has saved its state."""


@dataclass(frozen=True, kw_only=True)
class CellTask:
    """All that the process of a cell needs to know.

    Attributes:
        key: of the cell.
        config: of its heads, with the seed, the epochs and the device.
        train, val: stores.
        images, val_images: folders of their images.
        weights: of the backbone, as `extract --weights` takes them.
        backbone: how it learns.
        budget: seconds, extraction included where the mode needs it; None: the config's epochs.
        extraction_seconds: of the training store.
        resamples: for the interval of AP.
        folder: of the run.
    """

    key: CellKey
    config: TrainConfig
    train: Path
    val: Path
    images: Path
    val_images: Path
    weights: str
    backbone: BackboneTraining
    budget: float | None
    extraction_seconds: float
    resamples: int
    folder: Path

    @property
    def needs_cache(self) -> bool:
        return self.key.mode == "cached"

    @property
    def result(self) -> Path:
        return self.folder / RESULT


def train_cell(task: CellTask) -> CellResult:
    """Train, or continue, and score one cell; its folder is a run folder that `report` reads.

    Raises:
        Interrupted: by a signal; the next call goes on.
        CachedetError: what training or scoring raises.
    """
    store, val = FeatureStore.open(task.train), FeatureStore.open(task.val)
    folder = RunFolder(task.folder)
    goes_on = folder.last.exists() or folder.previous.exists()
    if not goes_on and folder.root.exists():
        shutil.rmtree(folder.root)  # it ended before anything was saved
    config = _with_views(task.config, store)
    plan = StepPlan.read(folder.root) or _plan(task, config, store)
    config = plan.fit(config)
    training_mode = _rig(task, config, store, total_steps=plan.steps)
    trainer, trained_on = training_mode.trainer, TrainingData.of(store)
    start_or_continue(folder, config, trainer, store.manifest, resume=goes_on, restarts=0)
    plan.write(folder.root)
    trained_on.write(folder)
    scorer = Scorer(config, store=val, images=task.val_images, trainer=trainer)
    memory = _train(config, folder, training_mode, store.manifest, scorer, plan)
    analysis = scorer.score(folder, trained_on, resamples=task.resamples)
    found = CellResult(
        key=task.key,
        device=str(trainer.device),
        steps=trainer.step,
        epochs=trainer.step / plan.steps_per_epoch,
        seconds=trainer.seconds,
        peak_memory=memory,
        step_flops=plan.step_flops,
        parameters=count_trained(trainer.detector),
        **figures_of(analysis),
    )
    if not task.needs_cache:
        return found
    return replace(found, extraction_seconds=task.extraction_seconds, cache_nbytes=store.nbytes)


def _train(
    config: TrainConfig,
    folder: RunFolder,
    training_mode: TrainingMode,
    manifest: Manifest,
    scorer: Scorer,
    plan: StepPlan,
) -> int:
    """To the end of the run; returns the peak memory of its stretches. Raises Interrupted."""
    session = run_session(
        config,
        folder=folder,
        trainer=training_mode.trainer,
        loader=training_mode.loader,
        manifest=manifest,
        validator=scorer.validator(),
        budget=plan.budget,
    )
    memory = keep_peak_memory(folder.root, session.peak_memory)
    plot_training(folder.metrics, folder.plots / "training.png")
    if session.was_interrupted:
        raise Interrupted(session.reason)
    return memory


def _with_views(config: TrainConfig, store: FeatureStore) -> TrainConfig:
    """The config with the chance of each single view of the store."""
    views = resolve_views(config.views, held=store.manifest.views, where=store.location)
    return config.model_copy(update={"views": views})


def _plan(task: CellTask, config: TrainConfig, store: FeatureStore) -> StepPlan:
    seconds = task.budget
    if seconds is not None and task.needs_cache:
        seconds = time_left(seconds, spent=task.extraction_seconds)
    # All features would be loaded for a few steps, and again for the run.
    streamed = config.model_copy(update={"residency": "stream"})
    return plan_steps(
        config,
        store,
        lambda: _rig(task, streamed, store, total_steps=1000),
        seconds=seconds,
    )


def _rig(
    task: CellTask, config: TrainConfig, store: FeatureStore, *, total_steps: int
) -> TrainingMode:
    return make_training_mode(
        task.key.mode,
        config,
        store=store,
        images=task.images,
        weights=task.weights,
        total_steps=total_steps,
        backbone=task.backbone,
    )
