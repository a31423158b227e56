"""The page of a sweep as a browser shows it; tests/sweeping/test_sweep_page.py for what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from cachedet.reporting.rendering import render_page
from cachedet.sweeping.parameters import Parameter
from cachedet.sweeping.sweep_page import sweep_page
from cachedet.sweeping.sweep_plan import Space
from cachedet.sweeping.sweep_results import SweepReport, TrialRecord, Verdict

NAME = "a_name_without_end" * 6
KEYS = ("schedule.lr", "schedule.weight_decay", "detector.box_weight", "schedule.ema_decay")
SPACE = Space(
    of_config={NAME: tuple(Parameter(key=key, low=0.001, high=0.1, log=True) for key in KEYS)}
)


def trial(number: int) -> TrialRecord:
    ap = 0.1 + number / 50
    return TrialRecord(
        number=number,
        state="pruned" if number % 3 == 2 else "complete",
        config=NAME,
        values={key: 0.001 * 1.2 ** (number + at) for at, key in enumerate(KEYS)},
        objectives=() if number % 3 == 2 else (ap, 10.0 - number),
        curve=((1, ap / 2),) if number % 3 == 2 else ((1, ap / 2), (2, ap)),
        seconds=10.0 - number,
        images=100.0,
        error="",
        run=Path(f"trials/{number:04d}"),
    )


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    report = SweepReport(
        out=Path("out"), objectives=("ap", "seconds"), space=SPACE.describe(),
        trials=tuple(map(trial, range(9))), best=(6, 7), winner=7,
        importances=dict(zip(KEYS, (0.4, 0.3, 0.2, 0.1), strict=True)), choosing=9, reporting=9,
        finals=(), verdict=Verdict.of_default([0.2, 0.3], images=9), seconds=9.0, parallel=1,
        settings={"seed": 0}, notes=("<img src=x>",), interrupted_by=None,
    )  # fmt: skip
    file = tmp_path_factory.mktemp("sweep") / "sweep.html"
    page = render_page(sweep_page(report, SPACE), curves=(), sheet=None)
    file.write_text(page, encoding="utf-8")
    return file


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1600, "light")])
def test_it_fits_and_axe_finds_nothing(
    opened: Any, page_file: Path, width: int, scheme: str
) -> None:
    page = opened(page_file, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".chart > svg").count() == 3
    result = Axe().run(page).response
    assert len(result["passes"]) > 15
    assert [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in result["violations"]] == []


def test_lines_are_seen_and_the_better_ones_are_stronger(opened: Any, page_file: Path) -> None:
    page = opened(page_file, width=1600)
    strengths = page.locator("#chart-learning path.line.scaled[data-line]").evaluate_all(
        "lines => lines.map((line) => getComputedStyle(line).strokeOpacity)"
    )
    assert len(strengths) == len(set(strengths)) >= 3
    head = page.locator("#trials thead th").nth(2)
    head.get_by_role("button").click()
    assert page.locator("#trials tbody th").first.inner_text().startswith("trial 7")
