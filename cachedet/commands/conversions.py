"""The command that writes annotations of any format as COCO."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cachedet.commands.options import (
    Classes,
    IgnoreClasses,
    Json,
    MergeClasses,
    NoBackground,
    Rotated,
    Split,
    make_choice,
    print_json,
)
from cachedet.commands.tables import print_counts, say


def convert(
    source: Annotated[Path, typer.Argument(help="As --annotations of `extract` takes it.")],
    out: Annotated[Path, typer.Argument(help="COCO JSON file to write.")],
    split: Split = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder that file names shall start from.")
    ] = None,
    rotated: Rotated = "refuse",
    classes: Classes = None,
    ignore_classes: IgnoreClasses = None,
    merge_classes: MergeClasses = None,
    no_background: NoBackground = False,
    as_json: Json = False,
) -> None:
    """Write annotations (YOLO, VOC, CVAT, COCO) as the COCO file that was understood."""
    from cachedet.convert import convert as run_convert
    from cachedet.data.annotation_formats import with_split
    from cachedet.data.sections import parse_rotated

    report = run_convert(
        with_split(source, split),
        out,
        images=images,
        rotated=parse_rotated(rotated),
        choose=make_choice(classes, ignore_classes, merge_classes, no_background),
    )
    if as_json:
        print_json(report.to_json())
        return
    for note in report.notes:
        say(f"note    {note}")
    print_counts(report.counts)
    if report.images is not None:
        say(f"file names start from {report.images}")
    say(report.out)


COMMANDS = {"convert": convert}
