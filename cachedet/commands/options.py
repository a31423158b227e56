"""Options and output that all commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachedet.errors import InputError

if TYPE_CHECKING:  # commands import what they need when they run: `--help` stays quick
    from cachedet.config.run import ClassChoice, ExtractConfig

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
ConfigName = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A preset, see `cachedet configs`, or a YAML file.")
]
Images = Annotated[Path, typer.Option(help="Folder of the images.")]
Annotations = Annotated[
    Path,
    typer.Option(
        help="COCO or LVIS JSON, data.yaml of YOLO, folder of VOC XML, or XML of CVAT for images."
    ),
]
Split = Annotated[
    str | None, typer.Option(help="Of a data set with several, such as train; also FILE:train.")
]
Rotated = Annotated[
    str, typer.Option(help="Rotated boxes. refuse: stop; outer: take the upright box around each.")
]
Classes = Annotated[
    list[str] | None,
    typer.Option(help="Only these, such as cat,dog; repeatable, as for a name with a comma."),
]
IgnoreClasses = Annotated[list[str] | None, typer.Option(help="All classes but these.")]
MergeClasses = Annotated[
    list[str] | None,
    typer.Option(help="Classes that become one, such as car,truck=vehicle; repeatable."),
]
NoBackground = Annotated[
    bool, typer.Option("--no-background", help="Leave out images without a box.")
]
Backbone = Annotated[str, typer.Option(help="Any timm model with features.")]
Weights = Annotated[str, typer.Option(help="auto, none or a checkpoint file.")]
Levels = Annotated[str, typer.Option(help="Such as C3,C4,C5; empty: the usual ones.")]
FreezeAt = Annotated[
    str | None,
    typer.Option(
        help="Such as C4, or L8 behind block 8 of a plain ViT: leave out the levels above it, for "
        "runs that train what makes them (freeze_at of a run's config)."
    ),
]
Taps = Annotated[
    str | None,
    typer.Option(
        help="Of a plain ViT, in the place of --levels: 4 evenly spaced blocks, or those that "
        "3,6,9,12 name, counted from 1. For the neck tap_pyramid."
    ),
]
GlobalToken = Annotated[
    bool, typer.Option("--global-token", help="Keep the class token of the last tap, too.")
]
BackbonePrecision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="fp32 or bf16: what the backbone computes in. bf16 is 2 to 3 times as fast on GPUs "
        "and on CPUs with units for it.",
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="torch.compile the backbone, which takes a minute or more at first: for many images.",
    ),
]
ImageSize = Annotated[int, typer.Option(help="Long side in pixels.")]
Codec = Annotated[
    str, typer.Option(help="Such as fp16, int8, int8+zstd or snr12; a wrong name lists them all.")
]
OnBadImage = Annotated[
    str, typer.Option(help="fail: list all bad images and stop; skip: leave them out.")
]
FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Also links that lead out of the images' folder.")
]
BlockSize = Annotated[int, typer.Option(help="Images per shard and commit.")]
BatchSize = Annotated[int, typer.Option(help="Images per backbone forward.")]
Workers = Annotated[int, typer.Option(help="Decoding threads; 0: one per core.")]
Rank = Annotated[int | None, typer.Option(help="Of the processes that share the work, from 0.")]
WorldSize = Annotated[
    int | None, typer.Option(help="How many they are; default: torchrun's or SLURM's.")
]
EngineKind = Annotated[
    str, typer.Option("--engine", help="local: this process; ray: workers on a cluster of Ray.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="auto (default): the Ray of this machine; HOST:PORT; local: start one here."),
]
RayWorkers = Annotated[int | None, typer.Option(help="Default: as many as have room, also later.")]
CpusPerWorker = Annotated[
    float | None, typer.Option(help="As Ray counts them; as many threads decode. Default: 1.")
]
GpusPerWorker = Annotated[
    float | None, typer.Option(help="As Ray counts them. Default: 1 where it has any.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="A key of the config, as schedule.epochs=12; repeatable."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]


def split_names(text: str) -> list[str] | None:
    """``C3,C4`` -> its names; None of the empty text, where the option was not given."""
    return [name.strip() for name in text.split(",")] if text else None


def read_taps(text: str | None) -> int | tuple[int, ...] | None:
    """What --taps says. Raises InputError."""
    from cachedet.config.run import parse_taps

    try:
        taps: int | tuple[int, ...] | None = parse_taps(text)
    except ValueError as error:
        raise InputError(f"--taps: {error}, got {text!r}") from error
    return taps


def make_choice(
    classes: list[str] | None,
    ignore: list[str] | None,
    merge: list[str] | None,
    no_background: bool = False,
) -> ClassChoice:
    """What the options say of classes."""
    from cachedet.config.run import ClassChoice

    given = [tuple(texts or ()) for texts in (classes, ignore, merge)]
    return ClassChoice(
        classes=given[0], ignore=given[1], merge=given[2], background=not no_background
    )


def make_engine(kind: str, **options: str | float | None) -> dict[str, Any]:
    """What --engine and the options of Ray say. Raises InputError."""
    given = {name: value for name, value in options.items() if value is not None}
    if given and kind == "local":
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"{names}: of --engine ray; add it, or leave them out")
    return {"kind": kind, **{name.removeprefix("ray_"): value for name, value in given.items()}}


def make_extraction(
    values: dict[str, Any], *, split: str | None, command: str, writes_urls: bool = False
) -> ExtractConfig:
    """The config of an extraction from options as they were typed. Raises ConfigError."""
    from cachedet.config.run import make_extract_config
    from cachedet.data.annotation_formats import with_split
    from cachedet.device import default_workers

    typed = {
        "store": values["store"] if writes_urls else local_folder(values["store"], command=command),
        "annotations": with_split(values["annotations"], split),
        "levels": split_names(values["levels"]),
        "workers": values["workers"] or default_workers(),
    }
    return make_extract_config(values | typed, is_typed=True)


def local_folder(store: str, *, command: str) -> Path:
    """The folder. Raises InputError on a URL, which a path would quietly make a folder's name."""
    from cachedet.store.files.locations import is_url, shown

    if is_url(store):
        raise InputError(
            f"`cachedet {command}` needs a local folder, got {shown(store)}: it writes and locks "
            "files there. Copy or mount the store and give its folder; `extract`, `verify`, "
            "`prune` and `relabel` write to s3://, gs:// and az://, and `info`, `train-heads` and "
            "`eval` read any URL"
        )
    return Path(store)


def print_json(value: dict[str, Any]) -> None:
    """The one object of `--json`."""
    print(json.dumps(value, indent=1))
