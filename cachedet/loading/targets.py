"""Where the views of a store meet its annotations."""

from __future__ import annotations

from cachedet.data.geometry import Geometry
from cachedet.data.views import make_geometry, make_targets, view_named
from cachedet.store.reader import FeatureStore
from cachedet.structures import Targets


def geometry_of(store: FeatureStore, row: int, view: str) -> Geometry:
    """How `view` maps image `row`. Raises MissingFeatureError where the store lacks either."""
    store.bucket_of(row, view)
    return make_geometry(
        view_named(view),
        image_hw=store.annotations.size_of(row),
        image_id=int(store.annotations.image_ids[row]),
        image_size=store.manifest.image_size,
        pad_multiple=store.manifest.pad_multiple,
    )


def targets_of(store: FeatureStore, row: int, view: str) -> Targets:
    """Boxes of image `row` in pixels of `view`. Raises as `geometry_of`."""
    return make_targets(store.annotations, row, geometry_of(store, row, view))
