"""What a person reads of scores at a terminal of 80 columns."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from cachedet.commands.score_tables import print_analysis, print_proposals, print_scores
from cachedet.evaluation.analysis import Analysis, analyse
from cachedet.evaluation.detection_table import DetectionTable, tabulate
from cachedet.evaluation.lvis import Federated
from cachedet.evaluation.metrics import ClassScore, CocoScores
from cachedet.evaluation.proposals import ProposalRecall, ProposalReport
from cachedet.evaluation.significance import Interval
from cachedet.structures import Annotations, CategoryMap, Detections

Drawn = tuple[Annotations, DetectionTable]


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    return lines


def cells_of(lines: list[str], name: str) -> list[str]:
    """Of the last row that starts with the name."""
    row = [line for line in lines if line.startswith(f"│ {name} ")][-1]
    return [cell.strip() for cell in row.strip("│").split("│")]


@pytest.fixture
def drawn(annotations_of: Any) -> Drawn:
    """Three images: found well, found next to the box, not found; class 90 has no boxes."""
    boxes = [
        [[0, 0, 50, 50, 0, 0], [100, 100, 140, 140, 1, 0]],
        [[0, 0, 50, 50, 0, 0]],
        [[20, 20, 60, 60, 1, 0]],
    ]
    annotations = annotations_of([(200, 200)] * 3, boxes)
    detections = [
        Detections(
            image_id=image_id,
            boxes=torch.tensor(per_image).reshape(-1, 4),
            scores=torch.linspace(0.9, 0.4, len(per_image)),
            labels=torch.arange(len(per_image)),
        )
        for image_id, per_image in zip(
            annotations.image_ids.tolist(),
            ([[0.0, 0, 50, 48], [100, 100, 141, 140]], [[20.0, 0, 70, 50]], []),
            strict=True,
        )
    ]
    return annotations, tabulate(annotations, detections)


def test_the_twelve_figures(drawn: Drawn, capsys: pytest.CaptureFixture[str]) -> None:
    scores = analyse(*drawn).scores
    print_scores(scores, of="boxes")
    text = "\n".join(lines_of(capsys))
    for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10"):
        value = getattr(scores, name)
        assert (f"{value:.3f}" if not math.isnan(value) else " - ") in text, name
    assert "COCO figures of boxes" in text


def test_everything_at_once(drawn: Drawn, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, table = drawn
    report = analyse(annotations, table, counts={2: 3, 5: 30, 90: 4}, edges=(0, 5), resamples=20)
    print_analysis(report)
    lines = lines_of(capsys)
    first = report.scores.per_class[0]
    assert cells_of(lines, "class 2") == [
        "class 2",
        str(first.num_boxes),
        f"{first.ap:.3f}",
        f"{first.ap50:.3f}",
        "3",
        f"{report.intervals.per_class[0].low:.3f}-{report.intervals.per_class[0].high:.3f}",
        f"{report.curves.per_class[0].best.score:.3f}",
    ]
    assert cells_of(lines, "class 90")[2] == "-"  # it has no boxes
    missed = report.errors.kinds[-1]
    assert cells_of(lines, "missed") == ["missed", str(missed.count), f"{missed.cost:.3f}"]
    text = "\n".join(lines)
    best = report.curves.best
    words = " ".join(text.split())
    assert f"F1 is highest, {best.score:.3f} for all classes together. Of detections" in words
    found = re.search(r"on (\d+) are right and (\d+) wrong; (\d+) of (\d+) boxes are", words)
    assert found is not None
    right, wrong, missed_there, boxes = map(int, found.groups())
    assert boxes == sum(score.num_boxes for score in report.scores.per_class)
    assert right + missed_there == boxes
    assert right / (right + wrong) == pytest.approx(best.precision)
    assert right / boxes == pytest.approx(best.recall)
    assert f"AP {report.scores.ap:.3f}, 95 % interval" in text
    assert "AP by training annotations" in text
    assert "note: images without detections: 1" in text
    assert "exact duplicates: 0" not in text


def test_lvis(drawn: Drawn, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = np.zeros(0, dtype=np.int64)
    federated = Federated(negative=nothing, not_exhaustive=nothing, frequencies=("r", "c", "f"))
    report = analyse(*drawn, federated=federated)
    print_analysis(report)
    lines = lines_of(capsys)
    assert "LVIS v1 figures of boxes" in "\n".join(lines)
    assert cells_of(lines, "AP rare")[:4] == ["AP rare", f"{report.lvis.ap_rare:.3f}", "common",
                                              f"{report.lvis.ap_common:.3f}"]  # fmt: skip
    assert cells_of(lines, "class 5")[3] == f"{report.lvis.per_class[1]:.3f}"
    assert any("LVIS AP" in line for line in lines)


def compared(drawn: Drawn, low: float, high: float) -> Analysis:
    """A comparison whose interval of the AP difference is put there by hand."""
    annotations, table = drawn
    report = analyse(annotations, table, other=table, resamples=5)
    apart = Interval(value=(low + high) / 2, low=low, high=high, share_above_zero=0.75)
    difference = dataclasses.replace(
        report.comparison.difference,
        ap=apart,
        per_class=(apart, *report.comparison.difference.per_class[1:]),
    )
    return dataclasses.replace(
        report, comparison=dataclasses.replace(report.comparison, difference=difference)
    )


@pytest.mark.parametrize(
    ("low", "high", "verdict", "classes"),
    [
        (-0.1, 0.05, "These images cannot tell the runs apart", 0),
        (0.02, 0.05, "This one is better on such images", 1),
        (-0.2, -0.1, "The other one is better on such images", 1),
        (math.nan, math.nan, "These images cannot tell the runs apart", 0),
    ],
)
def test_the_verdict(
    drawn: Drawn,
    capsys: pytest.CaptureFixture[str],
    low: float,
    high: float,
    verdict: str,
    classes: int,
) -> None:
    print_analysis(compared(drawn, low, high))
    lines = lines_of(capsys)
    text = " ".join(" ".join(lines).split())
    assert verdict in text
    assert "(5 resamples of 3 images). Intervals of fewer than 20 images are too" in text
    assert f"{classes} class{'es' if classes != 1 else ''} of 3 with an interval without 0" in text
    if classes:
        assert cells_of(lines, "class 2")[4:] == [f"{low:+.3f} to {high:+.3f}", "75.0%"]


def test_one_image_tells_nothing(annotations_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = annotations_of([(200, 200)], [[[0, 0, 50, 50, 0, 0]]])
    detections = Detections(
        image_id=7,
        boxes=torch.tensor([[0.0, 0, 50, 50]]),
        scores=torch.ones(1),
        labels=torch.zeros(1, dtype=torch.int64),
    )
    table = tabulate(annotations, [detections])
    report = analyse(annotations, table, other=table.keep(np.zeros(1, dtype=np.bool_)), resamples=5)
    assert report.comparison.difference.ap.excludes_zero
    assert not report.comparison.tells_apart
    print_analysis(report)
    assert "One image cannot tell the runs apart." in lines_of(capsys)


def test_of_1203_classes_the_best_and_the_worst(capsys: pytest.CaptureFixture[str]) -> None:
    """Names that look like markup or are very long do no harm."""
    names = tuple(f"[red]class {n:04d} <b>" + "x" * (n % 90) for n in range(1203))
    count = 1000  # classes with boxes
    annotations = Annotations(
        image_ids=np.array([1]),
        file_names=("1.jpg",),
        sizes_hw=np.array([[100_000, 200]]),
        offsets=np.array([0, count]),
        boxes=np.stack([np.array([0, 60 * n, 50, 60 * n + 50]) for n in range(count)]).astype(
            float
        ),
        labels=np.arange(count),
        crowd=np.zeros(count, dtype=np.bool_),
        areas=np.full(count, 2500.0),
        categories=CategoryMap(ids=tuple(range(1203)), names=names),
    )
    detections = Detections(
        image_id=1,
        boxes=torch.from_numpy(annotations.boxes[:300]).float(),
        scores=torch.linspace(0.9, 0.1, 300),
        labels=torch.arange(300),
    )
    counts = dict.fromkeys(range(1203), 123_456)
    report = analyse(annotations, tabulate(annotations, [detections]), counts=counts, resamples=3)
    print_analysis(report)
    lines = lines_of(capsys)
    rows = [line for line in lines if "[red]class" in line]
    assert len(rows) == 20
    assert all("123456" in row for row in rows)
    text = " ".join(" ".join(lines).split())
    assert "1183 classes of 1203 left out, 203 of them without boxes" in text
    assert len(report.to_json()["per_class"]) == 1203


def test_many_classes_of_which_few_have_boxes(capsys: pytest.CaptureFixture[str]) -> None:
    scores = tuple(
        ClassScore(
            name=f"c{n}",
            category_id=n,
            num_boxes=int(n < 5),
            ap=n / 10 if n < 5 else math.nan,
            ap50=math.nan,
        )
        for n in range(60)
    )
    figures = dict.fromkeys(
        ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100",
         "ar_small", "ar_medium", "ar_large"), 0.5,
    )  # fmt: skip
    print_scores(
        CocoScores(**figures, per_class=scores, num_images=1, num_detections=1), of="boxes"
    )
    lines = lines_of(capsys)
    shown = [line.split()[1] for line in lines if line.startswith("│ c")]
    assert shown == ["c4", "c3", "c2", "c1", "c0"]
    assert "55 classes of 60 left out, 55 of them without" in " ".join(lines)


def test_proposals(capsys: pytest.CaptureFixture[str]) -> None:
    recall = ProposalRecall(
        limit=10, ar=0.5, ar_small=math.nan, ar_medium=0.4, ar_large=0.6, recall50=0.9, recall75=0.7
    )
    print_proposals(ProposalReport(most_per_image=300, at_limits=(recall,)))
    lines = lines_of(capsys)
    assert "the RPN keeps 300 an image" in " ".join(lines)
    (row,) = [line for line in lines if "0.900" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["10", "0.500", "-", "0.400", "0.600", "0.900", "0.700"]
