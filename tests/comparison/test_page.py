"""What the page of a comparison says, before it is HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from cachedet.comparison.cautions import Caution
from cachedet.comparison.page import comparison_page
from cachedet.comparison.page_charts import CurveOf
from cachedet.comparison.results import BinFigure, CellKey, CellResult, ClassFigure
from cachedet.live.mode_names import Mode
from cachedet.reporting.charts import (
    CIRCLE,
    Shape,
    Spot,
    draw_chart,
    log_axis,
    span_axis,
    unit_axis,
)
from cachedet.reporting.content import Report, Row, Section, Table
from cachedet.reporting.rendering import render_markdown, render_page

FACTS = (("Backbone", "lite0"), ("Budget", "10 min"))
SHAPE = Shape(path=CIRCLE, tone="cached")


def cell(
    heads: str,
    mode: Mode,
    seed: int,
    ap: float,
    *,
    classes: Sequence[tuple[str, int]] = (("rare", 50), ("common", 5000)),
    error: str = "",
) -> CellResult:
    frozen = mode in ("cached", "live")
    return CellResult(
        key=CellKey(heads=heads, mode=mode, seed=seed),
        error=error,
        steps=1200,
        epochs=12.5,
        seconds=1234.0,
        extraction_seconds=40.0 if mode == "cached" else 0.0,
        peak_memory=987_600_000,
        step_flops=2_340_000_000 if frozen else 9_000_000_000,
        parameters=550_000 if frozen else 3_950_000,
        cache_nbytes=182_000_000 if mode == "cached" else 0,
        ap=ap,
        ap50=ap + 0.2,
        ap75=ap - 0.1,
        low=ap - 0.02,
        high=ap + 0.03,
        classes=tuple(ClassFigure(name=name, boxes=boxes, ap=ap) for name, boxes in classes),
        bins=(
            BinFigure(name="0-9", classes=0, ap=math.nan),
            BinFigure(name="10+", classes=len(classes), ap=ap),
        ),
    )


def experiment(**aps: list[float]) -> list[CellResult]:
    """One run for each AP of each mode, with the same heads."""
    return [
        cell("fpn", mode, seed, ap)  # type: ignore[arg-type]
        for mode, of_seeds in aps.items()
        for seed, ap in enumerate(of_seeds)
    ]


FULL = experiment(cached=[0.50, 0.52], live=[0.50, 0.51], tuned=[0.46, 0.47], scratch=[0.2, 0.2])


def page_of(cells: Sequence[CellResult], curves: Sequence[CurveOf] = ()) -> Report:
    """Laid out, and rendered both ways without a complaint."""
    page = comparison_page(cells, title="T", standfirst="S", facts=FACTS, curves=curves)
    assert "T · cachedet comparison" in render_page(page, curves=(), sheet=None)
    for section in (*page.sections, *page.last):
        for table in (*section.tables, *(fold.table for fold in section.folds if fold.table)):
            for row in table.rows:
                assert row.group or len(row.cells) == len(table.columns), (section.key, row.name)
    assert "-->\n\n# T\n\nS\n" in render_markdown(page)
    return page


def section_of(page: Report, key: str) -> Section:
    return next(s for s in (*page.sections, *page.last) if s.key == key)


def row_of(table: Table, name: str, note: str = "") -> Row:
    return next(row for row in table.rows if row.name == name and row.note.startswith(note))


def texts(row: Row) -> list[str]:
    return [cell.text for cell in row.cells]


def test_headlines_are_the_best_of_each_mode_with_its_verdict() -> None:
    cells = [*FULL, cell("nasfpn", "tuned", 0, 0.1), cell("nasfpn", "cached", 0, 0.1)]
    cached, live, tuned, scratch = page_of(cells).headlines
    assert (cached.run, cached.value) == ("cached, fpn", "0.510")
    assert (cached.interval_name, cached.interval) == ("2 seeds", "0.500–0.520")
    assert cached.verdict == "best mean AP of all; +0.045 against fine-tuned: beyond the spread"
    assert cached.tone == "better"
    assert live.verdict.startswith("+0.040 against")
    assert (tuned.verdict, tuned.tone) == ("", "")
    assert scratch.tone == "worse"
    assert 0 < cached.track[0] < cached.track[1] < cached.track[2] < 1


def test_a_headline_of_one_seed_has_the_interval_over_images() -> None:
    (cached, tuned) = page_of(experiment(cached=[0.5], tuned=[0.4])).headlines
    assert (cached.interval_name, cached.interval) == ("one seed, 95 % interval", "0.480–0.530")
    assert cached.verdict.endswith("+0.100 against fine-tuned: one seed: no verdict")
    assert cached.tone == ""
    assert tuned.verdict == ""


def test_the_verdict_stands_there_in_figures_and_words() -> None:
    section = section_of(page_of(FULL), "result")
    verdict, summary = section.tables
    assert texts(row_of(verdict, "fpn")) == ["+0.045", "better", "0.510", "0.465", "0.020", "2"]
    assert verdict.rows[0].cells[0].note == "+0.040 to +0.050"
    assert texts(row_of(summary, "cached")) == [
        "0.510", "+0.045", "2", "1,234", "40", "988", "2.34", "0.55", "182",
    ]  # fmt: skip
    assert row_of(summary, "cached").cells[0].note == "0.500–0.520"
    assert row_of(summary, "cached").cells[1].note == "beyond the spread"
    assert texts(row_of(summary, "fine-tuned"))[1] == "itself"
    assert texts(row_of(summary, "from scratch"))[-1] == "–"
    assert any("cached 0.510 is 0.045 above fine-tuned 0.465" in lead for lead in section.leads)


def test_cautions_come_first() -> None:
    caution = Caution(kind="still rising", text="Too early to tell.")
    page = comparison_page(FULL, title="T", standfirst="", facts=(), curves=(), cautions=[caution])
    leads = section_of(page, "result").leads
    assert leads[0] == "Too early to tell."
    assert leads[1].startswith("The best mean AP is")


def test_one_seed_gets_no_verdict() -> None:
    section = section_of(page_of(experiment(cached=[0.5], tuned=[0.4])), "result")
    row = section.tables[0].rows[0]
    assert texts(row) == ["+0.100", "no verdict", "0.500", "0.400", "–", "1"]
    assert row.cells[0].tone == ""
    assert [cell.note for cell in row.cells[2:4]] == ["0.480–0.530", "0.380–0.430"]


def test_every_run_stands_in_a_table_and_failed_ones_say_why() -> None:
    cells = [*FULL, cell("fpn", "tuned", 7, 0.9, error="no memory")]
    every, failed = section_of(page_of(cells), "runs").tables
    assert len(every.rows) == 9
    assert texts(row_of(every, "fpn", "cached, seed 1")) == [
        "0.520", "0.720", "0.420", "1,234", "40", "988", "2.34", "0.55", "182", "1,200", "12.5",
    ]  # fmt: skip
    lost = row_of(every, "fpn", "fine-tuned, seed 7")
    assert texts(lost) == ["failed", *"–" * 10]
    assert all(cell.rank is None for cell in lost.cells)
    assert texts(failed.rows[0]) == ["no memory"]
    result = section_of(page_of(cells), "result")
    assert any("fpn-tuned-7" in note for note in result.notes)
    assert row_of(result.tables[1], "fine-tuned").cells[2].note == "1 failed"
    assert len(section_of(page_of(FULL), "runs").tables) == 1


def test_runs_without_ap_are_counted() -> None:
    cells = experiment(cached=[0.5, math.nan], tuned=[0.4, 0.4])
    summary = section_of(page_of(cells), "result").tables[1]
    assert row_of(summary, "cached").cells[2].note == "1 without AP"


@pytest.mark.parametrize(
    "cells",
    [
        experiment(cached=[0.5, 0.5], live=[0.5, 0.5]),
        experiment(scratch=[0.1]),
        experiment(cached=[math.nan], tuned=[math.nan]),
        [cell("fpn", "cached", 0, 0.5, error="no"), cell("fpn", "tuned", 0, 0.5, error="no")],
        [cell("fpn", "cached", 0, 0.5, classes=()), cell("fpn", "tuned", 0, 0.5, classes=())],
        [],
    ],
    ids=["no tuned", "one run", "no AP", "all failed", "no classes", "nothing"],
)
def test_what_is_missing_is_said(cells: list[CellResult]) -> None:
    page = page_of(cells)
    assert not section_of(page, "classes").charts
    assert all(s.leads or s.tables for s in (*page.sections, *page.last))
    assert "nan" not in render_markdown(page)


def test_costs_are_drawn_with_a_mark_a_mode() -> None:
    parameters, flops = section_of(page_of(FULL), "costs").charts
    assert [name for name, _ in parameters.keys] == [
        "cached", "live frozen", "fine-tuned", "from scratch",
    ]  # fmt: skip
    assert len({shape.path for _, shape in parameters.keys}) == 4
    assert len({shape.tone for _, shape in parameters.keys}) == 4
    assert len(parameters.marks) == len(flops.marks) == 4
    assert [label.text for label in parameters.labels] == ["fpn"]
    assert len(parameters.links) == 1
    bars = [mark.bar for mark in parameters.marks]
    assert bars.count("") == 1  # both seeds of scratch are alike
    at = {mark.spot.title.split(",")[1].split(":")[0].strip(): mark.at for mark in parameters.marks}
    assert at["cached"][0] == at["live frozen"][0] < at["fine-tuned"][0]
    assert at["cached"][1] < at["fine-tuned"][1] < at["from scratch"][1]  # higher AP is higher up


def test_names_that_find_no_room_become_letters() -> None:
    cells = [cell("h" * 90 + str(n), "cached", 0, 0.5 + n / 50) for n in range(3)]
    chart = section_of(page_of(cells), "costs").charts[0]
    assert [label.text for label in chart.labels] == ["A", "B", "C"]
    assert f"B: {'h' * 90}1" in chart.description


def test_the_difference_of_each_class_is_drawn_over_its_boxes() -> None:
    section = section_of(page_of(FULL), "classes")
    (chart,) = section.charts
    rare, common = sorted(chart.marks, key=lambda mark: mark.at[0])
    assert rare.spot.title == "rare, 50 boxes: +0.045"
    assert common.spot.title.startswith("common, 5,000 boxes")
    assert {label.text for label in chart.labels} == {"rare", "common"}
    table = section.folds[0].table
    assert table is not None
    assert texts(row_of(table, "rare")) == ["50", "+0.045"]
    assert row_of(table, "rare").cells[1].note == "+0.040 to +0.050"
    assert chart.zero == ""  # all above: zero is the axis itself


def test_classes_below_and_above_have_a_zero_line_and_many_are_described_in_thirds() -> None:
    many = [(f"class {n}", 10 * 2**n) for n in range(12)]
    cells = [cell("fpn", mode, 0, 0.5, classes=many) for mode in ("cached", "tuned")]  # type: ignore[arg-type]
    tilted = tuple(
        ClassFigure(name=name, boxes=boxes, ap=0.5 + (5.5 - n) / 100)
        for n, (name, boxes) in enumerate(many)
    )
    cells[0] = CellResult(key=cells[0].key, ap=0.5, classes=tilted, parameters=1)
    (chart,) = section_of(page_of(cells), "classes").charts
    assert chart.zero
    assert len(chart.labels) <= 8
    assert chart.description == (
        "6 of 12 classes above zero. The 4 classes with the fewest boxes: +0.040 in the mean; the "
        "4 with the most: −0.040."
    )


def test_one_class_has_no_trend() -> None:
    cells = [
        cell("fpn", mode, seed, ap, classes=[("kangaroo", 300)])  # type: ignore[arg-type]
        for mode, ap in (("cached", 0.5), ("tuned", 0.4))
        for seed in (0, 1)
    ]
    section = section_of(page_of(cells), "classes")
    assert not section.charts
    assert "no trend" in section.leads[0]
    assert section.folds[0].table.rows[0].cells[1].text == "+0.100"


def test_bins_stand_by_heads_without_empty_ones() -> None:
    (table,) = section_of(page_of(FULL), "bins").tables
    assert [row.name for row in table.rows] == ["fpn", "10+ boxes"]
    assert texts(table.rows[1]) == ["0.510", "0.505", "0.465", "0.200"]
    assert table.rows[1].note == "2 classes"


def test_who_is_ahead_when() -> None:
    curves = [
        CurveOf(key=CellKey(heads="fpn", mode="cached", seed=0), seconds=(60, 90), ap=(0.3, 0.5)),
        CurveOf(key=CellKey(heads="fpn", mode="cached", seed=1), seconds=(60, 95), ap=(0.4, 0.3)),
        CurveOf(key=CellKey(heads="fpn", mode="live", seed=0), seconds=(95, 190), ap=(0.3, 0.5)),
        CurveOf(
            key=CellKey(heads="fpn", mode="tuned", seed=0), seconds=(80, 400), ap=(0.1, math.nan)
        ),
    ]
    section = section_of(page_of(FULL, curves), "time")
    assert section.leads == (
        "fpn: after 80 s, when the first run of fine-tuned is done, the best validation AP so far "
        "is: cached 0.350, live frozen not validated yet, fine-tuned 0.100.",
    )
    (chart,) = section.charts
    assert len(chart.lines) == 4
    assert [line.series.name for line in chart.lines if line.series.in_legend] == [
        "cached", "live frozen", "fine-tuned",
    ]  # fmt: skip
    assert chart.lines[0].dash == chart.lines[1].dash != chart.lines[2].dash
    assert chart.x_name == "seconds from the start"
    assert section.notes


def test_the_page_names_its_facts_and_the_papers_figures() -> None:
    markdown = render_markdown(page_of(FULL)).replace("\\", "")
    assert "| Backbone | lite0 |" in markdown
    for figures in ("frozen 42.1 and fine-tuned 48.6", "19.3 fine-tuned and 22.2 frozen"):
        assert figures in markdown
    assert "another scale" in markdown
    html = render_page(page_of(FULL), curves=(), sheet=None)
    assert "--images" not in html  # no place for images
    assert 'href="#images"' not in html


def test_an_axis_of_logarithms_has_few_round_ticks() -> None:
    axis = log_axis("boxes", 300, 4000)
    assert axis.low < 300
    assert axis.high > 4000
    assert axis.ticks == (500, 1000, 2000, 5000)
    assert [axis.text_of(tick) for tick in axis.ticks] == ["500", "1k", "2k", "5k"]
    assert axis.share(axis.low) == 0
    assert axis.share(math.sqrt(axis.low * axis.high)) == pytest.approx(0.5)
    for low, high in ((1, 1), (0.5, 0.7), (3, 3e6), (1, 1e12)):
        assert 2 <= len(log_axis("", low, high).ticks) <= 7


def test_an_axis_around_values_holds_them() -> None:
    assert span_axis("AP", 0.384, 0.601).ticks[0::6] == (0.35, 0.65)
    for low, high in ((-0.03, 0.02), (0.5, 0.5), (0.0, 0.0), (-1.0, -0.2), (0.4, 0.4001)):
        axis = span_axis("", low, high)
        assert axis.low <= low + 1e-9
        assert axis.high >= high - 1e-9
        assert 2 <= len(axis.ticks) <= 8
    assert span_axis("", -0.03, 0.02).text_of(-0.02) == "−0.02"


def test_names_never_overlap() -> None:
    spots = [
        Spot(x=0.3 + n / 90, y=0.5 + (n % 3) / 60, least=0.45, most=0.55, shape=SHAPE, title="",
             label=f"a name {n}")
        for n in range(25)
    ]  # fmt: skip
    x, y = unit_axis("x"), unit_axis("y")
    chart = draw_chart("key", "title", "words", x=x, y=y, spots=spots)
    assert 1 < len(chart.labels) < 25
    boxes = []
    for label in chart.labels:
        width = 6 * len(label.text)
        left = label.at[0] - width * {"start": 0, "middle": 0.5, "end": 1}[label.anchor]
        boxes.append((left, label.at[1] - 9, left + width, label.at[1] + 2))
    for number, one in enumerate(boxes):
        assert chart.left <= one[0]
        assert one[2] <= chart.right
        for other in boxes[:number]:
            apart = one[2] <= other[0] or other[2] <= one[0]
            assert apart or one[3] <= other[1] or other[3] <= one[1]
