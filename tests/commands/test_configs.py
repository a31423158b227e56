"""The presets as the command line shows and takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cachedet.cli import app
from cachedet.config.preset_costs import read_costs
from cachedet.config.presets import START, describe_preset, preset_names
from cachedet.model import measure_preset

CONFIGS = Path(__file__).parents[2] / "configs"


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_list() -> None:
    shown, printed = call("configs"), call("configs", "--json")
    assert (shown.exit_code, printed.exit_code) == (0, 0)
    presets = {preset["name"]: preset for preset in json.loads(printed.stdout)["presets"]}
    assert tuple(presets) == preset_names()
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "on EfficientNet-lite0, 384 x 384 px, 80 classes" in shown.stdout
    assert "on a ResNet-50, 640 x 640 px, 80 classes" in shown.stdout
    assert f"Start here: {START}." in shown.stdout
    assert START in presets
    for name, preset in presets.items():
        millions, gflop = preset["total"]["parameters"] / 1e6, preset["total"]["step_flops"] / 1e9
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        figures = [f"{millions:.2f}", f"{gflop:.1f}"]
        assert line.split() == [name, *figures, *describe_preset(name).split()]
        is_small = name.endswith(("_tiny", "_small"))
        assert preset["size_hw"] == ([384, 384] if is_small else [640, 640])
        assert (gflop < 20) == is_small


def test_the_costs_are_what_is_counted() -> None:
    """Of each preset: else `python benchmarks/preset_costs.py` has to be run."""
    costs = read_costs()
    assert tuple(costs) == preset_names()
    for name in preset_names():
        assert costs[name] == measure_preset(name).to_json()


def test_show_prints_the_file_as_it_is() -> None:
    path = CONFIGS / "cascade_rcnn_fpn.yaml"
    assert call("configs", "show", "cascade_rcnn_fpn").stdout == path.read_text()
    wrong = call("configs", "show", "cascade_rcn_fpn")
    assert wrong.exit_code == 1
    assert "got 'cascade_rcn_fpn'; nearest: 'cascade_rcnn_fpn'" in wrong.output


@pytest.mark.parametrize(
    "words",
    [
        ("train-heads", "retinanet_tiny", "--train", "t.zarr", "--run", "run"),
        ("model", "retinanet_tiny"),
        ("estimate", "retinanet_tiny", "--images", "i", "--annotations", "a", "--store", "s"),
        (
            "compare", "retinanet_tiny", "--images", "i", "--annotations", "a",
            "--val-annotations", "v", "--out", "o",
        ),
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_every_command_knows_presets(words: tuple[str, ...], tmp_path: Path) -> None:
    done = call(*words)
    assert done.exit_code == 1
    assert "got 'retinanet_tiny'; nearest: 'retinanet_fpn_tiny'" in done.output
    assert "`cachedet configs` lists the presets" in done.output
    assert f"{START} is a good start" in done.output


def test_a_preset_and_its_file_cost_the_same() -> None:
    by_name = call("model", "retinanet_fpn_tiny", "--json").stdout
    assert by_name == call("model", CONFIGS / "retinanet_fpn_tiny.yaml", "--json").stdout
    assert "retinanet_fpn_tiny: one image" in call("model", "retinanet_fpn_tiny").stdout
