"""Options and output that all commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cachedet.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]


def local_folder(store: str, *, command: str) -> Path:
    """The folder. Raises InputError on a URL, which a path would quietly make a folder's name."""
    if "://" in store:
        raise InputError(
            f"`cachedet {command}` needs a local folder, got {store}: it writes and locks files "
            "there. Copy or mount the store and give its folder; `info`, `train-heads` and `eval` "
            "read URLs"
        )
    return Path(store)


def print_json(value: dict[str, Any]) -> None:
    """The one object of `--json`."""
    print(json.dumps(value, indent=1))
