"""Running a trained detector over a store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from cachedet.detector.build import Detector
from cachedet.store.reader import FeatureStore
from cachedet.structures import Detections
from cachedet.training.loader import FeatureLoader

EVAL_VIEW = "base"


@torch.no_grad()
def detect_store(
    detector: Detector,
    store: FeatureStore,
    *,
    levels: Sequence[str],
    batch_size: int,
    device: torch.device,
    on_progress: Callable[[int], None] | None = None,
) -> list[Detections]:
    """Detections of every picture in pixels of the picture, in the order of the store's rows.

    Raises MissingFeatureError where the store lacks the `base` view.
    """
    was_training = detector.training
    detector.eval()
    loader = FeatureLoader(
        store, views=[EVAL_VIEW], levels=levels, batch_size=batch_size, seed=0, device=device
    )
    found: dict[int, Detections] = {}
    for keys, batch in zip(loader.plan(0), loader.batches(0), strict=True):
        on_device = batch.to(device)
        detections = detector.detect(
            on_device.features, sizes_hw=batch.sizes_hw, image_ids=batch.image_ids
        )
        for (_, row), of_view in zip(keys, detections, strict=True):
            boxes = store.geometry(int(row), EVAL_VIEW).boxes_to_picture(of_view.boxes)
            found[int(row)] = dataclasses.replace(of_view.cpu(), boxes=boxes)
        if on_progress is not None:
            on_progress(len(detections))
    detector.train(was_training)
    return [found[row] for row in range(len(store))]
