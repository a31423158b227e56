"""The page of a comparison as a browser shows it; tests/e2e/test_report_page.py for the machinery.

Skipped only where no chromium is installed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from cachedet.comparison.page import comparison_page
from cachedet.comparison.page_charts import CurveOf
from cachedet.comparison.results import BinFigure, CellKey, CellResult, ClassFigure
from cachedet.live.mode_names import MODES, Mode
from cachedet.reporting.rendering import render_page

HEADS = {
    "retinanet_fpn_tiny": 0.55,
    "retinanet_nasfpn_tiny": 1.1,
    "fasterrcnn_fpn_lean": 6.2,
    "cascade_nasfpn_tiny": 8.9,
}
BLOOD = {"RBC": 4155, "WBC": 372, "Platelets": 361}
MANY = {f"class {n} of forty": round(3 * 1.22**n) for n in range(40)}
FACTS = (
    ("Backbone", "tf_efficientnet_lite0, ImageNet weights, the same digest in all runs"),
    ("Image size and views", "640 pixels; base and hflip"),
    ("Budget", "10 min a run, extraction included in cached"),
    ("Batch norm of the backbone", "frozen; trained from scratch"),
    ("Device", "cpu, 2 threads"),
)
HOSTILE = "<img src=x onerror=\"document.title='taken'\"> & 'single'"


def experiment(
    heads: dict[str, float] = HEADS,
    modes: Sequence[Mode] = MODES,
    seeds: int = 3,
    classes: dict[str, int] = BLOOD,
) -> list[CellResult]:
    """Runs with believable figures: stronger heads gain by freezing, and so do rare classes."""
    random.seed(7)
    cells = []
    for index, (name, size) in enumerate(heads.items()):
        for mode in modes:
            frozen = mode in ("cached", "live")
            base = 0.50 + 0.012 * index + (0.0 if frozen else 0.012 - 0.01 * index)
            base -= 0.17 if mode == "scratch" else 0.0
            for seed in range(seeds):
                noise = random.gauss(0, 0.006)
                figures = []
                for of_class, boxes in classes.items():
                    rare = 0.02 * (3 - math.log10(boxes)) * frozen
                    hard = 0.12 * (math.log10(boxes) - 2.5)
                    ap = base + noise + rare + hard + random.gauss(0, 0.012)
                    figures.append(
                        ClassFigure(name=of_class, boxes=boxes, ap=min(max(ap, 0.0), 1.0))
                    )
                cells.append(_cell(CellKey(heads=name, mode=mode, seed=seed), size, figures))
    return cells


def _cell(key: CellKey, size: float, figures: list[ClassFigure]) -> CellResult:
    frozen, cost = key.mode in ("cached", "live"), {"cached": 1, "live": 2.2}.get(key.mode, 5.3)
    ap = sum(figure.ap for figure in figures) / len(figures)
    bins = []
    for name, low, high in (("10-99", 10, 99), ("100-999", 100, 999), ("1000+", 1000, 10**9)):
        inside = [figure.ap for figure in figures if low <= figure.boxes <= high]
        mean = sum(inside) / len(inside) if inside else math.nan
        bins.append(BinFigure(name=name, classes=len(inside), ap=mean))
    return CellResult(
        key=key,
        device="cpu",
        steps=1840 if frozen else 920,
        epochs=40.0 if frozen else 20.0,
        seconds=120 * cost * (0.7 + size / 4) + key.seed,
        extraction_seconds=38.4 if key.mode == "cached" else 0.0,
        peak_memory=int(4.1e8 * (1 + cost / 4 + size / 20)),
        step_flops=int(2.1e9 * cost * (0.7 + size / 4)),
        parameters=int((size + (0 if frozen else 3.4)) * 1e6),
        cache_nbytes=182_000_000 if key.mode == "cached" else 0,
        ap=ap,
        ap50=ap + 0.31,
        ap75=ap + 0.02,
        low=ap - 0.024,
        high=ap + 0.026,
        classes=tuple(figures),
        bins=tuple(bins),
    )


def curves_of(cells: Sequence[CellResult]) -> list[CurveOf]:
    """Ten validations of each run that was scored."""
    shares = [n / 10 for n in range(1, 11)]
    return [
        CurveOf(
            key=cell.key,
            seconds=tuple(share * cell.seconds for share in shares),
            ap=tuple(cell.ap * (1 - math.exp(-5 * share)) for share in shares),
        )
        for cell in cells
        if not cell.has_failed and not math.isnan(cell.ap)
    ]


def write_page(file: Path, cells: Sequence[CellResult]) -> Path:
    page = comparison_page(
        cells,
        title="Frozen against fine-tuned",
        standfirst="Four heads, four modes and three seeds on bccd",
        facts=FACTS,
        curves=curves_of(cells),
    )
    file.write_text(render_page(page, curves=(), sheet=None), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 runs of three classes; one failed, one has no AP."""
    cells = experiment()
    cells[7] = CellResult(key=cells[7].key, error=HOSTILE)
    cells[20] = CellResult(key=cells[20].key, seconds=60.0)
    return write_page(tmp_path_factory.mktemp("full") / "comparison.html", cells)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty classes, heads whose names hold HTML or do not end, one seed."""
    heads = {HOSTILE: 0.5, "heads_without_end" * 9: 5.0}
    cells = experiment(heads, seeds=1, classes=MANY)
    return write_page(tmp_path_factory.mktemp("odd") / "comparison.html", cells)


@pytest.mark.parametrize(  # each two of these meet once; all eight would take twice the time
    ("which", "width", "scheme"),
    [("full", 390, "light"), ("full", 1600, "dark"), ("odd", 390, "dark"), ("odd", 1600, "light")],
)
def test_it_fits_and_axe_finds_nothing(
    opened: Any, which: str, width: int, scheme: str, request: pytest.FixtureRequest
) -> None:
    page = opened(request.getfixturevalue(which), width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    result = Axe().run(page).response
    assert len(result["passes"]) > 15
    assert [
        (rule["id"], [node["html"][:200] for node in rule["nodes"]][:5])
        for rule in result["violations"]
    ] == []


@pytest.mark.parametrize("width", [390, 1600])
@pytest.mark.parametrize("which", ["full", "odd"])
def test_texts_of_charts_do_not_overlap(
    opened: Any, which: str, width: int, request: pytest.FixtureRequest
) -> None:
    page = opened(request.getfixturevalue(which), width=width)
    charts = page.locator(".chart > svg")
    assert charts.count() >= 5
    for number in range(charts.count()):
        overlapping = charts.nth(number).evaluate("""svg => {
            const boxes = [...svg.querySelectorAll("text")].map((text) => [text.textContent,
                text.getBBox()]);
            const pairs = [];
            boxes.forEach(([one, a], n) => boxes.slice(n + 1).forEach(([other, b]) => {
                if (a.x < b.x + b.width && b.x < a.x + a.width && a.y + 1 < b.y + b.height
                    && b.y + 1 < a.y + a.height) pairs.push([one, other]);
            }));
            return pairs;
        }""")
        assert overlapping == []


def test_marks_are_seen_in_both_themes(opened: Any, full: Path) -> None:
    """No shape has the colour of the paper, and modes have different ones."""
    for scheme in ("light", "dark"):
        page = opened(full, width=1600, scheme=scheme)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        strokes = page.locator("#chart-parameters .legend .shape").evaluate_all(
            "shapes => shapes.map((shape) => getComputedStyle(shape).stroke)"
        )
        assert len(strokes) == len(set(strokes)) == 4
        assert paper not in strokes


def test_runs_sort_with_failed_ones_last(opened: Any, full: Path) -> None:
    page = opened(full, width=1600)
    head = page.locator("#runs thead th").nth(1)
    head.get_by_role("button").click()
    values = page.locator("#runs table.sortable tbody td:nth-child(2) .value").all_inner_texts()
    assert len(values) == 48
    known = [float(value) for value in values[:46]]
    assert known == sorted(known, reverse=True)
    assert set(values[46:]) == {"failed", "–"}
    page.locator("#runs thead th").first.get_by_role("button").click()  # by name


def test_names_with_html_in_them_are_text(opened: Any, full: Path, odd: Path) -> None:
    page = opened(odd, width=1600)
    assert page.title() == "Frozen against fine-tuned · cachedet comparison"
    assert page.locator("img").count() == 0
    assert page.locator("#runs th", has_text=HOSTILE).count() == 4
    assert page.locator("h3", has_text=HOSTILE).count() == 2
    page = opened(full, width=1600)
    assert page.locator("#runs td", has_text=HOSTILE).count() == 1
    assert page.locator("img").count() == 0


def test_there_is_no_place_for_images_and_every_link_leads_somewhere(
    opened: Any, full: Path
) -> None:
    page = opened(full, width=390)
    assert page.locator("#images").count() == 0
    targets = page.locator("nav a").evaluate_all("links => links.map((link) => link.hash)")
    assert len(targets) == 8
    assert all(page.locator(target).count() == 1 for target in targets)
