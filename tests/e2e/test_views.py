"""Windows, jitter and colours through the whole pipeline: laws L3, L4 and L5, adding, scoring."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from cachedet.backbone.frozen import load_backbone
from cachedet.cli import app
from cachedet.config.run import EvalConfig, TrainConfig
from cachedet.data.backbone_input import make_input
from cachedet.data.images import decode_image
from cachedet.data.views import TRAINING_VIEWS, make_geometry, parse_views, view_named
from cachedet.errors import ConfigError, InputError, MissingFeatureError
from cachedet.evaluate import evaluate
from cachedet.extract import extract
from cachedet.loading.residency import StreamedFeatures
from cachedet.loading.targets import geometry_of, targets_of
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store
from cachedet.structures import Batch
from cachedet.train import train
from cachedet.training.checkpoint import load_checkpoint
from cachedet.training.trainer import make_trainer

ASKED = "base,hflip,scale=1.5,crop=1,jitter=2,jitter=1:0.5-1.5,colour=1,colour=1:0.5-1.5,tile=2"
VIEWS = tuple(view.name for view in parse_views(ASKED))
CONFIG = TrainConfig.model_validate(
    yaml.safe_load("""
        detector:
          {kind: retinanet, neck: {kind: fpn, channels: 16}, num_convs: 1,
           postprocess: {score_threshold: 0.005}}
        schedule: {epochs: 1, batch_size: 3, optimizer: adamw, lr: 0.003}
        device: cpu
    """)
)


@pytest.fixture(scope="module")
def added(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the tiny set with more views added to it."""
    root = tmp_path_factory.mktemp("views") / "s.zarr"
    shutil.copytree(tiny.train, root)
    report = extract(tiny.extract_config(root, views=ASKED))
    assert report.views == VIEWS
    assert report.views_kept == ()
    assert report.blocks_written == report.blocks_total - len(FeatureStore.open(tiny.train).blocks)
    return root


@pytest.fixture(scope="module")
def run(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(CONFIG, train_store=tiny.train, run=folder)
    return folder


def live_input(tiny: Any, store: FeatureStore, row: int, view: str) -> torch.Tensor:
    """What the backbone would see, made from the image file."""
    pixels = decode_image(tiny.paths.images / store.annotations.file_names[row])
    geometry = make_geometry(
        view_named(view),
        image_hw=(pixels.shape[0], pixels.shape[1]),
        image_id=int(store.annotations.image_ids[row]),
        image_size=128,
        pad_multiple=32,
    )
    return make_input(pixels, geometry, store.manifest.preprocessing)


def test_cached_features_are_those_of_the_view(tiny: Any, added: Path) -> None:
    """Laws L4 and L5: for each image alone the same as in its block."""
    store = FeatureStore.open(added)
    backbone = load_backbone("test_resnet", weights=str(tiny.weights), image_size=128)
    for view in VIEWS[2:]:
        for row in (0, 3, 7):
            expected = backbone(live_input(tiny, store, row, view)[None])
            for level, maps in store.read(row, view).items():
                torch.testing.assert_close(maps, expected[level][0], rtol=1e-5, atol=1e-5)


def test_same_losses_as_with_the_live_backbone(tiny: Any, added: Path) -> None:
    """Law L3, step by step over all views."""
    store = FeatureStore.open(added)
    backbone = load_backbone("test_resnet", weights=str(tiny.weights), image_size=128)
    source = StreamedFeatures(store, levels=store.spec.names, device=torch.device("cpu"))
    batches = [
        [(int(row), view) for row in rows[:3]]
        for view in VIEWS
        for rows in store.buckets(view).values()
    ]
    losses: dict[str, list[float]] = {"cached": [], "live": []}
    for kind, of_kind in losses.items():
        torch.manual_seed(0)
        trainer = make_trainer(CONFIG, manifest=store.manifest, total_steps=20)
        for keys in batches:
            targets = [targets_of(store, *key) for key in keys]
            batch = Batch(features=source.read(keys), targets=targets)
            if kind == "live":
                images = torch.stack([live_input(tiny, store, *key) for key in keys])
                batch = dataclasses.replace(batch, features=backbone(images))
            of_kind.append(trainer.take_step(batch)["loss"])
    assert len(losses["live"]) >= len(VIEWS)
    torch.testing.assert_close(
        torch.tensor(losses["cached"]), torch.tensor(losses["live"]), rtol=1e-5, atol=0
    )


def test_adding_views_equals_extracting_them_at_once(
    tiny: Any, added: Path, tmp_path: Path, store_kit: Any
) -> None:
    """Law L5: another process, other workers, bit for bit."""
    extract(tiny.extract_config(tmp_path / "once.zarr", views=ASKED, workers=1))
    assert store_kit.files(added) == store_kit.files(tmp_path / "once.zarr")
    assert verify_store(added, deep=True).is_good


def test_views_of_one_image_share_its_bucket(added: Path) -> None:
    store = FeatureStore.open(added)
    for view in ("hflip", "crop-k0", "jitter-s0", "jitter-0.5-1.5-s0", "colour-s0"):
        assert str(store.buckets(view)) == str(store.buckets("base"))
    keys = [(0, view) for view in ("base", "crop-k0", "jitter-s0")]
    assert len({store.bucket_of(*key) for key in keys}) == 1


def test_colours_of_grey_images_are_worth_a_note(tiny: Any, tmp_path: Path) -> None:
    grey = tmp_path / "grey"
    grey.mkdir()
    for path in tiny.paths.images.iterdir():
        Image.open(path).convert("L").convert("RGB").save(grey / path.name, quality=100)
    asked = {"images": grey, "views": "base,colour=1"}
    report = extract(tiny.extract_config(tmp_path / "grey.zarr", **asked))
    ((where, note),) = report.notes
    assert where == str(grey)
    assert note.startswith("the first 8 images are grey: of a colour view's changes saturation")
    assert not extract(tiny.extract_config(tmp_path / "s.zarr", views="colour=1")).notes
    plain = tiny.extract_config(tmp_path / "plain.zarr", **asked | {"views": "base"})
    assert not extract(plain).notes


def test_a_codecs_statistics_stay_those_of_the_store(tiny: Any, tmp_path: Path) -> None:
    """Also where they are lost and learnt again while views are added."""
    root = tmp_path / "s.zarr"
    extract(tiny.extract_config(root, views="base", codec="pca4+int8"))
    state = (root / "codec.npz").read_bytes()
    (root / "codec.npz").unlink()
    extract(tiny.extract_config(root, views="jitter=1,base", codec="pca4+int8"))
    assert (root / "codec.npz").read_bytes() == state
    assert FeatureStore.open(root).manifest.views == ("base", "jitter-s0")


def test_detections_of_several_views(added: Path, run: Path) -> None:
    single = evaluate(run, store=added)
    several = evaluate(run, store=added, config=EvalConfig(views="base,hflip,scale=1.5,crop=1"))
    results = json.loads((run / "results.json").read_text())
    assert results["views"] == ["base", "hflip", "scale-1.5", "crop-k0"]
    assert single.views == ("base",)
    assert several.scores.ap != single.scores.ap
    sizes = FeatureStore.open(added).annotations.sizes_hw
    for of_image, (height, width) in zip(several.detections, sizes.tolist(), strict=True):
        assert len(of_image) <= CONFIG.detector.postprocess.max_detections
        limits = torch.tensor([width, height, width, height]) + 0.01
        assert bool(((of_image.boxes >= -0.01) & (of_image.boxes <= limits)).all())
        assert bool((of_image.scores.diff() <= 0).all())
    only_flip = evaluate(run, store=added, config=EvalConfig(views="hflip"))
    assert only_flip.scores.num_detections > 0


def test_views_that_cannot_be_scored(tiny: Any, run: Path, added: Path, tmp_path: Path) -> None:
    message = "holds views base, not 'hflip', 'scale-1.5'; the"
    with pytest.raises(MissingFeatureError, match=message):
        evaluate(run, store=tiny.val, config=EvalConfig(views="base,hflip,scale=1.5"))
    with pytest.raises(InputError, match="unknown view 'bse'"):
        evaluate(run, store=tiny.val, config=EvalConfig(views="bse"))
    root = tmp_path / "s.zarr"
    shutil.copytree(added, root)
    for record in (root / "commits").glob("jitter-s1*"):
        record.unlink()
    assert evaluate(run, store=root).scores.num_images == 8  # its views are complete
    with pytest.raises(MissingFeatureError, match="is unfinished"):
        evaluate(run, store=root, config=EvalConfig(views="base,jitter=2"))


def test_views_added_meanwhile_change_nothing_of_a_run(
    tiny: Any, added: Path, tmp_path: Path
) -> None:
    """Also while they are being written: a run trains on the views its store held at its start."""
    schedule = CONFIG.schedule.model_copy(update={"epochs": 3})
    config = CONFIG.model_copy(update={"schedule": schedule})
    train(config, train_store=tiny.train, run=tmp_path / "whole")
    train(config.model_copy(update={"max_steps": 4}), train_store=tiny.train, run=tmp_path / "run")
    root = tmp_path / "s.zarr"
    shutil.copytree(added, root)
    for record in (root / "commits").glob("jitter-s1*"):
        record.unlink()
    train(config, train_store=root, run=tmp_path / "run", resume=True)
    one, other = (
        load_checkpoint(tmp_path / name / "weights" / "last.pt") for name in ("whole", "run")
    )
    assert one.step == other.step
    for key, value in one.heads.items():
        assert torch.equal(value, other.heads[key]), key
    wanted = config.model_copy(update={"views": {"base": 1.0, "crop": 1.0}})
    with pytest.raises(ConfigError, match="as the run found it has no 'crop'; it holds base, hfl"):
        train(wanted, train_store=root, run=tmp_path / "run", resume=True)
    with pytest.raises(MissingFeatureError, match="is unfinished"):
        train(config, train_store=root, run=tmp_path / "new")
    both = config.model_copy(update={"views": ("base", "crop"), "max_steps": 2})
    assert train(both, train_store=root, run=tmp_path / "new").steps == 2
    wanted = config.model_copy(update={"views": ("base", "hflip")})
    with pytest.raises(ConfigError, match="as the run found it has no 'hflip'"):
        train(wanted, train_store=root, run=tmp_path / "new", resume=True)


def test_through_the_command_line(tiny: Any, run: Path, added: Path, tmp_path: Path) -> None:
    root = tmp_path / "s.zarr"
    shutil.copytree(added, root)
    config = tiny.extract_config(root)
    command = ["extract", "--store", root, "--backbone", config.backbone, "--codec", "fp32"]
    command += ["--images", config.images, "--annotations", config.annotations]
    command += ["--weights", config.weights, "--image-size", "128", "--block-size", "3"]
    command += ["--batch-size", "2", "--device", "cpu", "--views"]
    call = CliRunner().invoke
    shown = call(app, [*map(str, command), "base"])
    assert shown.exit_code == 0, shown.output
    assert "keeps views that were not asked for: hflip, scale-1.5" in shown.output
    report = json.loads(call(app, [*map(str, command), "crop=2", "--json"]).stdout)
    assert report["views"] == [*VIEWS, "crop-k1"]
    assert report["blocks_written"] > 0
    refused = call(app, [*map(str, command), "scale=9"])
    assert refused.exit_code == 1
    assert "error: scale=9: expected scales from 0.1 to 4" in refused.stderr
    score = ["eval", str(run), "--store", str(root), "--device", "cpu", "--json", "--views"]
    assert json.loads(call(app, [*score, "base,crop=2"]).stdout)["views"][2] == "crop-k1"
    refused = call(app, [*score, "crop=3"])
    assert refused.exit_code == 1
    assert "not 'crop-k2'; the same `cachedet extract` with these --views adds" in refused.stderr


def test_a_tiny_image(tiny: Any, tmp_path: Path) -> None:
    """One pixel, and views of a few: every map still has a cell."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    images = []
    for image_id, (name, width) in enumerate((("dot.png", 1), ("line.png", 400)), start=1):
        Image.new("RGB", (width, 1), "red").save(tmp_path / "images" / name)
        images.append({"id": image_id, "file_name": name, "width": width, "height": 1})
    content = {
        "images": images,
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [0, 0, 1, 1],
                "area": 1,
                "iscrowd": 0,
            }
        ],
        "categories": [{"id": 1, "name": "dot"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    views = "base,scale=0.1,crop=3,jitter=8"
    extract(
        tiny.extract_config(
            tmp_path / "s.zarr", images=tmp_path / "images", annotations=tmp_path / "a.json",
            views=views, image_size=32,
        )
    )  # fmt: skip
    store = FeatureStore.open(tmp_path / "s.zarr")
    store.require_complete()
    for view in store.manifest.views:
        for row in range(2):
            height, width = geometry_of(store, row, view).valid_hw
            assert min(height, width) >= 1
            assert all(maps.numel() > 0 for maps in store.read(row, view).values())
            assert len(targets_of(store, row, view).boxes) <= 1 - row


def test_views_that_nobody_named(tiny: Any, tmp_path: Path) -> None:
    """A new store gets those for training; one that is there keeps what it has."""
    config = tiny.extract_config(tmp_path / "new.zarr", views=None)
    report = extract(config)
    assert report.views == tuple(view.name for view in parse_views(TRAINING_VIEWS))
    shutil.copytree(tiny.val, tmp_path / "val.zarr")
    again = tiny.extract_config(tmp_path / "val.zarr", annotations=tiny.paths.val, views=None)
    report = extract(again)
    assert report.views == ("base",)
    assert report.blocks_written == 0
    shown = CliRunner().invoke(app, ["extract", "--help"], env={"COLUMNS": "300"})
    assert f"Default of a new store: {TRAINING_VIEWS}" in shown.output
