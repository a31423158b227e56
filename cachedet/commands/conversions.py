"""The command that writes annotations of any format as COCO."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cachedet.commands.options import Json, Rotated, Split, print_json
from cachedet.commands.tables import say


def convert(
    source: Annotated[Path, typer.Argument(help="As --annotations of `extract` takes it.")],
    out: Annotated[Path, typer.Argument(help="COCO JSON file to write.")],
    split: Split = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder that file names shall start from.")
    ] = None,
    rotated: Rotated = "refuse",
    as_json: Json = False,
) -> None:
    """Write annotations (YOLO, VOC, CVAT, COCO) as the COCO file that was understood."""
    from cachedet.convert import convert as run_convert
    from cachedet.data.annotation_formats import with_split
    from cachedet.data.sections import parse_rotated

    report = run_convert(
        with_split(source, split), out, images=images, rotated=parse_rotated(rotated)
    )
    if as_json:
        print_json(report.to_json())
        return
    for note in report.notes:
        say(f"note    {note}")
    if report.images is not None:
        say(f"file names start from {report.images}")
    say(report.out)


COMMANDS = {"convert": convert}
