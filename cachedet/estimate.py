"""Before a byte is written: what a cache will cost and save on this machine."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cachedet.backbone.frozen import FrozenBackbone, load_backbone
from cachedet.config.run import ExtractConfig, TrainConfig
from cachedet.data.coco import read_coco
from cachedet.data.views import parse_views
from cachedet.device import choose_device
from cachedet.estimation.advice import advise
from cachedet.estimation.forecast import Forecast, make_forecast
from cachedet.estimation.measure import Estimated, Subject, measure
from cachedet.estimation.measured import Measured
from cachedet.estimation.prediction import (
    Prediction,
    describe_extraction,
    describe_store,
    describe_training,
)
from cachedet.estimation.probe import measure_backbone
from cachedet.estimation.sample import commonest_size, count_pixels, padded_sizes
from cachedet.estimation.what_if import BackboneChange, WhatIf, apply_what_if
from cachedet.extract import FIT_IMAGES, default_views
from cachedet.model import measure_model
from cachedet.structures import FeatureSpec, SizeHW

SAMPLE = 32  # images
SECONDS = 8.0  # of each trial
DEFAULT_HEADS = Path(__file__).with_name("demo.yaml")  # lean, and there in every installation
_NOISE_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class EstimateReport:
    """What one call of `estimate` found.

    Attributes:
        extract: options of the extraction.
        heads: config of the training, as it was resolved.
        measured: on the sample, extrapolated; where there is a what-if, changed by it.
        forecast: what follows.
        advice: in words.
        what_if: what is otherwise than here; empty where everything was measured.
        skipped: file name and reason of bad images of the sample.
        prediction: where it was saved for `extract` and `train-heads` to compare with; None of a
            what-if.
        sample: images that were tried.
        seconds: that the estimate took.
    """

    extract: ExtractConfig
    heads: TrainConfig
    measured: Measured
    forecast: Forecast
    advice: list[str]
    what_if: dict[str, Any]
    skipped: tuple[tuple[str, str], ...]
    prediction: Path | None
    sample: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "options": self.extract.model_dump(mode="json"),
            "heads": self.heads.model_dump(mode="json"),
            "what_if": self.what_if,
            "forecast": self.forecast.to_json(),
            "advice": self.advice,
            "measured": self.measured.to_json(),
            "skipped": [list(pair) for pair in self.skipped],
            "prediction": None if self.prediction is None else str(self.prediction),
            "sample": self.sample,
            "seconds": self.seconds,
        }


def estimate(
    config: ExtractConfig,
    heads: TrainConfig,
    *,
    sample: int = SAMPLE,
    seconds: float = SECONDS,
    what_if: WhatIf | None = None,
) -> EstimateReport:
    """Try extraction and training on a sample, and forecast both; nothing stays but the forecast.

    Args:
        config: of the extraction that is meant.
        heads: of the training that is meant.
        sample: most images to try.
        seconds: for each trial, about; more is more exact.
        what_if: what shall be otherwise than it is here.

    Raises:
        DatasetError, BadImageError, BackboneError, ConfigError: the inputs cannot be used.
        InputError: nothing can be written where the store shall lie, or an impossible what-if.
    """
    started = time.perf_counter()
    change = what_if or WhatIf()
    subject = open_subject(config, heads, sample, seconds)
    found = measure(subject)
    measured = change_measured(found.measured, subject, change)
    forecast = make_forecast(measured)
    return EstimateReport(
        extract=config,
        heads=heads,
        measured=measured,
        forecast=forecast,
        advice=advise(measured, forecast),
        what_if=change.to_json(),
        skipped=found.manifest.skipped,
        prediction=_save(found, subject, forecast) if change == WhatIf() else None,
        sample=found.sample,
        seconds=time.perf_counter() - started,
    )


def open_subject(config: ExtractConfig, heads: TrainConfig, sample: int, seconds: float) -> Subject:
    """Everything that is tried, opened. Raises as `estimate`."""
    views = parse_views(config.views or default_views(config.store))
    return Subject(
        extract=config,
        heads=heads,
        dataset=read_coco(annotations=config.annotations, images=config.images),
        views=views,
        backbone=load_backbone(
            config.backbone,
            weights=config.weights,
            levels=config.levels,
            image_size=config.image_size,
            device=choose_device(config.device),
        ),
        sample=sample,
        seconds=seconds,
        fit_images=FIT_IMAGES,
    )


def change_measured(measured: Measured, subject: Subject, change: WhatIf) -> Measured:
    """What a what-if makes of it; another backbone is timed here, with random weights."""
    pixels = 1.0 if change.image_size is None else _pixels_at(subject, change.image_size)
    other = None if change.backbone is None else _other_backbone(subject, change.backbone)
    return apply_what_if(measured, change, pixels=pixels, backbone=other)


def _pixels_at(subject: Subject, image_size: int) -> float:
    """Padded pixels at another image size over those at the one that was measured."""
    multiple = subject.backbone.spec.pad_multiple
    counts = [
        count_pixels(
            padded_sizes(
                subject.dataset.annotations, subject.views, image_size=size, pad_multiple=multiple
            )
        )
        for size in (image_size, subject.extract.image_size)
    ]
    return counts[0] / counts[1]


def _other_backbone(subject: Subject, name: str) -> BackboneChange:
    """Both backbones on the same noise, here; random weights take as long as trained ones."""
    own = subject.backbone
    device = next(own.parameters()).device
    size = subject.extract.image_size
    other = load_backbone(name, weights="none", image_size=size, device=device)
    height, width = _usual_size(subject, other.spec)
    noise = torch.rand(_NOISE_IMAGES, 3, height, width, device=device)
    (before, _), (after, _) = (measure_backbone(each, noise) for each in (own, other))
    classes = len(subject.dataset.annotations.categories)
    heads = [
        measure_model(
            subject.heads.detector,
            features=each.spec,
            num_classes=classes,
            size_hw=(height, width),
        ).total.step_flops
        for each in (own, other)
    ]
    return BackboneChange(
        seconds=after.seconds / before.seconds,
        flops=after.flops / before.flops,
        heads=heads[1] / heads[0],
        values=_values(other) / _values(own),
    )


def _usual_size(subject: Subject, spec: FeatureSpec) -> SizeHW:
    """The commonest of the first view, such that both backbones take it."""
    multiple = math.lcm(spec.pad_multiple, subject.backbone.spec.pad_multiple)
    sizes = padded_sizes(
        subject.dataset.annotations,
        subject.views[:1],
        image_size=subject.extract.image_size,
        pad_multiple=multiple,
    )[0]
    return commonest_size(sizes)[0]


def _values(backbone: FrozenBackbone) -> float:
    """That are cached a pixel."""
    return sum(level.channels / level.stride**2 for level in backbone.spec)


def _save(found: Estimated, subject: Subject, forecast: Forecast) -> Path | None:
    """For `extract` and `train-heads`; None where the folder of the store is not there yet."""
    config, cached = subject.extract, forecast.modes["cached"]
    prediction = Prediction(
        store=describe_store(found.manifest, images=len(subject.dataset.annotations)),
        extraction=describe_extraction(config),
        training=describe_training(subject.heads, views=found.manifest.views),
        nbytes=forecast.nbytes,
        extract_seconds=forecast.extract_seconds,
        seconds_per_epoch=cached.seconds_per_epoch,
        peak_memory=cached.ram if cached.device is None else cached.device,
    )
    return prediction.write(config.store) if config.store.parent.is_dir() else None
