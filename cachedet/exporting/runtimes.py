"""What runs an exported model: arrays by name in, arrays out, and what the file says of itself."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cachedet.errors import ExportError
from cachedet.exporting.model_facts import KEY
from cachedet.exporting.model_file import ModelFile, mark_of
from cachedet.exporting.packages import require_packages

Arrays = Mapping[str, NDArray[Any]]
_NAMES = {"onnx": "ONNX file", "openvino": "OpenVINO model", "torch": "torch.export program"}
_RUNNING = "running an exported model"
_MARK_LENGTH = len(mark_of(b""))


@dataclass(frozen=True, kw_only=True, eq=False)
class Runtime:
    """A model at work."""

    text: str | None  # the metadata that `export` wrote
    run: Callable[[Arrays], list[NDArray[Any]]]  # the outputs in their order


def open_runtime(file: ModelFile, *, where: str, threads: int) -> Runtime:
    """Raises ExportError: a package is missing, or the file is none that runs here."""
    opening = {"onnx": _open_onnx, "openvino": _open_openvino, "torch": _open_program}[file.format]
    try:
        return opening(file, threads)
    except ExportError:
        raise
    except Exception as error:  # their errors have no parent of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"{where} is no {_NAMES[file.format]} that runs here: {reason}"
        ) from error


def _open_onnx(file: ModelFile, threads: int) -> Runtime:
    require_packages(["onnxruntime"], command=_RUNNING)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session: Any = onnxruntime.InferenceSession(
        file.content, options, providers=["CPUExecutionProvider"]
    )
    return Runtime(
        text=session.get_modelmeta().custom_metadata_map.get(KEY),
        run=lambda inputs: session.run(None, dict(inputs)),
    )


def _open_openvino(file: ModelFile, threads: int) -> Runtime:
    """In float32: by itself it takes bfloat16 where the processor has it."""
    require_packages(["openvino"], command=_RUNNING, extra="openvino")
    import openvino

    weights, mark = file.weights[:-_MARK_LENGTH], file.weights[-_MARK_LENGTH:]
    core = openvino.Core()
    model = core.read_model(file.content, file.weights)
    text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
    if text is not None and mark != mark_of(weights):
        raise ValueError("the .bin beside it is damaged or of another export; export the run again")
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(model, "CPU", settings)

    def run(inputs: Arrays) -> list[NDArray[Any]]:
        results = compiled(dict(inputs))
        return [np.asarray(results[output]) for output in compiled.outputs]

    return Runtime(text=text, run=run)


def _open_program(file: ModelFile, threads: int) -> Runtime:
    """`threads` are torch's, which has one number for the process. It unpickles parts of it."""
    with zipfile.ZipFile(io.BytesIO(file.content)) as archive:
        if not any(name.endswith(f"extra/{KEY}") for name in archive.namelist()):
            return Runtime(text=None, run=lambda _: [])
    texts = {KEY: ""}
    logger = logging.getLogger("torch._export.serde.serialize")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it lists symbols that the graph has no use for
    try:
        module: Any = torch.export.load(io.BytesIO(file.content), extra_files=texts).module()
    finally:
        logger.setLevel(level)

    def run(inputs: Arrays) -> list[NDArray[Any]]:
        with torch.no_grad():
            outputs = module(*(torch.from_numpy(each) for each in inputs.values()))
        return [output.numpy() for output in outputs]

    return Runtime(text=texts[KEY], run=run)
