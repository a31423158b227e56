"""The page of a comparison as a browser shows it; tests/e2e/test_report_page.py for the machinery.

Skipped only where no chromium is installed.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from cachedet.comparison.results import BinFigure, CellKey, CellResult, ClassFigure
from cachedet.live.rigs import MODES, Mode
from cachedet.reporting.comparison_charts import CurveOf
from cachedet.reporting.comparison_sections import comparison_page
from cachedet.reporting.page import render_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: apt-get install chromium, as .ci/run does"
)
_OFFLINE = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
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
    for place, (name, size) in enumerate(heads.items()):
        for mode in modes:
            frozen = mode in ("cached", "live")
            base = 0.50 + 0.012 * place + (0.0 if frozen else 0.012 - 0.01 * place)
            base -= 0.17 if mode == "scratch" else 0.0
            for seed in range(seeds):
                noise = random.gauss(0, 0.006)
                figures = []
                for own, boxes in classes.items():
                    rare = 0.02 * (3 - math.log10(boxes)) * frozen
                    hard = 0.12 * (math.log10(boxes) - 2.5)
                    ap = base + noise + rare + hard + random.gauss(0, 0.012)
                    figures.append(ClassFigure(name=own, boxes=boxes, ap=min(max(ap, 0.0), 1.0)))
                cells.append(_cell(CellKey(heads=name, mode=mode, seed=seed), size, figures))
    return cells


def _cell(key: CellKey, size: float, figures: list[ClassFigure]) -> CellResult:
    frozen, cost = key.mode in ("cached", "live"), {"cached": 1, "live": 2.2}.get(key.mode, 5.3)
    ap = sum(own.ap for own in figures) / len(figures)
    bins = []
    for name, low, high in (("10-99", 10, 99), ("100-999", 100, 999), ("1000+", 1000, 10**9)):
        inside = [own.ap for own in figures if low <= own.boxes <= high]
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
    found = []
    for cell in cells:
        if not cell.has_failed and not math.isnan(cell.ap):
            shares = [n / 10 for n in range(1, 11)]
            found.append(
                CurveOf(
                    key=cell.key,
                    seconds=tuple(share * cell.seconds for share in shares),
                    ap=tuple(cell.ap * (1 - math.exp(-5 * share)) for share in shares),
                )
            )
    return found


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
