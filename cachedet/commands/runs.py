"""Commands that train, measure and use heads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cachedet.commands.options import (
    ConfigName,
    Device,
    Json,
    Overrides,
    Workers,
    print_json,
    read_taps,
    split_names,
)
from cachedet.commands.tables import (
    print_agreement,
    print_cost,
    print_predicted_vs_actual,
    say,
)
from cachedet.commands.trainings import describe_epochs, hint_of_size, print_training
from cachedet.errors import InputError, UnwrittenError
from cachedet.progress import count_of, tell
from cachedet.text import shell_line

if TYPE_CHECKING:
    from cachedet.predict import PredictReport

_RESNET = "C3:512:8,C4:1024:16,C5:2048:32"


def train_heads(
    config: ConfigName,
    train: Annotated[str, typer.Option(help="Store to train on: a folder, or s3://...")],
    run: Annotated[
        Path, typer.Option("--run", "--run-folder", help="To make; torchrun has a --run itself.")
    ],
    val: Annotated[str | None, typer.Option(help="Store to validate on.")] = None,
    overrides: Overrides = None,
    init_from: Annotated[
        Path | None, typer.Option(help="Run folder or checkpoint whose weights to start from.")
    ] = None,
    residency: Annotated[str, typer.Option(help="stream, disk, ram, device or auto.")] = "",
    disk_cache: Annotated[
        str, typer.Option(help="Most bytes of --residency disk, such as 200GB; see docs/scale.md.")
    ] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run.")] = False,
    relabelled: Annotated[
        bool,
        typer.Option("--relabelled", help="With --resume: although the store's boxes changed."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Stage 2: train neck and heads on cached features.

    SIGTERM, SIGHUP, SIGUSR1 and a first Ctrl-C end it after the step under way: the state is saved,
    the command that continues is printed, and the exit status is 75. A second Ctrl-C stops at once.
    """
    from cachedet.config.presets import load_config
    from cachedet.config.yaml_text import quote_yaml
    from cachedet.distributed.data_parallel import find_launch
    from cachedet.estimation.prediction import compare_training
    from cachedet.store.files.locations import redacted
    from cachedet.train import train as run_train
    from cachedet.training.stopping import STOPPED_STATUS

    changes = list(overrides or [])
    if init_from is not None:
        changes.append(f"--init-from={quote_yaml(str(init_from))}")
    changes += [f"--residency={residency}"] if residency else []
    changes += [f"--disk-cache={disk_cache}"] if disk_cache else []
    settings = load_config(config, overrides=changes)
    launch = find_launch()
    if launch.is_first and not as_json:
        say(settings.schedule.describe_lr())
        say(describe_epochs(settings, changes, config=config))
        if hint := hint_of_size(config, device=settings.device):
            say(hint)
    report = run_train(
        settings, train_store=train, val_store=val, run=run, resume=resume, relabelled=relabelled
    )
    predicted = compare_training(report, settings, store=train) if launch.world == 1 else {}
    if launch.is_first and as_json:
        print_json({**report.to_json(), "predicted": predicted})
    elif launch.is_first:
        print_training(report)
        print_predicted_vs_actual(predicted)
    if report.was_interrupted:
        words = [*launch.command, *sys.argv[1:], *([] if resume else ["--resume"])]
        if launch.is_first:
            tell(f"{report.reason}: saved; continue with")
            again = shell_line(words)
            tell(f"  {redacted(again)}")
            if redacted(again) != again:
                tell("and the credentials, which are not shown here")
        raise typer.Exit(STOPPED_STATUS)


def model(
    config: ConfigName,
    features: Annotated[
        str | None,
        typer.Option(help="Levels as NAME:CHANNELS:STRIDE; default: a ResNet-50's or -101's."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="A timm model whose levels these are; with freeze_at its stages count."),
    ] = None,
    taps: Annotated[
        str | None, typer.Option(help="Of --backbone, a plain ViT, as for `extract`.")
    ] = None,
    num_classes: Annotated[int, typer.Option(min=1, help="Foreground classes.")] = 80,
    image_size: Annotated[
        str, typer.Option(help="Pixels: the side of a square, or HEIGHTxWIDTH.")
    ] = "640",
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Parameters and FLOPs of what a config trains, part by part; needs no store."""
    from cachedet.config.presets import load_config
    from cachedet.model import measure_config, parse_features, parse_size

    if features is not None and backbone is not None:
        raise InputError("--features and --backbone both name the levels; give one of them")
    if taps is not None and backbone is None:
        raise InputError("--taps are of a network: name it with --backbone")
    cost = measure_config(
        load_config(config, overrides=overrides or []),
        features=parse_features(features or _RESNET),
        backbone=backbone,
        taps=read_taps(taps),
        num_classes=num_classes,
        size_hw=parse_size(image_size),
    )
    if as_json:
        print_json(cost.to_json())
        return
    print_cost(cost, title=Path(config).name)
    if cost.left_out:
        say(f"left out: {cost.left_out}")


Calibrate = Annotated[
    Path | None,
    typer.Option(
        help="Folder that --int8 takes up to 64 images from (default: those of --images that "
        "--annotations do not name)."
    ),
]
Run = Annotated[
    Path | None, typer.Argument(help="Run folder; none with --model.", show_default=False)
]
Named = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Image or video files, folders, or patterns such as 'a/**/*.jpg'.", show_default=False
    ),
]
FileViews = Annotated[
    str,
    typer.Option(
        help="Such as base,hflip,scale=1.5: their detections are merged, as in eval; "
        "tile=640px: windows of 640 pixels of large images."
    ),
]
Every = Annotated[
    int, typer.Option(min=1, help="Only every so many frames of a video or images of a folder.")
]
MinScore = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Default: the best cut that `eval` found, else 0.3."),
]
Formats = Annotated[
    str, typer.Option("--format", help="Some of json, coco, yolo, csv, as in json,csv.")
]


def predict(
    out: Annotated[Path, typer.Option(help="Folder for drawings and lists.")],
    run: Run = None,
    images: Named = None,
    model: Annotated[
        Path | None, typer.Option(help="A file of `export`, instead of a run.")
    ] = None,
    weights: Annotated[str, typer.Option(help="The backbone's: auto, none or a file.")] = "auto",
    views: FileViews = "base",
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Folders in folders, too, but for --out.")
    ] = False,
    every: Every = 1,
    min_score: MinScore = None,
    classes: Annotated[str, typer.Option(help="Only these, such as cat,dog.")] = "",
    max_per_image: Annotated[
        int | None, typer.Option(min=1, help="Only the best so many of an image.")
    ] = None,
    iou: Annotated[
        float | None, typer.Option(help="Of suppression; default: the run's nms_iou.")
    ] = None,
    formats: Formats = "json",
    crops: Annotated[bool, typer.Option("--crops", help="Cut out each box, too.")] = False,
    no_drawings: Annotated[
        bool, typer.Option("--no-drawings", help="Only the list; large photos are read faster.")
    ] = False,
    batch_size: Annotated[
        int, typer.Option(min=0, help="Images or windows per forward; 0: as suits the device.")
    ] = 0,
    workers: Workers = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Detect in image files; joins backbone and heads.

    Files that cannot be used are listed at the end, and the exit status is 1; the results of the
    others are written.
    """
    from cachedet.predict import predict as run_predict

    cut = _found_cut(run) if model is None and min_score is None else None
    min_score = next(score for score in (min_score, cut, 0.3) if score is not None)
    unwritten = None
    try:
        report = run_predict(
            run if model is None else None,
            images=[*([] if model is None or run is None else [run]), *(images or [])],
            out=out,
            model=model,
            weights=weights,
            views=views,
            recursive=recursive,
            every=every,
            min_score=min_score,
            classes=split_names(classes),
            max_per_image=max_per_image,
            iou=iou,
            formats=formats,
            crops=crops,
            drawings=not no_drawings,
            batch_size=batch_size,
            workers=workers,
            device=device,
        )
    except UnwrittenError as error:
        report, unwritten = error.report, error
    if as_json:
        print_json(report.to_json())
    else:
        _print_found(report, min_score, is_cut=cut is not None)
    if unwritten is not None:
        raise unwritten
    if not as_json:
        say(f"written into {out}: {'' if no_drawings else 'drawings, '}{formats}")
    if report.bad:
        tell(f"error: {count_of(len(report.bad), 'file')} cannot be used:")
        for file, reason in report.bad:
            tell(f"  {file}: {reason}")
        raise typer.Exit(1)


def _found_cut(run: Path | None) -> float | None:
    from cachedet.serve import best_cut

    return None if run is None else best_cut(run)


def export(
    run: Path,
    out: Annotated[Path, typer.Option(help="File to write: .onnx, .xml (and a .bin) or .pt2.")],
    format: Annotated[
        str | None,
        typer.Option(help="onnx, openvino or torch (default: as --out ends, else onnx)."),
    ] = None,
    outputs: Annotated[
        str, typer.Option(help="detections, or raw: boxes and scores before suppression.")
    ] = "detections",
    preprocess: Annotated[
        str, typer.Option(help="inside: the file takes resized pixels; outside: normalised input.")
    ] = "inside",
    weights: Annotated[str, typer.Option(help="The backbone's: auto, none or a file.")] = "auto",
    images: Annotated[
        Path | None, typer.Option(help="Folder of images to prove it on (default: generated).")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="That name the images to take of the folder.")
    ] = None,
    most_images: Annotated[int, typer.Option(min=1, help="Of the folder.")] = 24,
    tolerance_px: Annotated[float, typer.Option(min=0, help="Of boxes.")] = 0.01,
    tolerance_score: Annotated[float, typer.Option(min=0, help="Of scores and masks.")] = 1e-4,
    tolerance_changed: Annotated[
        float, typer.Option(min=0, help="Share of detections that only one of both finds.")
    ] = 0.02,
    with_script: Annotated[
        bool,
        typer.Option("--with-script", help="Also detect_<name>.py, of ONNX, without cachedet."),
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise it, with ranges from images; of ONNX.")
    ] = False,
    calibrate: Calibrate = None,
    most_ap_lost: Annotated[
        float | None,
        typer.Option(min=0, help="By --int8 on --annotations, in points (default: 0.5)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write backbone and heads as one model, proven to find what the run finds, and a card."""
    from cachedet.export import MOST_AP_LOST
    from cachedet.export import export as run_export
    from cachedet.exporting.agreement import Tolerance
    from cachedet.exporting.detection_graph import parse_outputs, parse_preprocess
    from cachedet.exporting.proof_images import ProofImages

    if most_ap_lost is not None and (not int8 or annotations is None):
        raise InputError("--most-ap-lost needs --int8, and --annotations to measure AP on")
    report = run_export(
        run,
        out=out,
        format=format,
        outputs=parse_outputs(outputs),
        preprocess=parse_preprocess(preprocess),
        weights=weights,
        proof=ProofImages(folder=images, annotations=annotations, most=most_images),
        tolerance=Tolerance(box_px=tolerance_px, score=tolerance_score, changed=tolerance_changed),
        with_script=with_script,
        int8=int8,
        calibrate=calibrate,
        most_ap_lost=MOST_AP_LOST if most_ap_lost is None else most_ap_lost,
    )
    if as_json:
        print_json(report.to_json())
        return
    print_agreement(report.proof, report.found, of=report.images)
    if report.int8 is not None:
        say(f"int8: {report.int8.in_words()}")
    say(report.out)
    if report.format == "openvino":
        say(report.out.with_suffix(".bin"))
    say(report.card)
    if report.script is not None:
        say(report.script)


def _print_found(report: PredictReport, min_score: float, *, is_cut: bool) -> None:
    for image in report.images:
        found = image.detections
        pairs = zip(found.labels.tolist(), found.scores.tolist(), strict=True)
        names = [f"{image.categories.names[label]} {score:.2f}" for label, score in pairs]
        frame = "" if image.frame is None else f" frame {image.frame}"
        say(f"{image.file}{frame}: {', '.join(names) or 'nothing'}")
    if report.images and not any(len(image.detections) for image in report.images):
        scores = [image.highest for image in report.images if image.highest is not None]
        highest = f" (the highest is {max(scores):.4g})" if scores else ""
        hint = "a lower --min-score shows weaker ones"
        say(f"nothing scores {min_score:g} or more{highest}; {hint}")
    if is_cut:
        say(f"shown from score {min_score:.3f} on, the run's best cut; --min-score sets another")


def demo(
    out: Annotated[Path, typer.Option(help="Folder to work in.")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """The whole pipeline on generated images, on a CPU, in minutes: three ways side by side."""
    from cachedet.commands.comparison_tables import print_cell, print_demo
    from cachedet.demo import run_demo

    report = run_demo(out, on_cell=None if as_json else print_cell)
    if as_json:
        print_json(report.to_json())
    else:
        print_demo(report)


COMMANDS = {
    "train-heads": train_heads,
    "model": model,
    "predict": predict,
    "export": export,
    "demo": demo,
}
