"""What a person is told where the annotations of a store and of a file differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cachedet.store.format.annotations import describe_changes
from cachedet.structures import Annotations, MaskCodes

Change = Callable[[Annotations], Annotations]


def moved_box(annotations: Annotations) -> Annotations:
    boxes = annotations.boxes.copy()
    boxes[1, 0] += 1e-9
    return replace(annotations, boxes=boxes)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda a: a, []),
        (moved_box, ["boxes changed in the annotations of: image_0.jpg"]),
        (lambda a: a.keep_rows([0, 2]), ["images gone: image_1.jpg"]),
        (
            lambda a: a.keep_rows([1, 0, 2]),
            ["the images stand in another order: give `images` in the order they had"],
        ),
        (
            lambda a: replace(a, labels=a.labels[::-1]),
            ["classes changed in the annotations of: image_0.jpg, image_1.jpg"],
        ),
        (
            lambda a: replace(a, areas=a.areas + 1),
            ["areas changed in the annotations of: image_0.jpg, image_1.jpg"],
        ),
        (lambda a: replace(a, crowd=~a.crowd), ["crowds changed in the annotations of: image_0.j"]),
        (
            lambda a: replace(a, masks=MaskCodes.join([b"0", b"", b""])),
            ["masks changed in the annotations of: image_0.jpg, image_1.jpg"],
        ),
        (
            lambda a: replace(a, image_ids=a.image_ids // 27, sizes_hw=a.sizes_hw * 2),
            ["ids changed in the annotations of: image_0.jpg,", "sizes changed in the annotations"],
        ),
        (
            lambda a: replace(a, file_names=("image_0.jpg", "b.jpg", "image_2.jpg")),
            ["images gone: image_1.jpg", "images added: b.jpg"],
        ),
    ],
)  # fmt: skip
def test_changes_are_named(annotations_of: Any, change: Change, expected: list[str]) -> None:
    before = annotations_of(
        [(50, 60), (50, 60), (70, 80)],
        [[[1, 1, 9, 9, 0, 0], [2, 2, 9, 9, 1, 0]], [[3, 3, 9, 9, 2, 1]], []],
    )
    after = change(before)
    found = describe_changes(
        (before, np.arange(3, dtype=np.uint64)), (after, _hashes(before, after))
    )
    assert len(found) == len(expected), found
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True))


def _hashes(before: Annotations, after: Annotations) -> np.ndarray:
    known = {name: row for row, name in enumerate(before.file_names)}
    return np.array([known.get(name, 9) for name in after.file_names], dtype=np.uint64)


def test_many_are_shortened(annotations_of: Any) -> None:
    annotations = annotations_of([(5, 6)] * 14)
    old, new = np.zeros(14, dtype=np.uint64), np.ones(14, dtype=np.uint64)
    (text,) = describe_changes((annotations, old), (annotations, new))
    assert text.startswith("image files changed: image_0.jpg, ")
    assert text.endswith("image_9.jpg and 4 more")
