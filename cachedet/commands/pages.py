"""Commands that show detections in a browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cachedet.commands.options import Device, FollowLinks, Json, print_json
from cachedet.commands.tables import say
from cachedet.progress import count_of

if TYPE_CHECKING:
    from cachedet.serve import Ready

Folder = Annotated[Path | None, typer.Option(help="Folder of images to browse.")]
Truth = Annotated[
    Path | None,
    typer.Option(help="To show beside detections, of the images they name; as for `extract`."),
]


def serve(
    detector: Annotated[
        Path, typer.Argument(metavar="RUN|MODEL", help="Run folder, or a file of `export`.")
    ],
    images: Folder = None,
    annotations: Truth = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Folders in the folder, too.")
    ] = False,
    follow_links: FollowLinks = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0: any that is free.")
    ] = 8765,
    most_mb: Annotated[
        int, typer.Option(min=1, max=512, help="Of an image that is dropped on the page.")
    ] = 32,
    weights: Annotated[str, typer.Option(help="The backbone's: auto, none or a file.")] = "auto",
    device: Device = "auto",
    opens: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """A page on this machine: drop an image or browse a folder, and look at what is detected.

    Ctrl-C ends it. It needs the extra `serve`, see docs/serve.md.
    """
    from cachedet.serve import serve as run_server

    def tell_ready(ready: Ready) -> None:
        if as_json:
            print_json(ready.to_json())
        else:
            of_folder = f", {count_of(ready.images, 'image')} to browse" if ready.images else ""
            classes = "1 class" if ready.classes == 1 else f"{ready.classes} classes"
            say(f"{ready.detector}: {classes}{of_folder}")
            say(f"{ready.url} is open; Ctrl-C ends it")
        sys.stdout.flush()
        if opens:
            import webbrowser

            webbrowser.open(ready.url)

    run_server(
        detector,
        images=images,
        annotations=annotations,
        recursive=recursive,
        follow_links=follow_links,
        port=port,
        most_mb=most_mb,
        weights=weights,
        device=device,
        on_ready=tell_ready,
    )


COMMANDS = {"serve": serve}
