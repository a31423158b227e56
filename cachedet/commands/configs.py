"""Commands that show the presets, which are configs that travel with the package."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cachedet.commands.options import Json, print_json
from cachedet.commands.tables import console, say

if TYPE_CHECKING:  # commands import what they need when they run: `--help` stays quick
    from cachedet.config.preset_costs import UsualInput

app = typer.Typer()


@app.callback(invoke_without_command=True)
def configs(context: typer.Context, as_json: Json = False) -> None:
    """The presets: what each is for and what it costs. Their names serve as CONFIG."""
    if context.invoked_subcommand is not None:
        return
    from cachedet.config.preset_costs import PAPER, TINY, read_costs, usual_input
    from cachedet.config.presets import START, describe_preset

    costs = read_costs()
    if as_json:
        presets = [
            {"name": name, "purpose": describe_preset(name), **cost} for name, cost in costs.items()
        ]
        print_json({"presets": presets})
        return
    for usual in (TINY, PAPER):
        of_it = {name: cost for name, cost in costs.items() if usual_input(name) is usual}
        _print_costs(usual, of_it)
    say(f"Start here: {START}. The paper's presets want a GPU.")
    say("M: trained parameters in millions; GFLOP: a training step of one image.")
    say("`cachedet configs show PRESET > mine.yaml` makes one yours to edit.")


@app.command()
def show(preset: Annotated[str, typer.Argument(help="Its name.")]) -> None:
    """Print the YAML file of a preset as it is."""
    from cachedet.config.presets import read_preset

    sys.stdout.write(read_preset(preset))


def _print_costs(usual: UsualInput, costs: dict[str, dict[str, Any]]) -> None:
    from cachedet.config.preset_costs import NUM_CLASSES
    from cachedet.config.presets import describe_preset

    table = Table(
        title=f"on {usual.backbone}, {usual.side} x {usual.side} px, {NUM_CLASSES} classes",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    table.add_column("preset", no_wrap=True)
    for name in ("M", "GFLOP"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what for")
    for name, cost in sorted(costs.items(), key=lambda item: item[1]["total"]["step_flops"]):
        total = cost["total"]
        millions, gflop = f"{total['parameters'] / 1e6:.2f}", f"{total['step_flops'] / 1e9:.1f}"
        table.add_row(name, millions, gflop, describe_preset(name))
    console.print(table, "")
