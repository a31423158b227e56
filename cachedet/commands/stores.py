"""Commands that make, describe, check and tidy a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cachedet.commands.options import (
    Annotations,
    Backbone,
    BackbonePrecision,
    BatchSize,
    BlockSize,
    Classes,
    Codec,
    Compile,
    CpusPerWorker,
    Device,
    EngineKind,
    FollowLinks,
    FreezeAt,
    GlobalToken,
    GpusPerWorker,
    IgnoreClasses,
    ImageSize,
    Json,
    Levels,
    MergeClasses,
    NoBackground,
    OnBadImage,
    Rank,
    RayAddress,
    RayWorkers,
    Rotated,
    Split,
    Taps,
    Weights,
    Workers,
    WorldSize,
    make_choice,
    make_engine,
    make_extraction,
    print_json,
    split_names,
)
from cachedet.commands.tables import (
    print_copy,
    print_description,
    print_extraction,
    print_faults,
    print_predicted_vs_actual,
    print_relabelling,
    print_waste,
    say,
    tell_before,
)

if TYPE_CHECKING:  # commands import what they need when they run: `--help` stays quick
    from cachedet.config.run import ExtractConfig
    from cachedet.data.coco import CocoDataset


def extract(
    images: Annotated[
        str, typer.Option(help="Folder of the images, or such as s3://bucket/photos.")
    ],
    annotations: Annotations,
    store: Annotated[
        str, typer.Option(help="Feature store to write: a folder, or s3://bucket/train.zarr.")
    ],
    split: Split = None,
    backbone: Backbone = "tf_efficientnet_lite0",
    weights: Weights = "auto",
    levels: Levels = "",
    freeze_at: FreezeAt = None,
    taps: Taps = None,
    global_token: GlobalToken = False,
    precision: BackbonePrecision = "fp32",
    compile: Compile = False,
    image_size: ImageSize = 512,
    views: Annotated[
        str | None,
        typer.Option(
            help="Such as base,hflip,scale=0.5,crop=2,jitter=4,jitter=2:0.5-1.5,colour=2; a store "
            "that is there gets those it lacks. For validation: base. "
            "Default of a new store: base,hflip,jitter=2:0.5-1.5."
        ),
    ] = None,
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
    rank: Rank = None,
    world_size: WorldSize = None,
    engine: EngineKind = "local",
    ray_address: RayAddress = None,
    ray_workers: RayWorkers = None,
    cpus_per_worker: CpusPerWorker = None,
    gpus_per_worker: GpusPerWorker = None,
    as_json: Json = False,
) -> None:
    """Stage 1: write the frozen backbone's features. Run again to continue."""
    from cachedet.estimation.prediction import compare_extraction
    from cachedet.extract import extract_opened

    choose = make_choice(classes, ignore_classes, merge_classes, no_background)
    options = {
        "images": images, "annotations": annotations, "store": store, "backbone": backbone,
        "weights": weights, "levels": levels, "freeze_at": freeze_at, "taps": taps,
        "global_token": global_token, "precision": precision, "compile": compile,
        "image_size": image_size, "views": views, "codec": codec, "on_bad_image": on_bad_image,
        "follow_links": follow_links, "rotated": rotated, "choose": choose,
        "block_size": block_size, "batch_size": batch_size, "workers": workers, "device": device,
        "rank": rank, "world_size": world_size, "engine": make_engine(
            engine, ray_address=ray_address, ray_workers=ray_workers,
            cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker,
        ),
    }  # fmt: skip
    config = make_extraction(options, split=split, command="extract", writes_urls=True)
    to_look_at: list[str] = []
    report = extract_opened(config, _open_and_tell(to_look_at))
    predicted = compare_extraction(report, config)
    if as_json:
        own = {"look_at": to_look_at, "predicted": predicted}
        print_json({**vars(report), "store": str(report.store), **own})
        return
    print_extraction(report)
    print_predicted_vs_actual(predicted)


def _open_and_tell(to_look_at: list[str]) -> Callable[[ExtractConfig], CocoDataset]:
    """What opens the data set, and says what to look at before the work begins."""
    from cachedet.check import look_before
    from cachedet.extraction.ranks import find_rank

    def opened(config: ExtractConfig) -> CocoDataset:
        look = look_before(config)
        to_look_at.extend(look.to_look_at)
        if find_rank(config.rank, config.world_size).number == 0:
            tell_before(look)
        return look.dataset

    return opened


def info(store: str, as_json: Json = False) -> None:
    """What a store holds."""
    from cachedet.store.verify import describe_store

    description = describe_store(store)
    if as_json:
        print_json(description)
        return
    print_description(description)


def verify(
    store: str,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte.")] = False,
    as_json: Json = False,
) -> None:
    """Check that every block is what was committed; exit status 1 if one is not.

    A bad block is withdrawn, so that no training uses it; the next `extract` writes it anew.
    """
    from cachedet.progress import StageProgress
    from cachedet.store.verify import count_blocks, verify_store

    with StageProgress("verify", total=count_blocks(store), unit="blocks") as progress:
        report = verify_store(
            store, deep=deep, on_progress=lambda n, nbytes: progress.advance(n, nbytes=nbytes)
        )
    if as_json:
        print_json(report.to_json())
    else:
        print_faults(report)
        kind = "every byte" if deep else "records and lengths"
        stages = "" if report.stages is None else "; the weights of its stages are not"
        good = f"{report.good} of {report.planned} blocks are good ({kind} checked)"
        say(f"{store}: {good}{stages}")
    if not report.is_good:
        raise typer.Exit(1)


def copy(
    source: Annotated[str, typer.Argument(help="Folder or URL of the store.")],
    target: Annotated[str, typer.Argument(help="Folder, s3://, gs:// or az://, new or begun.")],
    as_json: Json = False,
) -> None:
    """Copy a store to another place, every byte compared; the same command goes on.

    Exit status 1 where the source lacks blocks, or some are damaged.
    """
    from cachedet.store.copying import copy_store

    report = copy_store(source, target)
    if as_json:
        print_json(report.to_json())
    else:
        print_copy(report)
    if not report.is_whole:
        raise typer.Exit(1)


def prune(
    store: str,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show.")] = False,
    keep_views: Annotated[
        str, typer.Option(help="Such as base: the other views leave the store for good.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Free what nobody needs: leftovers, orphans, withdrawn records, views and images that left."""
    from cachedet.store.prune import prune_store

    report = prune_store(store, dry_run=dry_run, keep_views=split_names(keep_views))
    if as_json:
        print_json(report.to_json())
        return
    print_waste(report, dry_run=dry_run)


def relabel(
    store: str,
    annotations: Annotations,
    split: Split = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder that file names shall start from.")
    ] = None,
    rotated: Rotated = "refuse",
    classes: Classes = None,
    ignore_classes: IgnoreClasses = None,
    merge_classes: MergeClasses = None,
    no_background: NoBackground = False,
    withdraw: Annotated[
        bool,
        typer.Option(
            "--withdraw",
            help="Images that the file lacks leave the store; `prune` then frees what they hold.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show.")] = False,
    as_json: Json = False,
) -> None:
    """Give a store other boxes, masks and classes, or fewer images; no feature is touched."""
    from cachedet.relabel import relabel as run_relabel

    report = run_relabel(
        store,
        annotations=annotations,
        split=split,
        images=images,
        rotated=rotated,
        choose=make_choice(classes, ignore_classes, merge_classes, no_background),
        withdraw=withdraw,
        dry_run=dry_run,
    )
    if as_json:
        print_json(report.to_json())
        return
    print_relabelling(report, dry_run=dry_run)


COMMANDS = {
    "extract": extract,
    "info": info,
    "verify": verify,
    "copy": copy,
    "prune": prune,
    "relabel": relabel,
}
