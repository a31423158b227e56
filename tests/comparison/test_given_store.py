"""Stores that a comparison is given: what fits is read, what does not is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cachedet.comparison.given_store import identity_of, require_fitting
from cachedet.config.run import ExtractConfig
from cachedet.errors import InputError, MissingFeatureError
from cachedet.extract import extract, open_dataset, open_network
from cachedet.store.reader import FeatureStore


def hold(config: ExtractConfig, *, has_weights: bool = True) -> FeatureStore:
    """As `compare` holds a store against what is asked for."""
    store = FeatureStore.open(config.store)
    require_fitting(
        store,
        config,
        open_dataset(config),
        open_network(config),
        option="--train-store",
        has_weights=has_weights,
    )
    return store


@pytest.fixture(scope="module")
def asked(tiny: Any) -> ExtractConfig:
    """What the store was extracted with."""
    config: ExtractConfig = tiny.extract_config(tiny.train)
    return config


def test_a_store_that_holds_what_is_asked_for(asked: ExtractConfig) -> None:
    store = hold(asked)
    fewer = hold(asked.model_copy(update={"views": "base"}))  # it may hold more views
    assert len(store) == len(fewer) == 8
    assert identity_of(store, asked) == identity_of(store, asked)
    assert identity_of(store, asked) != identity_of(store.keep_rows([0, 1]), asked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 160}, "--image-size: 128 there, 160 here"),
        ({"codec": "int8"}, "--codec: fp32 there, int8 here"),
        ({"levels": ("C3", "C4")}, "levels: C3, C4, C5 there, C3, C4 here"),
        ({"precision": "bf16"}, "levels: C3, C4, C5 there, C3, C4, C5, computed in bf16 here"),
        ({"views": "base,jitter=2"}, "--views: base, hflip there, which lacks jitter=2"),
        ({"weights": "none"}, r"--weights: .*weights\.pth there, .* here, which differ"),
        (
            {"backbone": "test_convnext", "weights": "none", "codec": "fp16"},
            "--backbone: test_resnet there, test_convnext here; --codec: fp32 there, fp16 here",
        ),
    ],
)
def test_other_features_are_refused(
    asked: ExtractConfig, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        hold(asked.model_copy(update=change))
    told = str(caught.value)
    assert told.startswith(f"--train-store {asked.store} is not what is asked for. ")
    assert told.endswith(
        "Give the options and annotations that it was extracted with (`cachedet info` shows them), "
        "or leave --train-store out: the features are then extracted into --out"
    )


def test_weights_matter_where_they_are_named_or_run(asked: ExtractConfig) -> None:
    other = asked.model_copy(update={"weights": "none"})
    held = hold(other, has_weights=False)
    assert held.manifest.weights_digest != open_network(other).digest


def _rename_class(values: dict[str, Any]) -> None:
    values["categories"][0]["name"] = "other"


def _drop_image(values: dict[str, Any]) -> None:
    gone = values["images"].pop()["id"]
    values["annotations"] = [o for o in values["annotations"] if o["image_id"] != gone]


def _widen_image(values: dict[str, Any]) -> None:
    values["images"][0]["width"] += 1


def _move_box(values: dict[str, Any]) -> None:
    values["annotations"][0]["bbox"][2] -= 3


def _drop_boxes(values: dict[str, Any]) -> None:
    values["annotations"] = values["annotations"][2:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename_class, r"classes: only there {.*}, only here {.*'other'}"),
        (_drop_image, r"it has 1 image that .*changed\.json lacks \(train_00007\.jpg\)"),
        (_widen_image, r"changed\.json gives other sizes of its images"),
        (_move_box, "boxes: 1 moved, in 1 images"),
        (_drop_boxes, "boxes: 2 removed, in"),
    ],
)
def test_other_labels_are_refused(
    tiny: Any,
    asked: ExtractConfig,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    changed = tiny.change(tiny.paths.train, tmp_path / "changed.json", change)
    with pytest.raises(InputError, match=message):
        hold(asked.model_copy(update={"annotations": changed}))


def test_an_image_that_was_left_out(tiny: Any, tmp_path: Path) -> None:
    """It is missing in the store and named in the annotations."""
    images = tmp_path / "images"
    images.mkdir()
    for path in tiny.paths.images.iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    (images / "val_00001.jpg").write_bytes(b"no image")
    config = tiny.extract_config(
        tmp_path / "some.zarr", annotations=tiny.paths.val, views="base", images=images
    ).model_copy(update={"on_bad_image": "skip"})
    extract(config)
    assert len(hold(config)) == 3
    with pytest.raises(
        InputError, match=r"it lacks 1 image of .*\(val_00001.jpg\), as --on-bad-image skip left"
    ):
        hold(config.model_copy(update={"on_bad_image": "fail"}))
    other = config.model_copy(update={"annotations": tiny.paths.train})
    with pytest.raises(InputError, match=r"it has 3 images that .*; it lacks 8 images of .*\)\. G"):
        hold(other)


def test_an_unfinished_store_is_refused(asked: ExtractConfig, tiny: Any, tmp_path: Path) -> None:
    part = shutil.copytree(tiny.train, tmp_path / "part.zarr")
    next((part / "commits").glob("hflip*")).unlink()
    with pytest.raises(MissingFeatureError, match=r"part\.zarr is unfinished: 1 of"):
        hold(asked.model_copy(update={"store": part}))
    hold(asked.model_copy(update={"store": part, "views": "base"}))
