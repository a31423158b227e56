"""The last blocks of plain ViTs trained from the cache, on eight generated images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from cachedet.backbone.frozen import load_backbone
from cachedet.backbone.trained import TrainedBackbone
from cachedet.cli import app
from cachedet.config.run import EvalConfig, TrainConfig
from cachedet.detector.build import build_detector
from cachedet.detector.end_to_end import EndToEndDetector
from cachedet.errors import BackboneError, ConfigError
from cachedet.evaluate import evaluate
from cachedet.extract import extract
from cachedet.live.image_loader import ImageLoader
from cachedet.live.modes import inputs_of
from cachedet.loading.loader import make_planner, make_run_loader
from cachedet.predict import predict
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import describe_store, verify_store
from cachedet.train import train
from cachedet.training.checkpoint import load_checkpoint
from cachedet.training.partial import build_partial_detector
from cachedet.training.trainer import make_trainer_of

_VALUES = yaml.safe_load("""
    detector:
      {kind: retinanet, neck: {kind: simple, channels: 16}, num_convs: 1,
       postprocess: {score_threshold: 0.005}}
    schedule:
      {epochs: 2, batch_size: 3, optimizer: adamw, lr: 0.003, warmup_steps: 2, kind: cosine,
       clip_norm: 5.0}
    device: cpu
    freeze_at: L4
""")
_ROTARY = "vit_tiny_patch16_dinov3_qkvb"


def config_of(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate(_VALUES | changes)


def extract_vit(tiny: Any, store: Path, **changes: Any) -> Path:
    values = {"backbone": "test_vit", "weights": "none", "image_size": 96, **changes}
    extract(tiny.extract_config(store, **values))
    return store


@pytest.fixture(scope="module")
def cut(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores of what lies behind the fourth of six blocks."""
    root = tmp_path_factory.mktemp("cut")
    val = {"annotations": tiny.paths.val, "views": "base"}
    return {
        "train_store": extract_vit(tiny, root / "train.zarr", freeze_at="L4"),
        "val_store": extract_vit(tiny, root / "val.zarr", freeze_at="L4", **val),
    }


@pytest.fixture(scope="module")
def both(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two states and the map of the whole network."""
    root = tmp_path_factory.mktemp("both")
    return extract_vit(tiny, root / "s.zarr", levels=("L3", "L4", "C4"))


@pytest.fixture(scope="module")
def run(cut: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "partial"
    train(config_of(), run=folder, **cut)
    return folder


def losses_of(trainer: Any, batches: Any) -> list[float]:
    return [trainer.take_step(batch)["loss"] for batch in batches]


def test_a_store_holds_patches_and_tokens_as_the_network_gives_them(tiny: Any, cut: Any) -> None:
    store = FeatureStore.open(cut["train_store"])
    assert store.spec.names == ("L4", "L4_prefix")
    assert store.manifest.network.names == ("L4", "L4_prefix", "C4")
    backbone = load_backbone("test_vit", weights="none", cut="L4", image_size=96)
    inputs = inputs_of(store, tiny.paths.images)
    for row in range(3):
        live = backbone(inputs.load(row, "hflip")[None])
        held = store.read(row, "hflip")
        assert held["L4_prefix"].shape == (64, 1, 1)
        torch.testing.assert_close(held["L4_prefix"], live["L4_prefix"][0], rtol=0, atol=1e-5)
        torch.testing.assert_close(held["L4"], live["L4"][0], rtol=0, atol=1e-5)
    assert verify_store(cut["train_store"], deep=True).is_good
    assert describe_store(cut["train_store"])["levels"][1]["tokens"] == 1


@pytest.mark.parametrize("name", ["test_vit", _ROTARY])
def test_losses_are_those_of_the_live_network_with_a_frozen_trunk(
    tiny: Any, tmp_path: Path, name: str
) -> None:
    """Law L3, step by step, all views, on rectangles: the blocks learn at the full rate."""
    store = FeatureStore.open(extract_vit(tiny, tmp_path / "s", backbone=name, freeze_at="L4"))
    assert any(h != w for h, w in store.buckets("base"))
    config = config_of(stages={"lr_scale": 1.0})
    cached_loader = make_run_loader(config, store)
    partial = build_partial_detector(
        config, store.manifest, weights=store.read_stages(), where="store"
    )
    torch.manual_seed(0)
    partial.heads = build_detector(
        config.detector, spec=store.manifest.network, num_classes=store.num_classes
    )
    frozen = load_backbone(name, weights="none", levels=("L4", "C4"), image_size=96)
    network = TrainedBackbone(frozen, batch_norm="frozen")
    behind = {id(p) for block in network.network.model.blocks[4:] for p in block.parameters()}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in behind)
    torch.manual_seed(0)
    live = EndToEndDetector(
        backbone=network,
        heads=build_detector(
            config.detector, spec=store.manifest.network, num_classes=store.num_classes
        ),
        levels=("C4",),
        learns=True,
        lr_scale=1.0,
    )
    images = ImageLoader(
        plans=make_planner(config, store),
        views=tuple(store.views),
        store=store,
        inputs=inputs_of(store, tiny.paths.images),
        device=torch.device("cpu"),
        augment=None,
        seed=config.seed,
    )
    ours = losses_of(make_trainer_of(partial, config, total_steps=6), cached_loader.epoch(0))
    theirs = losses_of(make_trainer_of(live, config, total_steps=6), images.epoch(0))
    assert len(ours) > 2
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=1e-5)


def test_a_run_is_the_same_from_a_store_of_more_levels(
    cut: Any, both: Path, run: Path, tmp_path: Path
) -> None:
    train(config_of(), run=tmp_path / "run", train_store=both)
    ours, theirs = (
        load_checkpoint(folder / "weights" / "last.pt").heads for folder in (tmp_path / "run", run)
    )
    moved = {n for n in theirs if n.startswith("backbone.layers.blocks.")}
    assert {n.split(".")[3] for n in moved} == {"4", "5"}
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)


def test_one_store_serves_all_ways(both: Path, tmp_path: Path) -> None:
    """Heads alone take the map behind the last block, or a state that is named."""
    ways = {
        "frozen": config_of(freeze_at=None, max_steps=2),
        "state": config_of(
            freeze_at=None, max_steps=2, detector=_VALUES["detector"] | {"levels": ["L3"]}
        ),
        "deeper": config_of(freeze_at="L3", max_steps=2),
    }
    for name, config in ways.items():
        train(config, run=tmp_path / name, train_store=both)
    heads = {n: load_checkpoint(tmp_path / n / "weights" / "last.pt").heads for n in ways}
    in_deeper = {n.split(".")[3] for n in heads["deeper"] if ".blocks." in n}
    assert in_deeper == {"3", "4", "5"}
    assert not any(".blocks." in name for name in heads["frozen"])


def test_resume_is_bit_exact(cut: Any, run: Path, tmp_path: Path) -> None:
    """Law L6."""
    folder = tmp_path / "run"
    train(config_of(max_steps=4), run=folder, **cut)
    train(config_of(), run=folder, resume=True, **cut)
    ours, theirs = (load_checkpoint(one / "weights" / "last.pt").heads for one in (folder, run))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("test_vit", {"stages": {"train": "norms"}}),
        ("test_vit", {"schedule": {**_VALUES["schedule"], "ema_decay": 0.9}}),
        (_ROTARY, {"stages": {"train": "adapters"}}),
        (_ROTARY, {"augment": {"translate": 1.0, "crop": 1.0, "flip": 0.5}}),
        (_ROTARY, {"residency": "ram", "precision": "bf16"}),
    ],
)
def test_ways_to_train(
    tiny: Any, cut: Any, rotary: Any, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    stores = cut if name == "test_vit" else rotary
    config = config_of(max_steps=2, **changes)
    train(config, run=tmp_path / "run", **stores)
    before = FeatureStore.open(stores["train_store"]).read_stages()
    after = load_checkpoint(tmp_path / "run" / "weights" / "last.pt").heads
    names = {
        n.replace(".block.", ".").removeprefix("backbone.layers."): v for n, v in after.items()
    }
    matrices = {n for n in names if n in before and before[n].ndim == 2}
    moved = {n for n in matrices if not torch.equal(names[n], before[n])}
    assert matrices
    assert bool(moved) is (config.stages.train == "all")
    corrections = [v for n, v in names.items() if ".adapter." in n]
    assert bool(corrections) is (config.stages.train == "adapters")
    assert all(bool(v.any()) for v in corrections)
    assert evaluate(
        tmp_path / "run", store=stores["val_store"], config=EvalConfig(weights="last")
    ).detections


@pytest.fixture(scope="module")
def rotary(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores of a ViT with rotary positions and registers, in eight bits."""
    root = tmp_path_factory.mktemp("rotary")
    values = {"backbone": _ROTARY, "freeze_at": "L4", "codec": "int8", "views": "base"}
    val = {"annotations": tiny.paths.val}
    return {
        "train_store": extract_vit(tiny, root / "train.zarr", **values),
        "val_store": extract_vit(tiny, root / "val.zarr", **values, **val),
    }


def test_eval_and_predict_use_the_trained_blocks(
    tiny: Any, cut: Any, run: Path, tmp_path: Path
) -> None:
    """From image files as from the store."""
    from_store = evaluate(run, store=cut["val_store"]).detections
    report = predict(
        run, images=[tiny.paths.images], out=tmp_path / "out", weights="none", min_score=0.0
    )
    names = FeatureStore.open(cut["val_store"]).annotations.file_names
    by_name = {image.file.name: image.detections for image in report.images}
    for name, detections in zip(names, from_store, strict=True):
        ours = by_name[name]
        torch.testing.assert_close(ours.scores, detections.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.boxes, detections.boxes, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("codec", ["fp16", "int8+zstd", "int4", "pca8+int8", "snr12"])
def test_every_codec_takes_tokens(tiny: Any, tmp_path: Path, codec: str) -> None:
    store = extract_vit(
        tiny, tmp_path / "s.zarr", backbone=_ROTARY, freeze_at="L4", codec=codec, views="base"
    )
    opened = FeatureStore.open(store)
    quality = describe_store(store)["quality"]
    assert opened.read(0, "base")["L4_prefix"].shape == (192, 1, 5)
    assert quality["L4"]["snr_db"] > 8
    assert quality["L4_prefix"]["snr_db"] > 8
    assert verify_store(store, deep=True).is_good


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze_at": "C4"}, r"has stages behind it \(L4\), got 'C4'"),
        ({"freeze_at": "L5"}, r"has stages behind it \(L4\), got 'L5'"),
        ({"freeze_at": "L4_prefix"}, r"\(L4\), got 'L4_prefix'"),
        ({"freeze_at": None}, "was extracted with --freeze-at L4 and lacks C4: train the stages"),
        (
            {"freeze_at": None, "detector": _VALUES["detector"] | {"levels": ["L4_prefix"]}},
            "detector.levels asks for 'L4_prefix', which holds tokens: expected maps, L4",
        ),
        (
            {"detector": _VALUES["detector"] | {"levels": ["L4", "C4"]}},
            "SimplePyramid takes one level, got L4, C4",
        ),
        (
            {"detector": {"kind": "retinanet", "neck": {"kind": "fpn"}, "levels": ["L4", "C4"]}},
            "levels of strides 16 and 16 would both be called P4",
        ),
    ],
)
def test_what_cannot_be_trained_is_told(
    cut: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(config_of(**changes), run=tmp_path / "run", **cut)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("cut_name", ["L0", "L6", "L4_prefix", "C4", "C9"])
def test_cuts_that_a_vit_lacks_are_told(tiny: Any, tmp_path: Path, cut_name: str) -> None:
    message = {
        "C4": "test_vit cannot be cut at 'C4': .*is cut behind a block: L1 to L5",
        "L4_prefix": "L4_prefix holds the tokens that belong to L4: name L4, which brings them",
    }.get(cut_name, f"has no level '{cut_name}'; it offers L1 to L5 ")
    with pytest.raises(BackboneError, match=message):
        extract_vit(tiny, tmp_path / "w.zarr", freeze_at=cut_name)
    assert not (tmp_path / "w.zarr").exists()


def test_the_command_line(cut: Any, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({k: v for k, v in _VALUES.items() if k != "freeze_at"}))
    invoke, store = CliRunner().invoke, str(cut["train_store"])
    done = invoke(app, [
        "train-heads", str(config), "--train", store, "--run", str(tmp_path / "r"), "--set",
        "freeze_at=L4", "--set", "max_steps=1",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    done = invoke(app, ["info", store])
    assert "L4 64x/16, L4_prefix 64x1 tokens, C4 64x/16" in done.output
