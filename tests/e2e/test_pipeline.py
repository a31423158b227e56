"""Extract, train, score and predict on eight generated images with a tiny real backbone."""

from __future__ import annotations

import dataclasses
import hashlib
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
from cachedet.cli import app
from cachedet.config.detector import CascadeRCNNConfig, MaskHeadConfig
from cachedet.config.run import TrainConfig, load_train_config
from cachedet.errors import (
    BackboneError,
    CheckpointError,
    ConfigError,
    MissingFeatureError,
    StoreMismatchError,
)
from cachedet.evaluate import evaluate
from cachedet.extract import extract
from cachedet.live.modes import inputs_of
from cachedet.loading.loader import FeatureLoader
from cachedet.predict import predict
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store
from cachedet.train import make_trainer, train
from cachedet.training.checkpoint import load_checkpoint

CONFIG = TrainConfig.model_validate(
    yaml.safe_load("""
        detector:
          {kind: retinanet, neck: {kind: fpn, channels: 16}, num_convs: 1,
           postprocess: {score_threshold: 0.005}}
        schedule:
          {epochs: 3, batch_size: 3, optimizer: adamw, lr: 0.003, warmup_steps: 2, kind: cosine,
           clip_norm: 5.0}
        device: cpu
    """)
)
CASCADE = CONFIG.model_copy(
    update={
        "detector": CascadeRCNNConfig.model_validate(
            yaml.safe_load("""
                kind: cascade_rcnn
                neck: {kind: nasfpn, channels: 16, repeats: 1}
                adapters: {kind: pointwise}
                rpn: {samples: 32, train_post_nms: 40, test_post_nms: 30}
                roi_head: {samples: 16, num_convs: 0, fc_channels: 16}
                postprocess: {score_threshold: 0.005}
            """)
        )
    }
)


@pytest.fixture(scope="module")
def run(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(CONFIG, **tiny.stores, run=folder)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("config", [CONFIG, CASCADE], ids=["retinanet", "cascade"])
def test_same_losses_as_with_the_live_backbone(tiny: Any, config: TrainConfig) -> None:
    """Law L3: fp32 cache against images decoded and forwarded in every step."""
    store = FeatureStore.open(tiny.train)
    views = ("base", "hflip")
    loader = FeatureLoader(
        store, views=views, levels=store.manifest.spec.names, batch_size=3, seed=0
    )
    backbone = load_backbone("test_resnet", weights=str(tiny.weights), image_size=128)
    assert backbone.digest == store.manifest.weights_digest
    inputs = inputs_of(store, tiny.paths.images)
    losses: dict[str, list[float]] = {"cached": [], "live": []}
    for kind, of_kind in losses.items():
        torch.manual_seed(0)
        trainer = make_trainer(config, manifest=store.manifest, total_steps=9)
        for epoch in range(2):
            for keys, batch in zip(loader.plan(epoch), loader.epoch(epoch), strict=True):
                if kind == "live":
                    images = [inputs.load(int(row), views[view]) for view, row in keys]
                    batch = dataclasses.replace(batch, features=backbone(torch.stack(images)))
                of_kind.append(trainer.take_step(batch)["loss"])
    assert len(losses["live"]) >= 6
    torch.testing.assert_close(
        torch.tensor(losses["cached"]), torch.tensor(losses["live"]), rtol=1e-5, atol=0
    )


def test_extracting_again_is_bit_exact_and_changes_no_input(tiny: Any, tmp_path: Path) -> None:
    """Laws L5 and L8, with other workers."""
    before = digests(tiny.paths.images.parent)
    extract(tiny.extract_config(tmp_path / "again.zarr", workers=1))
    assert digests(tiny.paths.images.parent) == before
    first, second = digests(tiny.train), digests(tmp_path / "again.zarr")
    assert first == second


def test_features_do_not_depend_on_the_other_images_of_a_block(tiny: Any, tmp_path: Path) -> None:
    """Law L5: other blocks and batches, the same features."""
    extract(tiny.extract_config(tmp_path / "one.zarr", block_size=1, batch_size=1))
    together, alone = (FeatureStore.open(p) for p in (tiny.train, tmp_path / "one.zarr"))
    for row in range(len(together)):
        for level, maps in together.read(row, "hflip").items():
            torch.testing.assert_close(maps, alone.read(row, "hflip")[level], rtol=1e-5, atol=1e-5)


def test_extraction_continues_and_mends(tiny: Any, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    shutil.copytree(tiny.train, store)
    records = sorted((store / "commits").iterdir())
    records[0].unlink()
    shard = next((store / "hflip").rglob("c/0/0/0/0"))
    shard.write_bytes(b"")
    assert not verify_store(store, deep=False).is_good
    report = extract(tiny.extract_config(store))
    assert report.blocks_written == 2
    assert digests(store) == digests(tiny.train)
    assert extract(tiny.extract_config(store)).blocks_written == 0


def test_changed_inputs_are_refused(tiny: Any) -> None:
    with pytest.raises(StoreMismatchError, match="image_size: 128 in the store, 160 now"):
        extract(tiny.extract_config(tiny.train, image_size=160))


def test_a_run_leaves_what_it_promises(run: Path) -> None:
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    promised = {"config.yaml", "metrics.csv", "log.txt", "plots/training.png"}
    assert promised | {"weights/best.pt", "weights/last.pt"} <= files
    pinned = {"base": 0.5, "hflip": 0.5}  # all views of its store
    assert load_train_config(run / "config.yaml") == CONFIG.model_copy(update={"views": pinned})
    last = load_checkpoint(run / "weights" / "last.pt")
    assert (last.epoch, last.batch) == (3, 0)
    assert not any("backbone" in name for name in last.heads)


@pytest.mark.parametrize("stop", [1, 4])
def test_resume_is_bit_exact(tiny: Any, run: Path, tmp_path: Path, stop: int) -> None:
    """Law L6: stopped in the middle of an epoch, the rest equals the uninterrupted run."""
    folder = tmp_path / "run"
    first = train(CONFIG.model_copy(update={"max_steps": stop}), **tiny.stores, run=folder)
    assert first.steps == stop
    train(CONFIG, **tiny.stores, run=folder, resume=True)
    whole = load_checkpoint(run / "weights" / "last.pt")
    resumed = load_checkpoint(folder / "weights" / "last.pt")
    assert resumed.step == whole.step
    for name, tensor in whole.heads.items():
        assert torch.equal(resumed.heads[name], tensor), name
    lines = (folder / "metrics.csv").read_text().splitlines()
    steps = [line.split(",")[0] for line in lines[1:] if line.split(",")[3]]
    assert len(steps) == len(set(steps))


def test_a_cascade_is_trained_resumed_and_scored(tiny: Any, tmp_path: Path) -> None:
    """Law L6 where RoIs are drawn at random: the random state is part of the checkpoint."""
    train(CASCADE, run=tmp_path / "whole", **tiny.stores)
    train(CASCADE.model_copy(update={"max_steps": 4}), run=tmp_path / "run", **tiny.stores)
    train(CASCADE, run=tmp_path / "run", resume=True, **tiny.stores)
    whole, resumed = (
        load_checkpoint(tmp_path / name / "weights" / "last.pt") for name in ("whole", "run")
    )
    for name, tensor in whole.heads.items():
        assert torch.equal(resumed.heads[name], tensor), name
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert "loss_rpn_class,loss_rpn_box,loss_class,loss_box" in header
    assert "learning rate 0.003" in (tmp_path / "run" / "log.txt").read_text()
    assert evaluate(tmp_path / "run", store=tiny.val).scores.num_detections > 0


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("default:The .grad attribute of a Tensor")  # torch looks at it itself
def test_compiled_parts_give_the_same_losses(tiny: Any) -> None:
    store = FeatureStore.open(tiny.train)
    neck = {"kind": "fpn", "channels": 8, "num_levels": 1}
    detector = {"kind": "retinanet", "levels": ["C5"], "neck": neck, "num_convs": 1}
    plain = TrainConfig.model_validate({"detector": detector, "device": "cpu"})
    loader = FeatureLoader(store, views=("base",), levels=("C5",), batch_size=3, seed=0)
    batch = next(loader.epoch(0))
    losses: dict[bool, list[float]] = {False: [], True: []}
    for compiled, of_kind in losses.items():
        torch.manual_seed(0)
        config = plain.model_copy(update={"compile": compiled})
        trainer = make_trainer(config, manifest=store.manifest, total_steps=9)
        of_kind.extend(trainer.take_step(batch)["loss"] for _ in range(3))
        assert not any("_orig_mod" in name for name in trainer.detector.state_dict())
    assert losses[True][2] != losses[True][0]
    torch.testing.assert_close(
        torch.tensor(losses[True]), torch.tensor(losses[False]), rtol=1e-4, atol=0
    )


def test_a_mask_head_is_trained_scored_and_drawn(tiny: Any, tmp_path: Path) -> None:
    """Masks travel from the annotation file through the store into losses, AP and drawings."""
    detector = CASCADE.detector.model_copy(
        update={"mask_head": MaskHeadConfig(resolution=7, num_convs=1, channels=8)}
    )
    config = CASCADE.model_copy(update={"detector": detector})
    train(config, **tiny.stores, run=tmp_path / "run")
    assert "loss_mask" in (tmp_path / "run" / "metrics.csv").read_text()
    report = evaluate(tmp_path / "run", store=tiny.val)
    rows = json.loads((tmp_path / "run" / "detections.json").read_text())
    assert {"size", "counts"} == set(rows[0]["segmentation"])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["masks"]["ap"] == report.mask_scores.ap
    image = tiny.paths.images / "val_00000.jpg"
    settings: dict[str, Any] = {"weights": str(tiny.weights), "min_score": 0.0, "device": "cpu"}
    predicted = predict(tmp_path / "run", images=[image], out=tmp_path / "drawn", **settings)
    assert all("segmentation" in d for d in predicted.to_json()["images"][0]["detections"])
    shown = call("eval", tmp_path / "run", "--store", tiny.val, "--device", "cpu")
    assert "COCO figures of masks" in shown.output


def test_a_mask_head_needs_masks(tiny: Any, tmp_path: Path) -> None:
    def without_masks(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            del annotation["segmentation"]

    plain = tiny.change(tiny.paths.train, tmp_path / "plain.json", without_masks)
    extract(tiny.extract_config(tmp_path / "s.zarr", annotations=plain))
    detector = CASCADE.detector.model_copy(update={"mask_head": MaskHeadConfig()})
    config = CASCADE.model_copy(update={"detector": detector})
    with pytest.raises(ConfigError, match="detector.mask_head needs masks, the store's annotat"):
        train(config, train_store=tmp_path / "s.zarr", run=tmp_path / "run")


def test_learning_happens(tiny: Any, tmp_path: Path) -> None:
    schedule = CONFIG.schedule.model_copy(update={"epochs": 12})
    config = CONFIG.model_copy(update={"schedule": schedule})
    report = train(config, train_store=tiny.train, run=tmp_path / "run")
    assert report.best_ap is None
    assert sum(report.losses[-4:]) < 0.7 * sum(report.losses[:4])
    assert (tmp_path / "run" / "weights" / "best.pt").is_file()


def test_scores_and_results_file(tiny: Any, run: Path) -> None:
    report = evaluate(run, store=tiny.val)
    results = json.loads((run / "results.json").read_text())
    assert results["ap"] == report.scores.ap
    assert len(results["per_class"]) == 10
    assert results["evaluator"] == "cachedet, equal to pycocotools"
    rows = json.loads((run / "detections.json").read_text())
    assert len(rows) == report.scores.num_detections > 0
    assert {row["category_id"] for row in rows} <= {3 * n for n in range(1, 11)}


def test_prediction_from_files_equals_scoring_from_the_store(
    tiny: Any, run: Path, tmp_path: Path
) -> None:
    report = evaluate(run, store=tiny.val)
    files = [tiny.paths.images / f"val_{n:05d}.jpg" for n in range(4)]
    predicted = predict(
        run, images=files, out=tmp_path, weights=str(tiny.weights), min_score=0.0, device="cpu"
    )
    for image, stored in zip(predicted.images, report.detections, strict=True):
        scores = image.detections.scores
        torch.testing.assert_close(scores, stored.scores, rtol=1e-4, atol=1e-5)
        assert image.drawing.is_file()
    written = json.loads((tmp_path / "detections.json").read_text())
    assert written == predicted.to_json()["images"]


def test_prediction_needs_the_same_weights(tiny: Any, run: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"give the same ones with --weights"):
        predict(run, images=[tiny.paths.images], out=tmp_path, weights="none", device="cpu")


def test_a_store_of_other_classes(tiny: Any, run: Path, tmp_path: Path) -> None:
    more = tiny.change(
        tiny.paths.val,
        tmp_path / "more.json",
        lambda content: content["categories"].append({"id": 77, "name": "zebra"}),
    )
    extract(tiny.extract_config(tmp_path / "s.zarr", annotations=more))
    notes = evaluate(run, store=tmp_path / "s.zarr").analysis.notes
    assert any("what is scored does not know zebra" in note for note in notes)
    message = (
        "other classes than the training store: only there {77: 'zebra'}, only for training {}"
    )
    with pytest.raises(CheckpointError, match=message):
        train(CONFIG, train_store=tiny.train, val_store=tmp_path / "s.zarr", run=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_runs_that_do_not_fit(tiny: Any, run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="exists already and is not empty"):
        train(CONFIG, train_store=tiny.train, run=run)
    changed = CONFIG.model_copy(update={"seed": 5})
    with pytest.raises(CheckpointError, match="cannot resume .* seed was 0, is 5"):
        train(changed, train_store=tiny.train, run=run, resume=True)
    with pytest.raises(CheckpointError, match=r"trains on views base, hflip, and .* has no hflip"):
        train(CONFIG, train_store=tiny.val, run=run, resume=True)
    detector = CONFIG.detector.model_copy(update={"levels": ("C2",)})
    wrong = CONFIG.model_copy(update={"detector": detector})
    with pytest.raises(ConfigError, match="asks for 'C2', the store holds C3, C4, C5"):
        train(wrong, train_store=tiny.train, run=tmp_path / "r")
    extract(tiny.extract_config(tmp_path / "none.zarr", weights="none"))
    with pytest.raises(CheckpointError, match="features with weights_digest = "):
        evaluate(run, store=tmp_path / "none.zarr")
    with pytest.raises(CheckpointError, match="the validation store differs in weights_digest"):
        train(CONFIG, train_store=tiny.train, val_store=tmp_path / "none.zarr", run=tmp_path / "r")
    shutil.rmtree(tmp_path / "none.zarr" / "commits")
    (tmp_path / "none.zarr" / "commits").mkdir()
    with pytest.raises(MissingFeatureError, match="is unfinished"):
        train(CONFIG, train_store=tmp_path / "none.zarr", run=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands(tiny: Any, tmp_path: Path) -> None:
    shown = call("info", tiny.train)
    assert shown.exit_code == 0
    assert "test_resnet" in shown.output
    described = json.loads(call("info", tiny.train, "--json").stdout)
    assert described["images"] == 8
    assert json.loads(call("verify", tiny.train, "--deep", "--json").stdout)["ok"] is True
    shutil.copytree(tiny.train, tmp_path / "s.zarr")
    next((tmp_path / "s.zarr").rglob("c/0/0/0/0")).unlink()
    checked = call("verify", tmp_path / "s.zarr")
    assert checked.exit_code == 1
    assert "the shard file is missing" in checked.output
    assert call("extract").exit_code == 2


def test_a_users_error_is_one_message_without_a_traceback(tmp_path: Path) -> None:
    launcher = Path(__file__).parents[2] / "cli.py"
    done = subprocess.run(
        [sys.executable, launcher, "info", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "is not a feature store" in done.stderr
    assert done.stderr.count("\n") == 1
