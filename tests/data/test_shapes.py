from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cachedet.data.annotation_formats import read_dataset
from cachedet.data.shapes import CLASS_NAMES, draw_image, write_shapes
from cachedet.data.survey import scan_images


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first = write_shapes(tmp_path / "1", train=3, val=2, seed=4)
    second = write_shapes(tmp_path / "2", train=3, val=2, seed=4)
    other = write_shapes(tmp_path / "3", train=3, val=2, seed=5)
    for file in sorted(first.images.iterdir()):
        assert file.read_bytes() == (second.images / file.name).read_bytes()
        assert file.read_bytes() != (other.images / file.name).read_bytes()
    assert json.loads(first.train.read_text()) == json.loads(second.train.read_text())


def test_is_a_usable_coco_set(tmp_path: Path) -> None:
    paths = write_shapes(tmp_path, train=6, val=4)
    dataset = read_dataset(annotations=paths.train, images=paths.images)
    assert dataset.annotations.categories.names == CLASS_NAMES
    assert dataset.counts["degenerate boxes dropped"] == 0
    assert dataset.counts["boxes partly outside"] == 0
    assert scan_images(dataset, workers=1).bad == ()


def test_boxes_hold_objects_of_the_promised_sizes() -> None:
    sides, labels = [], []
    for number in range(30):
        pixels, objects = draw_image(np.random.default_rng([1, number]))
        assert pixels.dtype == np.uint8
        for drawn in objects:
            label, (x, y, width, height) = drawn.label, drawn.box
            area = int(drawn.mask.sum())
            assert int(drawn.mask[y : y + height, x : x + width].sum()) == area
            assert 0 <= x < x + width <= pixels.shape[1]
            assert 0 <= y < y + height <= pixels.shape[0]
            assert 20 <= area <= width * height
            sides.append(max(width, height))
            labels.append(label)
    assert min(sides) >= 5
    assert max(sides) <= 206
    counts = np.bincount(labels, minlength=len(CLASS_NAMES))
    assert counts[:2].sum() > 3 * counts[-2:].sum()
