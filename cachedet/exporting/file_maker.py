"""A detection graph as a file of the format that is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from cachedet.detector.end_to_end import heads_of
from cachedet.detector.protocol import trains_masks
from cachedet.exporting.detection_graph import DetectionGraph
from cachedet.exporting.model_facts import KEY, ModelFacts
from cachedet.exporting.model_file import Format, ModelFile
from cachedet.exporting.onnx_file import add_metadata, make_onnx
from cachedet.exporting.openvino_file import make_openvino
from cachedet.exporting.torch_program import make_program


def make_file(
    graph: DetectionGraph, facts: ModelFacts, format: Format, *, strides: Sequence[int]
) -> ModelFile:
    """The model's file, with what it says of itself; `strides` are those of all maps inside.

    Raises ExportError that names the part that cannot be written.
    """
    text, multiple = facts.to_text(), facts.pad_multiple
    if format == "torch":
        return make_program(graph, text, pad_multiple=multiple, strides=strides)
    has_masks = trains_masks(heads_of(graph.detector))
    content = make_onnx(graph, pad_multiple=multiple, strides=strides, has_masks=has_masks)
    if format == "onnx":
        return ModelFile(content=add_metadata(content, {KEY: text}))
    masks = " with masks" if facts.has_masks else ""
    part = f"the {type(heads_of(graph.detector)).__name__}{masks} behind {graph.backbone.name}"
    return make_openvino(content, text, part=part)
