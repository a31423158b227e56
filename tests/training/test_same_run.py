from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.config.run import TrainConfig
from cachedet.errors import CheckpointError
from cachedet.store.reader import FeatureStore
from cachedet.structures import CategoryMap
from cachedet.training.checkpoint import Checkpoint, save_checkpoint
from cachedet.training.same_run import (
    MAY_CHANGE_ON_RESUME,
    differing_keys,
    flatten,
    load_initial_weights,
    require_same_run,
)

CONFIG = TrainConfig.model_validate(
    {"detector": {"kind": "retinanet", "neck": {"kind": "fpn", "channels": 8}}, "seed": 3}
)


def changed(**values: Any) -> TrainConfig:
    """CONFIG with `section__key=value`."""
    dumped = CONFIG.model_dump()
    for name, value in values.items():
        *sections, key = name.split("__")
        node = dumped
        for section in sections:
            node = node[section]
        node[key] = value
    return TrainConfig.model_validate(dumped)


@pytest.fixture
def checkpoint(tiny: Any) -> Checkpoint:
    return Checkpoint(
        step=7,
        epoch=1,
        batch=2,
        best_ap=0.25,
        seconds=1.0,
        heads={},
        optimizer={},
        torch_rng=torch.get_rng_state(),
        config=CONFIG,
        manifest=FeatureStore.open(tiny.train).manifest,
    )


def test_names_every_value_that_differs() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}
    assert differing_keys(CONFIG, CONFIG) == []
    now = changed(schedule__lr=0.5, seed=4, detector__neck__channels=16)
    assert differing_keys(CONFIG, now) == [
        "detector.neck.channels was 8, is 16",
        "schedule.lr was 0.32, is 0.5",
        "seed was 3, is 4",
    ]
    assert differing_keys(CONFIG, now, but=("schedule", "seed", "detector")) == []
    sections = changed(early_stopping={"metric": "loss"})
    assert "early_stopping was None, is not set" in differing_keys(CONFIG, sections)


def test_what_may_change_on_resume_are_keys_of_the_config(checkpoint: Checkpoint) -> None:
    assert set(TrainConfig.model_fields) >= MAY_CHANGE_ON_RESUME
    now = changed(
        max_steps=5, eval_every=3, device="cpu", tensorboard=True, checkpoint_every_steps=7,
        checkpoint_every_seconds=1, early_stopping={"patience": 9},
    )  # fmt: skip
    require_same_run(checkpoint, now, checkpoint.manifest, where=Path("last.pt"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule__accumulate": 2}, "schedule.accumulate was 1, is 2; give the same config"),
        ({"schedule__ema_decay": 0.9}, "schedule.ema_decay was 0.0, is 0.9"),
        ({"schedule__epochs": 80}, "schedule.epochs was 72, is 80"),
        ({"precision": "bf16"}, "precision was fp32, is bf16"),
        ({"init_from": "runs/a"}, "init_from was None, is runs/a"),
    ],
)
def test_another_config_is_refused(
    checkpoint: Checkpoint, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=f"cannot resume last.pt: the config .*{message}"):
        require_same_run(checkpoint, changed(**values), checkpoint.manifest, where=Path("last.pt"))


def test_another_store_is_refused(checkpoint: Checkpoint) -> None:
    other = dataclasses.replace(checkpoint.manifest, image_size=640)
    with pytest.raises(CheckpointError, match="on another store: image_size: 128 .*, 640 now"):
        require_same_run(checkpoint, CONFIG, other, where=Path("last.pt"))
    other_codec = dataclasses.replace(checkpoint.manifest, codec_digest="0" * 64)
    with pytest.raises(CheckpointError, match="on another store: codec_digest"):
        require_same_run(checkpoint, CONFIG, other_codec, where=Path("last.pt"))


def test_initial_weights_must_mean_the_same(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path, manifest = tmp_path / "best.pt", checkpoint.manifest
    save_checkpoint(path, checkpoint)
    assert load_initial_weights(path, CONFIG, manifest).step == 7
    taught_otherwise = changed(
        detector__focal_gamma=2.0, detector__postprocess__score_threshold=0.5, schedule__lr=1e-3,
        seed=8,
    )  # fmt: skip
    assert load_initial_weights(path, taught_otherwise, manifest).step == 7
    of_other_size = dataclasses.replace(manifest, image_size=640, views=("base",))
    assert load_initial_weights(path, CONFIG, of_other_size).step == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"detector": {"kind": "faster_rcnn"}}, "detector.kind was retinanet, is faster_rcnn; st"),
        ({"detector__neck__channels": 16}, "detector.neck.channels was 8, is 16"),
        ({"detector__activation": "silu"}, "detector.activation was relu, is silu"),
        ({"detector__anchors__size_factor": 3.0}, "detector.anchors.size_factor was 4.0, is 3.0"),
    ],
)
def test_another_detector(
    checkpoint: Checkpoint, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    with pytest.raises(CheckpointError, match=f"init_from .*best.pt does not fit .*: {message}"):
        load_initial_weights(tmp_path / "best.pt", changed(**values), checkpoint.manifest)


def test_other_classes_or_features(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path, manifest = tmp_path / "best.pt", checkpoint.manifest
    save_checkpoint(path, checkpoint)
    ids, names = manifest.categories.ids, manifest.categories.names
    more = dataclasses.replace(
        manifest, categories=CategoryMap(ids=(*ids, 77), names=(*names, "zebra"))
    )
    message = r"it has 10 classes, the store 11 \(only there: \[\], only here: \['zebra'\]\)"
    with pytest.raises(CheckpointError, match=message):
        load_initial_weights(path, CONFIG, more)
    other = dataclasses.replace(manifest, weights_digest="f" * 64)
    with pytest.raises(CheckpointError, match="weights_digest was '.*', is 'fff"):
        load_initial_weights(path, CONFIG, other)
    with pytest.raises(CheckpointError, match="no checkpoint at .*none.pt"):
        load_initial_weights(tmp_path / "none.pt", CONFIG, manifest)
    with pytest.raises(CheckpointError, match="is not a run folder"):
        load_initial_weights(tmp_path, CONFIG, manifest)
