"""`extract` with more images than a store has: those alone are extracted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cachedet.cli import app
from cachedet.config.run import TrainConfig
from cachedet.errors import CheckpointError, StoreMismatchError
from cachedet.extract import extract
from cachedet.relabel import relabel
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store
from cachedet.train import train

CONFIG = TrainConfig.model_validate(
    {
        "detector": {"kind": "retinanet", "neck": {"kind": "fpn", "channels": 8}, "num_convs": 1},
        "schedule": {"epochs": 2, "batch_size": 3},
        "device": "cpu",
        "max_steps": 2,
    }
)


def first_five(values: dict[str, Any]) -> None:
    values["images"] = values["images"][:5]
    kept = {image["id"] for image in values["images"]}
    values["annotations"] = [box for box in values["annotations"] if box["image_id"] in kept]


def shuffle_and_correct(values: dict[str, Any]) -> None:
    """New images stand between those that are there, and a box is gone."""
    values["images"].reverse()
    del values["annotations"][0]


@pytest.fixture
def small(tiny: Any, tmp_path: Path) -> Path:
    """A store of the first five of eight images, with a codec that learns from them."""
    path = tiny.change(tiny.paths.train, tmp_path / "five.json", first_five)
    store = tmp_path / "s.zarr"
    extract(tiny.extract_config(store, annotations=path, codec="snr12"))
    return store


def test_the_new_ones_alone_are_extracted(
    tiny: Any, small: Path, tmp_path: Path, store_kit: Any
) -> None:
    before = store_kit.files(small)
    path = tiny.change(tiny.paths.train, tmp_path / "all.json", shuffle_and_correct)
    again = tiny.extract_config(small, annotations=path, codec="snr12")
    report = extract(again)
    assert (report.images, report.images_added) == (8, 3)
    assert report.blocks_written < report.blocks_total
    after = store_kit.files(small)
    changed = {name for name, content in before.items() if after.get(name) != content}
    assert changed <= {
        "manifest.json",
        "zarr.json",
        *(name for name in before if name.startswith("truth-")),
    }
    assert verify_store(small, deep=True).is_good
    # the same features as of a store extracted at once, and the labels of the file
    codec = {"codec": "snr12", "annotations": path}
    whole = tmp_path / "whole.zarr"
    extract(tiny.extract_config(whole, **codec))
    grown, made = FeatureStore.open(small), FeatureStore.open(whole)
    assert sorted(grown.annotations.file_names) == sorted(made.annotations.file_names)
    assert len(grown.annotations.labels) == len(made.annotations.labels)
    for row, name in enumerate(grown.annotations.file_names):
        other = made.annotations.file_names.index(name)
        assert grown.contents[row] == made.contents[other]
        for level, maps in grown.read(row, "hflip").items():
            twin = made.read(other, "hflip")[level]
            assert float((maps - twin).abs().max()) <= 0.5 * float(twin.abs().max())
    assert extract(again).blocks_written == 0
    assert relabel(small, annotations=path).written is False


def test_lossless_features_are_those_of_one_extraction(tiny: Any, tmp_path: Path) -> None:
    path = tiny.change(tiny.paths.train, tmp_path / "five.json", first_five)
    store = tmp_path / "s.zarr"
    extract(tiny.extract_config(store, annotations=path))
    extract(tiny.extract_config(store))
    grown, made = FeatureStore.open(store), FeatureStore.open(tiny.train)
    assert grown.annotations.file_names == made.annotations.file_names
    for row in range(8):
        for view in ("base", "hflip"):
            for level, maps in grown.read(row, view).items():
                twin = made.read(row, view)[level]
                assert float((maps - twin).abs().max()) <= 1e-5 * float(twin.abs().max())


def test_a_codec_that_was_lost_is_learnt_from_the_first_images(
    tiny: Any, small: Path, tmp_path: Path
) -> None:
    again = tiny.extract_config(small, codec="snr12")
    extract(again)
    state = (small / "codec.npz").read_bytes()
    (small / "codec.npz").unlink()
    extract(again)
    assert (small / "codec.npz").read_bytes() == state


def test_fewer_images_are_refused(tiny: Any, tmp_path: Path) -> None:
    path = tiny.change(tiny.paths.train, tmp_path / "five.json", first_five)
    extract(tiny.extract_config(tmp_path / "s.zarr"))
    with pytest.raises(
        StoreMismatchError, match="images gone: .*`cachedet relabel .*--withdraw` takes"
    ):
        extract(tiny.extract_config(tmp_path / "s.zarr", annotations=path))


def test_other_labels_of_the_images_it_had_are_told(
    tiny: Any, small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And other classes refused: a choice of classes would take those of all images away."""
    with pytest.raises(StoreMismatchError, match="other classes than the annotations of more"):
        extract(tiny.extract_config(small, choose={"classes": "disc,square"}, codec="snr12"))

    def move(values: dict[str, Any]) -> None:
        values["annotations"][0]["bbox"][0] += 1

    moved = tiny.change(tiny.paths.train, tmp_path / "moved.json", move)
    with caplog.at_level("INFO", logger="cachedet"):
        extract(tiny.extract_config(small, annotations=moved, codec="snr12"))
    told = [record.getMessage() for record in caplog.records]
    assert "note: of the images it had, other labels: boxes: 1 moved, in 1 images" in told


def test_a_caller_may_want_none(tiny: Any, small: Path, store_kit: Any) -> None:
    """`compare` does: its cells shall have seen the same images."""
    before = store_kit.files(small)
    with pytest.raises(StoreMismatchError, match="extracted from other inputs. .*images added: "):
        extract(tiny.extract_config(small, codec="snr12"), add_images=False)
    assert store_kit.files(small) == before


def test_a_run_of_fewer_images_is_not_resumed(tiny: Any, tmp_path: Path) -> None:
    path = tiny.change(tiny.paths.train, tmp_path / "five.json", first_five)
    store, run = tmp_path / "s.zarr", tmp_path / "run"
    extract(tiny.extract_config(store, annotations=path))
    train(CONFIG, train_store=store, run=run)
    extract(tiny.extract_config(store))
    message = "images were added to the store since, .*start another --run .*--init-from"
    with pytest.raises(CheckpointError, match=message):
        train(CONFIG, train_store=store, run=run, resume=True)
    further = CONFIG.model_copy(update={"init_from": str(run / "weights/last.pt"), "max_steps": 9})
    report = train(further, train_store=store, run=tmp_path / "next")
    assert report.images == 8


def test_the_command_says_it(tiny: Any, small: Path) -> None:
    arguments = [
        "extract", "--images", str(tiny.paths.images), "--annotations", str(tiny.paths.train),
        "--store", str(small), "--backbone", "test_resnet", "--weights", str(tiny.weights),
        "--image-size", "128", "--codec", "snr12", "--block-size", "3", "--batch-size", "2",
        "--device", "cpu",
    ]  # fmt: skip
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "added to the store: 3 images, and what the annotations say of all" in shown.output
    shown = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(shown.stdout)["images_added"] == 0
