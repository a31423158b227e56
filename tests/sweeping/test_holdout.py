"""Validation images in two parts: whole images, every class in both, the same for one seed."""

from __future__ import annotations

from typing import Any

import pytest

from cachedet.errors import InputError
from cachedet.sweeping.holdout import split_images


def box(label: int, crowd: int = 0) -> list[float]:
    return [0, 0, 9, 9, label, crowd]


def annotations(annotations_of: Any, per_image: list[list[list[float]]]) -> Any:
    return annotations_of([(32, 32)] * len(per_image), per_image)


def test_each_class_is_in_both_parts(annotations_of: Any) -> None:
    """Sixty images of one class, four of a rare one, twenty without a box."""
    images = [[box(0)]] * 60 + [[box(0), box(1)]] * 4 + [[]] * 20
    truth = annotations(annotations_of, images)
    for seed in range(5):
        split = split_images(truth, holdout=0.5, seed=seed)
        assert sorted(split.choosing + split.reporting) == list(range(84))
        assert abs(len(split.reporting) - 42) <= 1
        assert sum(60 <= row < 64 for row in split.reporting) == 2
        assert abs(sum(row >= 64 for row in split.reporting) - 10) <= 1
    again = split_images(truth, holdout=0.5, seed=1)
    assert again == split_images(truth, holdout=0.5, seed=1)
    assert again != split_images(truth, holdout=0.5, seed=2)


def test_the_share_that_reports(annotations_of: Any) -> None:
    truth = annotations(annotations_of, [[box(0)]] * 100)
    split = split_images(truth, holdout=0.3, seed=0)
    assert (len(split.reporting), split.note) == (30, "")
    few = split_images(truth, holdout=0.05, seed=0)
    assert "only 5 validation images report what the winner is worth" in few.note


@pytest.mark.parametrize("images", [[[box(0)]], [[box(0)], [], []], [[box(0, 1)], [box(0)]]])
def test_both_parts_need_boxes(annotations_of: Any, images: list[list[list[float]]]) -> None:
    with pytest.raises(InputError, match="both parts need images with boxes"):
        split_images(annotations(annotations_of, images), holdout=0.5, seed=0)


def test_no_share_at_all(annotations_of: Any) -> None:
    truth = annotations(annotations_of, [[box(0)]] * 4)
    with pytest.raises(InputError, match="--holdout expects a share between 0 and 1"):
        split_images(truth, holdout=float("nan"), seed=0)
