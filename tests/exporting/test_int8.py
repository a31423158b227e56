from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cachedet.errors import ExportError
from cachedet.exporting.exported_model import Inputs
from cachedet.exporting.int8 import Int8Report, choose_nodes, find_layers, make_int8, quantise
from cachedet.exporting.onnx_file import OPSET
from cachedet.exporting.proof_images import generated_images

onnx = pytest.importorskip("onnx")

REPORT = Int8Report(
    images=8, calibrated_on="8 images of b", scored_images=5, layers=80, float_layers=11,
    float_nbytes=13_800_000, nbytes=5_000_000, sure=50,
    kept=49, milliseconds=31.6, float_milliseconds=48.1, ap=0.365, float_ap=0.372,
)  # fmt: skip


@pytest.fixture(scope="module")
def exported(kit: Any) -> Any:
    return kit.export(kit.graph("faster_rcnn"))


@pytest.mark.thorough
def test_a_detector_in_int8(exported: Any) -> None:
    """RoIAlign, suppression and the last layers stay float; what is between layers does not."""
    handlers = [*logging.root.handlers]
    content, facts, report = make_int8(
        exported.content,
        exported.model,
        pixels=generated_images(128)[:4],
        truth=None,
        where="it",
        described="of b",
    )
    assert logging.root.handlers == handlers
    assert report.layers > 5
    assert report.float_layers >= 4  # of the proposals and of the boxes, scores and deltas each
    assert report.nbytes == len(content) < report.float_nbytes
    assert (report.images, report.calibrated_on) == (4, "4 images of b")
    assert report.kept <= report.sure
    assert report.ap is None
    assert facts.provenance["int8"] == {"calibration_images": 4}
    model = onnx.load_model_from_string(content)
    assert {node.domain for node in model.graph.node} == {""}  # nothing custom
    assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]
    assert model.producer_name == "cachedet"
    assert [entry.key for entry in model.metadata_props] == ["cachedet"]
    onnx.checker.check_model(model)


def small_graph() -> Any:
    """Two layers with an activation between them, boxes behind, and a third layer of its own."""
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["x", "w"], ["a"], name="first"),
        make("Relu", ["a"], ["b"], name="between"),
        make("Conv", ["b", "w"], ["c"], name="second"),
        make("Add", ["c", "c"], ["d"], name="boxes"),
        make("TopK", ["d", "k"], ["e", "rows"], name="best"),
        make("Gather", ["b", "rows"], ["f"], name="taken"),
        make("MatMul", ["f", "w"], ["g"], name="third"),
        make("MatMul", ["g", "g"], ["h"], name="attention"),
    ]
    weights = onnx.numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), "w")
    return onnx.helper.make_graph(nodes, "small", [], [], initializer=[weights])


def test_last_layers_and_boxes_stay_float() -> None:
    graph = small_graph()
    assert find_layers(graph) == {"first", "second", "third"}
    assert choose_nodes(graph) == {"first", "between"}
    assert choose_nodes(graph, float_layers=1) == set()


def chain(layers: int) -> bytes:
    """So many convolutions one behind the other."""
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    rng = np.random.default_rng(1)
    nodes, weights, name = [], [], "images"
    for number in range(layers):
        kernel = rng.normal(size=(3, 3, 1, 1)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(kernel, f"w{number}"))
        nodes.append(make("Conv", [name, f"w{number}"], [f"c{number}"], name=f"layer{number}"))
        nodes.append(make("Relu", [f"c{number}"], [f"r{number}"], name=f"relu{number}"))
        name = f"r{number}"
    nodes += [make("Identity", [name], ["maps"]), make("Identity", ["sizes_hw"], ["sizes"])]
    graph = onnx.helper.make_graph(
        nodes,
        "chain",
        [
            value("images", onnx.TensorProto.FLOAT, [1, 3, 4, 4]),
            value("sizes_hw", onnx.TensorProto.INT64, [1, 2]),
        ],
        [
            value("maps", onnx.TensorProto.FLOAT, [1, 3, 4, 4]),
            value("sizes", onnx.TensorProto.INT64, [1, 2]),
        ],
        initializer=weights,
    )
    opset = [onnx.helper.make_opsetid("", OPSET)]
    content: bytes = onnx.helper.make_model(graph, opset_imports=opset).SerializeToString()
    return content


def test_all_but_the_first_layers_and_the_last_become_int8() -> None:
    torch.manual_seed(1)
    inputs = [Inputs(images=torch.rand(1, 3, 4, 4), sizes_hw=torch.tensor([[4, 4]]))] * 2
    file = quantise(chain(12), inputs)
    assert (file.layers, file.float_layers) == (3, 9)
    model = onnx.load_model_from_string(file.content)
    onnx.checker.check_model(model)
    int8 = [each.name for each in model.graph.initializer if each.data_type == 3]
    assert sorted(name for name in int8 if name.startswith("w") and "zero" not in name) == [
        "w10_quantized", "w8_quantized", "w9_quantized",
    ]  # fmt: skip


def test_what_cannot_be_quantised_is_said() -> None:
    with pytest.raises(ExportError, match=r"cannot quantise this detector .*without --int8"):
        quantise(chain(12), [])  # no image, so no range
    with pytest.raises(ExportError, match="finds nothing to quantise"):
        quantise(chain(9), [])


def test_a_loss_of_ap_is_refused() -> None:
    assert REPORT.ap_lost == pytest.approx(0.7)
    REPORT.require(0.8)
    with pytest.raises(ExportError, match=r"loses 0\.70 points of AP \(37\.20 in float, 36\.50"):
        REPORT.require(0.5)
    replace(REPORT, ap=None).require(0.0)


def test_it_is_told_in_words() -> None:
    text = REPORT.in_words()
    assert text.startswith("AP 0.365, 0.372 in float, on 5 images. 80 of 91 layers are int8, their")
    assert "ranges from 8 images of b; the first layers" in text
    assert "with scores of 0.3 or more it finds 49. An image takes 32 ms, 48 ms in float;" in text
    assert "AP was not measured" in replace(REPORT, ap=None).in_words()
