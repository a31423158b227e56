"""An exported ONNX file as OpenVINO's two files, in float32."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

from cachedet.errors import ExportError
from cachedet.exporting.model_facts import KEY
from cachedet.exporting.model_file import ModelFile, mark_of
from cachedet.exporting.packages import require_packages


def make_openvino(content: bytes, text: str, *, part: str) -> ModelFile:
    """What OpenVINO makes of an ONNX file; `text` is what the model says of itself.

    Raises ExportError that names `part`, what is exported, where OpenVINO cannot.
    """
    require_packages(["openvino"], extra="openvino")
    openvino: Any = importlib.import_module("openvino")
    with tempfile.TemporaryDirectory(prefix="cachedet-openvino-") as folder:
        graph = Path(folder) / "model.xml"
        try:
            model = openvino.Core().read_model(content)
            model.set_friendly_name("cachedet")
            model.set_rt_info(text, [KEY])
            openvino.save_model(model, str(graph), compress_to_fp16=False)
        except Exception as error:  # of any kind
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ExportError(
                f"OpenVINO {openvino.__version__} cannot take {part}: {reason[-300:]}; export "
                "with --format onnx"
            ) from error
        weights = graph.with_suffix(".bin").read_bytes()
        return ModelFile(
            content=graph.read_bytes(), format="openvino", weights=weights + mark_of(weights)
        )
