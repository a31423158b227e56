"""The matches against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.evaluation.detection_table import tabulate
from cachedet.evaluation.matches import IOU_THRESHOLDS, match_detections
from cachedet.structures import Detections


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_partners_are_those_of_plain_loops(seed: int, scene: Any) -> None:
    """COCO's loop as prose has it, for one threshold, with the number of the box drawn."""
    annotations, drawn = scene(images=3).draw(seed)
    table = tabulate(annotations, drawn)
    matches = match_detections(annotations, table)
    threshold = seed % 10
    expected = np.full(len(table), -1)
    for row in range(len(annotations)):
        for label in range(len(annotations.categories)):
            mine = np.flatnonzero((table.rows == row) & (table.labels == label))
            mine = mine[np.argsort(-table.scores[mine], kind="stable")]
            span = annotations.boxes_of(row)
            boxes = [b for b in range(span.start, span.stop) if annotations.labels[b] == label]
            boxes.sort(key=lambda b: bool(annotations.crowd[b]))
            taken: set[int] = set()
            for number in mine.tolist():
                best, most = -1, IOU_THRESHOLDS[threshold]
                for box in boxes:
                    if box in taken and not annotations.crowd[box]:
                        continue
                    if best >= 0 and not annotations.crowd[best] and annotations.crowd[box]:
                        break
                    overlap = iou(
                        table.xywh[number], annotations.boxes[box], bool(annotations.crowd[box])
                    )
                    if overlap >= most:
                        best, most = box, overlap
                if best >= 0:
                    expected[number] = best
                    taken.add(best)
    in_crowd = np.append(annotations.crowd, False)[expected]  # -1 is the last
    found = np.where(in_crowd, -1, expected)
    np.testing.assert_array_equal(matches.partner[threshold], found[matches.source])
    np.testing.assert_array_equal(matches.right[threshold], matches.partner[threshold] >= 0)
    np.testing.assert_array_equal(matches.judged[threshold], ~in_crowd[matches.source])


def iou(xywh: Any, xyxy: Any, crowd: bool) -> float:
    x1, y1, w, h = xywh
    width = min(x1 + w, xyxy[2]) - max(x1, xyxy[0])
    height = min(y1 + h, xyxy[3]) - max(y1, xyxy[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = w * h if crowd else w * h + (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1]) - width * height
    return float(width * height / union)


def test_ten_thousand_detections_in_a_image(annotations_of: Any) -> None:
    """The limit of a class and image comes first, so the rest costs nothing."""
    boxes = [[float(n % 40) * 4, float(n // 40) * 4, float(n % 40) * 4 + 9, n // 40 * 4 + 9, 0, 0]
             for n in range(500)]  # fmt: skip
    corners = torch.rand(12_000, 2) * 150
    drawn = Detections(
        image_id=7,
        boxes=torch.cat([corners, corners + 9], dim=1),
        scores=torch.rand(12_000),
        labels=torch.zeros(12_000, dtype=torch.int64),
    )
    annotations = annotations_of([(200, 200)], [boxes])
    matches = match_detections(annotations, tabulate(annotations, [drawn]))
    assert len(matches.scores) == 100
    assert matches.judged.all()
    assert float(matches.scores.min()) >= float(drawn.scores.sort().values[-101])
