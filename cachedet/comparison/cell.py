"""One cell of a comparison: a mode with a config and a seed, trained and scored.

Each has a process of its own: its memory is its own, and what ends it does not end the others.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cachedet.comparison.folder import Extracted
from cachedet.comparison.results import RESULT, CellKey, CellResult
from cachedet.comparison.scoring import Scorer, figures_of, late_rise
from cachedet.comparison.step_plan import CellCosts, StepPlan, plan_steps, time_left
from cachedet.config.run import ExtractConfig, StagesConfig, TrainConfig
from cachedet.detector.build import choose_read_levels
from cachedet.errors import CachedetError
from cachedet.evaluation.analysis import DEFAULT_RESAMPLES
from cachedet.evaluation.plots import plot_training
from cachedet.live.mode_names import MODES, Mode, cut_of, needs_cache
from cachedet.live.modes import BackboneTraining, TrainingMode, make_training_mode
from cachedet.loading.sampling import resolve_views
from cachedet.reporting.scored_run import read_metrics
from cachedet.series.own_process import (
    describe_end,
    goes_on,
    start_process,
    wait_for_end,
)
from cachedet.store.reader import FeatureStore
from cachedet.training.loop import run_session
from cachedet.training.optimizer import count_trained
from cachedet.training.run_folder import RunFolder, TrainingData
from cachedet.training.start import start_or_continue
from cachedet.training.stopping import STOPPED_STATUS, StopSignals

OWN_FILES = ("steps.json", "costs.json", RESULT)
"""In the folder of a cell, beside those of a run."""
_TRIAL_STEPS = 1000  # length of the schedule of steps that are thrown away


class Interrupted(Exception):
    """A signal ended the training of a cell, which has saved its state."""


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """What is compared: every config with each mode and seed."""

    heads: Mapping[str, TrainConfig]  # configs by name
    train: ExtractConfig  # its store, as that of `val`: the folder's own, or one that is only read
    val: ExtractConfig
    out: Path  # the comparison's folder
    modes: Sequence[Mode] = MODES
    seeds: Sequence[int] = (0,)
    epochs: int | None = None  # of every cell; None: those of its config
    budget: float | None = None  # seconds of every cell instead, with extraction where it is cached
    backbone: BackboneTraining = field(default_factory=BackboneTraining)
    resamples: int = DEFAULT_RESAMPLES

    def cell_keys(self) -> list[CellKey]:
        """A seed of everything first, so that a comparison that is stopped is a whole one."""
        return [
            CellKey(heads=heads, mode=mode, seed=seed)
            for seed in self.seeds
            for heads in self.heads
            for mode in self.modes
        ]


@dataclass(frozen=True, kw_only=True)
class CellTask:
    """All that the process of a cell needs to know."""

    key: CellKey
    comparison: ComparisonConfig
    extracted: Extracted
    folder: Path  # of the run

    @property
    def config(self) -> TrainConfig:
        """The heads with the seed and the epochs of this cell, on the views that were asked for."""
        heads = self.comparison.heads[self.key.heads]
        schedule = heads.schedule
        if self.comparison.epochs is not None:
            schedule = schedule.model_copy(update={"epochs": self.comparison.epochs})
        views = self.extracted.views if heads.views is None else heads.views
        backbone = self.comparison.backbone
        stages = StagesConfig(lr_scale=backbone.lr_scale, batch_norm=backbone.batch_norm)
        cut = cut_of(self.key.mode)
        partial = {} if cut is None else {"freeze_at": cut, "stages": stages}
        return heads.model_copy(
            update={"seed": self.key.seed, "schedule": schedule, "views": views, **partial}
        )

    @property
    def needs_cache(self) -> bool:
        return needs_cache(self.key.mode)

    @property
    def result(self) -> Path:
        return self.folder / RESULT

    def training_mode(
        self, config: TrainConfig, store: FeatureStore, *, total_steps: int
    ) -> TrainingMode:
        comparison = self.comparison
        return make_training_mode(
            self.key.mode,
            config,
            store=store,
            images=comparison.train.require_image_folder(),
            weights=comparison.train.weights,
            total_steps=total_steps,
            backbone=comparison.backbone,
        )


def run_cell(task: CellTask, signals: StopSignals) -> CellResult:
    """Train and score a cell in a process of its own; a cell that fails is a result too.

    `signals` that come to this process are passed on, and the cell saves its state.

    Raises Interrupted.
    """
    task.result.unlink(missing_ok=True)  # of an attempt that failed
    process = start_process(_run, task)
    wait_for_end(process, signals)
    if process.exitcode == STOPPED_STATUS or signals.received is not None:
        raise Interrupted(signals.received or "a signal")
    if task.result.is_file():
        return CellResult.read(task.result)
    return _keep(task, CellResult(key=task.key, error=describe_end(process)))


def train_cell(task: CellTask) -> CellResult:
    """Train, or continue, and score one cell; its folder is a run folder that `report` reads.

    Raises:
        Interrupted: by a signal; the next call goes on.
        CachedetError: what training or scoring raises.
    """
    comparison = task.comparison
    store, val = FeatureStore.open(comparison.train.store), FeatureStore.open(comparison.val.store)
    folder = RunFolder(task.folder)
    resume = goes_on(folder, also=OWN_FILES)
    config = task.config
    views = resolve_views(config.views, held=store.manifest.views, where=store.location)
    config = config.model_copy(update={"views": views})  # single ones, by probability
    plan = StepPlan.read(folder.root) or _plan(task, config, store)
    config = plan.fit(config)
    training_mode = task.training_mode(config, store, total_steps=plan.steps)
    trainer, trained_on = training_mode.trainer, TrainingData.of(store)
    start_or_continue(
        folder,
        config,
        trainer,
        store.manifest,
        data=trained_on,
        resume=resume,
        relabelled=False,
        restarts=0,
    )
    plan.write(folder.root)
    trained_on.write(folder)
    scorer = Scorer(
        config=config, store=val, images=comparison.val.require_image_folder(), trainer=trainer
    )
    session = run_session(
        config,
        folder=folder,
        trainer=trainer,
        loader=training_mode.loader,
        manifest=store.manifest,
        validator=scorer.validator(),
        budget=plan.budget,
    )
    costs = CellCosts.keep(folder.root, session)
    plot_training(folder.metrics, folder.plots / "training.png")
    if session.was_interrupted:
        raise Interrupted(session.reason)
    analysis = scorer.score(folder, trained_on, resamples=comparison.resamples)
    is_cached = task.needs_cache
    return CellResult(
        key=task.key,
        device=str(trainer.device),
        steps=trainer.step,
        epochs=trainer.step / plan.steps_per_epoch,
        seconds=trainer.seconds,
        processor_seconds=costs.seconds_of(trainer.step),
        peak_memory=costs.peak_memory,
        step_flops=plan.step_flops,
        parameters=count_trained(trainer.detector),
        extraction_seconds=task.extracted.seconds if is_cached else 0.0,
        cache_nbytes=_nbytes_read(config, store) if is_cached else 0,
        late_rise=late_rise(
            read_metrics(folder.metrics), steps=trainer.step, ap=analysis.scores.ap
        ),
        **figures_of(analysis),
    )


def _nbytes_read(config: TrainConfig, store: FeatureStore) -> int:
    """Bytes on the disk of what a run of `config` trains on, all views of the store."""
    levels = choose_read_levels(config, store.manifest)
    return store.encoded_nbytes(store.views, levels)[0]


def _plan(task: CellTask, config: TrainConfig, store: FeatureStore) -> StepPlan:
    seconds = task.comparison.budget
    if seconds is not None and task.needs_cache:
        seconds = time_left(seconds, spent=task.extracted.seconds)
    # All features would be loaded for a few steps, and again for the run.
    streamed = config.model_copy(update={"residency": "stream"})
    training_mode = task.training_mode(streamed, store, total_steps=_TRIAL_STEPS)
    return plan_steps(config, store, training_mode, seconds=seconds)


def _run(task: CellTask) -> None:
    """Train the cell in its process, and keep the result or the error."""
    try:
        result = train_cell(task)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(STOPPED_STATUS)
    except CachedetError as error:
        result = _failed(task, str(error))
    except OSError as error:  # a full disk, most often: the others may find room
        result = _failed(task, f"{error.filename or task.folder}: {error.strerror or error}")
    except Exception as error:  # the other cells go on, whatever it was
        traceback.print_exc()
        result = _failed(task, f"{type(error).__name__}: {error}")
    _keep(task, result)


def _failed(task: CellTask, why: str) -> CellResult:
    """Advise what can be done in a comparison: it has no --run, as training advises."""
    advice = (
        f"The same command tries it again, from its start once {task.folder} is removed; a changed "
        "config goes under another name, or under this one while no cell of it has succeeded"
    )
    return CellResult(key=task.key, error=f"{why.rstrip('. ')}. {advice}")


def _keep(task: CellTask, result: CellResult) -> CellResult:
    """Write it into the cell's folder, which a cell that failed early has not made."""
    task.folder.mkdir(parents=True, exist_ok=True)
    result.write(task.result)
    return result
