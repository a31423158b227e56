"""`cachedet serve`: what it is given, what it refuses, and a server in a process of its own."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

pytest.importorskip("starlette", reason="cachedet[serve]")

from cachedet.cli import app
from cachedet.config.run import TrainConfig
from cachedet.data.images import decode_image
from cachedet.errors import CachedetError, CheckpointError, ConfigError, ExportError, InputError
from cachedet.prediction.image_detector import load_image_detector
from cachedet.serve import Ready, best_cut, serve
from cachedet.train import train

CONFIG = yaml.safe_load("""
    detector:
      kind: retinanet
      neck: {kind: fpn, channels: 16}
      num_convs: 1
      postprocess: {score_threshold: 0.005, max_detections: 30}
    schedule: {epochs: 2, batch_size: 3, optimizer: adamw, lr: 0.003}
    device: cpu
""")


@pytest.fixture(scope="module")
def run(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "run"
    train(TrainConfig.model_validate(CONFIG), run=root, **tiny.stores)
    return root


def refused(error: type[CachedetError], message: str, detector: Path, **options: Any) -> None:
    def is_ready(ready: Ready) -> None:
        pytest.fail(f"{ready.url} was opened")

    with pytest.raises(error, match=message):
        serve(detector, **{"port": 0, "on_ready": is_ready, **options})


def read(url: str, content: bytes | None = None) -> Any:
    method = "GET" if content is None else "POST"
    with urllib.request.urlopen(
        urllib.request.Request(url, data=content, method=method), timeout=60
    ) as response:
        return json.loads(response.read())


def test_a_run_is_served_until_ctrl_c(nursery: Any, run: Path, tiny: Any) -> None:
    """What it answers is what `predict` finds; the run was not scored."""
    words = [
        "serve", run, "--weights", tiny.weights, "--images", tiny.paths.images, "--port", "0",
        "--annotations", tiny.paths.val, "--device", "cpu", "--json",
    ]  # fmt: skip
    with nursery.start_command(words) as process:
        lines = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        ready = json.loads("".join(lines))
        assert ready["url"].startswith("http://127.0.0.1:")
        assert (ready["classes"], ready["images"]) == (10, 4)  # of 12 those of the annotations
        assert read(f"{ready['url']}facts")["cut"] == 0.3
        page = read(f"{ready['url']}images")["images"]
        file = tiny.paths.images / page[0]["name"]
        answers = [
            read(f"{ready['url']}images/0/detect", b""),
            read(f"{ready['url']}detect?name=a", file.read_bytes()),
        ]
        process.send_signal(signal.SIGINT)
        remains, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert remains == ""
    detector = load_image_detector(run, weights=str(tiny.weights), device="cpu")
    expected = detector(decode_image(file))
    assert len(expected) > 0
    for answer in answers:
        scores = [one["score"] for one in answer["detections"]]
        assert scores == pytest.approx(expected.scores.tolist(), abs=1e-5)


def test_a_person_is_told_the_address(nursery: Any, run: Path, tiny: Any, tmp_path: Path) -> None:
    """And the browser opens it, as that is asked for."""
    browser, noted = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > {noted}.new\nmv {noted}.new {noted}\n')
    browser.chmod(0o755)
    words = [
        "serve", run, "--weights", tiny.weights, "--images", tiny.paths.images, "--port", "0",
        "--device", "cpu", "--open",
    ]  # fmt: skip
    with nursery.start_command(words, environment={"BROWSER": str(browser)}) as process:
        first, second = process.stdout.readline(), process.stdout.readline()
        url = second.partition(" ")[0]
        read(f"{url}facts")  # it serves once the browser was called
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert first == f"{run}: 10 classes, 12 images to browse\n"
    assert second == f"{url} is open; Ctrl-C ends it\n"
    assert noted.read_text().strip() == url


def test_the_best_cut_of_a_scored_run(run: Path, tiny: Any, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    assert best_cut(copy) is None
    for content, expected in (
        ('{"curves": {"best": {"score": 0.25}}}', 0.25),
        ('{"curves": {"best": {"score": null}}}', None),
        ('{"curves": {"best": {"score": 7}}}', None),
        ('{"curves": []}', None),
        ("[" * 100_000, None),
        ("no JSON", None),
    ):
        (copy / "results.json").write_text(content)
        assert best_cut(copy) == expected


def test_what_is_nothing_to_serve(run: Path, tmp_path: Path) -> None:
    refused(InputError, "neither a run folder nor an exported model", tmp_path / "no.onnx")
    refused(CheckpointError, "is not a run folder", tmp_path)
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text((run / "config.yaml").read_text())
    refused(CheckpointError, "no checkpoint at .*best.pt; expected the run folder of", begun)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="cachedet[export]")
    text = tmp_path / "model.onnx"
    text.write_text("no model")
    refused(ExportError, "model.onnx is no ONNX file that runs here", text)
    options = {"weights": "none", "device": "cuda"}
    message = "--weights and --device cannot be used with an exported model"
    refused(InputError, message, text, **options)


def test_a_foreign_model(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="cachedet[export]")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value], [out])
    opset = onnx.helper.make_opsetid("", 20)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    onnx.save(model, tmp_path / "foreign.onnx")
    refused(ExportError, "was not written by `cachedet export`", tmp_path / "foreign.onnx")


def test_a_port_that_is_in_use(run: Path) -> None:
    """Known before the detector is loaded."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = f"--port {port} of 127.0.0.1 cannot be taken: another program uses it; name anot"
        refused(InputError, message, run, port=port)


def test_numbers_and_pairs(run: Path, tmp_path: Path) -> None:
    refused(ConfigError, "port expects 0 to 65535", run, port=65536)
    refused(ConfigError, "most_mb 1 to 512, got 0 and 513", run, most_mb=513)
    refused(InputError, "--annotations a.json says what is in which", run, annotations="a.json")
    refused(InputError, "holds no images", run, images=run)
    usage = CliRunner().invoke(app, ["serve", str(run), "--host", "0.0.0.0"])
    assert usage.exit_code == 2
    assert "No such option: --host" in usage.output


@pytest.mark.parametrize("name", ["starlette", "uvicorn"])
def test_a_missing_package_is_named(run: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # Python refuses to import it
    refused(InputError, rf"serve needs the package {name} .*pip install 'cachedet\[serve\]'", run)


def test_nothing_else_needs_the_packages(nursery: Any) -> None:
    """Neither the module nor the command line."""
    script = (
        "import sys\nsys.modules.update({'starlette': None, 'uvicorn': None})\n"
        "import cachedet.cli, cachedet.serve\nprint('imported')\n"
    )
    with nursery.start(script) as process:
        printed, errors = process.communicate()
    assert (process.returncode, printed) == (0, "imported\n"), errors
