"""The command that tells what a cache will cost and save."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cachedet.commands.options import Device, Json, local_folder, print_json
from cachedet.estimate_tables import print_estimate


def estimate(
    images: Annotated[Path, typer.Option(help="Folder of the pictures.")],
    annotations: Annotated[Path, typer.Option(help="COCO (or LVIS) JSON file.")],
    store: Annotated[str, typer.Option(help="Where the store shall lie; it is not made.")],
    config: Annotated[
        Path | None,
        typer.Argument(help="Heads: a YAML file such as those in configs/; default: the demo's."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="schedule.epochs=12, repeatable.")
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="Any timm model with features.")
    ] = "tf_efficientnet_lite0",
    weights: Annotated[str, typer.Option(help="auto, none or a checkpoint file.")] = "auto",
    levels: Annotated[str, typer.Option(help="Such as C3,C4,C5; empty: the usual ones.")] = "",
    image_size: Annotated[int, typer.Option(help="Long side in pixels.")] = 512,
    views: Annotated[str | None, typer.Option(help="As for `extract`.")] = None,
    codec: Annotated[str, typer.Option(help="As for `extract`.")] = "int8",
    on_bad_image: Annotated[
        str, typer.Option(help="fail: list the bad pictures of the sample and stop; skip.")
    ] = "fail",
    block_size: Annotated[int, typer.Option(help="Pictures per shard and commit.")] = 16,
    batch_size: Annotated[int, typer.Option(help="Pictures per backbone forward.")] = 8,
    workers: Annotated[int, typer.Option(help="Decoding threads; 0: one per core.")] = 0,
    device: Device = "auto",
    sample: Annotated[int, typer.Option(min=2, help="Pictures to try.")] = 32,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Of each trial, about; more is more exact.")
    ] = 9.0,
    what_if: Annotated[
        str,
        typer.Option(
            help="image-size=800,backbone=resnet101,disk=500MB/s,device-flops=60T,pictures=118k,"
            "codec=int4: arithmetic for what is not here."
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """What a cache will cost and save here: tried on a sample, before anything is written."""
    from cachedet.config import load_train_config, make_extract_config
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
