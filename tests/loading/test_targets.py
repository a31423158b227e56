from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cachedet.data.views import make_geometry, view_named
from cachedet.errors import MissingFeatureError
from cachedet.loading.targets import geometry_of, targets_of
from cachedet.store.reader import FeatureStore

VIEWS = ("base", "hflip", "scale-0.5", "crop-k0", "jitter-s0", "jitter-0.5-1.5-s1")


@pytest.fixture
def store(tmp_path: Path, store_kit: Any, annotations_of: Any) -> FeatureStore:
    sizes = [(96, 128), (96, 128), (128, 96), (96, 128), (90, 128)]
    annotations = annotations_of(sizes, [[[1, 2, 30, 40, 1, 0]], [], [], [], []])
    root = store_kit.of(annotations).fill(tmp_path / "s.zarr", store_kit.noise_of, views=VIEWS)
    return FeatureStore.open(root)


def test_geometries_are_those_of_the_image(store: FeatureStore) -> None:
    drawn = set()
    for view in VIEWS:
        for row in range(len(store)):
            geometry = geometry_of(store, row, view)
            assert geometry == make_geometry(
                view_named(view),
                image_hw=store.annotations.size_of(row),
                image_id=int(store.annotations.image_ids[row]),
                image_size=128,
                pad_multiple=32,
            )
            assert geometry.padded_hw == store.bucket_of(row, view)
            shapes = store.spec.map_shapes(geometry.padded_hw)
            assert {k: m.shape for k, m in store.read(row, view).items()} == shapes
            drawn.add(geometry if view == "jitter-s0" else None)
    assert len(drawn) == 6  # each of the five images has a draw of its own


def test_boxes_are_those_of_the_view(store: FeatureStore) -> None:
    assert targets_of(store, 0, "hflip").boxes.tolist() == [[98.0, 2.0, 127.0, 40.0]]
    assert targets_of(store, 0, "crop-k0").size_hw == (96, 128)


def test_views_and_images_the_store_lacks(store: FeatureStore) -> None:
    with pytest.raises(MissingFeatureError, match="holds views base, .*, not 'crop-k1'"):
        targets_of(store, 0, "crop-k1")
    with pytest.raises(MissingFeatureError, match="has rows 0 to 4, got row 5"):
        geometry_of(store, 5, "base")
