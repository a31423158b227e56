"""From what was tried to all images: by hand, with trials that were not run.

Six images at 128 px: four of 128 x 128 and two of 64 x 128 padded pixels, 81,920 in
all. Its store has base, hflip and a view of half the sides, 2.25 times as many; it trains on base
and hflip. Of the 768 + 768 + 96 values of 32 x 32 pixels C4 and C5 have 9/17.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachedet.backbone.frozen import FrozenBackbone, load_backbone
from cachedet.config.run import ExtractConfig, TrainConfig
from cachedet.data.coco import CocoDataset
from cachedet.data.image_files import ImageFolder
from cachedet.data.survey import Scan
from cachedet.data.views import parse_views
from cachedet.estimation.disk import DiskRates
from cachedet.estimation.measure import (
    EstimateInputs,
    ExtractionTrials,
    assemble,
    figures_of,
    look_at_all,
    try_from_store,
)
from cachedet.estimation.measured import CodecFigures, Measured, Memory, Phase
from cachedet.estimation.mode_trials import StepJob, StepTrial
from cachedet.estimation.probe import BackboneCost, CodecCost
from cachedet.estimation.sample import TrialBatches
from cachedet.estimation.trial import Fit, Sample, Trial
from cachedet.extraction.inputs import make_inputs
from cachedet.store.codecs.registry import make_codec
from cachedet.store.reader import FeatureStore
from cachedet.structures import FeatureSpec, LevelSpec

Make = Callable[..., EstimateInputs]
SIZES_HW = [(200, 200)] * 4 + [(100, 200)] * 2
EPOCH_PIXELS = 81_920


@pytest.fixture(scope="module")
def backbone() -> FrozenBackbone:
    return load_backbone("test_resnet", weights="none", image_size=128)


@pytest.fixture
def make_inputs_of(tiny: Any, backbone: FrozenBackbone, annotations_of: Any) -> Make:
    def make(
        *,
        codec: str = "int8",
        levels: tuple[str, ...] | None = ("C4", "C5"),
        views: tuple[str, ...] = ("base", "hflip"),
        residency: str = "stream",
        fit_images: int = 4,
    ) -> EstimateInputs:
        detector = {"kind": "retinanet", "neck": {"kind": "fpn"}, "levels": levels}
        heads = {
            "detector": detector,
            "schedule": {"epochs": 7, "batch_size": 4},
            "views": views,
            "device": "cpu",
            "residency": residency,
        }
        extract: ExtractConfig = tiny.extract_config(Path("x.zarr"), codec=codec)
        return EstimateInputs(
            extract=extract,
            heads=TrainConfig.model_validate(heads),
            dataset=CocoDataset(
                files=ImageFolder(Path("images")), annotations=annotations_of(SIZES_HW), counts={}
            ),
            views=parse_views("base,hflip,scale=0.5"),
            backbone=backbone,
            sample=6,
            seconds=1.0,
            fit_images=fit_images,
        )

    return make


@pytest.fixture
def trials(tiny: Any, backbone: FrozenBackbone, annotations_of: Any) -> ExtractionTrials:
    """Its trial store is that of the eight generated images, with figures by hand."""
    store, annotations = FeatureStore.open(tiny.train), annotations_of(SIZES_HW)
    bucket, rows = next(iter(store.buckets("base").items()))
    loader = make_inputs(
        annotations,
        images=Path("images"),
        image_size=128,
        pad_multiple=32,
        preprocessing=backbone.preprocessing,
        contents=np.zeros(len(annotations), dtype=np.uint64),
    )
    scan = Scan(contents=np.zeros(6, dtype=np.uint64), bad=(), notes=())
    return ExtractionTrials(
        sample=Sample(
            annotations=annotations, loader=loader, scan=scan, scan_seconds=0.5, skipped=()
        ),
        fit=Fit(statistics={}, seconds=0.25),
        cost=BackboneCost(seconds=2e-4, flops=1e3, trunks={"C4": 0.75}),
        trial=Trial(
            store=tiny.train,
            manifest=store.manifest,
            views=("base",),
            keys={bucket: np.array([[0, row] for row in rows])},
            start_seconds=3.0,
            seconds_per_pixel=1e-4,
            stages={"decode": 1e-5, "backbone": 1e-4},
            nbytes=17_000_000,
            unpacked=34_000_000,
            stored_share=0.75,
        ),
        figures={"int8": FIGURES, "fp32": FIGURES},
        cut_figures={"C4": {"int8": FIGURES.times(0.5)}},
        disk=DiskRates(write=1e8, read=5e8, is_cold=True),
    )


FIGURES = CodecFigures(nbytes=2e3, unpacked=4e3, encode_seconds=1.0)


def assemble_all(inputs: EstimateInputs, trials: ExtractionTrials) -> Measured:
    sizes = look_at_all(inputs)
    return assemble(inputs, sizes, trials, trainings={}, heads_seconds=9.0, free_disk=5e9)


def test_all_images_in_numbers(make_inputs_of: Make) -> None:
    """Trained on: 9/17 of the values of 8/9 of the pixels; one epoch reads 4/9 of the pixels."""
    sizes = look_at_all(make_inputs_of())
    assert sizes.pixels == 184_320
    assert sizes.epoch_pixels == EPOCH_PIXELS
    assert sorted(batch.pixels for batch in sizes.batches) == [2 * 64 * 128, 4 * 128 * 128]
    assert sizes.level_share == pytest.approx(9 / 17)
    assert sizes.view_share == pytest.approx(8 / 9)
    assert sizes.read_share == pytest.approx(8 / 17)
    assert sizes.epoch_share == pytest.approx(4 / 17)


@pytest.mark.parametrize(
    ("levels", "views", "read", "epoch"),
    [
        (None, ("base", "hflip", "scale-0.5"), 1.0, None),  # which views is drawn
        (None, ("base",), 4 / 9, 4 / 9),
        (None, ("scale-0.5",), 1 / 9, 1 / 9),
        (("C3",), ("base", "hflip", "scale-0.5"), 8 / 17, None),
        (("C3",), ("base",), 32 / 153, 32 / 153),
    ],
)
def test_levels_and_views_that_are_not_trained_on_are_not_read(
    make_inputs_of: Make,
    levels: tuple[str, ...] | None,
    views: tuple[str, ...],
    read: float,
    epoch: float | None,
) -> None:
    sizes = look_at_all(make_inputs_of(levels=levels, views=views))
    assert sizes.read_share == pytest.approx(read)
    if epoch is not None:
        assert sizes.epoch_share == pytest.approx(epoch)


def test_everything_is_extrapolated(make_inputs_of: Make, trials: ExtractionTrials) -> None:
    measured = assemble_all(make_inputs_of(), trials)
    assert (measured.images, measured.showings, measured.epochs) == (6, 6, 7)
    assert measured.views == ("base", "hflip", "scale-0.5")
    assert (measured.read_share, measured.epoch_share) == pytest.approx((8 / 17, 4 / 17))
    assert measured.scan == Phase(seconds=3.0, stages={"decode": 3.0})
    assert measured.start == 3.0
    assert measured.extract.seconds == pytest.approx(18.432)
    assert measured.extract.stages == pytest.approx({"decode": 1.8432, "backbone": 18.432})
    assert measured.backbone_seconds == pytest.approx(16.384)
    assert measured.backbone_flops == pytest.approx(8.192e7)
    assert (measured.heads_seconds, measured.free_disk, measured.free_device) == (9.0, 5e9, None)
    assert measured.stored == FIGURES


def test_a_cut_reads_the_levels_up_to_it(make_inputs_of: Make, trials: ExtractionTrials) -> None:
    """The heads use C4 and C5: 96 x 8 of 32 x 51 values are read, in 8/9 and 4/9 of the pixels."""
    inputs = replace(make_inputs_of(), cuts=("C4",))
    cut = assemble_all(inputs, trials).cuts["C4"]
    assert cut.trunk == 0.75
    assert cut.codecs["int8"].nbytes == 1e3
    assert (cut.read_share, cut.epoch_share) == pytest.approx((8 / 17 * 8 / 9, 8 / 17 * 4 / 9))


@pytest.mark.parametrize(
    ("codec", "fit_images", "seconds"),
    [
        ("int8", 4, 1.0),
        ("int8", 100, 1.5),  # there are six
        ("fp32", 4, 0.0),  # learns nothing
    ],
)
def test_a_codec_learns_from_a_few_images(
    make_inputs_of: Make, trials: ExtractionTrials, codec: str, fit_images: int, seconds: float
) -> None:
    """A quarter of a second each."""
    measured = assemble_all(make_inputs_of(codec=codec, fit_images=fit_images), trials)
    assert measured.fit == Phase(seconds=seconds, stages={"backbone": seconds})


@pytest.mark.parametrize(
    ("codec", "expected"),
    [("fp32", {"fp32": 270.0, "fp16": 70.0}), ("fp16", {"fp32": 180.0, "fp16": 210.0})],
)
def test_what_zstd_left_of_the_trial_goes_for_its_codec_alone(
    trials: ExtractionTrials, codec: str, expected: dict[str, float]
) -> None:
    """Ten maps of 4 values with 20 bytes of checksum and index: 360 bytes in fp32, 280 in fp16.

    Of the trial 3/4 were left, on the probe 1/2 of fp32 and 1/4 of fp16.
    """
    spec = FeatureSpec((LevelSpec(name="C5", channels=4, stride=32),))
    codecs = {
        name: CodecCost(spec=spec, codec=make_codec(name), share=share, seconds=0.0)
        for name, share in (("fp32", 0.5), ("fp16", 0.25))
    }
    figures = figures_of(codecs, np.full((1, 10, 2), 32), trials.trial, codec=codec)
    assert {name: of_codec.nbytes for name, of_codec in figures.items()} == expected


@pytest.mark.parametrize(
    ("residency", "resting"), [("stream", 100e6), ("ram", 91e6), ("device", 82e6)]
)
def test_features_of_the_trial_are_taken_off_its_memory(
    make_inputs_of: Make, trials: ExtractionTrials, residency: str, resting: float
) -> None:
    """9/17 of 17 MB stored, or 34 MB unpacked, waited in RAM: a CPU has no memory besides."""
    inputs = make_inputs_of(residency=residency)
    jobs: list[StepJob] = []

    def take_steps(job: StepJob) -> StepTrial:
        jobs.append(job)
        return StepTrial(
            numbers=(0, 0), seconds=6.0, waiting=2.0, memory=Memory(resting=100e6, working=30e6)
        )

    keys = next(iter(trials.trial.keys.values()))
    job = StepJob(
        mode="cached",
        config=inputs.heads,
        store=trials.trial.store,
        images=inputs.dataset.images,
        weights="none",
        batches=TrialBatches(warm_up=keys, timed=(keys,), pixels=(EPOCH_PIXELS,)),
        seconds=1.0,
        threads=1,
    )
    training, computing = try_from_store(
        inputs, look_at_all(inputs), trials, job, take_steps=take_steps
    )
    assert training.memory.resting == pytest.approx(resting)
    assert (training.memory.working, training.memory.device) == (30e6, None)
    assert (training.phase.seconds, computing) == (3.0, 2.0)
    assert training.phase.stages["heads"] == 2.0
    assert jobs[0].config.residency == residency
