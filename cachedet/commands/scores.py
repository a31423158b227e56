"""Commands that score runs and detections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cachedet.commands.options import Device, Json, print_json
from cachedet.tables import console, print_scores


def evaluate(
    run: Path,
    store: Annotated[str, typer.Option(help="Store to score on.")],
    weights: Annotated[str, typer.Option(help="best or last.")] = "best",
    views: Annotated[
        str, typer.Option(help="Of the store, such as base,hflip: their detections are merged.")
    ] = "base",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Stage 3: COCO figures of a run on a store."""
    from cachedet.config import make_eval_config
    from cachedet.evaluate import evaluate as run_evaluate

    report = run_evaluate(
        run,
        store=store,
        config=make_eval_config({"weights": weights, "views": views, "device": device}),
    )
    if as_json:
        print_json(report.to_json())
        return
    print_scores(report.scores.to_json(), of="boxes")
    if report.mask_scores is not None:
        print_scores(report.mask_scores.to_json(), of="masks")
    console.print(f"{report.results}\n{report.coco_file}", highlight=False)
