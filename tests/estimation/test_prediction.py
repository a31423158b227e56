"""Predicted against actual: only where the prediction was made for what was done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cachedet.config.run import ExtractConfig, TrainConfig
from cachedet.estimation.prediction import (
    PredictedVsActual,
    Prediction,
    compare_extraction,
    compare_training,
    describe_store,
    describe_training,
    prediction_path,
)
from cachedet.extract import ExtractReport
from cachedet.loading.sampling import resolve_views
from cachedet.store.files.names import MANIFEST
from cachedet.store.format.manifest import Manifest, encode_manifest
from cachedet.store.reader import FeatureStore
from cachedet.train import TrainReport


@pytest.fixture
def manifest(tiny: Any) -> Manifest:
    return FeatureStore.open(tiny.train).manifest


def predict(manifest: Manifest, **changes: Any) -> Prediction:
    values: dict[str, Any] = {
        "store": describe_store(manifest, images=8),
        "extraction": {"device": "cpu", "workers": 2, "compile": False},
        "training": describe_training(TrainConfig(), views=manifest.views),
        "nbytes": 100.0,
        "extract_seconds": 10.0,
        "seconds_per_epoch": 2.0,
        "peak_memory": 1e9,
    }
    return Prediction(**{**values, **changes})


def store_of(manifest: Manifest, folder: Path, prediction: Prediction) -> Path:
    """A store that is nothing but a manifest, with a prediction beside it."""
    store = folder / "train.zarr"
    store.mkdir()
    (store / MANIFEST).write_bytes(encode_manifest(manifest))
    prediction.write(store)
    return store


@pytest.fixture
def store(manifest: Manifest, tmp_path: Path) -> Path:
    return store_of(manifest, tmp_path, predict(manifest))


def extraction(store: Path, **changes: Any) -> PredictedVsActual:
    values: dict[str, Any] = {
        "store": store, "views": (), "views_kept": (), "images": 8, "images_added": 0,
        "images_returned": 0,
        "blocks_written": 4, "blocks_missing": 0, "blocks_total": 4, "nbytes_written": 110,
        "seconds": 12.0, "stages": {}, "slowest_stage": None, "skipped": (), "notes": (),
        "counts": {},
    }  # fmt: skip
    options = {key: changes.pop(key) for key in ("workers", "device") if key in changes}
    report = ExtractReport(**{**values, **changes})
    config = {"images": "a", "annotations": "b", "store": store, "device": "cpu", "workers": 2}
    return compare_extraction(report, ExtractConfig.model_validate({**config, **options}))


def training(store: Path | str, config: TrainConfig, views: tuple[str, ...]) -> PredictedVsActual:
    report = TrainReport(
        run=Path("run"), images=8, views=resolve_views(config.views, held=views, where="x"),
        steps=9, epochs=3, reason="finished", seconds=12.0, seconds_per_epoch=4.0,
        step_seconds_per_epoch=2.5, step_seconds=7.5, peak_memory=2_000_000_000, parameters=7,
        best_ap=None, losses=(),
    )  # fmt: skip
    return compare_training(report, config, store=store)


def test_it_lies_beside_the_store(manifest: Manifest, tmp_path: Path) -> None:
    store = tmp_path / "train.zarr"
    path = predict(manifest).write(store)
    assert path == tmp_path / "train.zarr.estimate.json" == prediction_path(store)
    assert Prediction.find(store) == predict(manifest)


def test_both_comparisons(manifest: Manifest, store: Path) -> None:
    assert extraction(store) == {
        "bytes": {"predicted": 100.0, "actual": 110},
        "extraction seconds": {"predicted": 10.0, "actual": 12.0},
    }
    assert training(store, TrainConfig(), manifest.views) == {
        "seconds per epoch": {"predicted": 2.0, "actual": 2.5},
        "peak memory": {"predicted": 1e9, "actual": 2e9},
    }


def test_what_does_not_change_the_speed_may_differ(manifest: Manifest, store: Path) -> None:
    other = TrainConfig.model_validate({"seed": 5, "schedule": {"epochs": 3, "lr": 0.5}})
    assert training(store, other, manifest.views)
    named = TrainConfig.model_validate({"views": {"base": 1, "hflip": 1}})
    assert training(store, named, manifest.views)


def test_views_are_those_of_the_run(manifest: Manifest, store: Path) -> None:
    """A run that goes on keeps the views that it started with, whatever its config names."""
    assert training(store, TrainConfig(), ("base",)) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": {"batch_size": 3}},
        {"detector": {"kind": "retinanet", "num_convs": 1}},
        {"views": ["base"]},
        {"precision": "bf16"},
        {"residency": "stream"},
    ],
)
def test_another_training_is_not_compared(
    manifest: Manifest, store: Path, changes: dict[str, Any]
) -> None:
    assert training(store, TrainConfig.model_validate(changes), manifest.views) == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [("codec", "int4"), ("image_size", 96), ("weights_digest", "0"), ("batch_size", 4)],
)
def test_another_store_is_not_compared(
    manifest: Manifest, tmp_path: Path, field: str, value: object
) -> None:
    other = replace(manifest, **{field: value})  # type: ignore[arg-type]
    store = store_of(manifest, tmp_path, predict(other))
    assert extraction(store) == {}
    assert training(store, TrainConfig(), manifest.views) == {}


def test_another_extraction_is_not_compared(manifest: Manifest, store: Path) -> None:
    assert extraction(store, images=7) == {}
    assert extraction(store, workers=4) == {}
    assert extraction(store, blocks_written=3) == {}  # the others were there, or somebody else's


def test_skipped_images_were_counted(manifest: Manifest, tmp_path: Path) -> None:
    """The prediction knows of the whole annotation file only."""
    skipping = replace(manifest, skipped=(("bad.jpg", "truncated"),))
    store = store_of(skipping, tmp_path, predict(manifest))
    assert extraction(store, images=7)


def test_figures_that_were_not_known_are_left_out(manifest: Manifest, tmp_path: Path) -> None:
    store = store_of(manifest, tmp_path, predict(manifest, seconds_per_epoch=None))
    assert list(training(store, TrainConfig(), manifest.views)) == ["peak memory"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"nbytes": 1}', "{"])
def test_a_file_that_is_no_prediction_is_none(tmp_path: Path, content: str) -> None:
    store = tmp_path / "train.zarr"
    prediction_path(store).write_text(content)
    assert Prediction.find(store) is None


def test_without_a_file_and_on_a_url_there_is_none(manifest: Manifest, tmp_path: Path) -> None:
    assert Prediction.find(tmp_path / "train.zarr") is None
    assert training("s3://bucket/train.zarr", TrainConfig(), manifest.views) == {}
