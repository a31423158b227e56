"""Commands that show the presets, which are configs that travel with the package."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cachedet.commands.options import Json, print_json
from cachedet.commands.tables import console, say

if TYPE_CHECKING:  # commands import what they need when they run: `--help` stays quick
    from cachedet.model import ModelCost

app = typer.Typer()

_NUM_CLASSES = 80


@dataclass(frozen=True, kw_only=True)
class _Tier:
    """Presets for one kind of machine, and a usual input, for which costs are shown."""

    backbone: str
    features: str
    side: int  # of a square image, in pixels


_TINY = _Tier(backbone="EfficientNet-lite0", features="C3:40:8,C4:112:16,C5:320:32", side=384)
_PAPER = _Tier(backbone="a ResNet-50", features="C3:512:8,C4:1024:16,C5:2048:32", side=640)


@app.callback(invoke_without_command=True)
def configs(context: typer.Context, as_json: Json = False) -> None:
    """The presets: what each is for and what it costs. Their names serve as CONFIG."""
    if context.invoked_subcommand is not None:
        return
    from cachedet.config.presets import START, describe_preset, preset_names

    costs = {name: _measure(name) for name in preset_names()}
    if as_json:
        presets = [
            {"name": name, "purpose": describe_preset(name), **cost.to_json()}
            for name, cost in costs.items()
        ]
        print_json({"presets": presets})
        return
    for tier in (_TINY, _PAPER):
        _print_tier(tier, {name: cost for name, cost in costs.items() if _tier_of(name) is tier})
    say(f"Start here: {START}. The paper's presets want a GPU.")
    say("M: trained parameters in millions; GFLOP: a training step of one image.")
    say("`cachedet configs show PRESET > mine.yaml` makes one yours to edit.")


@app.command()
def show(preset: Annotated[str, typer.Argument(help="Its name.")]) -> None:
    """Print the YAML file of a preset as it is."""
    from cachedet.config.presets import read_preset

    sys.stdout.write(read_preset(preset))


def _tier_of(name: str) -> _Tier:
    return _TINY if name.endswith(("_tiny", "_small")) else _PAPER


def _measure(name: str) -> ModelCost:
    from cachedet.config.presets import load_config
    from cachedet.model import measure_model, parse_features

    tier = _tier_of(name)
    return measure_model(
        load_config(name).detector,
        features=parse_features(tier.features),
        num_classes=_NUM_CLASSES,
        size_hw=(tier.side, tier.side),
    )


def _print_tier(tier: _Tier, costs: dict[str, ModelCost]) -> None:
    from cachedet.config.presets import describe_preset

    table = Table(
        title=f"on {tier.backbone}, {tier.side} x {tier.side} px, {_NUM_CLASSES} classes",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    table.add_column("preset", no_wrap=True)
    for name in ("M", "GFLOP"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what for")
    for name, cost in sorted(costs.items(), key=lambda item: item[1].total.step_flops):
        total = cost.total
        millions, gflop = f"{total.parameters / 1e6:.2f}", f"{total.step_flops / 1e9:.1f}"
        table.add_row(name, millions, gflop, describe_preset(name))
    console.print(table, "")
