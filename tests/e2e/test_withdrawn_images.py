"""Images leave a store that was extracted from files, and come back to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cachedet.config.run import TrainConfig
from cachedet.errors import CheckpointError, StoreError, StoreMismatchError
from cachedet.extract import extract, extract_dataset, open_dataset
from cachedet.relabel import relabel
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.manifest import load_manifest
from cachedet.store.prune import prune_store
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


def without(*numbers: int) -> Callable[[dict[str, Any]], None]:
    """The file without these images and their boxes."""

    def change(values: dict[str, Any]) -> None:
        gone = {values["images"][number]["id"] for number in numbers}
        values["images"] = [image for image in values["images"] if image["id"] not in gone]
        boxes = values["annotations"]
        values["annotations"] = [box for box in boxes if box["image_id"] not in gone]

    return change


def names_in(path: Path) -> list[str]:
    return [image["file_name"] for image in json.loads(path.read_text())["images"]]


def fewer(tiny: Any, tmp_path: Path, *numbers: int) -> Path:
    made: Path = tiny.change(tiny.paths.train, tmp_path / f"{numbers}.json", without(*numbers))
    return made


def test_images_leave_and_come_back(tiny: Any, tmp_path: Path) -> None:
    """Their files may be gone meanwhile, also where a view is added or a block written anew."""
    store, path = tmp_path / "s.zarr", fewer(tiny, tmp_path, 1, 2)
    extract(tiny.extract_config(store, block_size=2))
    relabel(store, annotations=path, withdraw=True)
    assert [*FeatureStore.open(store).annotations.file_names] == names_in(path)
    assert prune_store(store, dry_run=False).waste[3].kind == "image"
    again = tiny.extract_config(store, annotations=path, block_size=2, views="base,hflip,scale=0.5")
    first = next(store.glob("commits/base-*-000000.json"))
    first.unlink()
    report = extract(again)
    assert (report.images, report.images_added, report.images_returned) == (6, 0, 0)
    assert report.blocks_missing == 0
    assert 0 < report.blocks_written < report.blocks_total
    assert verify_store(store, deep=True).is_good
    made = FeatureStore.open(tiny.train)
    back = extract(tiny.extract_config(store, block_size=2))
    assert (back.images, back.images_returned) == (8, 2)
    assert back.blocks_written > 0
    assert verify_store(store, deep=True).is_good
    now = FeatureStore.open(store)
    assert now.annotations.file_names == made.annotations.file_names
    for row in range(8):
        for level, maps in now.read(row, "hflip").items():
            twin = made.read(row, "hflip")[level]
            assert float((maps - twin).abs().max()) <= 1e-5 * float(twin.abs().max())
    with pytest.raises(StoreMismatchError, match="images gone: .*`cachedet relabel .*--withdraw`"):
        extract(again)


def test_a_comparison_takes_no_image_back(tiny: Any, tmp_path: Path) -> None:
    store, path = tmp_path / "s.zarr", fewer(tiny, tmp_path, 1)
    config = tiny.extract_config(store)
    extract(config)
    relabel(store, annotations=path, withdraw=True)
    same = tiny.extract_config(store, annotations=path)
    assert extract_dataset(same, open_dataset(same)).blocks_written == 0
    with pytest.raises(StoreMismatchError, match=r"that `cachedet relabel --withdraw` took out"):
        extract_dataset(config, open_dataset(config))


def test_what_a_codec_learnt_from_images_that_left(tiny: Any, tmp_path: Path) -> None:
    store, path = tmp_path / "s.zarr", fewer(tiny, tmp_path, 1)
    config = tiny.extract_config(store, codec="snr12")
    extract(config)
    relabel(store, annotations=path, withdraw=True)
    state = (store / "codec.npz").read_bytes()
    (store / "codec.npz").unlink()
    message = r"of the images that it learnt from 1 were taken out of the store \(.*\)\. Give"
    with pytest.raises(StoreError, match=message):
        extract(tiny.extract_config(store, annotations=path, codec="snr12"))
    extract(config)
    assert (store / "codec.npz").read_bytes() == state


def test_a_run_is_not_resumed_with_fewer_images(tiny: Any, tmp_path: Path) -> None:
    store, path = tmp_path / "s.zarr", fewer(tiny, tmp_path, 1)
    extract(tiny.extract_config(store))
    train(CONFIG, train_store=store, run=tmp_path / "run")
    relabel(store, annotations=path, withdraw=True)
    for relabelled in (False, True):
        with pytest.raises(CheckpointError, match="images left the store or came back since"):
            train(
                CONFIG,
                train_store=store,
                run=tmp_path / "run",
                resume=True,
                relabelled=relabelled,
            )
    from_it = CONFIG.model_copy(update={"init_from": str(tmp_path / "run/weights/last.pt")})
    assert train(from_it, train_store=store, run=tmp_path / "new").steps == 2
    relabel(store, annotations=tiny.paths.train)
    assert load_manifest(LocalFiles(store)).withdrawn_digest == ""
    longer = CONFIG.model_copy(update={"max_steps": 3})
    assert train(longer, train_store=store, run=tmp_path / "run", resume=True).steps == 3
