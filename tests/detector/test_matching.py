from __future__ import annotations

import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from cachedet.detector import matching
from cachedet.detector.anchors import AnchorGenerator
from cachedet.detector.matching import (
    BACKGROUND,
    IGNORED,
    AllowedLowQuality,
    MatchRule,
    PaddedGroundTruth,
    match_boxes,
    pad_ground_truth,
    sample_boxes,
)
from cachedet.structures import Targets


def targets_of(boxes: torch.Tensor, *, crowd: list[bool] | None = None) -> Targets:
    return Targets(
        image_id=1,
        size_hw=(200, 200),
        boxes=boxes,
        labels=torch.arange(len(boxes)),
        crowd=torch.tensor(crowd or [False] * len(boxes), dtype=torch.bool),
    )


def annotations_of(*images: torch.Tensor) -> PaddedGroundTruth:
    return pad_ground_truth([targets_of(boxes) for boxes in images])


def random_case(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    generate = AnchorGenerator(
        strides=(16,), size_factor=4.0, scales_per_octave=3, aspect_ratios=(0.5, 1.0, 2.0)
    )
    anchors = generate({"P4": torch.zeros(1, 1, 6, 6)})
    corners = torch.rand(7, 2, generator=generator) * 80
    sides = 8 + torch.rand(7, 2, generator=generator) * 60
    return anchors, torch.cat([corners, corners + sides], dim=1)


def match(
    anchors: torch.Tensor,
    *images: torch.Tensor,
    foreground: float = 0.5,
    background: float = 0.5,
    allow_low_quality: AllowedLowQuality = "one",
) -> torch.Tensor:
    rule = MatchRule(
        foreground_iou=foreground, background_iou=background, allow_low_quality=allow_low_quality
    )
    return match_boxes(anchors, annotations_of(*images), rule)


def test_ties_are_forced_as_torchvision_does_where_no_annotations_fights_for_an_anchor() -> None:
    tied = 0
    for seed in range(10):
        anchors, boxes = random_case(seed)
        iou = box_iou(boxes, anchors)
        theirs = Matcher(0.5, 0.4, allow_low_quality_matches=True)(iou)
        ours = match(anchors, boxes, background=0.4, allow_low_quality="ties")[0]
        is_best = (iou == iou.amax(dim=1, keepdim=True)) & (iou > 0)
        tied += int((is_best.sum(dim=1) > 1).sum())
        best = iou.argmax(dim=0)  # torchvision leaves such an anchor the gt box it overlaps most
        unfought = (is_best.sum(dim=0) == 0) | is_best[best, torch.arange(len(anchors))]
        assert torch.equal(ours[unfought], theirs[unfought])
        assert bool((ours[is_best.any(dim=0)] >= 0).all())
    assert tied > 0


def test_matching_against_torchvision_where_no_box_fights_for_an_anchor() -> None:
    """torchvision forces all anchors that tie, and keeps their own best box; others must agree."""
    for seed in range(10):
        anchors, boxes = random_case(seed)
        iou = box_iou(boxes, anchors)
        theirs = Matcher(0.5, 0.4, allow_low_quality_matches=True)(iou)
        ours = match(anchors, boxes, background=0.4)[0]
        allow_low_quality = (iou == iou.amax(dim=1, keepdim=True)).any(dim=0)
        assert torch.equal(ours[~allow_low_quality], theirs[~allow_low_quality])
        assert bool((ours[iou.argmax(dim=1)] >= 0).all())


def test_without_force_it_is_torchvisions_matcher() -> None:
    for seed in range(10):
        anchors, boxes = random_case(seed)
        theirs = Matcher(0.5, 0.5, allow_low_quality_matches=False)(box_iou(boxes, anchors))
        assert torch.equal(match(anchors, boxes, allow_low_quality="none")[0], theirs)


def test_every_box_gets_its_best_anchor_unless_another_overlaps_it_more() -> None:
    for seed in range(10):
        anchors, boxes = random_case(seed)
        matched = match(anchors, boxes)[0]
        iou = box_iou(boxes, anchors)
        best = iou.argmax(dim=1)
        for anchor in best.tolist():
            rivals = [n for n, other in enumerate(best.tolist()) if other == anchor]
            assert matched[anchor] == max(rivals, key=lambda n: float(iou[n, anchor]))


def test_fights_for_an_anchor_by_hand() -> None:
    """The gt box that overlaps it more has it, of equals the first; nobody gets a second one."""
    anchors = torch.tensor([[8.0, 8, 32, 32], [100.0, 100, 124, 124], [100.0, 100, 124, 124]])
    nested = torch.tensor([[11.0, 11, 29, 29], [10, 10, 30, 30]])
    assert match(anchors, nested, foreground=0.9)[0].tolist() == [1, BACKGROUND, BACKGROUND]
    twins = torch.tensor([[104.0, 104, 106, 106], [104, 104, 106, 106]])
    assert match(anchors, twins)[0].tolist() == [BACKGROUND, 0, BACKGROUND]


def test_ties_by_hand() -> None:
    """A gt box inside two anchors of one size has both; the one that overlaps it more has it."""
    anchors = torch.tensor([[0.0, 0, 20, 20], [4.0, 4, 24, 24], [100.0, 100, 124, 124]])
    inside = torch.tensor([[8.0, 8, 12, 12]])
    assert match(anchors, inside, allow_low_quality="ties")[0].tolist() == [0, 0, BACKGROUND]
    assert match(anchors, inside, allow_low_quality="one")[0].tolist() == [
        0,
        BACKGROUND,
        BACKGROUND,
    ]
    nested = torch.tensor([[8.0, 8, 12, 12], [8, 8, 13, 13]])
    assert match(anchors, nested, allow_low_quality="ties")[0].tolist() == [1, 1, BACKGROUND]


def test_hand_table() -> None:
    anchors = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4.4], [50, 50, 60, 60], [1, 0, 10, 10]]
    )
    boxes = torch.tensor([[0.0, 0, 10, 10]])
    matched = match(anchors, boxes, boxes[:0], foreground=0.6, background=0.45)
    assert matched.tolist() == [[0, IGNORED, BACKGROUND, BACKGROUND, 0], [BACKGROUND] * 5]


def test_a_batch_is_matched_as_each_image_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [random_case(seed)[1][: seed % 4 + 1] for seed in range(5)]
    anchors, _ = random_case(0)
    together = match(anchors, *cases)
    for n, boxes in enumerate(cases):
        assert torch.equal(together[n], match(anchors, boxes)[0])
    ties = match(anchors, *cases, allow_low_quality="ties")
    anchors_of_each = torch.stack([anchors + shift for shift in range(5)])
    separate = match(anchors_of_each, *cases)
    for n, boxes in enumerate(cases):
        assert torch.equal(separate[n], match(anchors_of_each[n], boxes)[0])
    for most in (1, 30, 200):  # one anchor at a time, some at a time, some images at a time
        monkeypatch.setattr(matching, "_MOST_PAIRS", most)
        assert torch.equal(match(anchors, *cases), together)
        assert torch.equal(match(anchors_of_each, *cases), separate)
        assert torch.equal(match(anchors, *cases, allow_low_quality="ties"), ties)


def test_crowd_is_ignored_but_positives_stay() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [26, 0, 36, 10]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 30, 10]])
    for crowd, expected in (
        ([False, True], [0, IGNORED, BACKGROUND]),
        ([True, True], [IGNORED, IGNORED, BACKGROUND]),
    ):
        ground_truth = pad_ground_truth([targets_of(boxes, crowd=crowd)])
        rule = MatchRule(foreground_iou=0.5, background_iou=0.5, allow_low_quality="one")
        matched = match_boxes(anchors, ground_truth, rule)
        assert matched[0].tolist() == expected


def test_padding_keeps_each_image_and_looks_up_its_boxes() -> None:
    first = torch.tensor([[0.0, 0, 4, 4], [1, 1, 5, 5]])
    ground_truth = pad_ground_truth(
        [targets_of(first), targets_of(first[:0]), targets_of(first[:1])]
    )
    assert ground_truth.usable.tolist() == [[True, True], [False, False], [True, False]]
    assert ground_truth[1:].boxes.shape == (2, 1, 4)  # no column that nobody uses
    assert torch.equal(ground_truth[1:].boxes[1], first[:1])
    rows = ground_truth.of_rois(torch.tensor([2, 0, 0]))
    assert torch.equal(rows.boxes[1], first)
    assert rows.usable.tolist() == [[True, False], [True, True], [True, True]]
    assert len(pad_ground_truth([targets_of(first[:0])]).boxes[0]) == 1


def test_samples_keep_to_their_counts() -> None:
    matched = torch.full((4, 100), BACKGROUND)
    matched[0, :50] = 3  # more positives than wanted
    matched[1, :5] = 0  # fewer
    matched[2, 10:] = IGNORED  # only ten boxes to offer
    matched[3, :] = IGNORED
    sample = sample_boxes(matched, size=32, positive_fraction=0.25)
    assert sample.idx.shape == (4, 32)
    assert sample.is_valid.sum(dim=1).tolist() == [32, 32, 10, 0]
    assert sample.is_positive.sum(dim=1).tolist() == [8, 5, 0, 0]
    for n in range(4):
        drawn = sample.idx[n, sample.is_valid[n]]
        assert len(drawn.unique()) == len(drawn)
        kinds = matched[n, drawn]
        assert bool(((kinds >= 0) == sample.is_positive[n, sample.is_valid[n]]).all())
        assert IGNORED not in kinds
    more = sample_boxes(matched[:, :8], size=32, positive_fraction=0.5)
    assert more.is_valid.sum(dim=1).tolist() == [8, 8, 8, 0]


def test_samples_are_fair_and_repeatable() -> None:
    """Each of 20 positives and 80 negatives is drawn equally often: within 5 deviations."""
    matched = torch.full((1, 100), BACKGROUND)
    matched[0, :20] = 0
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(100)
    rounds = 2000
    for _ in range(rounds):
        sample = sample_boxes(matched, size=20, positive_fraction=0.5, generator=generator)
        counts[sample.idx[0]] += 1
    for part, share in ((counts[:20], 10 / 20), (counts[20:], 10 / 80)):
        deviation = (rounds * share * (1 - share)) ** 0.5
        assert bool(((part - rounds * share).abs() < 5 * deviation).all())
    first, second = (
        sample_boxes(
            matched, size=20, positive_fraction=0.5, generator=torch.Generator().manual_seed(4)
        )
        for _ in range(2)
    )
    assert torch.equal(first.idx, second.idx)
