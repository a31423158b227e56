"""Everything that is measured, one thing after the other, and extrapolated to all images."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.config.run import ExtractConfig, TrainConfig
from cachedet.data.coco import CocoDataset
from cachedet.data.views import View
from cachedet.detector.build import build_detector, choose_levels
from cachedet.device import choose_device, usable_cores
from cachedet.estimation.disk import DiskRates, measure_disk
from cachedet.estimation.forecast import expected_residency, held_nbytes, with_features
from cachedet.estimation.measured import CodecFigures, Measured, Phase, Training
from cachedet.estimation.mode_trials import ModeTrials, choose_batches, most_images
from cachedet.estimation.probe import (
    BackboneCost,
    CodecCost,
    codec_figures,
    measure_backbone,
    measure_codecs,
    sample_inputs,
)
from cachedet.estimation.sample import (
    BatchShape,
    commonest_size,
    count_pixels,
    epoch_batches,
    padded_sizes,
    spread_rows,
)
from cachedet.estimation.trial import (
    Fit,
    Sample,
    Trial,
    collect_statistics,
    existing_folder,
    read_seconds,
    take_sample,
    trial_folder,
    write_trial,
)
from cachedet.loading.memory import free_memory, free_ram
from cachedet.progress import StageProgress
from cachedet.store.codecs.registry import make_codec
from cachedet.store.files.durable import cannot_write
from cachedet.store.format.manifest import Manifest
from cachedet.training.optimizer import choose_autocast

_FIT_IMAGES = 12  # fewer than `extract` shows a codec
_PROBE_IMAGES = 8
_PARTS = ("images", "backbone", "extraction", "disk", "cached", "live", "tuned")


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """What is estimated.

    Attributes:
        extract: options of the extraction.
        heads: config of the training.
        dataset: all images.
        views: of the cache.
        backbone: opened.
        sample: most images to try.
        seconds: for each trial, about; extraction takes twice as long.
        fit_images: that `extract` shows a codec.
    """

    extract: ExtractConfig
    heads: TrainConfig
    dataset: CocoDataset
    views: tuple[View, ...]
    backbone: FrozenBackbone
    sample: int
    seconds: float
    fit_images: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Whole:
    """All images, in numbers."""

    sizes: NDArray[np.int64]  # (V, N, 2) padded
    batches: list[BatchShape]  # of the first epoch
    level_share: float  # of the stored values: those of the levels that are trained on
    view_share: float  # the same of the views

    @property
    def pixels(self) -> int:
        return count_pixels(self.sizes)

    @property
    def epoch_pixels(self) -> int:
        return sum(batch.pixels for batch in self.batches)

    @property
    def read_share(self) -> float:
        """Of the stored values: those that are trained on."""
        return self.level_share * self.view_share

    @property
    def epoch_share(self) -> float:
        """Of the stored values: what one epoch reads; what is shown twice counts twice."""
        return self.level_share * self.epoch_pixels / self.pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimated:
    """What was measured, on how many images, and what the trial store was."""

    measured: Measured
    manifest: Manifest
    sample: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Tried:
    """What was tried before any training."""

    sample: Sample
    fit: Fit
    cost: BackboneCost
    trial: Trial
    figures: Mapping[str, CodecFigures]
    disk: DiskRates


def measure(subject: Subject) -> Estimated:
    """Try everything on a sample of the images.

    Raises what `extract` and `train-heads` raise at their start, and InputError where the place of
    the store cannot be written.
    """
    whole = look_at_all(subject)
    free_disk = shutil.disk_usage(existing_folder(subject.extract.store)).free
    with (
        StageProgress("estimate", total=len(_PARTS), unit="trials") as progress,
        trial_folder(subject.extract.store) as folder,
    ):
        tried = _try_extraction(subject, whole, folder, free_disk, progress)
        trainings, heads_seconds = _try_trainings(subject, whole, tried, progress)
    measured = assemble(
        subject,
        whole,
        tried,
        trainings=trainings,
        heads_seconds=heads_seconds,
        free_disk=free_disk,
    )
    return Estimated(
        measured=measured, manifest=tried.trial.manifest, sample=len(tried.sample.annotations)
    )


def look_at_all(subject: Subject) -> Whole:
    """Sizes and batches of all images; no file is opened.

    Raises ConfigError where the heads cannot work on these features, or not on these views.
    """
    spec, annotations = subject.backbone.spec, subject.dataset.annotations
    with torch.device("meta"):  # before anything is tried
        build_detector(subject.heads.detector, spec=spec, num_classes=len(annotations.categories))
    sizes = padded_sizes(
        annotations,
        subject.views,
        image_size=subject.extract.image_size,
        pad_multiple=spec.pad_multiple,
    )
    where = str(subject.extract.store)
    batches, trained = epoch_batches(annotations, sizes, subject.views, subject.heads, where=where)
    levels = choose_levels(subject.heads.detector, spec)
    unit = (spec.pad_multiple, spec.pad_multiple)
    values = [sum(map(np.prod, each.map_shapes(unit).values())) for each in (levels, spec)]
    return Whole(
        sizes=sizes,
        batches=batches,
        level_share=float(values[0] / values[1]),
        view_share=count_pixels(sizes[trained]) / count_pixels(sizes),
    )


def figures_of(
    codecs: Mapping[str, CodecCost], whole: Whole, trial: Trial, *, codec: str
) -> dict[str, CodecFigures]:
    """Of the whole cache in each codec.

    Args:
        codecs: what they took on the few images of the probe.
        whole: all images.
        trial: what zstd left of all images of the sample, written in one codec.
        codec: that one.
    """
    return {
        name: codec_figures(
            own, whole.sizes, share=trial.stored_share if name == codec else own.share
        )
        for name, own in codecs.items()
    }


def _try_extraction(
    subject: Subject, whole: Whole, folder: Path, free_disk: int, progress: StageProgress
) -> Tried:
    progress.note(_PARTS[0])
    rows = spread_rows(whole.sizes, subject.sample)
    sample = take_sample(subject.dataset, rows, subject.extract, subject.backbone)
    progress.advance(note=_PARTS[1])
    first = subject.views[0].name
    fit = collect_statistics(sample, subject.backbone, view=first, count=_FIT_IMAGES)
    cost, codecs = _probe(subject, sample, fit)
    progress.advance(note=_PARTS[2])
    trial = write_trial(
        folder,
        sample,
        subject.backbone,
        fit,
        config=subject.extract,
        views=subject.views,
        seconds=2 * subject.seconds,
    )
    progress.advance(note=_PARTS[3])
    codec = subject.extract.codec
    figures = figures_of(codecs, whole, trial, codec=codec)
    disk = _try_disk(subject, whole, folder, round(figures[codec].nbytes), free_disk)
    return Tried(sample=sample, fit=fit, cost=cost, trial=trial, figures=figures, disk=disk)


def _try_disk(
    subject: Subject, whole: Whole, folder: Path, nbytes: int, free_disk: int
) -> DiskRates:
    """With pieces as long as a stored map is on average. Raises StoreError."""
    maps = whole.sizes[..., 0].size * len(subject.backbone.spec)
    try:
        return measure_disk(
            folder, nbytes=nbytes, piece=nbytes // maps, free=free_disk, seconds=subject.seconds / 2
        )
    except OSError as error:
        raise cannot_write(subject.extract.store, error) from error


def _probe(subject: Subject, sample: Sample, fit: Fit) -> tuple[BackboneCost, dict[str, CodecCost]]:
    """On images of the size that is commonest in the sample."""
    view, spec = subject.views[0], subject.backbone.spec
    sizes = padded_sizes(
        sample.annotations,
        [view],
        image_size=subject.extract.image_size,
        pad_multiple=spec.pad_multiple,
    )[0]
    bucket, rows = commonest_size(sizes)
    count = min(_PROBE_IMAGES, subject.heads.schedule.batch_size)
    device = next(subject.backbone.parameters()).device
    images = sample_inputs(sample, rows[:count], view=view.name, device=device)
    dtype = _live_dtype(subject, device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        cost, features = measure_backbone(subject.backbone, images)
    codec = subject.extract.codec
    return cost, measure_codecs(features, fit, spec=spec, bucket=bucket, codec=codec)


def _live_dtype(subject: Subject, device: torch.device) -> torch.dtype | None:
    """What a live step computes the backbone in; None: float32."""
    trains_on = choose_device(subject.heads.device)
    dtype = choose_autocast(subject.heads.precision, trains_on)
    return dtype if trains_on.type == device.type else None


def _try_trainings(
    subject: Subject, whole: Whole, tried: Tried, progress: StageProgress
) -> tuple[dict[str, Training], float]:
    """Every mode, and H."""
    config, trial = subject.heads, tried.trial
    epoch_pixels = whole.epoch_pixels
    usual = epoch_pixels / sum(batch.images for batch in whole.batches)
    trials = ModeTrials(
        store=trial.store,
        views=trial.views,
        batches=choose_batches(
            whole.batches, trial.keys, most_images=most_images(tried.cost.seconds * usual)
        ),
        config=config,
        images=subject.dataset.images,
        weights=subject.extract.weights,
        epoch_pixels=epoch_pixels,
        seconds=subject.seconds,
    )
    torch.cuda.empty_cache()  # for the processes of the trials; nothing without CUDA
    progress.advance(note=_PARTS[4])
    cached, heads_seconds = try_cached(subject, whole, tried, trials)
    decoding = trial.stages["decode"] * subject.extract.workers / _live_threads()
    beside = {"decode": decoding * epoch_pixels}
    progress.advance(note=_PARTS[5])
    live, _ = trials.run("live", residency="stream", step="backbone and heads", beside=beside)
    progress.advance(note=_PARTS[6])
    tuned, _ = trials.run("tuned", residency="stream", step="backbone and heads", beside=beside)
    progress.advance(note="")
    return {"cached": cached, "live": live, "tuned": tuned}, heads_seconds


def try_cached(
    subject: Subject, whole: Whole, tried: Tried, trials: ModeTrials
) -> tuple[Training, float]:
    """With features waiting where those of the real run will; their memory is taken off again."""
    trial, figures = tried.trial, tried.figures[subject.extract.codec]
    free_device = _free_device(subject)
    residency = expected_residency(
        subject.heads.residency,
        stored=figures.nbytes * whole.read_share,
        unpacked=figures.unpacked * whole.read_share,
        ram=free_ram(),
        device=free_device,
    )
    levels = choose_levels(subject.heads.detector, trial.manifest.spec).names
    reading = read_seconds(trial, levels) * whole.epoch_pixels
    cached, heads_seconds = trials.run(
        "cached", residency=residency, step="heads", beside={"read": reading}
    )
    held = held_nbytes(
        residency,
        stored=trial.nbytes * whole.level_share,
        unpacked=trial.unpacked * whole.level_share,
        has_own_memory=free_device is not None,
    )
    memory = with_features(cached.memory, (-held[0], -held[1]))
    return replace(cached, memory=memory), heads_seconds


def assemble(
    subject: Subject,
    whole: Whole,
    tried: Tried,
    *,
    trainings: Mapping[str, Training],
    heads_seconds: float,
    free_disk: float,
) -> Measured:
    """What was tried, extrapolated."""
    images = len(subject.dataset.annotations)
    shown = sum(batch.images for batch in whole.batches)
    scan = tried.sample.scan_seconds * images
    fit = tried.fit.seconds * min(subject.fit_images, images)
    needs_fit = make_codec(subject.extract.codec).needs_fit
    own = Phase(seconds=tried.trial.seconds_per_pixel, stages=tried.trial.stages)
    return Measured(
        images=images,
        views=tuple(view.name for view in subject.views),
        showings=shown,
        read_share=whole.read_share,
        epoch_share=whole.epoch_share,
        epochs=subject.heads.schedule.epochs,
        codec=subject.extract.codec,
        codecs=tried.figures,
        scan=Phase(seconds=scan, stages={"decode": scan}),
        fit=Phase(seconds=fit, stages={"backbone": fit}).times(1.0 if needs_fit else 0.0),
        start=tried.trial.start_seconds,
        extract=own.times(whole.pixels),
        trainings=trainings,
        backbone_seconds=tried.cost.seconds * whole.epoch_pixels,
        heads_seconds=heads_seconds,
        backbone_flops=tried.cost.flops * whole.epoch_pixels,
        disk=tried.disk,
        free_disk=free_disk,
        free_ram=free_ram(),
        free_device=_free_device(subject),
        residency=subject.heads.residency,
    )


def _free_device(subject: Subject) -> float | None:
    """None where the training has no memory besides RAM."""
    device = choose_device(subject.heads.device)
    return float(free_memory(device)) if device.type == "cuda" else None


def _live_threads() -> int:
    """That decode beside a step, as `ImageLoader` has them."""
    return max(1, min(16, (usable_cores() or 1) // 2))
