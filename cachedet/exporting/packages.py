"""Packages of the extras that exporting and running exported files take."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from cachedet.errors import ExportError

ONNX = ("onnx", "onnxscript", "onnxruntime")


def require_packages(
    names: Sequence[str], *, command: str = "export", extra: str = "export"
) -> None:
    """Raises ExportError where the extra is missing."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ExportError(
                f"{command} needs the package {name} ({error}): pip install 'cachedet[{extra}]'"
            ) from error
