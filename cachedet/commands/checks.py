"""The command that looks at a data set before any work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cachedet.commands.options import (
    Annotations,
    Classes,
    FollowLinks,
    IgnoreClasses,
    Images,
    ImageSize,
    Json,
    MergeClasses,
    NoBackground,
    Rotated,
    Split,
    Workers,
    make_choice,
    print_json,
)
from cachedet.commands.tables import console, make_table, name_cell, say
from cachedet.errors import InputError

if TYPE_CHECKING:  # commands import what they need when they run: `--help` stays quick
    from cachedet.check import CheckReport
    from cachedet.inspection.finding import Finding

_MOST_CLASSES = 20  # in the table, half of them the most frequent


def check(
    images: Images,
    annotations: Annotations,
    val: Annotated[Path | None, typer.Option(help="Annotations to score on, likewise.")] = None,
    val_images: Annotated[
        Path | None, typer.Option(help="Folder of the images of --val; default: --images.")
    ] = None,
    split: Split = None,
    val_split: Annotated[str | None, typer.Option(help="Of --val.")] = None,
    image_size: ImageSize = 512,
    rotated: Rotated = "refuse",
    follow_links: FollowLinks = False,
    classes: Classes = None,
    ignore_classes: IgnoreClasses = None,
    merge_classes: MergeClasses = None,
    no_background: NoBackground = False,
    workers: Workers = 0,
    out: Annotated[
        Path | None, typer.Option(help="PNG to write: images of the findings, boxes drawn.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What is wrong with a data set, before hours of work; exit status 1 if something stops it."""
    from cachedet.check import check as run_check
    from cachedet.data.annotation_formats import with_split
    from cachedet.data.sections import parse_rotated

    if val is None and (val_images is not None or val_split is not None):
        raise InputError("--val-images and --val-split are of --val: name it, or leave them out")
    report = run_check(
        images=images,
        annotations=with_split(annotations, split),
        val=None if val is None else with_split(val, val_split),
        val_images=val_images,
        image_size=image_size,
        rotated=parse_rotated(rotated),
        follow_links=follow_links,
        choose=make_choice(classes, ignore_classes, merge_classes, no_background),
        workers=workers,
        out=out,
    )
    if as_json:
        print_json(report.to_json())
    else:
        _print_report(report)
    if report.stops:
        raise typer.Exit(1)


def _print_report(report: CheckReport) -> None:
    from cachedet.inspection.finding import RANKS

    for rank in RANKS:
        found = [finding for finding in report.findings if finding.rank == rank]
        if found:
            say(rank.upper())
        for finding in found:
            _print_finding(finding)
    _print_classes(report)
    if report.sheet is not None:
        say(report.sheet)
    elif report.findings and any(finding.places for finding in report.findings):
        say("To see them drawn: --out sheet.png")


def _print_finding(finding: Finding) -> None:
    say(f"  {finding.text}")
    for place in finding.first_places:
        say(f"      {place}")
    if finding.count > len(finding.first_places) > 0:
        say(f"      and {finding.count - len(finding.first_places):,} more")
    if finding.advice:
        say(f"    {finding.advice}")


def _print_classes(report: CheckReport) -> None:
    """Boxes and images of each class; of many the most and the least frequent."""
    train = [one for one in report.classes if one.set_name == "train"]
    scored = {one.name: one for one in report.classes if one.set_name == "val"}
    half = _MOST_CLASSES // 2
    shown = train if len(train) <= _MOST_CLASSES else [*train[:half], *train[-half:]]
    columns = ["boxes", "images", *(["val boxes", "val images"] if scored else [])]
    table = make_table("", "class", *columns, left=["class"])
    for number, one in enumerate(shown):
        cells = [f"{one.boxes:,}", f"{one.images:,}"]
        if scored:
            other = scored.get(one.name)
            cells += ["-", "-"] if other is None else [f"{other.boxes:,}", f"{other.images:,}"]
        is_gap = len(train) > len(shown) and number == half - 1
        table.add_row(name_cell(one.name), *cells, end_section=is_gap)
    if train:
        console.print(table)
    if len(train) > len(shown):
        say(f"{len(train) - len(shown)} classes between them: --json has all")


COMMANDS = {"check": check}
