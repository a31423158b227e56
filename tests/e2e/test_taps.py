"""Taps from the first command to the last, on eight generated images and tiny random networks."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from cachedet.backbone.custom import wrap_backbone
from cachedet.backbone.frozen import load_backbone
from cachedet.cli import app
from cachedet.config.run import EvalConfig, ExtractConfig, TrainConfig
from cachedet.errors import (
    BackboneError,
    CheckpointError,
    ConfigError,
    ExportError,
    StoreMismatchError,
)
from cachedet.estimate import estimate
from cachedet.evaluate import evaluate
from cachedet.export import ProofImages, export
from cachedet.extract import extract
from cachedet.live.modes import inputs_of, make_training_mode
from cachedet.predict import predict
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import describe_store, verify_store
from cachedet.structures import LevelSpec
from cachedet.train import train

TAPPED = (
    "family_vit", "family_deit", "family_eva02", "family_dinov2", "family_dinov3",
    "family_siglip2", "family_pe_core", "family_pe_spatial", "family_beit",
)  # fmt: skip
HIERARCHICAL = ("family_swinv2", "family_hiera")
ALIKE = ("family_deit", "family_dinov2", "family_siglip2", "family_pe_spatial")  # to others here

_VALUES = yaml.safe_load("""
    detector:
      {kind: retinanet, neck: {kind: tap_pyramid, channels: 16, num_levels: 3}, num_convs: 1,
       postprocess: {score_threshold: 0.005, max_detections: 30}}
    schedule:
      {epochs: 1, batch_size: 4, optimizer: adamw, lr: 0.003, warmup_steps: 1, kind: cosine}
    device: cpu
""")
_VIT: dict[str, Any] = {
    "backbone": "test_vit", "weights": "none", "image_size": 64, "views": "base,hflip",
    "codec": "fp32", "taps": 3, "block_size": 8, "batch_size": 8,
}  # fmt: skip


def config_of(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(_VALUES | changes)


def with_neck(**neck: Any) -> dict[str, Any]:
    return {"detector": _VALUES["detector"] | {"neck": neck}}


def extract_both(tiny: Any, root: Path, **changes: Any) -> dict[str, Path]:
    values = _VIT | changes
    extract(tiny.extract_config(root / "train.zarr", **values))
    val = {"annotations": tiny.paths.val, "views": "base"}
    extract(tiny.extract_config(root / "val.zarr", **values | val))
    return {"train_store": root / "train.zarr", "val_store": root / "val.zarr"}


@pytest.fixture(scope="module")
def stores(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return extract_both(tiny, tmp_path_factory.mktemp("taps"))


@pytest.fixture(scope="module")
def run(stores: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(config_of(), run=folder, **stores)
    return folder


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.thorough if name in ALIKE else ())
        for name in (*TAPPED, *HIERARCHICAL)
    ],
)
def test_every_family_from_images_to_detections(tiny: Any, tmp_path: Path, name: str) -> None:
    """What `predict` finds in the files is what `eval` finds in the store."""
    taps = 2 if name in TAPPED else None
    changes = config_of(**({} if taps else with_neck(kind="fpn", channels=16)))
    stores = extract_both(tiny, tmp_path, backbone=name, taps=taps, views="base")
    names = FeatureStore.open(stores["train_store"]).spec.names
    assert names == (("L2", "L4") if taps else ("C3", "C4", "C5"))
    report = train(changes, run=tmp_path / "run", **stores)
    assert report.best_ap is not None
    scored = evaluate(tmp_path / "run", store=stores["val_store"], config=EvalConfig())
    found = predict(
        tmp_path / "run", images=[tiny.paths.images], out=tmp_path / "out", weights="none",
        min_score=0.0,
    )  # fmt: skip
    by_name = {image.file.name: image.detections for image in found.images}
    file_names = FeatureStore.open(stores["val_store"]).annotations.file_names
    assert sum(map(len, scored.detections)) > 0
    for file_name, theirs in zip(file_names, scored.detections, strict=True):
        ours = by_name[file_name]
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=1e-3, atol=1e-2)


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize(
    ("name", "neck"),
    [
        ("test_vit", {"join": "concatenate"}),
        ("family_dinov3", {"join": "weighted"}),
        ("family_eva02", {"join": "concatenate", "top": {"kind": "nasfpn", "channels": 16}}),
    ],
)
def test_cached_losses_are_those_of_the_live_network(
    tiny: Any, tmp_path: Path, name: str, neck: dict[str, Any]
) -> None:
    """Law L3, on rectangles, with flips and a patch that pads."""
    extract(tiny.extract_config(tmp_path / "s", **_VIT | {"backbone": name, "taps": 2}))
    store = FeatureStore.open(tmp_path / "s")
    assert any(height != width for height, width in store.buckets("base"))
    config = config_of(**with_neck(kind="tap_pyramid", channels=16, num_levels=3, **neck))
    losses = []
    for mode in ("cached", "live", "tuned"):
        made = make_training_mode(
            mode, config, store=store, images=tiny.paths.images, weights="none", total_steps=9
        )
        batches = islice(made.loader.epoch(0), 4)
        losses.append([made.trainer.take_step(batch)["loss"] for batch in batches])
    cached, live, tuned = map(torch.tensor, losses)
    assert len(cached) > 1
    torch.testing.assert_close(live, cached, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tuned[0], cached[0], rtol=1e-5, atol=1e-5)
    assert tuned[-1] != cached[-1]


def test_a_store_of_taps(tiny: Any, stores: Any) -> None:
    store = FeatureStore.open(stores["train_store"])
    assert store.spec.names == ("L2", "L4", "L6")
    assert store.manifest.network == store.spec
    assert store.manifest.stages_digest == ""  # nothing behind a tap can be trained
    live = inputs_of(store, tiny.paths.images)
    backbone = load_backbone("test_vit", weights="none", levels=store.spec, image_size=64)
    for row in range(2):
        maps = backbone(live.load(row, "hflip")[None])
        for level, held in store.read(row, "hflip").items():
            torch.testing.assert_close(held, maps[level][0], rtol=0, atol=1e-5)
    assert verify_store(stores["train_store"], deep=True).is_good
    assert describe_store(stores["train_store"])["levels"][2]["tap"] is True
    shown = CliRunner().invoke(app, ["info", str(stores["train_store"])]).output
    assert "L2 64x/16 tap, L4 64x/16 tap, L6 64x/16 tap" in shown


def test_taps_are_part_of_the_identity(tiny: Any, tmp_path: Path, stores: Any) -> None:
    """Other taps, or states of the same blocks, are other features."""
    for changes in ({"taps": 2}, {"taps": None, "levels": ("L2", "L4")}):
        config = tiny.extract_config(stores["train_store"], **_VIT | changes)
        with pytest.raises(StoreMismatchError, match="spec"):
            extract(config)
    again = extract(tiny.extract_config(stores["train_store"], **_VIT | {"taps": (2, 4, 6)}))
    assert again.blocks_written == 0  # the same ones by name


def test_states_are_not_scored_as_taps(tiny: Any, run: Path, tmp_path: Path) -> None:
    changes = {"taps": None, "levels": ("L2", "L4", "C4"), "annotations": tiny.paths.val}
    extract(tiny.extract_config(tmp_path / "v", **_VIT | changes | {"views": "base"}))
    with pytest.raises(CheckpointError, match="trained on features with"):
        evaluate(run, store=tmp_path / "v", config=EvalConfig())


def test_the_class_token_is_a_level_that_heads_leave(tiny: Any, tmp_path: Path) -> None:
    config = tiny.extract_config(tmp_path / "s", **_VIT | {"global_token": True})
    extract(config)
    store = FeatureStore.open(tmp_path / "s")
    assert store.spec.names == ("L2", "L4", "L6", "L6_class")
    assert store.read(0, "base")["L6_class"].shape == (64, 1, 1)
    train(config_of(), run=tmp_path / "run", train_store=tmp_path / "s")
    report = predict(
        tmp_path / "run", images=[tiny.paths.images], out=tmp_path / "out", weights="none"
    )
    assert len(report.images) == 12


@pytest.mark.thorough
def test_a_run_on_taps_is_exported(tiny: Any, stores: Any, tmp_path: Path) -> None:
    """The file finds what torch finds."""
    pytest.importorskip("onnx")
    top = {"kind": "fpn", "channels": 16, "num_levels": 3}
    neck = with_neck(kind="tap_pyramid", channels=16, num_levels=3, join="weighted", top=top)
    train(config_of(**neck), run=tmp_path / "run", **stores)
    proof = ProofImages(folder=tiny.paths.images, most=2)
    report = export(tmp_path / "run", out=tmp_path / "m.onnx", weights="none", proof=proof)
    assert report.found.images > 0
    assert report.found.box_px < 0.01
    assert report.found.score < 1e-4


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize(
    ("name", "taps", "message"),
    [
        ("family_beit", 2, "family_beit is built for squares of one size, and the"),
        ("family_swinv2", None, "family_swinv2 pads its maps to whole windows, .* another family"),
    ],
)
def test_a_network_of_fixed_sizes_is_not_exported(
    tiny: Any, tmp_path: Path, name: str, taps: int | None, message: str
) -> None:
    pytest.importorskip("onnx")
    stores = extract_both(tiny, tmp_path, backbone=name, taps=taps, views="base")
    neck = {} if taps else with_neck(kind="fpn", channels=16)
    train(config_of(**neck), run=tmp_path / "run", **stores)
    with pytest.raises(ExportError, match=message):
        export(tmp_path / "run", out=tmp_path / "m.onnx", weights="none")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.thorough
def test_estimate_tries_them(tiny: Any, tmp_path: Path) -> None:
    config = tiny.extract_config(tmp_path / "new.zarr", **_VIT)
    report = estimate(config, config_of(), seconds=0.1)
    assert list(report.forecast.modes) == ["cached", "live", "tuned"]
    assert "test_vit cannot be cut" in report.measured.uncut
    assert all(mode.failure == "" for mode in report.forecast.modes.values())
    written = extract(config)
    assert report.forecast.nbytes == pytest.approx(written.nbytes_written, rel=0.05)


@pytest.mark.thorough
def test_compare_trains_on_them(tiny: Any, tmp_path: Path) -> None:
    words = [
        "compare", "retinanet_fpn_tiny", "--images", str(tiny.paths.images), "--annotations",
        str(tiny.paths.train), "--val-annotations", str(tiny.paths.val), "--out",
        str(tmp_path / "out"), "--backbone", "test_vit", "--weights", "none", "--taps", "3",
        "--image-size", "64", "--device", "cpu", "--workers", "1", "--views", "base", "--codec",
        "fp32", "--resamples", "20", "--epochs", "1", "--set", "detector.num_convs=1", "--set",
        "detector.neck={kind: tap_pyramid, channels: 16, num_levels: 3}",
    ]  # fmt: skip
    done = CliRunner().invoke(app, [*words, "--modes", "cached"])
    assert done.exit_code == 0, done.output
    refused = CliRunner().invoke(app, [*words, "--modes", "partial", "--freeze-at", "L4"])
    assert refused.exit_code == 1
    assert "behind L4 (freeze_at) no stages can be trained from taps" in refused.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze_at": "L4"}, r"\(this one has none\), got 'L4'; it holds taps: these are normed"),
        (with_neck(kind="fpn", channels=16), "strides 16 and 16 .* with the neck tap_pyramid"),
        (with_neck(kind="simple", channels=16), "takes one level, got L2, L4, L6; .* tap_pyramid"),
    ],
)
def test_what_cannot_be_trained_is_told(
    stores: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(config_of(**changes), run=tmp_path / "run", **stores)
    assert not (tmp_path / "run").exists()


def test_states_are_joined_over_a_stage_that_is_trained(tiny: Any, tmp_path: Path) -> None:
    """What taps cannot have: heads on maps in front of the cut, of it and behind it."""
    levels = {"taps": None, "levels": ("L2", "L4", "C4")}
    stores = extract_both(tiny, tmp_path, views="base", **levels)
    train(config_of(freeze_at="L4"), run=tmp_path / "run", **stores)
    scored = evaluate(tmp_path / "run", store=stores["val_store"], config=EvalConfig())
    found = predict(
        tmp_path / "run", images=[tiny.paths.images], out=tmp_path / "out", weights="none",
        min_score=0.0,
    )  # fmt: skip
    assert sum(map(len, scored.detections)) > 0
    assert any(len(image.detections) for image in found.images)


def test_a_single_tap_serves_other_necks(stores: Any, tmp_path: Path) -> None:
    detector = with_neck(kind="simple", channels=16)["detector"] | {"levels": ["L6"]}
    report = train(config_of(detector=detector, max_steps=1), run=tmp_path / "run", **stores)
    assert report.steps == 1


def test_a_pyramid_is_not_joined(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'tap_pyramid': .* got C3 \(48 channels, stride 8\)"):
        train(config_of(), run=tmp_path / "run", **tiny.stores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--taps", "7"], "test_vit has 6 blocks, counted from 1: taps cannot be 7"),
        (["--taps", "2,9"], "test_vit has 6 blocks, counted from 1: taps cannot be 9"),
        (["--taps", "3,3"], "--taps: taps must name each block once, got '3,3'"),
        (["--taps", "0"], "--taps: expected how many blocks, such as 4, or which ones"),
        (["--taps=-2"], "(a single one: L12), got '-2'"),
        (["--taps", "2", "--levels", "C4"], "levels and taps both say what is stored: give one"),
        (["--taps", "2", "--freeze-at", "L4"], "behind L4 (freeze_at) no stages can be trained"),
        (["--global-token"], "global_token is the class token of the last tap: set taps (--taps)"),
        (["--taps", "2", "--backbone", "test_resnet"], "test_resnet has no taps, plain ViTs have"),
    ],
)
def test_bad_input_is_one_message(
    tiny: Any, tmp_path: Path, options: list[str], message: str
) -> None:
    words = [
        "extract", "--images", str(tiny.paths.images), "--annotations", str(tiny.paths.train),
        "--store", str(tmp_path / "s.zarr"), "--weights", "none", "--image-size", "64",
    ]  # fmt: skip
    backbone = [] if "--backbone" in options else ["--backbone", "test_vit"]
    result = CliRunner().invoke(app, [*words, *backbone, *options])
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "s.zarr").exists()


def test_model_counts_taps() -> None:
    neck = "detector.neck={kind: tap_pyramid, channels: 16}"
    words = ["model", "retinanet_fpn_tiny", "--set", neck, "--json", "--backbone", "test_vit"]
    counted = CliRunner().invoke(app, [*words, "--taps", "2,4"])
    assert counted.exit_code == 0, counted.output
    assert '"name": "L4"' in counted.stdout
    for wrong, message in {
        ("--taps", "x"): "--taps: expected how many blocks, such as 4",
        ("--taps", "9"): "test_vit has 6 blocks",
    }.items():
        refused = CliRunner().invoke(app, [*words, *wrong])
        assert refused.exit_code == 1
        assert message in refused.stderr
    alone = CliRunner().invoke(app, ["model", "retinanet_fpn_tiny", "--taps", "4"])
    assert "--taps are of a network: name it with --backbone" in alone.stderr


def test_taps_in_python(tiny: Any, tmp_path: Path) -> None:
    values = {k: v for k, v in _VIT.items() if k != "taps"} | {"device": "cpu"}
    paths = {"images": tiny.paths.images, "annotations": tiny.paths.train}
    extract(**paths, store=tmp_path / "s", taps=[1, 5], **values)
    assert FeatureStore.open(tmp_path / "s").spec.names == ("L1", "L5")
    with pytest.raises(BackboneError, match="taps cannot be 9"):
        extract(**paths, store=tmp_path / "t", taps=[9], **values)
    assert ExtractConfig(**paths, store=tmp_path, taps="L3").taps == (3,)
    level = LevelSpec(name="C4", channels=8, stride=16)
    wrapped = wrap_backbone(nn.Conv2d(3, 8, 16, 16), name="mine", levels=[level])
    with pytest.raises(ConfigError, match="mine was given as an object and gives the levels it"):
        extract(**paths, store=tmp_path / "t", taps=2, **values | {"backbone": wrapped})
