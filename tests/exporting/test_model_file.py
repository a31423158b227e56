"""Files of the three formats: their names, and what is read and replaced."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachedet.errors import ExportError, InputError
from cachedet.exporting.exported_model import ExportedModel
from cachedet.exporting.model_file import ModelFile, choose_format, mark_of, require_model_place
from cachedet.exporting.onnx_file import OPSET
from cachedet.exporting.openvino_file import make_openvino
from cachedet.store.files import durable

onnx = pytest.importorskip("onnx")


def test_the_format_is_that_of_the_ending() -> None:
    named = {"m.onnx": "onnx", "m.XML": "openvino", "m.pt2": "torch", "m": "onnx", "m.b": "onnx"}
    assert {name: choose_format(None, Path(name)) for name in named} == named
    assert choose_format("onnx", Path("m.model")) == "onnx"
    with pytest.raises(InputError, match=r"ends in .onnx, .*.pt2, got m.pt$"):
        choose_format(None, Path("m.pt"))
    message = "--format torch writes a file that ends in .pt2, got --out m.onnx: choose --out m.pt2"
    with pytest.raises(InputError, match=f"{message}, or --format onnx"):
        choose_format("torch", Path("m.onnx"))
    with pytest.raises(InputError, match="got --out m: choose --out m.xml$"):
        choose_format("openvino", Path("m"))
    with pytest.raises(InputError, match="expects one of onnx, openvino, torch, got 'tflite'"):
        choose_format("tflite", Path("m.tflite"))


def pair(text: bytes) -> ModelFile:
    graph = b'<?xml version="1.0"?>\n<net name="cachedet" version="11">' + text
    return ModelFile(content=graph, format="openvino", weights=text + mark_of(text))


def test_of_two_files_none_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "deep" / "m.xml"
    pair(b"first").write(out)
    require_model_place(out, "openvino")
    pair(b"second").write(out)
    read = ModelFile.read(out)
    assert (read.content, read.weights) == (pair(b"second").content, pair(b"second").weights)
    assert read.nbytes == len(read.content) + len(read.weights)

    def refuse(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "write", refuse)
        with pytest.raises(InputError, match="cannot write .*m.bin: No space left on device"):
            pair(b"third").write(out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["m.bin", "m.xml"]
    assert ModelFile.read(out).weights == pair(b"second").weights


def test_files_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"somebody's")
    with pytest.raises(InputError, match="m.bin is there already and is not the weights of a"):
        require_model_place(tmp_path / "m.xml", "openvino")
    (tmp_path / "n.xml").write_text('<?xml version="1.0"?>\n<annotation>')
    with pytest.raises(InputError, match="n.xml is there already and is not a model of"):
        require_model_place(tmp_path / "n.xml", "openvino")
    (tmp_path / "n.pt2").write_bytes(b"PK and others")
    with pytest.raises(InputError, match="n.pt2 is there already and is not a model of"):
        require_model_place(tmp_path / "n.pt2", "torch")


def small_model() -> bytes:
    """An ONNX file with one weight."""
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    values = [make.make_tensor_value_info(name, kind, ["n", 3]) for name in ("x", "y")]
    weight = onnx.numpy_helper.from_array(np.arange(3, dtype=np.float32), "w")
    node = make.make_node("Mul", ["x", "w"], ["y"])
    graph = make.make_graph([node], "small", values[:1], values[1:], initializer=[weight])
    opset = make.make_opsetid("", OPSET)
    content: bytes = make.make_model(
        graph, opset_imports=[opset], ir_version=10
    ).SerializeToString()
    return content


def test_damaged_and_foreign_files_are_said(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    for name, words in (("a.pt2", "no torch.export program"), ("a.xml", "no OpenVINO model")):
        (tmp_path / name).write_bytes(b"something else")
        (tmp_path / "a.bin").write_bytes(b"")
        with pytest.raises(ExportError, match=f"{name} is {words} that runs here: "):
            ExportedModel.open(tmp_path / name)
    (tmp_path / "b.xml").write_text("alone")
    with pytest.raises(ExportError, match=r"b.xml: .*b.bin: No such file"):
        ExportedModel.open(tmp_path / "b.xml")
    whole = make_openvino(small_model(), "{}", part="it")
    other = ModelFile(content=whole.content, format="openvino", weights=whole.weights[:-1] + b"?")
    with pytest.raises(ExportError, match="the .bin beside it is damaged or of another export"):
        ExportedModel(other, where="m.xml")
    foreign = whole.content.replace(b"<cachedet ", b"<nobody ").replace(
        b"</cachedet>", b"</nobody>"
    )
    with pytest.raises(ExportError, match="was not written by `cachedet export`"):
        ExportedModel(
            ModelFile(content=foreign, format="openvino", weights=whole.weights), where="m.xml"
        )
