"""The command that tells what a cache will cost and save."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cachedet.commands.estimate_tables import print_estimate
from cachedet.commands.options import (
    Annotations,
    Backbone,
    BatchSize,
    BlockSize,
    Codec,
    Device,
    Images,
    ImageSize,
    Json,
    Levels,
    OnBadImage,
    Overrides,
    Weights,
    Workers,
    local_folder,
    print_json,
)


def estimate(
    images: Images,
    annotations: Annotations,
    store: Annotated[str, typer.Option(help="Where the store shall lie; it is not made.")],
    config: Annotated[
        Path | None,
        typer.Argument(help="Heads: a YAML file such as those in configs/; default: the demo's."),
    ] = None,
    overrides: Overrides = None,
    backbone: Backbone = "tf_efficientnet_lite0",
    weights: Weights = "auto",
    levels: Levels = "",
    image_size: ImageSize = 512,
    views: Annotated[str | None, typer.Option(help="As for `extract`.")] = None,
    codec: Codec = "int8",
    on_bad_image: OnBadImage = "fail",
    block_size: BlockSize = 16,
    batch_size: BatchSize = 8,
    workers: Workers = 0,
    device: Device = "auto",
    sample: Annotated[int, typer.Option(min=2, help="Images to try.")] = 32,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Of each trial, about; more is more exact.")
    ] = 8.0,
    what_if: Annotated[
        str,
        typer.Option(
            help="image-size=800,backbone=resnet101,disk=500MB/s,device-flops=60T,images=118k,"
            "codec=int4: arithmetic for what is not here."
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """What a cache will cost and save here: tried on a sample, before anything is written."""
    from cachedet.config.run import load_train_config, make_extract_config
    from cachedet.estimate import DEFAULT_HEADS
    from cachedet.estimate import estimate as run_estimate
    from cachedet.estimation.what_if import parse_what_if
    from cachedet.extract import default_workers

    change = parse_what_if(what_if)
    options = make_extract_config(
        {
            "images": images,
            "annotations": annotations,
            "store": local_folder(store, command="estimate"),
            "backbone": backbone,
            "weights": weights,
            "levels": [name.strip() for name in levels.split(",")] if levels else None,
            "image_size": image_size,
            "views": views,
            "codec": codec,
            "on_bad_image": on_bad_image,
            "block_size": block_size,
            "batch_size": batch_size,
            "workers": workers or default_workers(),
            "device": device,
        }
    )
    heads = load_train_config(config or DEFAULT_HEADS, overrides or [])
    report = run_estimate(options, heads, sample=sample, seconds=seconds, what_if=change)
    if as_json:
        print_json(report.to_json())
        return
    print_estimate(report, heads=(config or DEFAULT_HEADS).stem)
