"""benchmarks/results.py: the table of the page on results, and the page around it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cachedet.comparison.results import CellKey, CellResult
from cachedet.comparison.summary import summarise
from cachedet.data.shapes import write_shapes
from cachedet.live.mode_names import Mode

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cell(heads: str, mode: Mode, ap: float, *, seed: int = 0, nbytes: int = 0) -> CellResult:
    return CellResult(
        key=CellKey(heads=heads, mode=mode, seed=seed), device="cpu", ap=ap, seconds=999.0,
        processor_seconds=60.4 + seed, peak_memory=1_440_000_000, cache_nbytes=nbytes,
    )  # fmt: skip


def test_a_table_has_a_line_for_each_preset_and_mode(script: ModuleType) -> None:
    """As they are asked for, then others; the best in bold; failed ones are left out."""
    failed = CellResult(key=CellKey(heads="b", mode="tuned", seed=0), error="full disk")
    cells = [
        cell("a", "cached", 0.4, nbytes=123_400_000),
        cell("b", "tuned", 0.6),
        cell("b", "cached", 0.5, nbytes=123_400_000),
        cell("b", "partial_C4", 0.61, nbytes=90_000_000),
        failed,
    ]
    head, rule, *rows = script.table(summarise(cells), extraction=30.0, presets=["b"])
    assert head.count("|") == rule.count("|")
    assert rows == [
        "|`b`|frozen|0.500|30|60|1.4|123|",
        "|`b`|last stage|**0.610**|30|60|1.4|90|",
        "|`b`|fine-tuned|0.600|-|60|1.4|-|",
        "|`a`|frozen|0.400|30|60|1.4|123|",
    ]


def test_seeds_are_taken_together(script: ModuleType) -> None:
    cells = [cell("a", "tuned", ap, seed=seed) for seed, ap in enumerate((0.5, 0.6, 0.7))]
    *_, row = script.table(summarise(cells), extraction=0.0, presets=())
    assert row == "|`a`|fine-tuned|**0.600** (0.200)|-|61|1.4|-|"


def test_the_rest_of_a_page_stays(script: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "mine.md"
    script.replace_block(page, "old")  # begins it
    page.write_text(f"# Mine\n{page.read_text()}\n## More\n")
    script.replace_block(page, "new")
    text = page.read_text()
    assert text.startswith("# Mine\n# Results\n\n<!-- results:begin -->\n\nnew\n\n<!-- results:end")
    assert text.endswith("-->\n\n## More\n")
    assert script.read_block(page) == "new"
    page.write_text("# Mine\n")
    with pytest.raises(SystemExit, match=r"mine\.md should have the lines <!-- results:begin"):
        script.replace_block(page, "new")


def test_the_page_of_the_docs_has_its_block_and_command(script: ModuleType) -> None:
    block = script.read_block(script.PAGE)
    assert script.HEADER in block
    assert "    python benchmarks/results.py --data DIR --out DIR\n" in f"{block}\n"


@pytest.mark.thorough
def test_the_command_fills_a_page_and_goes_on(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shapes(tmp_path / "sets" / "shapes", train=8, val=4)
    page, out = tmp_path / "page.md", tmp_path / "out"
    words = [
        "results.py", "--data", str(tmp_path / "sets"), "--out", str(out), "--page", str(page),
        "--epochs", "1", "--image-size", "128", "--weights", "none", "--views", "base",
        "--presets", "retinanet_fpn_tiny,faster_rcnn_fpn_tiny", "--other-modes", "cached,partial",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    script.main()
    text = page.read_text()
    lines = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("|`")]
    assert lines == [
        ["`retinanet_fpn_tiny`", "frozen"],
        ["`retinanet_fpn_tiny`", "last stage"],
        ["`retinanet_fpn_tiny`", "fine-tuned"],
        ["`faster_rcnn_fpn_tiny`", "frozen"],
        ["`faster_rcnn_fpn_tiny`", "last stage"],
    ]
    assert "8 images to train on, 4 to score on; " in text
    assert "still to come" not in text
    changed = "--other-modes cached,partial --epochs 1 --weights none --image-size 128 --views base"
    assert f"--data DIR --out DIR --presets {words[-3]} {changed}\n" in text
    cells = {path: path.stat().st_mtime_ns for path in out.glob("shapes/cells/*/cell.json")}
    assert len(cells) == 5
    script.main()
    assert {path: path.stat().st_mtime_ns for path in cells} == cells
