"""What a cache will cost and save on this machine, before a byte of it is written."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cachedet.backbone.frozen import FrozenBackbone, load_backbone
from cachedet.backbone.split import split_backbone
from cachedet.config.run import ExtractConfig, TrainConfig
from cachedet.data.views import padded_size, parse_views
from cachedet.detector.build import choose_levels, choose_read_levels
from cachedet.device import choose_device
from cachedet.errors import BackboneError, ConfigError, UnwrittenError
from cachedet.estimation.advice import advise
from cachedet.estimation.cluster_plan import ClusterPlan, StoreShape, plan_cluster
from cachedet.estimation.forecast import Forecast, make_forecast
from cachedet.estimation.measure import EstimateInputs, measure
from cachedet.estimation.measured import Measured
from cachedet.estimation.prediction import (
    Prediction,
    describe_extraction,
    describe_store,
    describe_training,
    prediction_path,
)
from cachedet.estimation.probe import CODECS, measure_backbone
from cachedet.estimation.sample import commonest_size, count_pixels
from cachedet.estimation.what_if import (
    DATASETS,
    BackboneChange,
    WhatIf,
    apply_what_if,
    require_measured,
)
from cachedet.extract import default_views, open_dataset
from cachedet.extraction.codec_sample import FIT_IMAGES
from cachedet.model import measure_model
from cachedet.outputs import Kind, require_ours
from cachedet.store.codecs.codec import Codec
from cachedet.store.codecs.registry import make_codec
from cachedet.store.format.layout import Layout
from cachedet.store.format.manifest import Manifest

SAMPLE = 32  # images
SECONDS = 8.0  # of each trial
DEFAULT_HEADS = Path(__file__).with_name("demo.yaml")  # lean, and there in every installation
_NOISE_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class EstimateReport:
    """What one call of `estimate` measured and forecasts."""

    extract: ExtractConfig
    heads: TrainConfig  # as it was resolved
    measured: Measured  # on the sample, extrapolated; where there is a what-if, changed by it
    forecast: Forecast
    advice: list[str]
    what_if: dict[str, Any]  # what is otherwise than here; empty where everything was measured
    cluster: ClusterPlan | None  # where the what-if is about machines and a storage
    skipped: tuple[tuple[str, str], ...]  # file name and reason of bad images of the sample
    prediction: Path | None  # for `extract` and `train-heads` to compare with; None of a what-if
    sample: int  # images that were tried
    seconds: float  # that the estimate took

    def to_json(self) -> dict[str, Any]:
        return {
            "options": self.extract.model_dump(mode="json"),
            "heads": self.heads.model_dump(mode="json"),
            "what_if": self.what_if,
            "forecast": self.forecast.to_json(),
            "cluster": None if self.cluster is None else self.cluster.to_json(),
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

    At most `sample` images are tried, for about so many seconds in each trial: more is more exact.

    Raises:
        DatasetError, BadImageError, BackboneError, ConfigError: the inputs cannot be used.
        InputError: nothing can be written where the store shall lie, or an impossible what-if.
        UnwrittenError: the forecast could not be kept; it holds the report.
    """
    started = time.perf_counter()
    change = what_if or WhatIf()
    if change.codec is not None:
        require_measured(change.codec, (config.codec, *CODECS))
    require_ours(prediction_path(config.folder), kind=Kind.FORECAST)
    inputs = open_inputs(config, heads, sample, seconds)
    measured, trials = measure(inputs)
    measured = change_measured(measured, inputs, change)
    cluster = None
    if change.storage is not None:
        shape = shape_store(
            inputs,
            measured,
            change,
            codec=trials.fit.fitted(make_codec(measured.codec)),
            read=choose_read_levels(heads, trials.trial.manifest),
        )
        cluster = plan_cluster(measured, change, shape)
    forecast = make_forecast(measured)
    manifest = trials.trial.manifest
    report = EstimateReport(
        extract=config,
        heads=heads,
        measured=measured,
        forecast=forecast,
        advice=advise(measured, forecast),
        what_if=change.to_json(),
        cluster=cluster,
        skipped=manifest.skipped,
        prediction=None,
        sample=len(trials.sample.annotations),
        seconds=time.perf_counter() - started,
    )
    if change != WhatIf():
        return report
    try:
        return replace(report, prediction=_save(manifest, inputs, forecast))
    except OSError as error:
        why = f"cannot write {prediction_path(config.folder)}: {error.strerror or error}"
        raise UnwrittenError(
            f"{why}; `extract` will not be able to compare what it takes", report=report
        ) from error


def open_inputs(
    config: ExtractConfig, heads: TrainConfig, sample: int, seconds: float
) -> EstimateInputs:
    """Open everything that is tried. Raises as `estimate`."""
    views = parse_views(config.views or default_views(config.store))
    config.require_image_folder()
    dataset = open_dataset(config)
    backbone = load_backbone(
        config.backbone,
        weights=config.weights,
        levels=config.levels,
        cut=config.freeze_at or heads.freeze_at,
        taps=config.taps,
        global_token=config.global_token,
        bf16=config.precision == "bf16",
        image_size=config.image_size,
        device=choose_device(config.device),
    )
    cuts, uncut = find_cuts(backbone, heads, stored_to=config.freeze_at)
    return EstimateInputs(
        extract=config,
        heads=heads,
        dataset=dataset,
        views=views,
        backbone=backbone,
        sample=sample,
        seconds=seconds,
        fit_images=FIT_IMAGES,
        cuts=cuts,
        uncut=uncut,
    )


def find_cuts(
    backbone: FrozenBackbone, heads: TrainConfig, *, stored_to: str | None
) -> tuple[tuple[str, ...], str]:
    """The levels behind which stages can be trained, the latest first; else why there are none.

    Raises ConfigError, BackboneError where config or store name a cut that cannot be.
    """
    asked = [cut for cut in (heads.freeze_at, stored_to) if cut is not None]
    for cut in asked:
        split_backbone(backbone, cut)
    used = choose_levels(heads.detector, backbone.spec).names
    names = backbone.spec.maps.names
    if stored_to is not None:
        kept = backbone.spec.up_to(stored_to).names
        if any(name not in kept for name in (used if heads.freeze_at is None else asked)):
            raise ConfigError(
                f"a store extracted with --freeze-at {stored_to} lacks the levels above it: train "
                f"the stages that make them with freeze_at: {stored_to} (`--set "
                f"freeze_at={stored_to}`) or a lower level, or leave --freeze-at out"
            )
    behind = [cut for cut in names[: names.index(used[-1])] if cut not in asked]
    try:
        for cut in behind:
            split_backbone(backbone, cut)
    except BackboneError as error:
        return (), str(error)
    cuts = tuple(name for name in reversed(names) if name in (*behind, *asked))
    return cuts, "" if cuts else f"the heads use no level above {names[0]}"


def change_measured(measured: Measured, inputs: EstimateInputs, change: WhatIf) -> Measured:
    """What a what-if makes of it; another backbone is timed here, with random weights."""
    other = None if change.backbone is None else _other_backbone(inputs, change.backbone)
    return apply_what_if(measured, change, pixels=_more_pixels(inputs, change), backbone=other)


def _more_pixels(inputs: EstimateInputs, change: WhatIf) -> float:
    """Padded pixels of an image there over those of one here."""
    here = count_pixels(inputs.padded_sizes())
    there = count_pixels(inputs.padded_sizes(image_size=change.image_size))
    if change.dataset is not None:
        side = change.image_size or inputs.extract.image_size
        size_of = partial(
            padded_size,
            image_hw=DATASETS[change.dataset].size_hw,
            image_size=side,
            pad_multiple=inputs.backbone.spec.pad_multiple,
        )
        there = len(inputs.dataset.annotations) * sum(math.prod(size_of(v)) for v in inputs.views)
    return there / here


def shape_store(
    inputs: EstimateInputs,
    measured: Measured,
    change: WhatIf,
    *,
    codec: Codec,
    read: Sequence[str],
) -> StoreShape:
    """Objects of the store, of which the levels `read` are trained on.

    Another backbone is taken to have as many levels as this one.
    """
    spec = inputs.backbone.spec
    spec = spec if measured.stored_to is None else spec.up_to(measured.stored_to)
    sizes = inputs.padded_sizes()
    arrays = Layout(spec=spec, codec=codec).levels(commonest_size(sizes[0])[0])
    more = measured.images / len(inputs.dataset.annotations)
    alike = [  # images of each padded size in each view
        count * more
        for of_view in sizes
        for count in np.unique(of_view, axis=0, return_counts=True)[1].tolist()
    ]
    if change.dataset is not None:
        alike = [measured.images] * len(inputs.views)
    blocks = sum(math.ceil(count / inputs.extract.block_size) for count in alike)
    return StoreShape(
        blocks=blocks,
        shards=sum(map(len, arrays.values())),
        read_shards=sum(len(parts) for level, parts in arrays.items() if level in read),
        block_images=sum(alike) / blocks,
    )


def _other_backbone(inputs: EstimateInputs, name: str) -> BackboneChange:
    """Time both backbones on the same noise; random weights take as long as trained ones."""
    device = next(inputs.backbone.parameters()).device
    other = load_backbone(
        name,
        weights="none",
        taps=inputs.extract.taps,
        bf16=inputs.extract.precision == "bf16",
        image_size=inputs.extract.image_size,
        device=device,
    )
    both = (inputs.backbone, other)
    multiple = math.lcm(*(backbone.spec.pad_multiple for backbone in both))
    height, width = commonest_size(inputs.padded_sizes(pad_multiple=multiple)[0])[0]
    noise = torch.rand(_NOISE_IMAGES, 3, height, width, device=device)
    before, after = (measure_backbone(backbone, noise)[0] for backbone in both)
    heads = [
        measure_model(
            inputs.heads.detector,
            features=backbone.spec,
            num_classes=len(inputs.dataset.annotations.categories),
            size_hw=(height, width),
        ).total.step_flops
        for backbone in both
    ]
    values = [  # cached a pixel
        sum(level.channels / level.stride**2 for level in backbone.spec) for backbone in both
    ]
    return BackboneChange(
        seconds=after.seconds / before.seconds,
        flops=after.flops / before.flops,
        heads=heads[1] / heads[0],
        values=values[1] / values[0],
    )


def _save(manifest: Manifest, inputs: EstimateInputs, forecast: Forecast) -> Path | None:
    """Save it for `extract` and `train-heads`; None where the store's folder is not there yet."""
    config, trained = inputs.extract, forecast.modes[forecast.mode]
    if config.freeze_at is not None:
        manifest = replace(manifest, spec=manifest.spec.up_to(config.freeze_at))
    prediction = Prediction(
        store=describe_store(manifest, images=len(inputs.dataset.annotations)),
        extraction=describe_extraction(config),
        training=describe_training(inputs.heads, views=manifest.views),
        nbytes=forecast.nbytes,
        extract_seconds=forecast.extract_seconds,
        seconds_per_epoch=trained.seconds_per_epoch,
        peak_memory=trained.ram if trained.device is None else trained.device,
    )
    return prediction.write(config.folder) if config.folder.parent.is_dir() else None
