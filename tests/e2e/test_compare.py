"""`cachedet compare` as a user calls it: a smoke comparison, going on, adding, failing cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cachedet.cli import app

CONFIG = Path(__file__).parents[2] / "configs" / "retinanet_fpn_tiny.yaml"
SMALL = (
    "detector.neck.channels=16",
    "detector.num_convs=1",
    "schedule.batch_size=4",
    "eval_every=1",
)


@pytest.fixture
def run_compare(tiny: Any, tmp_path: Path) -> Any:
    def run(*more: str, configs: tuple[Path, ...] = (CONFIG,)) -> Result:
        options = ["--images", str(tiny.paths.images), "--annotations", str(tiny.paths.train)]
        options += ["--val-annotations", str(tiny.paths.val), "--out", str(tmp_path / "out")]
        options += ["--backbone", "test_resnet", "--weights", str(tiny.weights)]
        options += ["--image-size", "128", "--device", "cpu", "--workers", "1"]
        options += ["--views", "base,hflip", "--codec", "fp32", "--resamples", "20"]
        for text in SMALL:
            options += ["--set", text]
        return CliRunner().invoke(app, ["compare", *map(str, configs), *options, *more])

    return run


def cells_of(result: Result) -> dict[str, Any]:
    told = json.loads(result.stdout)
    return {
        f"{cell['key']['heads']} {cell['key']['mode']} {cell['key']['seed']}": cell
        for cell in told["cells"]
    }


def test_two_cells_then_more(run_compare: Any, tmp_path: Path) -> None:
    result = run_compare("--modes", "cached,tuned", "--epochs", "2", "--json")
    assert result.exit_code == 0, result.stderr
    found = cells_of(result)
    assert list(found) == ["retinanet_fpn_tiny cached 0", "retinanet_fpn_tiny tuned 0"]
    assert all(cell["epochs"] == 2 and cell["error"] == "" for cell in found.values())
    assert found["retinanet_fpn_tiny cached 0"]["extraction_seconds"] > 0
    html = (tmp_path / "out" / "comparison.html").read_text()
    assert "fine-tuned" in html
    assert (tmp_path / "out" / "comparison.md").read_text().startswith("# ")
    assert len(json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"]) == 2

    more = run_compare("--modes", "cached", "--seeds", "0,1", "--epochs", "2", "--json")
    assert more.exit_code == 0, more.stderr
    again = cells_of(more)
    assert len(again) == 3
    for name, cell in found.items():  # read, not trained again
        assert again[name] == cell

    other = run_compare("--modes", "cached", "--epochs", "3")
    assert other.exit_code == 1
    assert "holds another comparison: epochs was 2, is 3" in other.stderr


def test_a_failed_cell_leaves_the_others(run_compare: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(CONFIG.read_text().replace("kind: retinanet", "kind: retinanet\n  levels: [C9]"))
    result = run_compare("--modes", "cached", "--epochs", "1", configs=(bad, CONFIG))
    assert result.exit_code == 1
    assert "detector.levels asks for 'C9'" in " ".join(result.stdout.split())
    assert "some cells failed" in result.stderr
    told = json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"]
    assert [bool(cell["error"]) for cell in told] == [True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--modes", "frozen"), "unknown mode 'frozen'"),
        (("--seeds", "0,0"), "the seed 0 is named more than once"),
        (("--seeds", "x"), "--seeds expects whole numbers"),
        (("--epochs", "1", "--budget", "5m"), "--epochs and --budget are two ways"),
        (("--budget", "soon"), "--budget expects a time such as 10m"),
        (("--batch-norm", "off"), "--batch-norm expects frozen or trained"),
        (("--set", "augment.flip=0.5"), "augment.flip: feature-space augmentation"),
        (("--set", "nonsense=1"), "unknown key 'nonsense'"),
        (("--device", "cuda:77"), "device 'cuda:77' cannot be used here"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(
    run_compare: Any, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = run_compare(*options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
