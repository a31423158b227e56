"""The command that trains the same heads in several ways."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cachedet.commands.options import (
    Annotations,
    Backbone,
    Codec,
    Device,
    Images,
    ImageSize,
    Json,
    OnBadImage,
    Overrides,
    Weights,
    Workers,
    print_json,
)
from cachedet.progress import count_of
from cachedet.tables import console

if TYPE_CHECKING:  # commands import what they need when they run: `--help` stays quick
    from cachedet.compare import ComparisonReport


def compare(
    configs: Annotated[list[Path], typer.Argument(help="YAML files of heads, as in configs/.")],
    images: Images,
    annotations: Annotations,
    val_annotations: Annotated[Path, typer.Option(help="The file to score on.")],
    out: Annotated[Path, typer.Option(help="Folder of the comparison, also to go on with it.")],
    val_images: Annotated[
        Path | None, typer.Option(help="Folder of the scored pictures; default: --images.")
    ] = None,
    modes: Annotated[
        str, typer.Option(help="Of cached, live, tuned (fine-tuned), scratch.")
    ] = "cached,live,tuned,scratch",
    seeds: Annotated[str, typer.Option(help="Such as 0,1,2.")] = "0",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of every cell; default: those of its config.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time of every cell instead, such as 10m, 90s, 1h.")
    ] = None,
    backbone: Backbone = "tf_efficientnet_lite0",
    weights: Weights = "auto",
    image_size: ImageSize = 512,
    views: Annotated[
        str, typer.Option(help="Of the cache; the other modes draw from the same recipe.")
    ] = "base,hflip,jitter=2:0.5-1.5",
    codec: Codec = "int8",
    on_bad_image: OnBadImage = "fail",
    backbone_lr: Annotated[
        float, typer.Option(min=0, help="Of a fine-tuned backbone, as a share of the heads'.")
    ] = 0.1,
    batch_norm: Annotated[
        str, typer.Option(help="Of a fine-tuned backbone: frozen or trained.")
    ] = "frozen",
    overrides: Overrides = None,
    resamples: Annotated[int, typer.Option(min=1, help="For the intervals.")] = 1000,
    workers: Workers = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """The paper's experiment on your data: cached frozen, live frozen, fine-tuned and scratch.

    Every cell (config x mode x seed) is trained alike. Run again to go on, or with more of them.
    """
    from cachedet.compare import ComparisonConfig
    from cachedet.compare import compare as run_compare
    from cachedet.comparison import choices
    from cachedet.comparison.folder import ComparisonFolder
    from cachedet.comparison_tables import print_cell, print_summary
    from cachedet.config import load_train_config, make_extract_config
    from cachedet.extract import default_workers
    from cachedet.live.rigs import BackboneTraining

    changes = [*(overrides or []), *([] if device == "auto" else [f"device={device}"])]
    shared = {"backbone": backbone, "weights": weights, "image_size": image_size, "codec": codec}
    threads = workers or default_workers()
    shared |= {"on_bad_image": on_bad_image, "device": device, "workers": threads}
    folder = ComparisonFolder(out)
    train = {"images": images, "annotations": annotations, "store": folder.train, "views": views}
    val = {"annotations": val_annotations, "store": folder.val, "views": "base"}
    config = ComparisonConfig(
        heads=choices.name_configs(configs, lambda path: load_train_config(path, changes)),
        train=make_extract_config({**shared, **train}),
        val=make_extract_config({**shared, **val, "images": val_images or images}),
        out=out,
        modes=choices.parse_modes(modes),
        seeds=choices.parse_seeds(seeds),
        epochs=epochs,
        budget=None if budget is None else choices.parse_seconds(budget),
        backbone=BackboneTraining(
            lr_scale=backbone_lr, batch_norm=choices.parse_batch_norm(batch_norm)
        ),
        resamples=resamples,
    )
    report = run_compare(config, on_cell=None if as_json else print_cell)
    if as_json:
        print_json(report.to_json())
    elif report.cells:
        print_summary(report.summary)
        console.print(str(report.page), highlight=False, markup=False, soft_wrap=True)
    _leave(report)


def _leave(report: ComparisonReport) -> None:
    """The exit status says whether all cells are there."""
    from cachedet.training.interruption import STOPPED_STATUS

    if report.interrupted_by is not None:
        again = shlex.join(["cachedet", *sys.argv[1:]])
        left = count_of(report.left, "cell")
        print(
            f"{report.interrupted_by}: saved, {left} to go; continue with\n  {again}",
            file=sys.stderr,
        )
        raise typer.Exit(STOPPED_STATUS)
    if report.left:
        print("some cells failed, see above; the same command tries them again", file=sys.stderr)
        raise typer.Exit(1)
