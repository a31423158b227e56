"""An exported model as a file: ONNX, OpenVINO's two, or a program of `torch.export`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from cachedet.errors import ExportError, InputError
from cachedet.outputs import MODEL_WEIGHTS_MARK, Kind, require_file, write_file, write_pair

Format = Literal["onnx", "openvino", "torch"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
_KINDS = {"onnx": Kind.MODEL, "openvino": Kind.MODEL_GRAPH, "torch": Kind.MODEL_PROGRAM}
_WEIGHTS = ".bin"
_OTHERS = (".pt", ".pth", ".ts", ".torchscript", ".engine", ".tflite", ".pb", ".mlpackage", ".bin")


def choose_format(name: str | None, out: Path) -> Format:
    """The format of this name, or of the ending of `out`. Raises InputError where they differ."""
    by_suffix = {suffix: known for known, suffix in SUFFIXES.items()}
    of_suffix = by_suffix.get(out.suffix.lower())
    if name is None:
        if out.suffix.lower() in _OTHERS:
            endings = ", ".join(SUFFIXES.values())
            raise InputError(f"--out expects a file that ends in {endings}, got {out}")
        return of_suffix or "onnx"
    if name not in get_args(Format):
        raise InputError(f"--format expects one of {', '.join(get_args(Format))}, got {name!r}")
    chosen = cast(Format, name)
    if out.suffix.lower() != SUFFIXES[chosen] and (of_suffix is not None or chosen != "onnx"):
        raise InputError(
            f"--format {chosen} writes a file that ends in {SUFFIXES[chosen]}, got --out {out}: "
            f"choose --out {out.with_suffix(SUFFIXES[chosen])}"
            + ("" if of_suffix is None else f", or --format {of_suffix}")
        )
    return chosen


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelFile:
    """The bytes of an exported model."""

    content: bytes
    format: Format = "onnx"
    weights: bytes = b""  # OpenVINO's second file, with `mark_of` at its end

    @property
    def nbytes(self) -> int:
        return len(self.content) + len(self.weights)

    @classmethod
    def read(cls, path: Path) -> ModelFile:
        """By the ending of its name. Raises ExportError."""
        format = choose_format(None, path)
        try:
            content = path.read_bytes()
            weights = path.with_suffix(_WEIGHTS).read_bytes() if format == "openvino" else b""
        except OSError as error:
            raise ExportError(
                f"--model {path}: {error.filename}: {error.strerror or error}; expected a file of "
                "`cachedet export`"
            ) from error
        return cls(content=content, format=format, weights=weights)

    def write(self, path: Path) -> None:
        """Raises InputError. Of two files never are one old and one new to be seen."""
        kind = _KINDS[self.format]
        if self.format == "openvino":
            write_pair(
                (path, self.content, kind),
                (path.with_suffix(_WEIGHTS), self.weights, Kind.MODEL_WEIGHTS),
            )
        else:
            write_file(path, self.content, kind=kind)


def require_model_place(path: Path, format: Format) -> None:
    """Raises InputError where files of others would be replaced."""
    require_file(path, kind=_KINDS[format])
    if format == "openvino":
        require_file(path.with_suffix(_WEIGHTS), kind=Kind.MODEL_WEIGHTS)


def mark_of(weights: bytes) -> bytes:
    """What stands behind weights, where no runtime looks, so that they are known again."""
    return MODEL_WEIGHTS_MARK + hashlib.sha256(weights).hexdigest().encode()
