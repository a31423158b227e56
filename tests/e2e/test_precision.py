"""A store whose features the backbone computed in bfloat16."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import cachedet
from cachedet.config.run import EvalConfig, TrainConfig
from cachedet.errors import ConfigError, StoreError
from cachedet.evaluate import evaluate
from cachedet.export import ProofImages, export
from cachedet.extract import extract
from cachedet.live.modes import make_training_mode
from cachedet.predict import predict
from cachedet.store.reader import FeatureStore
from cachedet.train import train


@pytest.fixture(scope="module")
def store(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bf16") / "train.zarr"
    extract(tiny.extract_config(path, precision="bf16"))
    return path


_VALUES = yaml.safe_load("""
    detector:
      {kind: retinanet, neck: {kind: fpn, channels: 16, num_levels: 3}, num_convs: 1,
       postprocess: {score_threshold: 0.005, max_detections: 30}}
    schedule:
      {epochs: 2, batch_size: 4, optimizer: adamw, lr: 0.003, warmup_steps: 1, kind: cosine}
    augment: {flip: 0.5}
    device: cpu
""")


def config_of(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(_VALUES | changes)


def test_it_says_how_far_it_is_from_float32(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="cachedet"):
        extract(tiny.extract_config(tmp_path / "s", precision="bf16", views="base"))
    assert "the backbone computes in bf16: C3 " in caplog.text
    assert " dB above its rounding" in caplog.text


def test_the_precision_is_part_of_the_store(tiny: Any, store: Path) -> None:
    spec = FeatureStore.open(store).spec
    assert spec.bf16
    assert spec != FeatureStore.open(tiny.train).spec
    with pytest.raises(
        StoreError, match=r"spec: C3, C4, C5, computed in bf16 in the store, C3, C4, C5 now"
    ):
        extract(tiny.extract_config(store))
    maps, exact = FeatureStore.open(store).read(0, "base"), FeatureStore.open(tiny.train)
    for level, true in exact.read(0, "base").items():
        assert 0 < (maps[level] - true).norm() / true.norm() < 2e-2


def test_cached_losses_are_those_of_the_live_network(tiny: Any, store: Path) -> None:
    """Law L3, within what bf16 rounds: its kernels add in another order for other batches."""
    losses = []
    for mode in ("cached", "live"):
        made = make_training_mode(
            mode, config_of(), store=FeatureStore.open(store), images=tiny.paths.images,
            weights=str(tiny.weights), total_steps=9,
        )  # fmt: skip
        batches = islice(made.loader.epoch(0), 4)
        losses.append([made.trainer.take_step(batch)["loss"] for batch in batches])
    cached, live = map(torch.tensor, losses)
    torch.testing.assert_close(live, cached, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("changes", [{}, {"freeze_at": "C4"}], ids=["heads", "from C4"])
def test_from_images_to_detections(
    tiny: Any, store: Path, tmp_path: Path, changes: dict[str, str]
) -> None:
    """`predict` opens the network as the store's features were computed."""
    run = tmp_path / "run"
    train(config_of(**changes), train_store=store, val_store=store, run=run)
    scored = evaluate(run, store=store, config=EvalConfig())
    found = predict(
        run, images=[tiny.paths.images], out=tmp_path / "out", weights=str(tiny.weights),
        min_score=0.0,
    )  # fmt: skip
    by_name = {image.file.name: image.detections for image in found.images}
    for name, theirs in zip(
        FeatureStore.open(store).annotations.file_names, scored.detections, strict=True
    ):
        torch.testing.assert_close(by_name[name].scores, theirs.scores, rtol=1e-2, atol=1e-3)


@pytest.mark.thorough
def test_an_exported_file_computes_in_float32(tiny: Any, store: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    train(config_of(), train_store=store, val_store=store, run=tmp_path / "run")
    report = export(
        tmp_path / "run", out=tmp_path / "m.onnx", weights=str(tiny.weights),
        proof=ProofImages(folder=tiny.paths.images, most=2),
    )  # fmt: skip
    assert report.found.box_px < 0.01


def test_a_network_given_as_an_object_declares_its_own(tiny: Any, tmp_path: Path) -> None:
    network = torch.nn.Conv2d(3, 4, 8, stride=8)
    level = cachedet.LevelSpec(name="C3", channels=4, stride=8)
    backbone = cachedet.wrap_backbone(network, name="mine", levels=[level])
    with pytest.raises(ConfigError, match=r"leave precision out, and give its levels"):
        cachedet.extract(
            images=tiny.paths.images,
            annotations=tiny.paths.train,
            store=tmp_path / "s",
            backbone=backbone,
            precision="bf16",
        )
