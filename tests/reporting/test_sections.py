"""What the sections say of analyses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cachedet.errors import InputError
from cachedet.evaluation.significance import compare_runs
from cachedet.reporting.class_sections import annotation_section, class_section
from cachedet.reporting.content import Cell, Row, Section, Table
from cachedet.reporting.curve_sections import MOST_CURVES, class_paths, curve_section
from cachedet.reporting.error_sections import MOST_PAIRS, confusion_section, error_section
from cachedet.reporting.provenance import differing_keys
from cachedet.reporting.scores_sections import make_headlines, result_section


def row_of(table: Table, name: str) -> Row:
    return next(row for row in table.rows if row.name == name)


def texts(row: Row) -> list[str]:
    return [cell.text for cell in row.cells]


def test_the_result_is_that_of_the_scores_and_of_compare_runs(two_runs: Any) -> None:
    annotations, analyses = two_runs
    first, second = analyses
    table = result_section(analyses, resamples=30).tables[0]
    for name, field in (
        ("AP", "ap"),
        ("AP50", "ap50"),
        ("AP75", "ap75"),
        ("best 10 a class", "ar10"),
    ):
        assert texts(row_of(table, name)) == [
            f"{getattr(run.scores, field):.3f}" for run in analyses
        ]
    again = compare_runs(annotations, second.table, first.table, resamples=30, seed=0)
    assert second.difference.to_json() == again.difference.to_json()
    assert second.intervals.to_json() == again.first.to_json()
    assert first.difference is None
    cell = row_of(table, "AP, against the first run").cells[1]
    assert cell.text == f"−{abs(again.difference.ap.value):.3f}"
    assert cell.tone == "worse"
    assert cell.note.endswith("worse")  # in words too
    assert row_of(table, "AP, against the first run").cells[0].text == "first run"


def test_equal_runs_cannot_be_told_apart(kit: Any) -> None:
    annotations = kit.annotations()
    detections = kit.detections(annotations, seed=1, skill=0.9)
    analyses = kit.analyse(annotations, a=detections, b=list(detections))
    headline = make_headlines(analyses)[1]
    assert headline.verdict == "0.000 against a: these images cannot tell the runs apart"
    assert headline.tone == ""
    assert "cannot tell the runs apart" in result_section(analyses, resamples=30).leads[1]


def test_one_run_alone_has_no_differences(kit: Any) -> None:
    annotations = kit.annotations()
    analyses = kit.analyse(annotations, only=kit.detections(annotations, seed=1, skill=0.9))
    table = result_section(analyses, resamples=30).tables[0]
    assert not [row for row in table.rows if "against" in row.name]
    section = class_section(analyses)
    assert section.tables[0].columns == ("boxes", "AP", "cut at")
    assert section.leads[0].startswith("only is best at ")
    annotations = kit.annotations(names=("disc",))
    analyses = kit.analyse(annotations, only=kit.detections(annotations, seed=1, skill=1))
    section = class_section(analyses)
    assert section.leads == ("The scored images hold boxes of one class only, disc.",)
    assert section.tables[0].caption.startswith("1 class. ")


def test_masks_have_lines_where_some_run_has_masks(two_runs: Any) -> None:
    _, (first, second) = two_runs
    with_masks = dataclasses.replace(first.analysis, mask_scores=second.scores)
    analyses = (dataclasses.replace(first, analysis=with_masks), second)
    table = result_section(analyses, resamples=30).tables[0]
    assert texts(row_of(table, "AP of masks")) == [f"{second.scores.ap:.3f}", "–"]
    table = result_section((first, second), resamples=30).tables[0]
    assert not [row for row in table.rows if "masks" in row.name]


def test_classes_have_their_figures_and_those_without_boxes_dashes(two_runs: Any) -> None:
    _, analyses = two_runs
    table = class_section(analyses).tables[0]
    assert table.columns == (
        "boxes", "in training", "good: AP", "good: cut at", "bad: AP", "bad: gain", "bad: cut at",
    )  # fmt: skip
    assert all(len(row.cells) == len(table.columns) for row in table.rows)
    disc = row_of(table, "disc")
    assert disc.cells[1].text == "5"
    assert disc.cells[2].text == f"{analyses[0].scores.per_class[0].ap:.3f}"
    assert disc.cells[3].text == f"{analyses[0].curves.per_class[0].best.score:.2f}"
    ring = row_of(table, "ring")
    assert ring.cells[2] == Cell(text="–")
    assert ring.cells[1].text == "5,000"


def test_a_class_of_few_images_gets_no_verdict(kit: Any) -> None:
    """The only image of a class is in every resample that holds the class: its interval is a
    point, and would be a verdict."""
    annotations = kit.annotations(images=40, names=("disc", "star", "ring"))
    labels = np.zeros_like(annotations.labels)
    labels[5] = 1
    annotations = dataclasses.replace(annotations, labels=labels)
    good, bad = (
        kit.detections(annotations, seed=1, skill=1),
        kit.detections(annotations, seed=2, skill=0),
    )
    analyses = kit.analyse(annotations, good=good, bad=bad)
    assert analyses[1].class_images == (39, 1, 0)
    table = class_section(analyses).tables[0]
    gains = [row.cells[4] for row in table.rows]
    assert [cell.tone for cell in gains] == ["worse", "", ""]
    assert gains[0].note.endswith("worse")
    assert gains[1].note.endswith("too few images")
    assert gains[1].text.startswith("−")


def with_counts(runs: Any, training: Sequence[dict[int, int] | None]) -> list[Any]:
    return [
        dataclasses.replace(run, analysis=dataclasses.replace(run.analysis, training_boxes=counts))
        for run, counts in zip(runs, training, strict=True)
    ]


def test_counts_of_training_stand_once_or_run_by_run(two_runs: Any) -> None:
    _, analyses = two_runs
    same, fewer = {1: 5, 2: 50, 3: 5000}, {1: 2, 2: 20, 3: 2000}
    for training, wanted in (
        ([same, dict(same)], ["in training"]),
        ([same, fewer], ["good: in training", "bad: in training"]),
        ([None, fewer], ["bad: in training"]),
        ([None, None], []),
    ):
        table = class_section(with_counts(analyses, training)).tables[0]
        assert [name for name in table.columns if "training" in name] == wanted
        assert all(len(row.cells) == len(table.columns) for row in table.rows)
    table = class_section(with_counts(analyses, [same, fewer])).tables[0]
    assert texts(row_of(table, "disc"))[1:3] == ["5", "2"]


def test_strata_or_that_they_are_not_recorded(kit: Any, two_runs: Any) -> None:
    _, analyses = two_runs
    table = annotation_section(analyses).tables[0]
    assert [row.name for row in table.rows] == [
        "0-9 annotations", "10-99 annotations", "1000+ annotations",
    ]  # fmt: skip
    assert table.rows[0].cells[0].text == f"{analyses[0].scores.per_class[0].ap:.3f}"
    assert table.rows[0].cells[0].note == "1 of 1 class"
    assert table.rows[2].cells[1].note == "0 of 1 class"
    annotations = kit.annotations()
    unknown = kit.analyse(annotations, old=kit.detections(annotations, seed=1, skill=0.9))
    section = annotation_section(unknown)
    assert not section.tables
    assert "Not recorded" in section.leads[1]


def test_training_data_of_other_classes_is_refused(kit: Any) -> None:
    annotations = kit.annotations()
    with pytest.raises(InputError, match="does not know category id 2"):
        kit.analyse(
            annotations,
            training_boxes={1: 4, 3: 5},
            run=kit.detections(annotations, seed=1, skill=1),
        )


def test_errors_cost_what_the_analysis_says(two_runs: Any) -> None:
    _, analyses = two_runs
    section = error_section(analyses)
    rows = section.tables[0].rows
    for number, cost in enumerate(analyses[1].errors.kinds):
        assert rows[number].name == cost.kind
        assert rows[number].cells[1].text == f"{cost.cost:.3f}"
        assert rows[number].cells[1].note == f"{cost.count:,}"
    bars = [cell.bar for row in rows[:6] for cell in row.cells]
    assert max(bar for bar in bars if bar is not None) == 1.0
    assert section.leads[1].startswith("bad: classification costs most")


def test_a_matrix_is_shown_whole_where_classes_are_few(two_runs: Any) -> None:
    _, analyses = two_runs
    fold = confusion_section(analyses).folds[0]
    counts = analyses[0].confusion.counts
    assert fold.table.columns == ("disc", "star", "ring", "nothing")
    shown = [[cell.text for cell in row.cells] for row in fold.table.rows]
    assert shown[0] == [str(number) for number in counts[0].tolist()]
    assert shown[3][3] == "–"


def test_of_many_classes_the_most_confused_pairs_are_shown(kit: Any) -> None:
    annotations = kit.annotations(images=30, boxes=8, names=[f"class {n}" for n in range(40)])
    analyses = kit.analyse(
        annotations, resamples=2, run=kit.detections(annotations, seed=3, skill=0.6)
    )
    table = confusion_section(analyses).folds[0].table
    assert 0 < len(table.rows) <= MOST_PAIRS
    numbers = [int(row.cells[1].text) for row in table.rows]
    assert numbers == sorted(numbers, reverse=True)
    counts = analyses[0].confusion.counts[:40, :40]
    assert numbers[0] == counts[~np.eye(40, dtype=bool)].max()
    assert all(row.name != row.cells[0].text for row in table.rows)
    first = table.rows[0]
    gt_label, detected = (int(name.split()[1]) for name in (first.name, first.cells[0].text))
    assert counts[gt_label, detected] == numbers[0]
    assert len(class_paths(analyses)) == 39 + 1  # the last class has no boxes
    assert len(class_paths(analyses)) <= MOST_CURVES + 1


def test_nothing_found_and_nothing_there_are_described(kit: Any) -> None:
    annotations = kit.annotations()
    every = kit.detections(annotations, seed=1, skill=1)
    analyses = kit.analyse(annotations, none=[each.keep(each.scores > 2) for each in every])
    assert make_headlines(analyses)[0].value == "0.000"
    assert "no detections" in curve_section(analyses).leads[0]
    empty = annotations.keep_rows([len(annotations) - 1])
    analyses = kit.analyse(empty, empty=kit.detections(empty, seed=1, skill=1))
    assert math.isnan(analyses[0].scores.ap)
    assert make_headlines(analyses)[0].value == "–"
    assert "not defined" in result_section(analyses, resamples=30).leads[0]
    assert "no boxes" in error_section(analyses).leads[0]


def test_keys_of_configs_that_differ() -> None:
    one = {"seed": 1, "schedule": {"lr": 0.1, "drops": [1]}, "neck": {"kind": "fpn"}}
    other = {"seed": 1, "schedule": {"lr": 0.2, "drops": [1]}, "neck": {"kind": "nasfpn", "n": 3}}
    assert differing_keys([one, other]) == {
        "schedule.lr": ["0.1", "0.2"],
        "neck.kind": ['"fpn"', '"nasfpn"'],
        "neck.n": ["-", "3"],
    }
    assert differing_keys([one, one]) == {}


def test_words_stand_beside_tables_of_few_figures(two_runs: Any) -> None:
    _, analyses = two_runs
    section = class_section(analyses)
    few = dataclasses.replace(section.tables[0], columns=("AP", "AP50"))
    many = dataclasses.replace(few, columns=("AP",) * 3)
    texts = dataclasses.replace(few, numeric=False)

    def of(*tables: Any) -> Section:
        return dataclasses.replace(section, tables=tables, charts=(), folds=())

    assert of(few).is_beside
    assert not any(of(*tables).is_beside for tables in ((), (many,), (few, many), (texts,)))
