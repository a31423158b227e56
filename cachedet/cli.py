"""The commands: parse, call one function, print.

Exit status: 0 done; 1 the user's input or a check failed; 2 wrong usage; 75 a signal ended
`train-heads`, which saved its state and goes on with --resume; 130 interrupted at once.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cachedet.errors import CachedetError, InputError
from cachedet.tables import (
    console,
    print_cost,
    print_description,
    print_extraction,
    print_faults,
    print_scores,
    print_training,
    print_waste,
)
from cachedet.version import __version__


class _Commands(TyperGroup):
    """Errors of the user's become one message and exit status 1, Ctrl-C one line and 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CachedetError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print(_INTERRUPTED, file=sys.stderr)
            sys.exit(130)


_INTERRUPTED = "interrupted; `extract` continues with the same command, `train-heads` with --resume"

app = typer.Typer(
    name="cachedet",
    cls=_Commands,
    help="Train strong object detectors on cached features of a frozen backbone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]


def main() -> None:
    """Run the command line."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"cachedet {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    pass


@app.command()
def extract(
    images: Annotated[Path, typer.Option(help="Folder of the pictures.")],
    annotations: Annotated[Path, typer.Option(help="COCO (or LVIS) JSON file.")],
    store: Annotated[str, typer.Option(help="Folder of the feature store to write.")],
    backbone: Annotated[
        str, typer.Option(help="Any timm model with features.")
    ] = "tf_efficientnet_lite0",
    weights: Annotated[str, typer.Option(help="auto, none or a checkpoint file.")] = "auto",
    levels: Annotated[str, typer.Option(help="Such as C3,C4,C5; empty: the usual ones.")] = "",
    image_size: Annotated[int, typer.Option(help="Long side in pixels.")] = 512,
    views: Annotated[
        str,
        typer.Option(
            help="Such as base,hflip,scale=0.5,crop=2,jitter=4,jitter=2:0.5-1.5; "
            "a store that is there gets those it lacks."
        ),
    ] = "base",
    codec: Annotated[
        str,
        typer.Option(
            help="fp32, fp16, bf16, int8, int8+zstd, int4, int4+zstd, pca<k>+int8, snr<dB>."
        ),
    ] = "int8",
    on_bad_image: Annotated[
        str, typer.Option(help="fail: list all bad pictures and stop; skip: leave them out.")
    ] = "fail",
    block_size: Annotated[int, typer.Option(help="Pictures per shard and commit.")] = 16,
    batch_size: Annotated[int, typer.Option(help="Pictures per backbone forward.")] = 8,
    workers: Annotated[int, typer.Option(help="Decoding threads; 0: one per core.")] = 0,
    device: Device = "auto",
    rank: Annotated[
        int | None, typer.Option(help="Of the processes that share the work, from 0.")
    ] = None,
    world_size: Annotated[
        int | None, typer.Option(help="How many they are; default: torchrun's or SLURM's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Stage 1: write the frozen backbone's features. Run again to continue."""
    from cachedet.config import make_extract_config
    from cachedet.extract import default_workers
    from cachedet.extract import extract as run_extract

    config = make_extract_config(
        {
            "images": images,
            "annotations": annotations,
            "store": _local_folder(store, command="extract"),
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
            "rank": rank,
            "world_size": world_size,
        }
    )
    report = run_extract(config)
    if as_json:
        _print_json({name: _plain(value) for name, value in vars(report).items()})
        return
    print_extraction(report)


@app.command()
def info(store: str, as_json: Json = False) -> None:
    """What a store holds."""
    from cachedet.store.verify import describe_store

    description = describe_store(store)
    if as_json:
        _print_json(description)
        return
    print_description(description)


@app.command()
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

    folder = _local_folder(store, command="verify")
    with StageProgress("verify", total=count_blocks(folder), unit="blocks") as progress:
        report = verify_store(
            folder, deep=deep, on_progress=lambda n, nbytes: progress.advance(n, nbytes=nbytes)
        )
    if as_json:
        _print_json(report.to_json())
    else:
        print_faults(report)
        kind = "every byte" if deep else "records and lengths"
        print(f"{store}: {report.good} of {report.planned} blocks are good ({kind} checked)")
    if not report.is_good:
        raise typer.Exit(1)


@app.command()
def prune(
    store: str,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show.")] = False,
    keep_views: Annotated[
        str, typer.Option(help="Such as base: the other views leave the store for good.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Free what nobody needs: leftovers, orphans, withdrawn records, views no longer wanted."""
    from cachedet.store.prune import prune_store

    views = [name.strip() for name in keep_views.split(",")] if keep_views else None
    folder = _local_folder(store, command="prune")
    report = prune_store(folder, dry_run=dry_run, keep_views=views)
    if as_json:
        _print_json(report.to_json())
        return
    print_waste(report, dry_run=dry_run)


@app.command("train-heads")
def train_heads(
    config: Annotated[Path, typer.Argument(help="A YAML file such as those in configs/.")],
    train: Annotated[str, typer.Option(help="Store to train on: a folder, or s3://...")],
    run: Annotated[
        Path, typer.Option("--run", "--run-folder", help="To make; torchrun has a --run itself.")
    ],
    val: Annotated[str | None, typer.Option(help="Store to validate on.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="schedule.epochs=12, repeatable.")
    ] = None,
    init_from: Annotated[
        Path | None, typer.Option(help="Run folder or checkpoint whose weights to start from.")
    ] = None,
    residency: Annotated[str, typer.Option(help="stream, ram, device or auto.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run.")] = False,
    as_json: Json = False,
) -> None:
    """Stage 2: train neck and heads on cached features.

    SIGTERM, SIGUSR1 and a first Ctrl-C end it after the step under way: the state is saved, the
    command that continues is printed, and the exit status is 75. A second Ctrl-C stops at once.
    """
    from cachedet.config import load_train_config
    from cachedet.train import train as run_train
    from cachedet.training.data_parallel import find_launch
    from cachedet.training.interruption import STOPPED_STATUS

    changes = list(overrides or [])
    if init_from is not None:
        changes.append(f"init_from={json.dumps(str(init_from))}")
    changes += [f"residency={residency}"] if residency else []
    settings = load_train_config(config, changes)
    launch = find_launch()
    if launch.is_first and not as_json:
        print(settings.schedule.describe_lr())
    report = run_train(settings, train_store=train, val_store=val, run=run, resume=resume)
    if launch.is_first and as_json:
        _print_json(report.to_json())
    elif launch.is_first:
        print_training(report)
    if report.was_interrupted:
        words = [*launch.command, *sys.argv[1:], *([] if resume else ["--resume"])]
        if launch.is_first:
            print(f"{report.reason}: saved; continue with\n  {shlex.join(words)}", file=sys.stderr)
        raise typer.Exit(STOPPED_STATUS)


@app.command()
def model(
    config: Annotated[Path, typer.Argument(help="A YAML file such as those in configs/.")],
    features: Annotated[
        str, typer.Option(help="Levels as NAME:CHANNELS:STRIDE; default: a ResNet-50's or -101's.")
    ] = "C3:512:8,C4:1024:16,C5:2048:32",
    num_classes: Annotated[int, typer.Option(min=1, help="Foreground classes.")] = 80,
    image_size: Annotated[
        str, typer.Option(help="Pixels: the side of a square, or HEIGHTxWIDTH.")
    ] = "640",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="detector.neck.channels=64, repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Parameters and FLOPs of what a config trains, part by part; needs no store."""
    from cachedet.config import load_train_config
    from cachedet.model import measure_model, parse_features, parse_size

    cost = measure_model(
        load_train_config(config, overrides or []).detector,
        features=parse_features(features),
        num_classes=num_classes,
        size_hw=parse_size(image_size),
    )
    if as_json:
        _print_json(cost.to_json())
        return
    print_cost(cost, title=config.name)


@app.command("eval")
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
        _print_json(report.to_json())
        return
    print_scores(report.scores.to_json(), of="boxes")
    if report.mask_scores is not None:
        print_scores(report.mask_scores.to_json(), of="masks")
    console.print(f"{report.results}\n{report.coco_file}", highlight=False)


@app.command()
def predict(
    run: Path,
    pictures: Annotated[list[Path], typer.Argument(help="Picture files or folders.")],
    out: Annotated[Path, typer.Option(help="Folder for drawings and detections.json.")],
    weights: Annotated[str, typer.Option(help="The backbone's: auto, none or a file.")] = "auto",
    min_score: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.3,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Detect in picture files; joins backbone and heads."""
    from cachedet.predict import predict as run_predict

    entries = run_predict(
        run, pictures=pictures, out=out, weights=weights, min_score=min_score, device=device
    )
    if as_json:
        _print_json({"pictures": entries})
        return
    for entry in entries:
        names = [f"{found['name']} {found['score']:.2f}" for found in entry["detections"]]
        print(f"{entry['file']}: {', '.join(names) or 'nothing'}")
    print(f"drawings and detections.json in {out}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to work in.")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """The whole pipeline on a built-in data set, on a CPU, in minutes."""
    from cachedet.demo import run_demo

    report = run_demo(out)
    if as_json:
        _print_json(report.to_json())
    else:
        print_scores(report.scores.to_json(), of="boxes")
        console.print(report.summary(), highlight=False)


def _local_folder(store: str, *, command: str) -> Path:
    """Raises InputError on a URL, which a path would quietly turn into a folder's name."""
    if "://" in store:
        raise InputError(
            f"`cachedet {command}` needs a local folder, got {store}: it writes and locks files "
            "there. Copy or mount the store and give its folder; `info`, `train-heads` and `eval` "
            "read URLs"
        )
    return Path(store)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=1))
