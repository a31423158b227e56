"""Commands that write about runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cachedet.commands.options import Json, print_json
from cachedet.commands.tables import say


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders that `eval` has scored; the first leads.")
    ],
    store: Annotated[
        str | None, typer.Option(help="Store they were scored on, if it has moved.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the scored images, to show some of them.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="HTML file; default report.html in the first run.")
    ] = None,
    max_images: Annotated[
        int, typer.Option(min=0, max=500, help="Of the best, and of the worst, to show.")
    ] = 24,
    resamples: Annotated[int, typer.Option(min=1, help="Of the images, for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    as_json: Json = False,
) -> None:
    """One page about runs: HTML that needs no network, Markdown and JSON beside it."""
    from cachedet.report import report as write_report

    written = write_report(
        runs,
        store=store,
        images=images,
        out=out,
        max_images=max_images,
        resamples=resamples,
        seed=seed,
    )
    if as_json:
        print_json(written.to_json())
        return
    for reason in written.unreadable:
        say(f"not shown: {reason}")
    for path in (written.html, written.markdown, written.json):
        say(path)


COMMANDS = {"report": report}
