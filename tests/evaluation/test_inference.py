"""Test-time views: what a detector finds in each is mapped back and merged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cachedet.errors import MissingFeatureError
from cachedet.evaluation.inference import detect_store, stored_batches
from cachedet.evaluation.merging import Merging
from cachedet.loading.targets import geometry_of
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.layout import Block
from cachedet.store.format.plan import StorePlan
from cachedet.store.reader import FeatureStore
from cachedet.structures import Detections, Features, SizeHW

VIEWS = ("base", "hflip", "scale-2", "crop-k0", "jitter-1-3-s0")
BOX = [[30, 20, 90, 70, 0, 0]]


class Painted(nn.Module):
    """A detector of what was painted: its maps hold the box of the view, in pixels, and a score."""

    def propose(
        self, features: Features, *, sizes_hw: Sequence[SizeHW], image_ids: Sequence[int]
    ) -> list[Detections]:
        return self.detect(features, sizes_hw=sizes_hw, image_ids=image_ids)

    def detect(
        self, features: Features, *, sizes_hw: Sequence[SizeHW], image_ids: Sequence[int]
    ) -> list[Detections]:
        assert not self.training
        detections = []
        for maps, (height, width), image_id in zip(
            features["C4"], sizes_hw, image_ids, strict=True
        ):
            values = maps[:5, 0, 0]
            box = values[:4].clamp(min=0).minimum(torch.tensor([width, height] * 2))
            seen = bool(box[2] > box[0] and box[3] > box[1])
            boxes, scores = (box[None], values[4:]) if seen else (box[:0], values[:0])
            detections.append(make(image_id, boxes.reshape(-1, 4), scores))
        return detections


def make(image_id: int, boxes: Tensor, scores: Tensor) -> Detections:
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    masks = torch.linspace(0, 1, 4).expand(len(boxes), 2, 4)  # rises to the right
    return Detections(image_id=image_id, boxes=boxes, scores=scores, labels=labels, masks=masks)


@pytest.fixture
def store(tmp_path: Path, annotations_of: Any, store_kit: Any) -> FeatureStore:
    """Every view of three images, whose maps say where the box is."""
    from cachedet.structures import FeatureSpec, LevelSpec

    spec = FeatureSpec((LevelSpec(name="C4", channels=5, stride=16),))
    annotations = annotations_of([(96, 128)] * 3, [BOX, BOX, BOX])
    kit, options = store_kit.of(annotations), {"spec": spec, "views": VIEWS, "codec": "fp32"}
    root = kit.open_writer(tmp_path / "s.zarr", **options).root
    plan = StorePlan.load(LocalFiles(root))
    reader = FeatureStore(plan)

    def painted(block: Block) -> Features:
        _, height, width = spec.map_shapes(block.bucket)["C4"]
        maps = torch.zeros(len(block.rows), 5, height, width)
        for index, row in enumerate(block.rows):
            geometry = geometry_of(reader, row, block.view)
            box = geometry.boxes_to_view(annotations.boxes[row : row + 1])[0]
            values = torch.cat([box, torch.tensor([0.5 + 0.1 * VIEWS.index(block.view)])])
            maps[index] = values[:, None, None]
        return {"C4": maps}

    kit.fill(root, painted, **options)
    return FeatureStore.open(root)


def detect(
    store: FeatureStore, views: Sequence[str], *, detector: nn.Module | None = None, **options: Any
) -> list[Detections]:
    batches = stored_batches(store, levels=["C4"], batch_size=2, device=torch.device("cpu"))
    return detect_store(detector or Painted(), store, batches=batches, views=views, **options)


@pytest.mark.parametrize("view", ["base", "hflip", "scale-2"])
def test_a_view_of_the_whole_image_gives_the_box_back(store: FeatureStore, view: str) -> None:
    for row, detections in enumerate(detect(store, [view])):
        assert detections.image_id == store.annotations.image_ids[row]
        torch.testing.assert_close(detections.boxes, torch.tensor([BOX[0][:4]]).float())
        rises = bool(detections.masks[0, 0, -1] > detections.masks[0, 0, 0])
        assert rises == (view != "hflip")


def test_several_views_are_merged_and_the_best_wins(store: FeatureStore) -> None:
    done: list[int] = []
    merged = detect(store, ["base", "hflip", "scale-2"], on_progress=done.append)
    assert [len(detections) for detections in merged] == [1, 1, 1]
    torch.testing.assert_close(merged[0].scores, torch.tensor([0.7]))
    assert sum(done) == 9
    apart = detect(store, ["base", "hflip"], merging=Merging(nms_iou=1.0, max_detections=1))
    assert [detections.scores.tolist() for detections in apart] == [[pytest.approx(0.6)]] * 3
    apart = detect(store, ["base", "hflip"], merging=Merging(nms_iou=1.0))
    assert len(apart[0]) == 2


@pytest.mark.parametrize("view", ["crop-k0", "jitter-1-3-s0"])
def test_a_window_gives_whole_boxes_only(store: FeatureStore, view: str) -> None:
    whole = 0
    for row, detections in enumerate(detect(store, [view])):
        geometry = geometry_of(store, row, view)
        visible = float(geometry.visible_fraction(store.annotations.boxes[:1])[0])
        assert len(detections) in ((1,) if visible == 1 else (0,))
        if len(detections):
            whole += 1
            torch.testing.assert_close(detections.boxes, torch.tensor([BOX[0][:4]]).float())
    assert whole < 3  # the draws of these images cut at least one


@pytest.mark.parametrize("view", ["base", "hflip", "scale-2"])
def test_proposals_are_in_pixels_of_the_image(store: FeatureStore, view: str) -> None:
    done: list[int] = []
    detector = Painted().train()
    detections = detect(store, [view], detector=detector, method="propose", on_progress=done.append)
    assert [of_image.image_id for of_image in detections] == store.annotations.image_ids.tolist()
    for of_image in detections:
        torch.testing.assert_close(of_image.boxes, torch.tensor([BOX[0][:4]]).float())
    assert sum(done) == 3
    assert detector.training


def test_views_the_store_lacks(store: FeatureStore) -> None:
    with pytest.raises(MissingFeatureError, match="holds views base, hflip, .* not 'crop-k1'"):
        detect(store, ["base", "crop-k1"])
