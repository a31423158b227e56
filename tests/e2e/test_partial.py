"""The backbone's last stages trained from the cache, on eight generated images."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
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
from cachedet.detector.end_to_end import PIXELS, EndToEndDetector
from cachedet.errors import (
    BackboneError,
    CheckpointError,
    ConfigError,
    NonFiniteLossError,
    StoreError,
)
from cachedet.evaluate import evaluate
from cachedet.extract import extract
from cachedet.live.image_loader import ImageLoader
from cachedet.live.modes import inputs_of
from cachedet.loading.loader import make_planner, make_run_loader
from cachedet.predict import predict
from cachedet.report import report
from cachedet.store.format.stages import encode_stages
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store
from cachedet.train import train
from cachedet.training.checkpoint import load_checkpoint
from cachedet.training.optimizer import count_trained
from cachedet.training.partial import build_partial_detector
from cachedet.training.trainer import make_trainer_of

_VALUES = yaml.safe_load("""
    detector:
      {kind: retinanet, neck: {kind: fpn, channels: 16}, num_convs: 1,
       postprocess: {score_threshold: 0.005}}
    schedule:
      {epochs: 2, batch_size: 3, optimizer: adamw, lr: 0.003, warmup_steps: 2, kind: cosine,
       clip_norm: 5.0}
    device: cpu
    freeze_at: C4
""")


def config_of(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate(_VALUES | changes)


@pytest.fixture(scope="module")
def cut(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores without C5."""
    root = tmp_path_factory.mktemp("cut")
    extract(tiny.extract_config(root / "train.zarr", freeze_at="C4"))
    extract(
        tiny.extract_config(
            root / "val.zarr", freeze_at="C4", annotations=tiny.paths.val, views="base"
        )
    )
    return {"train_store": root / "train.zarr", "val_store": root / "val.zarr"}


@pytest.fixture(scope="module")
def run(cut: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "partial"
    train(config_of(), run=folder, **cut)
    return folder


def losses_of(trainer: Any, batches: Any) -> list[float]:
    return [trainer.take_step(batch)["loss"] for batch in batches]


def test_losses_are_those_of_the_live_network_with_a_frozen_trunk(tiny: Any) -> None:
    """Law L3, step by step, all views: here the stages learn at the full rate."""
    store = FeatureStore.open(tiny.train)
    config = config_of(stages={"lr_scale": 1.0, "batch_norm": "trained"})
    cached_loader = make_run_loader(config, store)
    torch.manual_seed(0)
    partial = build_partial_detector(
        config, store.manifest, weights=store.read_stages(), where="store"
    )
    torch.manual_seed(0)
    frozen = load_backbone(
        "test_resnet", weights=str(tiny.weights), levels=store.spec.names, image_size=128
    )
    network = TrainedBackbone(frozen, batch_norm="trained")
    for name, module in network.network.items():
        if not name.startswith("layer4"):
            module.requires_grad_(False)
            module.eval()
            module.train = lambda mode=True, module=module: module
    torch.manual_seed(0)
    live = EndToEndDetector(
        backbone=network,
        heads=build_detector(config.detector, spec=store.spec, num_classes=store.num_classes),
        levels=store.spec.names,
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
    assert PIXELS not in partial.state_dict()
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=1e-5)


def test_one_store_serves_both_and_the_cut_one_is_smaller(tiny: Any, cut: Any) -> None:
    full, small = FeatureStore.open(tiny.train), FeatureStore.open(cut["train_store"])
    assert full.spec.names == ("C3", "C4", "C5")
    assert small.spec.names == ("C3", "C4")
    assert small.manifest.network == full.spec
    assert small.manifest.pad_multiple == full.manifest.pad_multiple == 32
    assert small.nbytes < full.nbytes
    assert small.manifest.weights_digest == full.manifest.weights_digest
    for name, tensor in full.read_stages().items():
        torch.testing.assert_close(small.read_stages()[name], tensor, rtol=0, atol=0)
    for row in range(len(full)):
        for level, feature_map in small.read(row, "hflip").items():
            torch.testing.assert_close(feature_map, full.read(row, "hflip")[level], rtol=0, atol=0)


def test_a_run_is_the_same_from_either_store(tiny: Any, run: Path, tmp_path: Path) -> None:
    train(config_of(), run=tmp_path / "run", **tiny.stores)
    ours, theirs = (
        load_checkpoint(folder / "weights" / "last.pt").heads for folder in (tmp_path / "run", run)
    )
    assert any(name.startswith("backbone.layers.layer4") for name in ours)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)


def test_resume_is_bit_exact(cut: Any, run: Path, tmp_path: Path) -> None:
    """Law L6."""
    folder = tmp_path / "run"
    train(config_of(max_steps=4), run=folder, **cut)
    train(config_of(), run=folder, resume=True, **cut)
    whole = load_checkpoint(run / "weights" / "last.pt")
    resumed = load_checkpoint(folder / "weights" / "last.pt")
    assert resumed.step == whole.step
    for name, tensor in whole.heads.items():
        assert torch.equal(resumed.heads[name], tensor), name


def test_stages_learn_and_batch_norms_stay(cut: Any, run: Path) -> None:
    store = FeatureStore.open(cut["train_store"])
    before = store.read_stages()
    after = load_checkpoint(run / "weights" / "last.pt").heads
    moved = {
        name for name, tensor in before.items() if name.startswith("layer4")
        if not torch.equal(after[f"backbone.layers.{name}"], tensor)
    }  # fmt: skip
    assert moved
    assert {before[name].ndim for name in moved} == {4}


@pytest.mark.parametrize(
    "changes",
    [
        {"stages": {"train": "norms", "batch_norm": "trained"}},
        {"stages": {"train": "adapters"}},
        {"freeze_at": "C3", "schedule": {**_VALUES["schedule"], "ema_decay": 0.9}},
        {"augment": {"translate": 1.0, "crop": 1.0, "flip": 0.5}},
        {"residency": "ram", "precision": "bf16"},
        {"residency": "stream", "early_stopping": {"patience": 1}},
        {"detector": {"kind": "cascade_rcnn", "neck": {"kind": "nasfpn", "channels": 16},
                      "roi_head": {"samples": 16, "num_convs": 0, "fc_channels": 16}}},
    ],
)  # fmt: skip
def test_ways_to_train(cut: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = config_of(max_steps=2, **changes)
    report = train(config, run=tmp_path / "run", **cut)
    assert report.steps == 2
    before = FeatureStore.open(cut["train_store"]).read_stages()
    after = load_checkpoint(tmp_path / "run" / "weights" / "last.pt").heads
    names = {name.replace(".block.", "."): value for name, value in after.items()}
    kernels = {name for name, tensor in before.items() if tensor.ndim == 4}
    held = {name for name in kernels if f"backbone.layers.{name}" in names}
    moved = {
        name for name in held if not torch.equal(names[f"backbone.layers.{name}"], before[name])
    }
    assert held
    assert bool(moved) is (config.stages.train == "all")
    assert evaluate(
        tmp_path / "run", store=cut["val_store"], config=EvalConfig(weights="last")
    ).detections


def test_eval_and_predict_use_the_trained_stages(
    tiny: Any, cut: Any, run: Path, tmp_path: Path
) -> None:
    """From image files as from the store."""
    from_store = evaluate(run, store=cut["val_store"]).detections
    report = predict(
        run, images=[tiny.paths.images], out=tmp_path / "out", weights=str(tiny.weights),
        min_score=0.0,
    )  # fmt: skip
    names = FeatureStore.open(cut["val_store"]).annotations.file_names
    by_name = {image.file.name: image.detections for image in report.images}
    for name, detections in zip(names, from_store, strict=True):
        ours = by_name[name]
        torch.testing.assert_close(ours.scores, detections.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.boxes, detections.boxes, rtol=1e-3, atol=1e-2)


def test_log_and_report_say_what_learnt(cut: Any, run: Path, tmp_path: Path) -> None:
    evaluate(run, store=cut["val_store"])
    detector = build_partial_detector(
        config_of(), FeatureStore.open(cut["train_store"]).manifest, weights=None, where="x"
    )
    ours, heads = count_trained(detector.backbone), count_trained(detector.heads)
    words = (
        f"stages behind C4, rate 0.1, frozen batch norms, {ours:,} parameters of the backbone and "
        f"{heads:,} of the heads"
    )
    assert f"trains {words}" in (run / "log.txt").read_text()
    assert words in report([run], out=tmp_path / "page.html", resamples=2).html.read_text()
    old = shutil.copytree(run, tmp_path / "old")
    (old / "log.txt").write_text((run / "log.txt").read_text().replace("trains stages", "t"))
    page = report([old], out=tmp_path / "old.html", resamples=2).html.read_text()
    assert "stages behind C4, rate 0.1, frozen batch norms; parameters: not recorded" in page


def test_another_run_starts_from_the_stages(cut: Any, run: Path, tmp_path: Path) -> None:
    config = config_of(init_from=str(run), max_steps=1)
    train(config, run=tmp_path / "run", **cut)
    assert "init_from" in (tmp_path / "run" / "config.yaml").read_text()


def test_stages_follow_heads_that_were_trained_before(tiny: Any, tmp_path: Path) -> None:
    """Heads first, on the whole backbone frozen; then the stages learn with them."""
    train(config_of(freeze_at=None, max_steps=4), run=tmp_path / "heads", **tiny.stores)
    config = config_of(init_from=str(tmp_path / "heads"), max_steps=1)
    config = config.model_copy(
        update={"schedule": config.schedule.model_copy(update={"lr": 1e-9, "warmup_steps": 0})}
    )
    train(config, run=tmp_path / "both", **tiny.stores)
    before = load_checkpoint(tmp_path / "heads" / "weights" / "last.pt").heads
    after = load_checkpoint(tmp_path / "both" / "weights" / "last.pt").heads
    for name, value in before.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[f"heads.{name}"], value, rtol=0, atol=1e-5)
    initial = FeatureStore.open(tiny.stores["train_store"]).read_stages()
    torch.testing.assert_close(
        after["backbone.layers.layer4.0.conv1.weight"],
        initial["layer4.0.conv1.weight"], rtol=0, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"freeze_at": None},
            r"it trained the stages behind C4 \(freeze_at\), this run nothing of",
        ),
        ({"freeze_at": "C3"}, r"behind C4 \(freeze_at\), this run the stages behind C3"),
        ({"stages": {"train": "adapters"}}, "this run the stages behind C4 with adapters"),
    ],
)
def test_weights_of_other_stages_are_refused_before_anything_is_written(
    tiny: Any, run: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = config_of(init_from=str(run), **changes)
    with pytest.raises(CheckpointError, match=message):
        train(config, run=tmp_path / "run", **tiny.stores)
    assert not (tmp_path / "run").exists()


def test_either_store_scores_a_run(tiny: Any, cut: Any, run: Path, tmp_path: Path) -> None:
    of_cut = evaluate(run, store=cut["val_store"]).scores
    assert evaluate(run, store=tiny.stores["val_store"]).scores.ap == of_cut.ap
    mixed = {"train_store": tiny.stores["train_store"], "val_store": cut["val_store"]}
    assert train(config_of(max_steps=1), run=tmp_path / "mixed", **mixed).steps == 1
    train(config_of(freeze_at=None, max_steps=1), run=tmp_path / "frozen", **tiny.stores)
    with pytest.raises(ConfigError, match="extracted with --freeze-at C4 and lacks C5"):
        evaluate(tmp_path / "frozen", store=cut["val_store"], config=EvalConfig(weights="last"))


def test_a_store_cut_elsewhere_is_told(tiny: Any, cut: Any) -> None:
    with pytest.raises(StoreError, match="holds C3, C4 of the network, and C3, C4, C5 are asked"):
        extract(tiny.extract_config(cut["train_store"]))


def test_a_store_without_stage_weights_gets_them(tiny: Any, tmp_path: Path) -> None:
    """As one that was extracted before stores kept them; blocks and old runs stay valid."""
    config = tiny.extract_config(tmp_path / "s.zarr", views="base")
    extract(config)
    path = tmp_path / "s.zarr" / "manifest.json"
    whole = FeatureStore.open(tmp_path / "s.zarr").manifest
    old = dataclasses.replace(whole, stages_digest="")
    path.write_text(json.dumps(old.to_json()))
    (tmp_path / "s.zarr" / "stages.safetensors").unlink()
    store = FeatureStore.open(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="holds no weights of its backbone's stages: it was extra"):
        store.read_stages()
    assert extract(config).blocks_written == 0
    again = FeatureStore.open(tmp_path / "s.zarr")
    assert again.manifest == whole
    assert again.manifest.block_fingerprint() == old.block_fingerprint()
    assert again.read_stages()


def test_stage_weights_are_encoded_once(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by calls and ranks that find them in the store; again where they are damaged."""
    sizes: list[int] = []

    def encode(weights: Any) -> bytes:
        content = encode_stages(weights)
        sizes.append(len(content))
        return content

    monkeypatch.setattr(sys.modules["cachedet.extract"], "encode_stages", encode)
    config = tiny.extract_config(tmp_path / "s.zarr", views="base")
    extract(config)
    manifest = FeatureStore.open(config.store).manifest
    for changes in ({}, {"views": "base,hflip"}, {"rank": 1, "world_size": 2}):
        extract(config.model_copy(update=changes))
    assert len(sizes) == 1
    assert FeatureStore.open(config.store).manifest.stages_digest == manifest.stages_digest
    (config.store / "stages.safetensors").write_bytes(b"")
    extract(config)
    assert len(sizes) == 2
    assert FeatureStore.open(config.store).read_stages()


def test_damaged_stage_weights_are_noticed_and_written_anew(tiny: Any, tmp_path: Path) -> None:
    config = tiny.extract_config(tmp_path / "s.zarr", views="base")
    extract(config)
    path = tmp_path / "s.zarr" / "stages.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-9] + b"\1" + content[-8:])
    with pytest.raises(StoreError, match="is damaged: its sha256 is not that of the manifest"):
        FeatureStore.open(tmp_path / "s.zarr").read_stages()
    report = verify_store(tmp_path / "s.zarr", deep=True)
    assert not report.is_good
    assert "stages.safetensors is damaged" in report.to_json()["stages"]
    shown = CliRunner().invoke(app, ["verify", str(tmp_path / "s.zarr")])
    assert shown.exit_code == 1
    assert "(records and lengths checked); the weights of its stages are not" in shown.stdout
    extract(config)
    assert path.read_bytes() == content
    assert verify_store(tmp_path / "s.zarr", deep=True).is_good
    path.unlink()
    path.mkdir()
    with pytest.raises(
        StoreError, match="cannot write .*s.zarr/stages.safetensors: Is a directory"
    ):
        extract(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze_at": "C5"}, r"has stages behind it \(C3, C4\), got 'C5'"),
        ({"freeze_at": "C9"}, "got 'C9'"),
        ({"freeze_at": None}, "was extracted with --freeze-at C4 and lacks C5: train the stages"),
        ({"stages": {"train": "norms"}}, "batch_norm frozen: .* nothing would be trained; set sta"),
        (
            {"detector": {**_VALUES["detector"], "levels": ["C3", "C4"]}},
            "detector.levels leaves out C5, .* trained for nothing: name C5 there, or extract",
        ),
    ],
)
def test_what_cannot_be_trained_is_told(
    cut: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(config_of(**changes), run=tmp_path / "run", **cut)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": "classifier", "init_from": "r"}, "leave one of them out"),
        ({"freeze_at": None, "stages": {"lr_scale": 1.0}}, "set freeze_at, such as C4"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**changes)


def test_a_detector_given_as_an_object_must_have_the_stages(cut: Any, tmp_path: Path) -> None:
    """Else none would be trained, and nobody told."""
    store, config = FeatureStore.open(cut["train_store"]), config_of(max_steps=1)
    heads = build_detector(
        config.detector, spec=store.manifest.network, num_classes=store.num_classes
    )
    with pytest.raises(ConfigError, match="freeze_at is C4, .* a RetinaNet, trains none: stages"):
        train(config, run=tmp_path / "run", detector=heads, **cut)
    partial = build_partial_detector(
        config, store.manifest, weights=store.read_stages(), where="store"
    )
    with pytest.raises(ConfigError, match="freeze_at is C3, .* has those behind C4: stages are"):
        train(config_of(freeze_at="C3"), run=tmp_path / "run", detector=partial, **cut)
    assert not (tmp_path / "run").exists()
    before = {name: tensor.clone() for name, tensor in partial.backbone.state_dict().items()}
    train(config, run=tmp_path / "run", detector=partial, **cut)
    after = partial.backbone.state_dict()
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())


def test_stages_that_are_not_finite_are_named(cut: Any, tmp_path: Path) -> None:
    store, config = FeatureStore.open(cut["train_store"]), config_of(max_steps=1)
    detector = build_partial_detector(
        config, store.manifest, weights=store.read_stages(), where="store"
    )
    name, weight = next(
        (name, weight) for name, weight in detector.named_parameters() if "backbone" in name
    )
    weight.data.fill_(torch.nan)
    with pytest.raises(NonFiniteLossError, match=rf"; the weights of {name} are not finite \(1\)"):
        train(config, run=tmp_path / "run", detector=detector, **cut)


def test_another_cut_cannot_be_resumed(cut: Any, run: Path) -> None:
    with pytest.raises(CheckpointError, match="freeze_at was C4, is C3"):
        train(config_of(freeze_at="C3"), run=run, resume=True, **cut)


def test_a_backbone_that_cannot_be_cut(tiny: Any, tmp_path: Path) -> None:
    config = tiny.extract_config(
        tmp_path / "v.zarr", backbone="test_vit", weights="none", views="base"
    )
    extract(config)
    with pytest.raises(StoreError, match="or its backbone cannot be cut"):
        FeatureStore.open(tmp_path / "v.zarr").read_stages()
    with pytest.raises(BackboneError, match="test_vit cannot be cut at 'C4'"):
        extract(config.model_copy(update={"store": tmp_path / "w.zarr", "freeze_at": "C4"}))
    assert not (tmp_path / "w.zarr").exists()


def test_the_command_line(tiny: Any, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({k: v for k, v in _VALUES.items() if k != "freeze_at"}))
    invoke = CliRunner().invoke
    store, paths = tmp_path / "s.zarr", tiny.paths
    done = invoke(app, [
        "extract", "--images", str(paths.images), "--annotations", str(paths.val), "--store",
        str(store), "--backbone", "test_resnet", "--weights", str(tiny.weights), "--image-size",
        "128", "--views", "base", "--freeze-at", "C4",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    done = invoke(app, [
        "train-heads", str(config), "--train", str(store), "--run", str(tmp_path / "r"), "--set",
        "freeze_at=C4", "--set", "schedule.epochs=1", "--set", "stages.train=adapters",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    said = "trains stages behind C4, adapters alone, rate 0.1, frozen batch norms, "
    assert said in done.output


def test_timm_missing_at_training_time(cut: Any, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules['timm'] = None\n"
        "from cachedet.errors import BackboneError\n"
        "from cachedet.train import train\n"
        f"config = {_VALUES!r}\n"
        "try:\n"
        f"    train(config, train_store={str(cut['train_store'])!r}, run={str(tmp_path / 'r')!r})\n"
        "except BackboneError as error:\n"
        "    assert 'pip install timm' in str(error), error\n"
        "    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert not (tmp_path / "r").exists()
