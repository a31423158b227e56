"""Losses, gradients and detections on a GPU against those of the CPU."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.backbone.frozen import load_backbone
from cachedet.config.run import TrainConfig, load_train_config
from cachedet.detector.build import choose_levels
from cachedet.live.modes import inputs_of
from cachedet.loading.loader import FeatureLoader
from cachedet.store.reader import FeatureStore
from cachedet.structures import Batch
from cachedet.training.trainer import Trainer, make_trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CONFIGS = Path(__file__).parents[2] / "configs"
KINDS = [
    f"{kind}_{neck}_tiny"
    for kind in ("retinanet", "faster_rcnn", "cascade_rcnn")
    for neck in ("fpn", "nasfpn")
]
SMALL_RCNN = [
    "detector.rpn.samples=32", "detector.rpn.train_post_nms=40", "detector.rpn.test_post_nms=40",
    "detector.roi_head.samples=16", "detector.roi_head.fc_channels=32",
]  # fmt: skip
STEPS = 3
# Relative. The first losses come from the same weights; a proposal more or less in a suppression
# that decides between equals is what the second bound is for. Later steps start from other weights.
SAME_WEIGHTS = {"retinanet": 1e-4, "faster_rcnn": 5e-3, "cascade_rcnn": 5e-3}
LATER = {"retinanet": 1e-2, "faster_rcnn": 5e-2, "cascade_rcnn": 5e-2}


def shrunk(name: str, device: str) -> TrainConfig:
    overrides = [f"device={device}", "detector.neck.channels=16", "schedule.warmup_steps=0"]
    overrides += ["detector.postprocess.score_threshold=0.005", "schedule.lr=1e-3"]
    overrides += SMALL_RCNN if "rcnn" in name else []
    return load_train_config(CONFIGS / f"{name}.yaml", overrides)


def kind_of(name: str) -> str:
    return name.removesuffix("_tiny").rpartition("_")[0]


def make(config: TrainConfig, store: FeatureStore) -> Trainer:
    """The same weights on any device: they are drawn on the CPU."""
    torch.manual_seed(0)
    return make_trainer(config, manifest=store.manifest, total_steps=100)


def read_batch(store: FeatureStore, config: TrainConfig, count: int = 4) -> Batch:
    levels = choose_levels(config.detector, store.manifest.spec).names
    loader = FeatureLoader(store, views=("base",), levels=levels, batch_size=count, seed=5)
    return next(iter(loader.epoch(0)))


@pytest.mark.parametrize("name", KINDS)
def test_three_steps_are_those_of_the_cpu(tiny: Any, float32: None, name: str) -> None:
    store = FeatureStore.open(tiny.train)
    losses: dict[str, list[dict[str, float]]] = {}
    for device in ("cpu", "cuda"):
        config = shrunk(name, device)
        trainer, batch = make(config, store), read_batch(store, config)
        losses[device] = []
        for _ in range(STEPS):
            torch.manual_seed(1)  # the same draws in every step, so that the loss falls
            losses[device].append(trainer.take_step(batch))
        assert next(trainer.detector.parameters()).device.type == device
    cpu, cuda = losses["cpu"], losses["cuda"]
    kind = kind_of(name)
    far = [abs(b["loss"] / a["loss"] - 1) for a, b in zip(cpu, cuda, strict=True)]
    print(name, "loss, relative difference by step:", [f"{value:.1e}" for value in far])
    assert all(math.isfinite(value) for row in cuda for value in row.values())
    falls = "loss" if kind == "retinanet" else "loss_rpn_class"  # RoIs move with the proposals
    assert cuda[-1][falls] <= cuda[0][falls]
    for key, expected in cpu[0].items():
        bound = SAME_WEIGHTS[kind] * (10 if key == "grad_norm" else 1)
        assert cuda[0][key] == pytest.approx(expected, rel=bound, abs=1e-5), key
    for ours, theirs in zip(cuda, cpu, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=LATER[kind])


@pytest.mark.parametrize("name", KINDS)
def test_detections_are_those_of_the_cpu(tiny: Any, float32: None, name: str) -> None:
    """Scores in order; what is found in another order was a tie."""
    store = FeatureStore.open(tiny.train)
    trainer = make(shrunk(name, "cpu"), store)
    batch = read_batch(store, shrunk(name, "cpu"))
    for _ in range(STEPS):
        trainer.take_step(batch)
    found = {}
    for device in (torch.device("cpu"), torch.device("cuda")):
        detector = copy.deepcopy(trainer.detector).to(device).eval()
        own = batch.to(device)
        found[device.type] = detector.detect(
            own.features, sizes_hw=own.sizes_hw, image_ids=own.image_ids
        )
    for ours, theirs in zip(found["cuda"], found["cpu"], strict=True):
        assert ours.boxes.is_cuda
        assert ours.image_id == theirs.image_id
        assert abs(len(ours) - len(theirs)) <= 2
        count = min(len(ours), len(theirs), 20)
        torch.testing.assert_close(
            ours.cpu().scores[:count], theirs.scores[:count], rtol=1e-2, atol=1e-3
        )


@pytest.mark.parametrize("name", ["retinanet_fpn_tiny", "cascade_rcnn_nasfpn_tiny"])
def test_cached_losses_are_those_of_the_live_backbone(
    tiny: Any, cuda_train: Path, float32: None, name: str
) -> None:
    """Law L3 on a GPU: to 1e-4 from the same weights. Sums in backward are in no fixed order, so
    that two runs of the very same program differ too."""
    store = FeatureStore.open(cuda_train)
    device, config = torch.device("cuda"), shrunk(name, "cuda")
    backbone = load_backbone(
        "test_resnet", weights=str(tiny.weights), image_size=128, device=device
    )
    views, levels = ("base", "hflip"), store.manifest.spec.names
    loader = FeatureLoader(store, views=views, levels=levels, batch_size=3, seed=0, device=device)
    cached, live = make(config, store), make(config, store)
    inputs = inputs_of(store, tiny.paths.images)
    for keys, batch in zip(loader.plan(0), loader.epoch(0), strict=True):
        images = [inputs.load(int(row), views[view]) for view, row in keys]
        fresh = Batch(features=backbone(torch.stack(images).to(device)), targets=batch.targets)
        state = torch.get_rng_state()
        expected = live.take_step(fresh)["loss"]
        torch.set_rng_state(state)
        assert cached.take_step(batch)["loss"] == pytest.approx(
            expected, rel=1e-4 if "retinanet" in name else 5e-3
        )
        cached.detector.load_state_dict(live.detector.state_dict())
