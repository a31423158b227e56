"""Running a trained detector over a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import nn

from cachedet.detector.protocol import run_detector
from cachedet.evaluation.merging import Merging, ViewDetections
from cachedet.loading.loader import FeatureLoader
from cachedet.loading.targets import geometry_of
from cachedet.store.reader import FeatureStore
from cachedet.structures import Batch, Detections

EVAL_VIEW = "base"


BatchSource = Callable[[str], Iterator[tuple[list[int], Batch]]]
"""Gives every image of a view once, as rows of the store and what the detector takes."""


@torch.no_grad()
def detect_store(
    detector: nn.Module,
    store: FeatureStore,
    *,
    batches: BatchSource,
    views: Sequence[str] = (EVAL_VIEW,),
    method: Literal["detect", "propose"] = "detect",
    merging: Merging | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[Detections]:
    """Detections of every image in pixels of the image, in the order of the store's rows.

    `batches` may come from anywhere: `store` only says what its images are. Those of several
    `views` are merged, by default as `Merging` does. Where a view is a window, what its border cuts
    is left to the other views. With "propose" they are what the first stage proposes, see
    `Detector`, and a window cuts nothing. `on_progress` is called with the images that are done,
    for each view.
    """
    was_training = detector.training
    detector.eval()
    in_image = ViewDetections.of if method == "detect" else ViewDetections.whole
    by_row: dict[int, list[ViewDetections]] = {row: [] for row in range(len(store))}
    for view in views:
        for rows, batch in batches(view):
            detections = run_detector(
                detector,
                batch.features,
                sizes_hw=batch.sizes_hw,
                image_ids=batch.image_ids,
                method=method,
            )
            for row, of_view in zip(rows, detections, strict=True):
                by_row[row].append(in_image(of_view, geometry_of(store, row, view)))
            if on_progress is not None:
                on_progress(len(detections))
    detector.train(was_training)
    merge = merging if merging is not None else Merging()
    return [merge(of_image) for of_image in by_row.values()]


def stored_batches(
    store: FeatureStore, *, levels: Sequence[str], batch_size: int, device: torch.device
) -> BatchSource:
    """The store's own features; they raise MissingFeatureError where it lacks a view."""

    def of_view(view: str) -> Iterator[tuple[list[int], Batch]]:
        loader = FeatureLoader(
            store, views=[view], levels=levels, batch_size=batch_size, seed=0, device=device
        )
        for keys, batch in zip(loader.plan(0), loader.epoch(0), strict=True):
            yield [int(row) for _, row in keys], batch

    return of_view
