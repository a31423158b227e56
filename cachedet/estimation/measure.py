"""Everything that is measured, one thing after the other, and extrapolated to all images."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.backbone.split import stage_weights
from cachedet.config.run import ExtractConfig, TrainConfig
from cachedet.data.coco import CocoDataset
from cachedet.data.views import View
from cachedet.detector.build import build_detector, choose_levels, choose_read_levels
from cachedet.device import choose_device
from cachedet.estimation.disk import DiskRates, measure_disk
from cachedet.estimation.forecast import expected_residency, with_features
from cachedet.estimation.measured import CodecFigures, Cut, Measured, Phase, Training
from cachedet.estimation.mode_trials import (
    StepJob,
    StepTrial,
    cached_heads,
    measure_steps,
    partial_heads,
    plain_heads,
    try_mode,
)
from cachedet.estimation.probe import (
    BackboneCost,
    CodecCost,
    codec_figures,
    measure_backbone,
    measure_codecs,
)
from cachedet.estimation.sample import (
    BatchShape,
    Sizes,
    choose_batches,
    commonest_size,
    count_pixels,
    epoch_batches,
    most_images,
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
from cachedet.live.image_loader import decoding_threads
from cachedet.live.mode_names import Mode, mode_label, partial_mode
from cachedet.loading.memory import free_memory, free_ram
from cachedet.progress import StageProgress
from cachedet.store.codecs.registry import make_codec
from cachedet.store.files.durable import cannot_write
from cachedet.store.format.stages import encode_stages
from cachedet.structures import FeatureSpec
from cachedet.training.optimizer import choose_autocast

_FIT_IMAGES = 12  # fewer than `extract` shows a codec
_PROBE_IMAGES = 8
_PARTS = ("images", "backbone", "extraction", "disk")  # tried before the ways to train
_CUT_SHARE = 0.25  # of the seconds of a trial, for a cut that the config does not train from


@dataclass(frozen=True, kw_only=True, eq=False)
class EstimateInputs:
    """What is estimated, opened."""

    extract: ExtractConfig
    heads: TrainConfig
    dataset: CocoDataset  # all images
    views: tuple[View, ...]  # of the cache
    backbone: FrozenBackbone
    sample: int  # most images to try
    seconds: float  # for each trial, about; extraction takes twice as long
    fit_images: int  # that `extract` shows a codec
    cuts: tuple[str, ...] = ()  # levels behind which stages can be trained, the latest first
    uncut: str = ""  # why there are none; empty where there are

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The ways to train that are tried."""
        return ("cached", *map(partial_mode, self.cuts), "live", "tuned")

    def padded_sizes(
        self, *, image_size: int | None = None, pad_multiple: int | None = None
    ) -> Sizes:
        """Sizes of all images, as they will be extracted or otherwise."""
        return padded_sizes(
            self.dataset.annotations,
            self.views,
            image_size=image_size or self.extract.image_size,
            pad_multiple=pad_multiple or self.backbone.spec.pad_multiple,
        )

    @property
    def free_device(self) -> float | None:
        """Free bytes; None where the training has no memory besides RAM."""
        device = choose_device(self.heads.device)
        return float(free_memory(device)) if device.type == "cuda" else None


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetSizes:
    """All images, in numbers."""

    sizes: Sizes
    batches: list[BatchShape]  # of the first epoch
    pixels: int
    showings: int  # images of the first epoch
    epoch_pixels: int
    # shares of the stored values:
    level_share: float  # those of the levels that are trained on
    view_share: float  # those of the views that are trained on
    read_share: float  # those of both
    epoch_share: float  # those that one epoch reads; what is shown twice counts twice


@dataclass(frozen=True, kw_only=True, eq=False)
class ExtractionTrials:
    """What was tried before any training."""

    sample: Sample
    fit: Fit
    cost: BackboneCost
    trial: Trial
    figures: Mapping[str, CodecFigures]
    cut_figures: Mapping[str, Mapping[str, CodecFigures]]  # of a store up to each cut
    disk: DiskRates


def measure(inputs: EstimateInputs) -> tuple[Measured, ExtractionTrials]:
    """Try everything on a sample of the images.

    Raises what `extract` and `train-heads` raise at their start, and InputError where the place of
    the store cannot be written.
    """
    sizes = look_at_all(inputs)
    free_disk = shutil.disk_usage(existing_folder(inputs.extract.folder)).free
    with (
        StageProgress("estimate", total=len(_PARTS) + len(inputs.modes), unit="trials") as progress,
        trial_folder(inputs.extract.folder) as folder,
    ):
        trials = _try_extraction(inputs, sizes, folder, free_disk, progress)
        trainings, heads_seconds = _try_trainings(inputs, sizes, trials, progress)
    measured = assemble(
        inputs, sizes, trials, trainings=trainings, heads_seconds=heads_seconds, free_disk=free_disk
    )
    return measured, trials


def look_at_all(inputs: EstimateInputs) -> DatasetSizes:
    """Sizes and batches of all images; no file is opened.

    Raises ConfigError where the heads cannot work on these features, or not on these views.
    """
    spec, annotations = inputs.backbone.spec, inputs.dataset.annotations
    detector, where = inputs.heads.detector, str(inputs.extract.store)
    with torch.device("meta"):  # before anything is tried
        build_detector(detector, spec=spec, num_classes=len(annotations.categories))
    sizes = inputs.padded_sizes()
    batches, trained = epoch_batches(annotations, sizes, inputs.views, inputs.heads, where=where)
    pixels, epoch_pixels = count_pixels(sizes), sum(batch.pixels for batch in batches)
    level_share = share_of_levels(spec, choose_levels(detector, spec).names)
    view_share = count_pixels(sizes[trained]) / pixels
    return DatasetSizes(
        sizes=sizes,
        batches=batches,
        pixels=pixels,
        showings=sum(batch.images for batch in batches),
        epoch_pixels=epoch_pixels,
        level_share=level_share,
        view_share=view_share,
        read_share=level_share * view_share,
        epoch_share=level_share * epoch_pixels / pixels,
    )


def share_of_levels(spec: FeatureSpec, levels: Sequence[str]) -> float:
    """Of the values of all levels; tokens, which do not grow with the image, count as none."""
    unit = (spec.pad_multiple, spec.pad_multiple)
    values = {name: math.prod(shape) for name, shape in spec.maps.map_shapes(unit).items()}
    return sum(values.get(name, 0) for name in levels) / sum(values.values())


def figures_of(
    codecs: Mapping[str, CodecCost], sizes: Sizes, trial: Trial, *, codec: str
) -> dict[str, CodecFigures]:
    """The whole cache in each codec.

    What zstd leaves was seen on the few images of the probe; of the `codec` that the trial store
    was written in, on all images of the sample.
    """
    shares = {name: cost.share for name, cost in codecs.items()} | {codec: trial.stored_share}
    return {name: codec_figures(cost, sizes, share=shares[name]) for name, cost in codecs.items()}


def _try_extraction(
    inputs: EstimateInputs,
    sizes: DatasetSizes,
    folder: Path,
    free_disk: int,
    progress: StageProgress,
) -> ExtractionTrials:
    """Raises what `extract` raises, and StoreError where the disk cannot be tried."""
    progress.note(_PARTS[0])
    rows = spread_rows(sizes.sizes, inputs.sample)
    sample = take_sample(inputs.dataset, rows, inputs.extract, inputs.backbone)
    progress.advance(note=_PARTS[1])
    first = inputs.views[0].name
    fit = collect_statistics(sample, inputs.backbone, view=first, count=_FIT_IMAGES)
    cost, codecs = _probe(inputs, sample, fit)
    progress.advance(note=_PARTS[2])
    trial = write_trial(
        folder,
        sample,
        inputs.backbone,
        fit,
        config=inputs.extract,
        views=inputs.views,
        stages=encode_stages(stage_weights(inputs.backbone)) if inputs.cuts else None,
        seconds=2 * inputs.seconds,
    )
    progress.advance(note=_PARTS[3])
    codec, seconds = inputs.extract.codec, inputs.seconds / 2
    figures = figures_of(codecs, sizes.sizes, trial, codec=codec)
    nbytes = round(figures[codec].nbytes)
    # as long as a stored map is on average
    piece = nbytes // (sizes.sizes[..., 0].size * len(inputs.backbone.spec))
    try:
        disk = measure_disk(folder, nbytes=nbytes, piece=piece, free=free_disk, seconds=seconds)
    except OSError as error:
        raise cannot_write(inputs.extract.folder, error) from error
    cut_figures = {
        cut: figures_of(
            {name: each.stored_to(cut) for name, each in codecs.items()},
            sizes.sizes,
            trial,
            codec=codec,
        )
        for cut in inputs.cuts
    }
    return ExtractionTrials(
        sample=sample,
        fit=fit,
        cost=cost,
        trial=trial,
        figures=figures,
        cut_figures=cut_figures,
        disk=disk,
    )


def _probe(
    inputs: EstimateInputs, sample: Sample, fit: Fit
) -> tuple[BackboneCost, dict[str, CodecCost]]:
    """Measure backbone and codecs on images of the size that is commonest in the sample."""
    view, spec = inputs.views[0], inputs.backbone.spec
    of_sample = replace(inputs, dataset=replace(inputs.dataset, annotations=sample.annotations))
    bucket, rows = commonest_size(of_sample.padded_sizes()[0])
    rows = rows[: min(_PROBE_IMAGES, inputs.heads.schedule.batch_size)]
    device = next(inputs.backbone.parameters()).device
    images = torch.stack([sample.loader.load(row, view.name) for row in rows]).to(device)
    trains_on = choose_device(inputs.heads.device)
    dtype = choose_autocast(inputs.heads.precision, trains_on)
    # What a live step computes the backbone in, where that is the same device.
    is_enabled = dtype is not None and trains_on.type == device.type
    with torch.autocast(device.type, dtype=dtype if is_enabled else None, enabled=is_enabled):
        cost, features = measure_backbone(inputs.backbone, images, cuts=inputs.cuts)
    codec = inputs.extract.codec
    return cost, measure_codecs(features, fit, spec=spec, bucket=bucket, codec=codec)


def _try_trainings(
    inputs: EstimateInputs, sizes: DatasetSizes, trials: ExtractionTrials, progress: StageProgress
) -> tuple[dict[str, Training], float]:
    """Try every mode; returns H too."""
    trial, epoch_pixels = trials.trial, sizes.epoch_pixels
    usual = epoch_pixels / sizes.showings
    heads = inputs.heads.model_copy(update={"views": trial.views})
    job = StepJob(
        mode="cached",
        config=cached_heads(heads),
        store=trial.store,
        images=inputs.dataset.images,
        weights=inputs.extract.weights,
        batches=choose_batches(
            sizes.batches, trial.keys, most_images=most_images(trials.cost.seconds * usual)
        ),
        seconds=inputs.seconds,
        threads=torch.get_num_threads(),
    )
    torch.cuda.empty_cache()  # for the processes of the trials; nothing without CUDA
    progress.advance(note="cached")
    cached, heads_seconds = try_from_store(inputs, sizes, trials, job)
    trainings = {"cached": cached}
    for cut in inputs.cuts:
        progress.advance(note=mode_label(mode := partial_mode(cut)))
        seconds = inputs.seconds * (1.0 if cut == inputs.heads.freeze_at else _CUT_SHARE)
        partial = replace(job, mode=mode, config=partial_heads(heads, cut), seconds=seconds)
        trainings[mode], _ = try_from_store(inputs, sizes, trials, partial)
    plain = plain_heads(heads).model_copy(update={"residency": "stream"})
    decoding = trial.stages["decode"] * inputs.extract.workers / decoding_threads()
    for mode in ("live", "tuned"):
        progress.advance(note=mode)
        trainings[mode], _ = try_mode(
            replace(job, mode=mode, config=plain),
            stage="backbone and heads",
            beside={"decode": decoding * epoch_pixels},
            epoch_pixels=epoch_pixels,
        )
    progress.advance(note="")
    return trainings, heads_seconds


def try_from_store(
    inputs: EstimateInputs,
    sizes: DatasetSizes,
    trials: ExtractionTrials,
    job: StepJob,
    *,
    take_steps: Callable[[StepJob], StepTrial] = measure_steps,
) -> tuple[Training, float]:
    """Try it with features waiting where the real ones will; their memory is taken off again.

    Returns the seconds of the steps without waiting too.
    """
    trial, figures = trials.trial, trials.figures[inputs.extract.codec]
    free_device = inputs.free_device
    levels = choose_read_levels(job.config, trial.manifest)
    level_share = share_of_levels(trial.manifest.spec, levels)
    read = figures.times(level_share * sizes.view_share)
    residency = expected_residency(inputs.heads.residency, read, ram=free_ram(), device=free_device)
    training, computing = try_mode(
        replace(job, config=job.config.model_copy(update={"residency": residency})),
        stage="heads" if job.config.freeze_at is None else "stages and heads",
        beside={"read": read_seconds(trial, levels) * sizes.epoch_pixels},
        epoch_pixels=sizes.epoch_pixels,
        take_steps=take_steps,
    )
    held = CodecFigures(nbytes=trial.nbytes, unpacked=trial.unpacked, encode_seconds=0.0)
    memory = with_features(
        training.memory, residency, held.times(-level_share), has_own=free_device is not None
    )
    return replace(training, memory=memory), computing


def assemble(
    inputs: EstimateInputs,
    sizes: DatasetSizes,
    trials: ExtractionTrials,
    *,
    trainings: Mapping[str, Training],
    heads_seconds: float,
    free_disk: float,
) -> Measured:
    """Extrapolate what was tried."""
    images = len(inputs.dataset.annotations)
    scan = trials.sample.scan_seconds * images
    needs_fit = make_codec(inputs.extract.codec).needs_fit
    fit = trials.fit.seconds * min(inputs.fit_images, images) if needs_fit else 0.0
    a_pixel = Phase(seconds=trials.trial.seconds_per_pixel, stages=trials.trial.stages)
    return Measured(
        images=images,
        views=tuple(view.name for view in inputs.views),
        showings=sizes.showings,
        read_share=sizes.read_share,
        epoch_share=sizes.epoch_share,
        epochs=inputs.heads.schedule.epochs,
        codec=inputs.extract.codec,
        codecs=trials.figures,
        scan=Phase(seconds=scan, stages={"decode": scan}),
        fit=Phase(seconds=fit, stages={"backbone": fit}),
        start=trials.trial.start_seconds,
        extract=a_pixel.times(sizes.pixels),
        trainings=trainings,
        backbone_seconds=trials.cost.seconds * sizes.epoch_pixels,
        heads_seconds=heads_seconds,
        backbone_flops=trials.cost.flops * sizes.epoch_pixels,
        disk=trials.disk,
        free_disk=free_disk,
        free_ram=free_ram(),
        free_device=inputs.free_device,
        residency=inputs.heads.residency,
        cuts={cut: _measured_cut(cut, inputs, sizes, trials) for cut in inputs.cuts},
        uncut=inputs.uncut,
        freeze_at=inputs.heads.freeze_at,
        stored_to=inputs.extract.freeze_at,
    )


def _measured_cut(
    cut: str, inputs: EstimateInputs, sizes: DatasetSizes, trials: ExtractionTrials
) -> Cut:
    manifest = trials.trial.manifest
    levels = choose_read_levels(partial_heads(inputs.heads, cut), manifest)
    share = share_of_levels(manifest.spec, levels)
    return Cut(
        trunk=trials.cost.trunks[cut],
        codecs=trials.cut_figures[cut],
        read_share=share * sizes.view_share,
        epoch_share=share * sizes.epoch_pixels / sizes.pixels,
    )
