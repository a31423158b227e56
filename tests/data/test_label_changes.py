"""What a person is told that changed in the boxes of the same images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cachedet.data.label_changes import LabelChanges, compare_labels
from cachedet.structures import Annotations, CategoryMap, MaskCodes

CAT, DOG = [10, 10, 30, 30, 0, 0], [50, 50, 60, 60, 1, 0]
NEAR = [11, 10, 30, 30, 0, 0]


def counts(changes: LabelChanges) -> dict[str, int]:
    names = ("images", "added", "removed", "moved", "reclassified", "edited")
    return {name: getattr(changes, name) for name in names if getattr(changes, name)}


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([CAT, DOG], {}),
        ([DOG, CAT], {}),  # another order is no other annotation
        ([CAT], {"removed": 1, "images": 1}),
        ([CAT, DOG, DOG], {"added": 1, "images": 1}),
        ([[11, 10, 30, 30, 0, 0], DOG], {"moved": 1, "images": 1}),
        ([[70, 70, 80, 80, 0, 0], DOG], {"added": 1, "removed": 1, "images": 1}),
        ([[10, 10, 30, 30, 1, 0], DOG], {"reclassified": 1, "images": 1}),
        ([[11, 10, 30, 30, 1, 0], DOG], {"added": 1, "removed": 1, "images": 1}),
        ([[10, 10, 30, 30, 0, 1], DOG], {"edited": 1, "images": 1}),
        ([[12, 10, 30, 30, 0, 0], NEAR, DOG], {"added": 1, "moved": 1, "images": 1}),
    ],
)  # fmt: skip
def test_each_box_counts_once_as_the_least_that_happened(
    annotations_of: Any, boxes: list[list[int]], expected: dict[str, int]
) -> None:
    before = annotations_of([(100, 100)] * 2, [[CAT, DOG], [CAT]])
    assert (
        counts(compare_labels(before, annotations_of([(100, 100)] * 2, [boxes, [CAT]]))) == expected
    )


def test_masks_and_areas(annotations_of: Any) -> None:
    before: Annotations = annotations_of([(100, 100)], [[CAT, DOG]])
    masked = replace(before, masks=MaskCodes.join([b"11", b""]))
    assert counts(compare_labels(before, masked)) == {"images": 1, "edited": 1}
    assert counts(compare_labels(masked, masked)) == {}
    larger = replace(before, areas=before.areas + 1)
    assert compare_labels(before, larger).edited == 2


def test_classes_go_by_their_ids(annotations_of: Any) -> None:
    before: Annotations = annotations_of([(100, 100)], [[CAT, DOG]])  # ids 2, 5 and 90
    now = replace(
        before,
        labels=np.array([1, 2]),
        categories=CategoryMap(ids=(1, 2, 5), names=("bird", "cat", "class 5")),
    )
    changes = compare_labels(before, now)
    assert counts(changes) == {}
    assert changes.lines() == [
        "classes added: bird (id 1)",
        "classes removed: class 90 (id 90)",
        "classes renamed: class 2 (id 2) to cat",
    ]
    assert changes.to_json()["classes_added"] == ["bird (id 1)"]


def test_boxes_without_area_do_not_divide_by_nothing(annotations_of: Any) -> None:
    before = annotations_of([(100, 100)], [[[5, 5, 5, 5, 0, 0]]])
    now = annotations_of([(100, 100)], [[[6, 6, 6, 6, 0, 0]]])
    assert compare_labels(before, now).lines() == ["boxes: 1 added, 1 removed, in 1 images"]
