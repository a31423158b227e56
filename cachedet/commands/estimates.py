"""The command that tells what a cache will cost and save."""

from __future__ import annotations

from typing import Annotated

import typer

from cachedet.commands.estimate_tables import print_estimate
from cachedet.commands.options import (
    Annotations,
    Backbone,
    BackbonePrecision,
    BatchSize,
    BlockSize,
    Classes,
    Codec,
    Device,
    FollowLinks,
    FreezeAt,
    GlobalToken,
    IgnoreClasses,
    Images,
    ImageSize,
    Json,
    Levels,
    MergeClasses,
    NoBackground,
    OnBadImage,
    Overrides,
    Rotated,
    Split,
    Taps,
    Weights,
    Workers,
    make_choice,
    make_extraction,
    print_json,
)
from cachedet.errors import UnwrittenError


def estimate(
    images: Images,
    annotations: Annotations,
    store: Annotated[str, typer.Option(help="Where the store shall lie; it is not made.")],
    config: Annotated[
        str | None,
        typer.Argument(help="Of the heads: a preset or a YAML file; default: the demo's."),
    ] = None,
    overrides: Overrides = None,
    split: Split = None,
    backbone: Backbone = "tf_efficientnet_lite0",
    weights: Weights = "auto",
    levels: Levels = "",
    freeze_at: FreezeAt = None,
    taps: Taps = None,
    global_token: GlobalToken = False,
    precision: BackbonePrecision = "fp32",
    image_size: ImageSize = 512,
    views: Annotated[str | None, typer.Option(help="As for `extract`.")] = None,
    codec: Codec = "int8",
    on_bad_image: OnBadImage = "fail",
    follow_links: FollowLinks = False,
    rotated: Rotated = "refuse",
    classes: Classes = None,
    ignore_classes: IgnoreClasses = None,
    merge_classes: MergeClasses = None,
    no_background: NoBackground = False,
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
            "codec=int4: arithmetic for what is not here. workers=64,storage=s3,bandwidth=2GB/s,"
            "latency=30ms,failing=1%,image-file=160kB: machines like this one and a bucket. "
            "dataset=coco or objects365 in the place of images."
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """What a cache will cost and save here: tried on a sample, before anything is written."""
    from cachedet.config.presets import find_config
    from cachedet.config.run import load_train_config
    from cachedet.estimate import DEFAULT_HEADS
    from cachedet.estimate import estimate as run_estimate
    from cachedet.estimation.what_if import parse_what_if

    change = parse_what_if(what_if)
    choose = make_choice(classes, ignore_classes, merge_classes, no_background)
    options = {
        "images": images, "annotations": annotations, "store": store, "backbone": backbone,
        "weights": weights, "levels": levels, "freeze_at": freeze_at,
        "taps": taps, "global_token": global_token, "precision": precision,
        "image_size": image_size, "views": views,
        "codec": codec, "on_bad_image": on_bad_image, "follow_links": follow_links,
        "rotated": rotated, "choose": choose, "block_size": block_size,
        "batch_size": batch_size, "workers": workers, "device": device,
    }  # fmt: skip
    extraction = make_extraction(options, split=split, command="estimate")
    path = DEFAULT_HEADS if config is None else find_config(config)
    heads = load_train_config(path, overrides or [])
    unwritten = None
    try:
        report = run_estimate(extraction, heads, sample=sample, seconds=seconds, what_if=change)
    except UnwrittenError as error:
        report, unwritten = error.report, error
    if as_json:
        print_json(report.to_json())
    else:
        print_estimate(report, heads=path.stem)
    if unwritten is not None:
        raise unwritten


COMMANDS = {"estimate": estimate}
