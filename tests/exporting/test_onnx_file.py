from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from cachedet.errors import ExportError
from cachedet.exporting.agreement import Tolerance, prove, total
from cachedet.exporting.onnx_file import OPSET, make_onnx
from cachedet.exporting.openvino_file import make_openvino
from cachedet.exporting.packages import ONNX, require_packages
from cachedet.exporting.proof_images import generated_images

onnx = pytest.importorskip("onnx")

MASKS = {"mask_head": {"resolution": 7, "num_convs": 1, "channels": 8}}
CASES: dict[str, dict[str, Any]] = {
    "retinanet": {"kind": "retinanet", "outputs": "raw", "preprocess": "outside"},
    "faster masks": {"kind": "faster_rcnn", **MASKS},
}
FORMATS: dict[str, dict[str, Any]] = {
    f"{format} masks": {"format": format, **CASES["faster masks"]}
    for format in ("openvino", "torch")
}
REFUSED = {  # OpenVINO 2026.4 computes them otherwise, and nothing is left
    "openvino cascade nasfpn": "gives outputs of 0, 0, 0 images for .*another --format",
    "openvino vit": "the exported file differs from torch: boxes by up to 0.5",
}
MATRIX: dict[str, dict[str, Any]] = (
    {
        f"{kind} {neck} {outputs}": {"kind": kind, "neck": neck, "outputs": outputs}
        for kind in ("retinanet", "faster_rcnn", "cascade_rcnn")
        for neck in ("fpn", "nasfpn")
        for outputs in ("raw", "detections")
    }
    | {
        "cascade masks": {"kind": "cascade_rcnn", **MASKS},
        "one box a RoI": {"kind": "faster_rcnn", "class_agnostic": True, "preprocess": "outside"},
        "five levels": {"kind": "retinanet", "neck": "long fpn"},
        "group norm": {"kind": "retinanet", "norm": "group"},
        "adapters": {"kind": "retinanet", "adapters": {"kind": "bottleneck"}},
        "vit": {"kind": "retinanet", "neck": "simple", "backbone": "test_vit"},
        "vit faster": {"kind": "faster_rcnn", "neck": "simple", "backbone": "test_vit"},
        "vit partial": {"kind": "retinanet", "neck": "simple", "backbone": "test_vit", "cut": "L3"},
        "efficientnet": {"kind": "retinanet", "backbone": "test_efficientnet"},
        "convnext": {"kind": "retinanet", "backbone": "test_convnext"},
        "partial": {"kind": "cascade_rcnn", "cut": "C4"},
    }
    | {
        f"{format} {name}": {"format": format, **case}
        for format in ("openvino", "torch")
        for name, case in {
            "retinanet": CASES["retinanet"],
            "cascade nasfpn": {"kind": "cascade_rcnn", "neck": "nasfpn"},
            "raw cascade": {"kind": "cascade_rcnn", "outputs": "raw"},
            "vit": {"kind": "retinanet", "neck": "simple", "backbone": "test_vit"},
            "convnext": {"kind": "retinanet", "backbone": "test_convnext"},
            "partial": {"kind": "retinanet", "cut": "C4"},
        }.items()
        if f"{format} {name}" not in REFUSED
    }
)


def check(kit: Any, case: dict[str, Any]) -> Any:
    format, case = case.get("format", "onnx"), {k: case[k] for k in case if k != "format"}
    if format == "openvino":
        pytest.importorskip("openvino")
    exported = kit.export(kit.graph(**case), format)
    rows = prove(exported.model, exported.reference, generated_images(128))
    found = total(rows)
    assert found.detections > 50
    assert {size for row in rows for size in row.batches} == {1, 2, 3}
    assert len(rows) >= 4
    found.require(Tolerance())
    return exported


@pytest.mark.thorough  # tests/e2e/test_export.py has one
@pytest.mark.parametrize("name", CASES)
def test_the_file_finds_what_torch_finds(kit: Any, name: str) -> None:
    exported = check(kit, CASES[name])
    model = onnx.load_model_from_string(exported.content)
    assert {node.domain for node in model.graph.node} == {""}  # nothing custom
    assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]
    assert {value.name for value in model.graph.input} == {"images", "sizes_hw"}
    shape = [
        dim.dim_param or dim.dim_value for dim in model.graph.output[1].type.tensor_type.shape.dim
    ]
    raw = exported.graph.outputs == "raw"
    assert shape == (["batch", "candidates", 3] if raw else ["batch", 100])
    assert b"/cachedet/" not in exported.content  # no place of this machine


@pytest.mark.thorough  # tests/e2e/test_export.py has these formats without masks
@pytest.mark.parametrize("name", FORMATS)
def test_other_formats_find_it_too(kit: Any, name: str) -> None:
    exported = check(kit, FORMATS[name])
    assert b"/tmp/" not in exported.content
    assert b"/cachedet/" not in exported.content  # no place of this machine
    assert b"cachedet::" not in exported.content  # no operator of ours


@pytest.mark.thorough
@pytest.mark.parametrize("name", REFUSED)
def test_what_openvino_computes_otherwise_is_refused(kit: Any, name: str) -> None:
    case: dict[str, Any] = {"kind": "cascade_rcnn", "neck": "nasfpn", "format": "openvino"}
    if name == "openvino vit":
        case |= {"kind": "retinanet", "neck": "simple", "backbone": "test_vit"}
    with pytest.raises(ExportError, match=REFUSED[name]):
        check(kit, case)


@pytest.mark.thorough
@pytest.mark.parametrize("name", MATRIX)
def test_every_detector_and_neck(kit: Any, name: str) -> None:
    check(kit, MATRIX[name])


class _Asks(nn.Module):
    """What no graph can hold: Python asks for a value."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images[:, :, ::8, ::8] if float(images.sum()) > 0 else images]


def test_the_part_that_fails_is_named(kit: Any) -> None:
    graph = kit.graph("retinanet")
    graph.backbone.model = _Asks()
    with pytest.raises(ExportError, match="cannot write the backbone test_resnet as a graph"):
        make_onnx(graph, pad_multiple=32, strides=[32], has_masks=False)
    graph = kit.graph("retinanet")
    graph.detector.neck = nn.Identity()
    with pytest.raises(ExportError, match="cannot write the RetinaNet behind test_resnet"):
        make_onnx(graph, pad_multiple=32, strides=[32], has_masks=False)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # Python refuses to import it
    with pytest.raises(ExportError, match=r"needs the package onnxscript .*cachedet\[export"):
        require_packages(ONNX)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ExportError, match=r"needs the package openvino .*'cachedet\[openvino\]'"):
        make_openvino(b"", "{}", part="it")


def test_what_openvino_cannot_take_is_named() -> None:
    pytest.importorskip("openvino")
    message = r"OpenVINO .* cannot take the RCNN with masks: .*; export with --format onnx"
    with pytest.raises(ExportError, match=message):
        make_openvino(b"no model", "{}", part="the RCNN with masks")
