"""A detection graph as a program of `torch.export`, which runs with torch and torchvision alone."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cachedet.exporting.detection_graph import DetectionGraph
from cachedet.exporting.model_facts import KEY
from cachedet.exporting.model_file import ModelFile
from cachedet.exporting.onnx_file import traced
from cachedet.outputs import MODEL_COMMENT


def make_program(
    graph: DetectionGraph, text: str, *, pad_multiple: int, strides: Sequence[int]
) -> ModelFile:
    """`text` is what the model says of itself. Raises ExportError where torch cannot write it."""
    operators = torch.ops.cachedet
    plain = {operators.suppress.default: _suppress, operators.of_size.default: _same}
    with traced(graph, pad_multiple=pad_multiple, strides=strides) as program:
        written: Any = program.run_decompositions(plain)
        _clean(written)
        buffer = io.BytesIO()
        torch.export.save(written, buffer, extra_files={KEY: text})
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = MODEL_COMMENT
    return ModelFile(content=buffer.getvalue(), format="torch")


def _clean(program: Any) -> None:
    """Take out what tracing noted: places of this machine, and guesses about sides.

    It guesses that no map has a side of 1; what it wrote is true of those, too.
    """
    for node in [*program.graph.nodes]:
        node.meta.pop("stack_trace", None)
        if node.target is torch.ops.aten._assert_scalar.default:
            program.graph.erase_node(node)
        elif node.target is torch.ops.aten.view.default:  # of maps with a side of 1 it is refused
            node.target = torch.ops.aten.reshape.default
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


def _suppress(boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, iou: float) -> Tensor:
    """`fixed_rows.suppress` by torchvision's operator, for all images and groups at once.

    Each group's boxes lie in a place of their own; in doubles, so that they keep their digits.
    Rows that are out have the lowest scores, so that they suppress nothing.
    """
    count, rows = scores.shape
    groups = groups + torch.arange(count)[:, None] * num_groups
    apart = groups[..., None] * (boxes.max() + 1).double()
    kept = torch.ops.torchvision.nms(
        (boxes.double() + apart).reshape(-1, 4), scores.double().reshape(-1), iou
    )
    stays = torch.zeros(count * rows, dtype=torch.bool)
    stays = stays.index_fill(0, kept, True).reshape(count, rows)
    return stays & (scores > -torch.inf)


def _same(maps: Tensor, shape: Sequence[Any]) -> Tensor:
    return maps.reshape(shape)
