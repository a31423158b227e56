"""Serve a page on this machine in which people look at what a detector finds."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cachedet.data.regular_files import read_regular
from cachedet.errors import ConfigError, InputError
from cachedet.exporting.exported_model import load_model_detector
from cachedet.prediction.image_detector import ImageDetector, load_image_detector
from cachedet.serving.gallery import Gallery
from cachedet.text import printable
from cachedet.training.run_folder import RunFolder

MOST_MB = 512  # that a body may be allowed to have: what image files may have


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The page is there."""

    url: str
    detector: str  # run folder or file
    classes: int
    images: int  # to browse

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def serve(
    detector: Path | str,
    *,
    images: Path | str | None = None,
    annotations: Path | str | None = None,
    recursive: bool = False,
    follow_links: bool = False,
    port: int = 8765,
    most_mb: int = 32,
    weights: str = "auto",
    device: str = "auto",
    on_ready: Callable[[Ready], None],
) -> None:
    """Serve the page on 127.0.0.1 until Ctrl-C.

    Args:
        detector: folder of a run, whose best weights are taken, or a file of `export`.
        images: folder to browse.
        annotations: of it, shown beside the detections; only images that they name are listed.
        recursive, follow_links: whether folders in folders are looked into, and links out of the
            folder followed.
        port: 0 takes any that is free.
        most_mb: of an image that a browser sends.
        weights, device: of a run, as `predict` takes them.
        on_ready: called once, when the page can be opened.

    Raises:
        CheckpointError, BackboneError, ExportError: no such run or file, or other weights.
        InputError: starlette or uvicorn are missing, a port that is in use, no images, annotations
            of others.
    """
    _require_packages()
    from cachedet.serving.application import Served, make_application
    from cachedet.serving.local_server import LocalServer

    subject = Path(detector)
    _require_usable(subject, images, annotations, port=port, most_mb=most_mb)
    with closing(LocalServer(port)) as server:
        gallery = None
        if images is not None:
            gallery = Gallery.open(
                Path(images),
                recursive=recursive,
                follow_links=follow_links,
                annotations=None if annotations is None else Path(annotations),
            )
        served = Served(
            detector=_load(subject, weights=weights, device=device),
            title=subject.resolve().name,
            cut=None if subject.is_file() else best_cut(subject),
            gallery=gallery,
            most_nbytes=most_mb << 20,
        )
        application = make_application(served)
        server.listen()
        on_ready(
            Ready(
                url=server.url,
                detector=str(subject),
                classes=len(served.detector.categories),
                images=0 if gallery is None else len(gallery),
            )
        )
        server.run(application)


def _require_packages() -> None:
    """Raises InputError where the extra is missing."""
    for name in ("starlette", "uvicorn"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(
                f"serve needs the package {name} ({error}): pip install 'cachedet[serve]'"
            ) from error


def _require_usable(
    subject: Path,
    images: Path | str | None,
    annotations: Path | str | None,
    *,
    port: int,
    most_mb: int,
) -> None:
    """Raises InputError, ConfigError."""
    if not 0 <= port <= 65535 or not 1 <= most_mb <= MOST_MB:
        raise ConfigError(
            f"port expects 0 to 65535 and most_mb 1 to {MOST_MB}, got {port} and {most_mb}"
        )
    if annotations is not None and images is None:
        raise InputError(
            f"--annotations {printable(annotations)} says what is in which images; give their "
            "folder with --images"
        )
    if not subject.exists():
        raise InputError(
            f"there is neither a run folder nor an exported model {printable(subject)}; expected "
            "what `cachedet train-heads --run` or `cachedet export --out` made"
        )


def _load(subject: Path, *, weights: str, device: str) -> ImageDetector:
    if subject.is_file():
        return load_model_detector(subject, weights=weights, device=device)
    return load_image_detector(subject, weights=weights, device=device)


def best_cut(run: Path) -> float | None:
    """The score that `eval` found to cut at best; None where it was not scored, or says none."""
    try:
        score = json.loads(read_regular(RunFolder(run).results))["curves"]["best"]["score"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return float(score) if isinstance(score, int | float) and 0 <= score <= 1 else None
