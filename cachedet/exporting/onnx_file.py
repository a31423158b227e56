"""A detection graph as ONNX: standard operators only, batch, height and width as they come."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from cachedet.detector.end_to_end import heads_of
from cachedet.errors import ExportError
from cachedet.exporting.detection_graph import DetectionGraph, output_names
from cachedet.exporting.known_sizes import known_sizes
from cachedet.exporting.packages import ONNX, require_packages

OPSET = 20
_IR_VERSION = 10  # of the file format; the newest that runtimes of opset 20 know
_CELLS = 3  # at least, of the coarsest level's side while tracing: a side of 1 is taken as constant
_MOST_CELLS = 1024  # of a side
_LOWEST = -3.0e38  # scores above it take part in a suppression; those below are -inf


@contextlib.contextmanager
def traced(graph: DetectionGraph, *, pad_multiple: int, strides: Sequence[int]) -> Iterator[Any]:
    """The graph as torch writes it (an `ExportedProgram`), of batches and sides of any size.

    `strides` are those of all maps inside. What fails inside of this raises ExportError, too.
    """
    cells = max(_CELLS, math.ceil(_CELLS * max(strides) / pad_multiple))
    example = _example(graph, (cells * pad_multiple, (cells + 1) * pad_multiple))
    side = {axis: torch.export.Dim(axis, max=_MOST_CELLS) for axis in ("height", "width")}
    batch = torch.export.Dim("batch", max=4096)
    image_dims = {0: batch} | {
        place: pad_multiple * dim
        for place, dim in zip(_sides_at(graph), side.values(), strict=True)
    }
    sizes = known_sizes(graph, example, multiple=pad_multiple)
    with _quiet(), _named_parts(graph), sizes:
        yield torch.export.export(
            graph,
            example,
            dynamic_shapes=(image_dims, {0: batch}),
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def make_onnx(
    graph: DetectionGraph, *, pad_multiple: int, strides: Sequence[int], has_masks: bool
) -> bytes:
    """The bytes of the ONNX file, without metadata.

    `strides` are those of all maps inside. Raises ExportError where torch cannot write the graph.
    """
    require_packages(ONNX)
    names = output_names(graph.outputs, has_masks=has_masks)
    with traced(graph, pad_multiple=pad_multiple, strides=strides) as program:
        written: Any = torch.onnx.export(
            program,
            (),
            input_names=["images", "sizes_hw"],
            output_names=list(names),
            opset_version=OPSET,
            dynamo=True,
            custom_translation_table=_translations(),
            verbose=False,
        )
    shapes: dict[str, Sequence[str | int]] = {
        "images": _shape_of_images(_sides_at(graph)),
        "sizes_hw": ["batch", 2],
        **_shapes_of_outputs(graph, names),
    }
    return _finish(written.model_proto, shapes)


def _sides_at(graph: DetectionGraph) -> tuple[int, int]:
    return (1, 2) if graph.preprocess == "inside" else (2, 3)


def _example(graph: DetectionGraph, size_hw: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images, of which one is smaller than the batch."""
    height, width = size_hw
    sizes = torch.tensor([[height, width], [height - 3, width - 5]])
    if graph.preprocess == "inside":
        return torch.zeros(2, height, width, 3, dtype=torch.uint8), sizes
    return torch.zeros(2, 3, height, width), sizes


def _shape_of_images(at: tuple[int, int]) -> list[str | int]:
    shape: list[str | int] = ["batch", 3, 3, 3]
    shape[at[0]], shape[at[1]] = "height", "width"
    return shape


def _shapes_of_outputs(
    graph: DetectionGraph, names: Sequence[str]
) -> Mapping[str, list[str | int]]:
    """What is not the same for every input is called by a letter."""
    with torch.no_grad():
        outputs = graph(*_example(graph, (256, 256)))
    shapes = {}
    for name, output in zip(names, outputs, strict=True):
        shape: list[str | int] = ["batch", *output.shape[1:]]
        if graph.outputs == "raw":
            shape[1] = "candidates"
        shapes[name] = shape
    return shapes


def _translations() -> dict[Any, Any]:
    """Our one operator as ONNX's: a row takes part in the suppression of its own group alone."""
    from onnxscript import BOOL, FLOAT, INT64
    from onnxscript import opset20 as op

    def suppress(boxes: FLOAT, scores: FLOAT, groups: INT64, num_groups: int, iou: float) -> BOOL:
        numbers = op.Unsqueeze(op.Range(0, num_groups, 1), [0, 2])
        is_of_group = op.Equal(op.Unsqueeze(groups, [1]), numbers)
        nothing = op.Constant(value_float=-math.inf)
        by_group = op.Where(is_of_group, op.Unsqueeze(scores, [1]), nothing)
        most = op.Shape(scores, start=1, end=2)
        limit, lowest = op.Constant(value_floats=[iou]), op.Constant(value_floats=[_LOWEST])
        kept = op.NonMaxSuppression(boxes, by_group, most, limit, lowest)
        places = op.Gather(kept, op.Constant(value_ints=[0, 2]), axis=1)  # image and row
        none = op.Expand(op.Constant(value_int=0), op.Shape(scores))
        ones = op.Expand(op.Constant(value_int=1), op.Shape(places, start=0, end=1))
        return op.Cast(op.ScatterND(none, places, ones), to=BOOL.dtype)

    def of_size(maps: FLOAT, shape: Sequence[INT64]) -> FLOAT:
        return op.Identity(maps)

    operators = torch.ops.cachedet
    return {operators.suppress.default: suppress, operators.of_size.default: of_size}


def _finish(model: Any, shapes: Mapping[str, Sequence[str | int]]) -> bytes:
    """Name the maker and the sides."""
    _strip(model)
    for value in (*model.graph.input, *model.graph.output):
        del value.type.tensor_type.shape.dim[:]
        for size in shapes[value.name]:
            dim = value.type.tensor_type.shape.dim.add()
            if isinstance(size, str):
                dim.dim_param = size
            else:
                dim.dim_value = size
    content: bytes = model.SerializeToString()
    return content


def _strip(model: Any) -> None:
    """Name the maker, and leave nothing that others noted in the graph.

    Guesses about sides inside mislead runtimes.
    """
    from cachedet.version import __version__

    model.producer_name, model.producer_version = "cachedet", __version__
    model.ir_version = min(model.ir_version, _IR_VERSION)
    del model.graph.value_info[:], model.metadata_props[:]
    domains = {node.domain for node in model.graph.node}
    opsets = [each for each in model.opset_import if each.domain in domains]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    for node in model.graph.node:
        del node.metadata_props[:]  # of each: where in the source it came from, on this machine
        node.doc_string = ""


def strip(content: bytes) -> bytes:
    """What another program made of a file of ours as such a file, without metadata."""
    import onnx

    model = onnx.load_model_from_string(content)
    _strip(model)
    stripped: bytes = model.SerializeToString()
    return stripped


def add_metadata(content: bytes, values: Mapping[str, str]) -> bytes:
    """The same file with texts by name, which every runtime can read."""
    import onnx

    model = onnx.load_model_from_string(content)
    for key, value in values.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model)
    with_texts: bytes = model.SerializeToString()
    return with_texts


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch notes names it did not take and graphs it could not shorten; results are compared."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _named_parts(graph: DetectionGraph) -> Iterator[None]:
    """Raises ExportError that says which part torch could not write."""
    try:
        yield
    except Exception as error:  # exporters raise errors of any kind
        part, way = _part_that_fails(graph)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"torch {torch.__version__} cannot write {part} as a graph ({type(error).__name__}: "
            f"{reason}); {way}"
        ) from error


def _part_that_fails(graph: DetectionGraph) -> tuple[str, str]:
    """The first part that cannot be traced alone, even for images of one size; a way out."""
    images = torch.zeros(2, 3, 256, 256)
    backbone: nn.Module = graph.backbone.model
    try:
        torch.export.export(backbone, (images,))
    except Exception:
        return f"the backbone {graph.backbone.name}", "extract with a backbone of another family"
    name = type(heads_of(graph.detector)).__name__
    return (
        f"the {name} behind {graph.backbone.name}",
        "try --outputs raw, and report the detector's config",
    )
