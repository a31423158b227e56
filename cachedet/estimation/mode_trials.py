"""Trials of the ways to train: which batches stand for an epoch, and what they say about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cachedet.config.run import ONLY_CACHED, TrainConfig
from cachedet.estimation.measured import Memory, Phase, Training
from cachedet.estimation.sample import (
    BatchShape,
    Keys,
    keys_like,
    largest_batch,
    spread_batches,
)
from cachedet.estimation.step_process import (
    Mode,
    StepJob,
    StepTrial,
    TrialFailedError,
    measure_steps,
)
from cachedet.structures import SizeHW

_BATCHES = 8  # that stand for an epoch
_STEP_SECONDS = 6.0  # of a step beyond which fewer images are taken than a batch has
_LEAST_IMAGES = 8  # that are always taken
_FORWARDS = 5.0  # that a fine-tuning step takes, heads included, at most

Steps = Callable[[StepJob], StepTrial]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialBatches:
    """Batches of the trial store that are like those of the epoch.

    Attributes:
        warm_up: like the largest.
        timed: like small, usual and large ones.
        pixels: padded, of each timed one.
        enlarge: pixels of the largest batch of the epoch over those of the largest tried.
    """

    warm_up: Keys
    timed: tuple[Keys, ...]
    pixels: tuple[int, ...]
    enlarge: float


@dataclass(frozen=True, kw_only=True, eq=False)
class ModeTrials:
    """How the modes are tried.

    Attributes:
        store: the trial store.
        views: that are whole in it.
        batches: on which.
        config: of the heads.
        images: folder of the images.
        weights: of the backbone.
        epoch_pixels: padded pixels of an epoch.
        seconds: of the timed steps of a mode.
        steps: takes the steps of a job; in a process of its own.
    """

    store: Path
    views: tuple[str, ...]
    batches: TrialBatches
    config: TrainConfig
    images: Path
    weights: str
    epoch_pixels: int
    seconds: float
    steps: Steps = measure_steps

    def run(
        self, mode: Mode, *, residency: str, step: str, beside: dict[str, float]
    ) -> tuple[Training, float]:
        """One epoch of the mode, and the seconds of its steps without waiting (0: it failed).

        Args:
            mode: which.
            residency: of cached features.
            step: name of the stage that computes.
            beside: seconds of an epoch of the stages that run beside it.

        Raises what `make_training_mode` raises.
        """
        try:
            found = self.steps(self._job(mode, residency))
        except TrialFailedError as error:
            return Training(phase=None, memory=None, failure=str(error)), 0.0
        pixels = sum(self.batches.pixels[number] for number in found.numbers)
        computing = (found.seconds - found.waiting) / pixels * self.epoch_pixels
        phase = Phase(
            seconds=found.seconds / pixels * self.epoch_pixels, stages={step: computing, **beside}
        )
        memory = memory_of(found, self.batches.enlarge)
        return Training(phase=phase, memory=memory), computing

    def _job(self, mode: Mode, residency: str) -> StepJob:
        config = self.config if mode == "cached" else plain_heads(self.config)
        changes = {"views": self.views, "residency": residency}
        return StepJob(
            mode=mode,
            config=config.model_copy(update=changes),
            store=self.store,
            images=self.images,
            weights=self.weights,
            warm_up=(self.batches.warm_up,),
            batches=self.batches.timed,
            seconds=self.seconds,
            threads=torch.get_num_threads(),
        )


def choose_batches(
    epoch: Sequence[BatchShape], held: Mapping[SizeHW, Keys], *, most_images: int
) -> TrialBatches:
    """Batches for the trials of an epoch.

    Args:
        epoch: its batches.
        held: images of the trial store by bucket.
        most_images: of a batch; of larger ones a part is taken.
    """
    largest = largest_batch(epoch)
    warm_up, warm_shape = keys_like(largest.limited(most_images), held)
    chosen = [batch.limited(most_images) for batch in spread_batches(epoch, _BATCHES)]
    timed = [
        keys_like(batch, held, start=place * batch.images) for place, batch in enumerate(chosen)
    ]
    return TrialBatches(
        warm_up=warm_up,
        timed=tuple(keys for keys, _ in timed),
        pixels=tuple(shape.pixels for _, shape in timed),
        enlarge=largest.pixels / warm_shape.pixels,
    )


def most_images(forward_seconds: float) -> int:
    """Of a batch that can be tried in seconds; `forward_seconds` of the backbone an image."""
    return max(_LEAST_IMAGES, int(_STEP_SECONDS / (_FORWARDS * max(forward_seconds, 1e-9))))


def memory_of(found: StepTrial, enlarge: float) -> Memory:
    """Of the largest batch, where `1 / enlarge` of it was tried."""
    device = None
    if found.device_nbytes is not None and found.device_resting_nbytes is not None:
        working = found.device_nbytes - found.device_resting_nbytes
        device = found.device_resting_nbytes + working * enlarge
    return Memory(
        resting=found.resting_nbytes,
        working=max(0, found.ram_nbytes - found.resting_nbytes) * enlarge,
        device=device,
    )


def plain_heads(config: TrainConfig) -> TrainConfig:
    """The config without what `make_training_mode` refuses: what only cached features can have."""
    return config.model_copy(update=ONLY_CACHED)
