"""The commands: parse, call one function, print.

Exit status: 0 done; 1 the user's input or a check failed; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from cachedet.errors import CachedetError
from cachedet.version import __version__

if TYPE_CHECKING:  # commands import what they need when they run: `--help` stays quick
    from cachedet.store.verify import VerifyReport


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
console = Console()

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
    store: Annotated[Path, typer.Option(help="Folder of the feature store to write.")],
    backbone: Annotated[
        str, typer.Option(help="Any timm model with features.")
    ] = "tf_efficientnet_lite0",
    weights: Annotated[str, typer.Option(help="auto, none or a checkpoint file.")] = "auto",
    levels: Annotated[str, typer.Option(help="Such as C3,C4,C5; empty: the usual ones.")] = "",
    image_size: Annotated[int, typer.Option(help="Long side in pixels.")] = 512,
    views: Annotated[str, typer.Option(help="base,hflip")] = "base",
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
            "store": store,
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
    for name, reason in report.skipped:
        console.print(f"skipped {name}: {reason}", highlight=False, markup=False)
    for name, remark in report.remarks:
        console.print(f"note    {name}: {remark}", highlight=False, markup=False)
    console.print(", ".join(f"{count} {what}" for what, count in report.counts.items() if count))
    console.print(
        f"{store}: {report.pictures} pictures, {report.blocks_written} of {report.blocks_total} "
        f"blocks written now, {report.nbytes_written / 1e6:.1f} MB in {report.seconds:.1f} s",
        highlight=False,
    )
    if report.blocks_missing:
        print(f"{report.blocks_missing} blocks are left to other writers that are at work")


@app.command()
def info(store: str, as_json: Json = False) -> None:
    """What a store holds."""
    from cachedet.store.verify import describe_store

    description = describe_store(store)
    if as_json:
        _print_json(description)
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in description.items():
        table.add_row(name.replace("_", " "), _readable(name, value))
    console.print(table, highlight=False, markup=False)


@app.command()
def verify(
    store: Path,
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
        _print_json(report.to_json())
    else:
        _print_faults(report)
        kind = "every byte" if deep else "records and lengths"
        good = report.planned - len(report.missing) - len(report.bad)
        print(f"{store}: {good} of {report.planned} blocks are good ({kind} checked)")
    if not report.is_good:
        raise typer.Exit(1)


def _print_faults(report: VerifyReport) -> None:
    for name in report.missing:
        print(f"missing  {name}")
    for block in report.bad:
        print(f"bad      {block.name}: {block.path}: {block.reason}")
    if report.missing or any(block.withdrawn for block in report.bad):
        print("the same `cachedet extract` again writes these blocks, and no others")
    if not all(block.withdrawn for block in report.bad):
        print("the store is read-only here: the bad blocks could not be withdrawn")


@app.command()
def prune(
    store: Path,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show.")] = False,
    keep_views: Annotated[
        str, typer.Option(help="Such as base: the other views leave the store for good.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Free what nobody needs: leftovers, orphans, withdrawn records, views no longer wanted."""
    from cachedet.store.prune import prune_store

    views = [name.strip() for name in keep_views.split(",")] if keep_views else None
    report = prune_store(store, dry_run=dry_run, keep_views=views)
    if as_json:
        _print_json(report.to_json())
        return
    table = Table(title="would be freed" if dry_run else "freed")
    table.add_column("kind")
    for name in ("files", "MB"):
        table.add_column(name, justify="right")
    for waste in report.waste:
        table.add_row(waste.kind, str(len(waste.paths)), f"{waste.nbytes / 1e6:.1f}")
    console.print(table)


@app.command("train-heads")
def train_heads(
    config: Annotated[Path, typer.Argument(help="A YAML file such as those in configs/.")],
    train: Annotated[str, typer.Option(help="Store to train on: a folder, or s3://...")],
    run: Annotated[Path, typer.Option(help="Run folder to make.")],
    val: Annotated[str | None, typer.Option(help="Store to validate on.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="schedule.epochs=12, repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run.")] = False,
    as_json: Json = False,
) -> None:
    """Stage 2: train neck and heads on cached features."""
    from cachedet.config import load_train_config
    from cachedet.train import train as run_train

    report = run_train(
        load_train_config(config, overrides or []),
        train_store=train,
        val_store=val,
        run=run,
        resume=resume,
    )
    if as_json:
        _print_json({name: _plain(value) for name, value in vars(report).items()})
        return
    best = f", best AP {report.best_ap:.3f}" if report.best_ap is not None else ""
    console.print(
        f"{run}: {report.parameters / 1e6:.2f} M parameters trained for {report.steps} steps in "
        f"{report.seconds:.0f} s ({report.seconds_per_epoch:.1f} s an epoch){best}",
        highlight=False,
    )


@app.command("eval")
def evaluate(
    run: Path,
    store: Annotated[str, typer.Option(help="Store to score on.")],
    weights: Annotated[str, typer.Option(help="best or last.")] = "best",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Stage 3: COCO figures of a run on a store."""
    from cachedet.config import make_eval_config
    from cachedet.evaluate import evaluate as run_evaluate

    report = run_evaluate(
        run, store=store, config=make_eval_config({"weights": weights, "device": device})
    )
    if as_json:
        _print_json(report.to_json())
        return
    _print_scores(report.to_json())
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
        _print_scores(report.scores.to_json())
        console.print(report.summary(), highlight=False)


def _print_scores(scores: dict[str, Any]) -> None:
    figures = Table(title="COCO figures")
    columns = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")
    for name in columns:
        figures.add_column(name.upper().replace("_", " "), justify="right")
    figures.add_row(*(_figure(scores[name]) for name in columns))
    classes = Table(title="per class")
    classes.add_column("class")
    for name in ("boxes", "AP", "AP50"):
        classes.add_column(name, justify="right")
    for score in scores["per_class"]:
        classes.add_row(
            score["name"], str(score["num_boxes"]), _figure(score["ap"]), _figure(score["ap50"])
        )
    console.print(figures)
    console.print(classes)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _readable(name: str, value: Any) -> str:
    if name == "bytes":
        return f"{value / 1e6:,.1f} MB"
    if name == "bytes_per_picture_and_view":
        return "-" if value is None else f"{value / 1e3:,.1f} kB"
    if name == "quality":
        return ", ".join(f"{level} {_quality(found)}" for level, found in value.items()) or "-"
    if name == "levels":
        return ", ".join(f"{v['name']} {v['channels']}x/{v['stride']}" for v in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {count}" for key, count in value.items())
    if name == "skipped":
        return ", ".join(f"{file} ({reason})" for file, reason in value) or "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _quality(found: dict[str, float | None]) -> str:
    noise = "lossless" if found["snr_db"] is None else f"{found['snr_db']:.1f} dB"
    return f"{noise}, {found['saturation']:.1g} saturated" if found["saturation"] else noise


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=1))
