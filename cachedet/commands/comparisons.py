"""The command that trains the same heads in several ways."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from cachedet.commands.options import (
    Annotations,
    Backbone,
    BackbonePrecision,
    Classes,
    Codec,
    Device,
    FollowLinks,
    IgnoreClasses,
    Images,
    ImageSize,
    Json,
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
    print_json,
)
from cachedet.commands.tables import say
from cachedet.errors import InputError, UnwrittenError, nearest_names
from cachedet.live.mode_names import MODES, PARTIAL, Mode, partial_mode
from cachedet.progress import count_of, tell
from cachedet.text import shell_line

if TYPE_CHECKING:  # commands import what they need when they run: `--help` stays quick
    from cachedet.backbone.trained import BatchNorm
    from cachedet.compare import ComparisonReport
    from cachedet.comparison.cell import ComparisonConfig
    from cachedet.config.run import ExtractConfig, TrainConfig

_LARGEST_SEED = 2**63 - 1
Configs = Annotated[list[str], typer.Argument(help="Of the heads: presets or YAML files.")]
ValAnnotations = Annotated[Path, typer.Option(help="What to score on.")]
Out = Annotated[Path, typer.Option(help="Folder of the comparison, also to go on with it.")]
ValImages = Annotated[
    Path | None, typer.Option(help="Folder of the scored images; default: --images.")
]
ValSplit = Annotated[str | None, typer.Option(help="Of --val-annotations.")]
TrainStore = Annotated[
    str | None,
    typer.Option(help="To train on in the place of extracting: a store that fits; only read."),
]
ValStore = Annotated[str | None, typer.Option(help="To score on, likewise.")]
ModeNames = Annotated[
    str,
    typer.Option(
        help="Of cached, partial (last stages trained from the cache), live, tuned (fine-tuned), "
        "scratch."
    ),
]
Cuts = Annotated[
    str, typer.Option(help="Levels behind which the mode partial trains, such as C4,C3.")
]
Seeds = Annotated[str, typer.Option(help="Such as 0,1,2.")]
Epochs = Annotated[
    int | None, typer.Option(min=1, help="Of every cell; default: those of its config.")
]
Budget = Annotated[
    str | None, typer.Option(help="Time of every cell instead, such as 10m, 90s, 1h.")
]
Views = Annotated[
    str, typer.Option(help="Of the cache; the other modes draw from the same recipe.")
]
BackboneRate = Annotated[
    float, typer.Option(min=0, help="Of what learns of the backbone; share of the heads'.")
]
BatchNorms = Annotated[
    str, typer.Option(help="Of a backbone or stages that learn: frozen or trained.")
]
Resamples = Annotated[int, typer.Option(min=1, help="For the intervals.")]
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def compare(
    configs: Configs,
    images: Images,
    annotations: Annotations,
    val_annotations: ValAnnotations,
    out: Out,
    val_images: ValImages = None,
    split: Split = None,
    val_split: ValSplit = None,
    train_store: TrainStore = None,
    val_store: ValStore = None,
    modes: ModeNames = "cached,live,tuned,scratch",
    freeze_at: Cuts = "C4",
    seeds: Seeds = "0",
    epochs: Epochs = None,
    budget: Budget = None,
    backbone: Backbone = "tf_efficientnet_lite0",
    weights: Weights = "auto",
    taps: Taps = None,
    precision: BackbonePrecision = "fp32",
    image_size: ImageSize = 512,
    views: Views = "base,hflip,jitter=2:0.5-1.5",
    codec: Codec = "int8",
    on_bad_image: OnBadImage = "fail",
    follow_links: FollowLinks = False,
    rotated: Rotated = "refuse",
    classes: Classes = None,
    ignore_classes: IgnoreClasses = None,
    merge_classes: MergeClasses = None,
    no_background: NoBackground = False,
    backbone_lr: BackboneRate = 0.1,
    batch_norm: BatchNorms = "frozen",
    overrides: Overrides = None,
    resamples: Resamples = 1000,
    workers: Workers = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """The paper's experiment on your data: cached frozen, live frozen, fine-tuned and scratch.

    Every cell (config x mode x seed) is trained alike. Run again to go on, or with more of them.
    """
    from cachedet.comparison.cell import ComparisonConfig
    from cachedet.comparison.folder import ComparisonFolder
    from cachedet.live.modes import BackboneTraining

    changes = [*(overrides or []), *([] if device == "auto" else [f"device={device}"])]
    folder = ComparisonFolder(out)
    train = {
        "images": images, "annotations": annotations, "views": views, "backbone": backbone,
        "weights": weights, "taps": taps, "precision": precision, "image_size": image_size,
        "codec": codec, "on_bad_image": on_bad_image, "rotated": rotated, "workers": workers,
        "choose": make_choice(classes, ignore_classes, merge_classes, no_background),
        "follow_links": follow_links, "device": device,
    }  # fmt: skip
    val = {"images": val_images or images, "annotations": val_annotations, "views": "base"}
    config = ComparisonConfig(
        heads=load_heads(configs, changes),
        train=_make_extraction(train, split=split, store=train_store or folder.train),
        val=_make_extraction(train | val, split=val_split, store=val_store or folder.val),
        out=out,
        modes=parse_modes(modes, freeze_at=freeze_at),
        seeds=parse_seeds(seeds),
        epochs=epochs,
        budget=None if budget is None else parse_seconds(budget),
        backbone=BackboneTraining(lr_scale=backbone_lr, batch_norm=parse_batch_norm(batch_norm)),
        resamples=resamples,
    )
    _compare(config, as_json=as_json)


def _make_extraction(
    values: dict[str, Any], *, split: str | None, store: Path | str
) -> ExtractConfig:
    """One of the two, from options as they were typed. Raises ConfigError."""
    from cachedet.config.run import make_extract_config
    from cachedet.data.annotation_formats import with_split
    from cachedet.device import default_workers

    typed = {
        "annotations": with_split(values["annotations"], split),
        "workers": values["workers"] or default_workers(),
        "store": store,
    }
    return make_extract_config(values | typed, is_typed=True)


def load_heads(configs: Sequence[str], changes: Sequence[str]) -> dict[str, TrainConfig]:
    """The configs with `changes` applied, by the name of their file.

    Raises InputError on equal names, ConfigError on what `load_train_config` refuses.
    """
    from cachedet.config.presets import find_config
    from cachedet.config.run import load_train_config

    heads: dict[str, TrainConfig] = {}
    for path in map(find_config, configs):
        if path.stem in heads:
            raise InputError(
                f"two configs are named {path.stem}: cells are called by the name of their file, "
                "so rename one"
            )
        heads[path.stem] = load_train_config(path, changes)
    return heads


def parse_modes(text: str, *, freeze_at: str = "C4") -> tuple[Mode, ...]:
    """``cached,tuned``; `partial` becomes one mode for each level of `freeze_at`.

    Raises InputError on other names.
    """
    known = (*MODES, PARTIAL)
    modes: list[Mode] = []
    for name in _split(text):
        if name not in known:
            raise InputError(
                f"--modes: unknown mode {name!r}{nearest_names(name, known)}; "
                f"known: {', '.join(known)}"
            )
        cuts = _split(freeze_at)
        if name == PARTIAL and not cuts:
            raise InputError("--freeze-at expects levels such as C4 or C4,C3, got none")
        modes += map(partial_mode, cuts) if name == PARTIAL else [name]
    return tuple(modes)


def parse_seeds(text: str) -> tuple[int, ...]:
    """``0,1,2``. Raises InputError on anything else than whole numbers from 0 to 2**63 - 1."""
    names = _split(text)
    if not names or not all(name.isascii() and name.isdigit() for name in names):
        raise InputError(f"--seeds expects whole numbers from 0 such as 0,1,2, got {text!r}")
    large = [name for name in names if len(name) > 19 or int(name) > _LARGEST_SEED]
    if large:  # of thousands of digits Python makes no number
        raise InputError(
            f"--seeds expects numbers up to {_LARGEST_SEED} (2**63 - 1), got {large[0][:40]}; "
            "give smaller ones"
        )
    return tuple(int(name) for name in names)


def parse_seconds(text: str) -> float:
    """``10m``, ``90s``, ``1.5h`` or ``600``. Raises InputError on anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    seconds = float(match[1]) * _SECONDS[match[2] or "s"] if match else 0.0
    if seconds <= 0:
        raise InputError(f"--budget expects a time such as 10m, 90s or 1h, got {text!r}")
    return seconds


def parse_batch_norm(text: str) -> BatchNorm:
    """``frozen`` or ``trained``. Raises InputError on another word."""
    from cachedet.backbone.trained import BatchNorm

    if text not in get_args(BatchNorm):
        raise InputError(f"--batch-norm expects frozen or trained, got {text!r}")
    return cast(BatchNorm, text)


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _compare(config: ComparisonConfig, *, as_json: bool) -> None:
    from cachedet.commands.comparison_tables import print_cell
    from cachedet.compare import compare as run_compare

    try:
        report, unwritten = run_compare(config, on_cell=None if as_json else print_cell), None
    except UnwrittenError as error:
        report, unwritten = error.report, error
    _leave(report, unwritten, as_json=as_json)


def _leave(report: ComparisonReport, unwritten: UnwrittenError | None, *, as_json: bool) -> None:
    """Print it, and end with the exit status that says whether all cells are there."""
    from cachedet.commands.comparison_tables import print_summary
    from cachedet.training.stopping import STOPPED_STATUS

    if as_json:
        print_json(report.to_json())
    elif report.cells:
        print_summary(report.summary, report.cautions)
    if unwritten is not None:
        raise unwritten
    if report.cells and not as_json:
        say(report.page)
    if report.interrupted_by is not None:
        again = shell_line(["cachedet", *sys.argv[1:]])
        left = count_of(report.left, "cell")
        tell(f"{report.interrupted_by}: saved, {left} to go; continue with")
        tell(f"  {again}")
        raise typer.Exit(STOPPED_STATUS)
    if report.left:
        tell("some cells failed, see above; the same command tries them again")
        raise typer.Exit(1)


COMMANDS = {"compare": compare}
