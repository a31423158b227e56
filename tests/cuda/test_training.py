"""Whole runs on a GPU: precisions, compilation, augmentation, masks, resuming."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.config.run import EvalConfig, TrainConfig
from cachedet.evaluate import evaluate
from cachedet.extract import extract
from cachedet.loading.loader import FeatureLoader
from cachedet.store.reader import FeatureStore
from cachedet.structures import Batch
from cachedet.train import train
from cachedet.training.checkpoint import load_checkpoint
from cachedet.training.trainer import Trainer, make_trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

RETINANET: dict[str, Any] = {
    "kind": "retinanet", "levels": ["C4", "C5"], "num_convs": 1,
    "neck": {"kind": "fpn", "channels": 16, "num_levels": 2},
    "postprocess": {"score_threshold": 0.005},
}  # fmt: skip
CASCADE: dict[str, Any] = {
    "kind": "cascade_rcnn", "levels": ["C4", "C5"],
    "neck": {"kind": "fpn", "channels": 16, "num_levels": 2},
    "adapters": {"kind": "pointwise"},
    "rpn": {"samples": 32, "train_post_nms": 40, "test_post_nms": 30},
    "roi_head": {"samples": 16, "num_convs": 0, "fc_channels": 16},
    "postprocess": {"score_threshold": 0.005},
}  # fmt: skip
MASKS = {**CASCADE, "mask_head": {"resolution": 7, "num_convs": 1, "channels": 8}}
ALL_AUGMENT = {"translate": 0.3, "crop": 0.3, "flip": 0.5}


def make_config(detector: dict[str, Any], **changes: Any) -> TrainConfig:
    schedule = {
        "epochs": 4, "batch_size": 3, "optimizer": "adamw", "lr": 3e-3, "warmup_steps": 2,
        "kind": "cosine", "clip_norm": 5.0, **changes.pop("schedule", {}),
    }  # fmt: skip
    return TrainConfig.model_validate(
        {"detector": detector, "schedule": schedule, "device": "cuda", "eval_every": 0, **changes}
    )


def make(config: TrainConfig, store: FeatureStore) -> Trainer:
    torch.manual_seed(0)
    return make_trainer(config, manifest=store.manifest, total_steps=100)


def read_batch(store: FeatureStore) -> Batch:
    loader = FeatureLoader(
        store,
        views=("base",),
        levels=("C4", "C5"),
        batch_size=4,
        seed=5,
        device=torch.device("cuda"),
    )
    return next(iter(loader.epoch(0)))


@pytest.mark.parametrize("detector", [RETINANET, CASCADE], ids=["retinanet", "cascade"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "auto"])
def test_a_run_of_each_precision(
    tiny: Any, tmp_path: Path, precision: str, detector: dict[str, Any]
) -> None:
    config = make_config(detector, precision=precision)
    report = train(config, **tiny.stores, run=tmp_path / "run")
    assert report.steps == len(report.losses) >= 12
    assert all(math.isfinite(loss) for loss in report.losses)
    third = len(report.losses) // 3
    assert sum(report.losses[-third:]) < sum(report.losses[:third])
    name = {"fp32": "float32", "fp16": "float16"}.get(precision, "bfloat16")
    if precision == "auto" and torch.cuda.get_device_capability() < (8, 0):
        name = "float16"
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"on cuda:0, {name}" in log
    last = load_checkpoint(tmp_path / "run" / "weights" / "last.pt")
    assert (last.scaler is not None) == (name == "float16")
    assert all(value.dtype != torch.float16 for value in last.heads.values())


@pytest.mark.parametrize("detector", [RETINANET, CASCADE], ids=["retinanet", "cascade"])
@pytest.mark.parametrize(("precision", "bound"), [("bf16", 5e-2), ("fp16", 2e-2)])
def test_low_precision_is_close_to_float32(
    tiny: Any, detector: dict[str, Any], precision: str, bound: float
) -> None:
    store = FeatureStore.open(tiny.train)
    batch, losses = read_batch(store), {}
    for name in ("fp32", precision):
        trainer = make(make_config(detector, precision=name), store)
        torch.manual_seed(1)
        losses[name] = trainer.take_step(batch)["loss"]
    assert losses[precision] == pytest.approx(losses["fp32"], rel=bound)


def test_fp16_leaves_out_a_step_that_overflows(tiny: Any) -> None:
    store = FeatureStore.open(tiny.train)
    trainer = make(make_config(RETINANET, precision="fp16"), store)
    batch = read_batch(store)
    trainer.take_step(batch)
    before = {name: value.clone() for name, value in trainer.detector.state_dict().items()}
    scale = trainer.scaler.get_scale()
    trainer.add_gradients(batch)
    trainer.detector.head.box_deltas.weight.grad[0] = float("inf")
    trainer.finish_step()
    assert trainer.scaler.get_scale() == scale / 2
    for name, parameter in trainer.detector.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.filterwarnings("ignore")  # the compiler's advice, such as to use TF32
@pytest.mark.parametrize("detector", [RETINANET, CASCADE], ids=["retinanet", "cascade"])
def test_compiled_parts_give_the_same_losses(
    tiny: Any, float32: None, detector: dict[str, Any]
) -> None:
    store = FeatureStore.open(tiny.train)
    batch, losses = read_batch(store), {}
    for is_compiled in (False, True):
        trainer = make(make_config(detector, compile=is_compiled), store)
        losses[is_compiled] = []
        for _ in range(3):
            torch.manual_seed(1)
            losses[is_compiled].append(trainer.take_step(batch)["loss"])
    assert losses[True][0] == pytest.approx(losses[False][0], rel=5e-3)
    assert losses[True] == pytest.approx(losses[False], rel=5e-2)


@pytest.mark.parametrize("residency", ["stream", "ram", "device", "auto"])
def test_all_augmentation_on_every_residency(tiny: Any, tmp_path: Path, residency: str) -> None:
    """Of a codec that loses something: noise is as strong as its error."""
    extract(tiny.extract_config(tmp_path / "s.zarr", codec="int8", device="cuda"))
    config = make_config(RETINANET, augment=ALL_AUGMENT, residency=residency)
    report = train(config, train_store=tmp_path / "s.zarr", run=tmp_path / "run")
    assert report.reason == "finished"
    assert all(math.isfinite(loss) for loss in report.losses)


def test_masks(tiny: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(make_config(MASKS), **tiny.stores, run=run)
    assert "loss_mask" in (run / "metrics.csv").read_text()
    assert evaluate(run, store=tiny.val).mask_scores is not None


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_stopped_run_goes_on_where_it_was(tiny: Any, tmp_path: Path, precision: str) -> None:
    """Steps, order and rates exactly; losses nearly, as sums on a GPU have no fixed order."""
    config = make_config(CASCADE, precision=precision, schedule={"ema_decay": 0.9})
    whole, half = tmp_path / "whole", tmp_path / "half"
    expected = train(config, train_store=tiny.train, run=whole)
    first = train(config.model_copy(update={"max_steps": 5}), train_store=tiny.train, run=half)
    assert first.steps == 5
    second = train(config, train_store=tiny.train, run=half, resume=True)
    assert second.steps == expected.steps
    losses = [*first.losses, *second.losses]
    assert len(losses) == len(expected.losses)
    assert losses[0] == pytest.approx(expected.losses[0], rel=1e-2)
    assert losses == pytest.approx(expected.losses, rel=0.3)
    ours, theirs = (load_checkpoint(run / "weights" / "last.pt") for run in (half, whole))
    assert (ours.epoch, ours.batch) == (theirs.epoch, theirs.batch)
    assert torch.equal(ours.torch_rng, theirs.torch_rng)
    assert ours.optimizer["state"].keys() == theirs.optimizer["state"].keys()
    rates = [
        [line.split(",")[2] for line in (run / "metrics.csv").read_text().splitlines()]
        for run in (half, whole)
    ]
    assert rates[0] == rates[1]


def test_a_run_of_the_gpu_is_scored_and_resumed_on_a_cpu(tiny: Any, tmp_path: Path) -> None:
    """And a checkpoint holds no device."""
    run = tmp_path / "run"
    config = make_config(RETINANET, max_steps=5)
    train(config, **tiny.stores, run=run)
    moved = config.model_copy(update={"device": "cpu", "max_steps": None})
    report = train(moved, **tiny.stores, run=run, resume=True)
    assert report.reason == "finished"
    scores = {
        device: evaluate(run, store=tiny.val, config=EvalConfig(device=device)).scores.ap50
        for device in ("cpu", "cuda")
    }
    assert scores["cuda"] == pytest.approx(scores["cpu"], abs=0.02)
