"""Predicted against actual: only where the prediction was made for what was done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cachedet.config.run import TrainConfig
from cachedet.estimation.prediction import (
    Prediction,
    describe_store,
    describe_training,
    outcome_of_extraction,
    outcome_of_training,
    prediction_path,
)
from cachedet.store.format.manifest import Manifest
from cachedet.store.reader import FeatureStore

HOW = {"device": "cpu", "workers": 2}


@pytest.fixture
def manifest(tiny: Any) -> Manifest:
    return FeatureStore.open(tiny.train).manifest


def predict(manifest: Manifest, **changes: object) -> Prediction:
    values: dict[str, Any] = {
        "store": describe_store(manifest, images=8),
        "extraction": HOW,
        "training": describe_training(TrainConfig(), views=manifest.views),
        "nbytes": 100.0,
        "extract_seconds": 10.0,
        "seconds_per_epoch": 2.0,
        "peak_memory": 1e9,
    }
    return Prediction(**{**values, **changes})


def extraction(store: Path, manifest: Manifest, **changes: object) -> dict[str, Any]:
    values: dict[str, Any] = {"images": 8, "extraction": HOW, "nbytes": 110, "seconds": 12.0}
    return outcome_of_extraction(store, manifest, **{**values, **changes})


def training(store: Path | str, manifest: Manifest, config: TrainConfig) -> dict[str, Any]:
    return outcome_of_training(
        store, manifest, config, images=8, seconds_per_epoch=2.5, peak_memory=2_000_000_000
    )


def test_it_lies_beside_the_store(manifest: Manifest, tmp_path: Path) -> None:
    store = tmp_path / "train.zarr"
    path = predict(manifest).write(store)
    assert path == tmp_path / "train.zarr.estimate.json" == prediction_path(store)
    assert Prediction.find(store) == predict(manifest)


def test_both_outcomes(manifest: Manifest, tmp_path: Path) -> None:
    store = tmp_path / "train.zarr"
    predict(manifest).write(store)
    assert extraction(store, manifest) == {
        "bytes": {"predicted": 100.0, "actual": 110},
        "extraction seconds": {"predicted": 10.0, "actual": 12.0},
    }
    assert training(store, manifest, TrainConfig()) == {
        "seconds per epoch": {"predicted": 2.0, "actual": 2.5},
        "peak memory": {"predicted": 1e9, "actual": 2e9},
    }


def test_what_does_not_change_the_speed_may_differ(manifest: Manifest, tmp_path: Path) -> None:
    store = tmp_path / "train.zarr"
    predict(manifest).write(store)
    other = TrainConfig.model_validate({"seed": 5, "schedule": {"epochs": 3, "lr": 0.5}})
    assert training(store, manifest, other)
    named = TrainConfig.model_validate({"views": {"base": 1, "hflip": 1}})  # as a run pins them
    assert training(store, manifest, named)


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
    manifest: Manifest, tmp_path: Path, changes: dict[str, Any]
) -> None:
    store = tmp_path / "train.zarr"
    predict(manifest).write(store)
    assert training(store, manifest, TrainConfig.model_validate(changes)) == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [("codec", "int4"), ("image_size", 96), ("weights_digest", "0"), ("batch_size", 4)],
)
def test_another_store_is_not_compared(
    manifest: Manifest, tmp_path: Path, field: str, value: object
) -> None:
    store = tmp_path / "train.zarr"
    predict(manifest).write(store)
    other = replace(manifest, **{field: value})  # type: ignore[arg-type]
    assert extraction(store, other) == {}
    assert training(store, other, TrainConfig()) == {}


def test_other_images_workers_or_device_are_not_compared(
    manifest: Manifest, tmp_path: Path
) -> None:
    store = tmp_path / "train.zarr"
    predict(manifest).write(store)
    assert extraction(store, manifest, images=7) == {}
    assert extraction(store, manifest, extraction={"device": "cpu", "workers": 4}) == {}


def test_skipped_images_were_counted(manifest: Manifest, tmp_path: Path) -> None:
    """The prediction knows of the whole annotation file only."""
    store = tmp_path / "train.zarr"
    predict(manifest).write(store)
    skipping = replace(manifest, skipped=(("bad.jpg", "truncated"),))
    assert extraction(store, skipping, images=7)


def test_figures_that_were_not_known_are_left_out(manifest: Manifest, tmp_path: Path) -> None:
    store = tmp_path / "train.zarr"
    predict(manifest, seconds_per_epoch=None).write(store)
    assert list(training(store, manifest, TrainConfig())) == ["peak memory"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"nbytes": 1}', "{"])
def test_a_file_that_is_no_prediction_is_none(tmp_path: Path, content: str) -> None:
    store = tmp_path / "train.zarr"
    prediction_path(store).write_text(content)
    assert Prediction.find(store) is None


def test_without_a_file_and_on_a_url_there_is_none(manifest: Manifest, tmp_path: Path) -> None:
    assert Prediction.find(tmp_path / "train.zarr") is None
    assert training("s3://bucket/train.zarr", manifest, TrainConfig()) == {}
