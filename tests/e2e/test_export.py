"""`cachedet export`, and the file at work in `eval` and `predict`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

import cachedet.exporting
from cachedet.cli import app
from cachedet.config.run import ClassChoice, EvalConfig, TrainConfig
from cachedet.data.images import decode_image
from cachedet.errors import BackboneError, BadImageError, CachedetError, ExportError, InputError
from cachedet.evaluate import evaluate
from cachedet.export import export
from cachedet.exporting import standalone
from cachedet.exporting.agreement import Tolerance, compare
from cachedet.exporting.exported_model import ExportedModel, Inputs
from cachedet.exporting.model_file import ModelFile
from cachedet.exporting.model_scores import score_model
from cachedet.exporting.proof_images import ProofImages
from cachedet.predict import predict
from cachedet.prediction.image_detector import load_image_detector
from cachedet.train import train

onnx = pytest.importorskip("onnx")

CONFIG = yaml.safe_load("""
    detector:
      kind: retinanet
      neck: {kind: fpn, channels: 16, num_levels: 3}
      num_convs: 1
      postprocess: {score_threshold: 0.005, nms_iou: 0.3, max_detections: 30}
    schedule: {epochs: 2, batch_size: 3, optimizer: adamw, lr: 0.003}
    device: cpu
""")


@pytest.fixture(scope="module")
def run(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "run"
    train(TrainConfig.model_validate(CONFIG), run=root, **tiny.stores)
    return root


@pytest.fixture(scope="module")
def model(run: Path, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "model.onnx"
    words = [
        "export", str(run), "--out", str(out), "--weights", str(tiny.weights),
        "--images", str(tiny.paths.images), "--annotations", str(tiny.paths.val), "--with-script",
        "--json",
    ]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["proof"]["images"] == 8  # four, in two sizes
    assert report["proof"]["box_px"] < 0.01
    assert report["proof"]["score"] < 1e-4
    assert report["bytes"] == out.stat().st_size
    return out


def test_the_file_says_what_it_is(model: Path, run: Path) -> None:
    facts = ExportedModel.open(model).facts
    assert facts.outputs == "detections"
    assert (facts.image_size, facts.pad_multiple, facts.opset) == (128, 32, 20)
    assert facts.postprocess.max_detections == 30
    assert len(facts.categories.names) == len(facts.categories.ids) > 1
    assert facts.provenance["backbone"] == "test_resnet"
    assert facts.provenance["config"]["detector"]["kind"] == "retinanet"
    assert len(facts.provenance["store_fingerprint"]) == 64
    nodes = onnx.load(model).graph.node
    assert {node.domain for node in nodes} == {""}  # nothing custom
    assert b"/cachedet/" not in model.read_bytes()  # no place of this machine


def test_a_card_lies_beside_it(model: Path) -> None:
    card = model.with_suffix(".md").read_text()
    assert "# model.onnx" in card
    assert "Trained on 8 images with " in card
    assert "boxes differ by up to " in card
    assert "on 4 images of the folder " in card
    assert str(model.parent) not in card
    for name in ExportedModel.open(model).facts.categories.names:
        assert f"| {name} |" in card


def test_it_detects_what_predict_detects(model: Path, run: Path, tiny: Any, tmp_path: Path) -> None:
    files = sorted(tiny.paths.images.iterdir())[:2]
    joined = load_image_detector(run, weights=str(tiny.weights), device="cpu")
    exported = ExportedModel.open(model)
    for file in files:
        pixels = decode_image(file)
        ours, theirs = joined(pixels), exported.on_images()(pixels, image_id=4)
        assert len(ours) == len(theirs) > 0
        assert theirs.image_id == 4
        compare(ours, theirs, model=exported).require(Tolerance(changed=0.05))
    words = ["predict", *map(str, files), "--model", str(model), "--out", str(tmp_path / "drawn")]
    result = CliRunner().invoke(app, [*words, "--min-score", "0.01"])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "drawn" / "detections.json").read_text())
    assert [Path(entry["file"]).name for entry in found] == [file.name for file in files]
    assert all((tmp_path / "drawn" / f"{file.stem}.jpg").exists() for file in files)


def test_the_script_needs_no_cachedet(model: Path, tiny: Any) -> None:
    """Not even torch: in a fresh process where neither can be imported."""
    files = sorted(tiny.paths.images.iterdir())[:2]
    code = (
        "import sys, runpy\n"
        "sys.modules.update({'torch': None, 'cachedet': None, 'timm': None})\n"
        "script = sys.argv.pop(1)\n"
        "scope = runpy.run_path(script)\n"
        "import json, onnxruntime\n"
        "from PIL import Image\n"
        "session = onnxruntime.InferenceSession(sys.argv[1])\n"
        "images = [Image.open(file).convert('RGB') for file in sys.argv[2:]]\n"
        "print(json.dumps([scope['detect'](session, each, min_score=0.0) for each in images]))\n"
    )
    words = [
        sys.executable,
        "-c",
        code,
        str(model.with_name("detect_model.py")),
        str(model),
        *map(str, files),
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    exported = ExportedModel.open(model)
    for file, found in zip(files, json.loads(done.stdout), strict=True):
        ours = exported.on_images()(decode_image(file))
        assert [entry["score"] for entry in found] == pytest.approx(ours.scores.tolist(), abs=1e-6)
        boxes = torch.tensor([entry["box"] for entry in found])
        assert float((boxes - ours.boxes).abs().max()) < 1e-3
        names = [exported.facts.categories.names[label] for label in ours.labels]
        assert [entry["name"] for entry in found] == names


def test_the_script_goes_on_behind_bad_files(
    model: Path,
    tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, bad = str(sorted(tiny.paths.images.iterdir())[0]), tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    monkeypatch.setattr(sys, "argv", ["s.py", str(model), str(bad), str(tmp_path / "gone"), good])
    assert standalone.main() == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["file"] == good
    assert [line.split(": ")[0] for line in err.splitlines()] == [str(bad), str(tmp_path / "gone")]
    monkeypatch.setattr(sys, "argv", ["s.py"])
    assert standalone.main() == 2
    assert capsys.readouterr().err == "usage: python s.py MODEL.onnx IMAGE ...\n"


@pytest.mark.thorough  # without masks, as tests/exporting has them
@pytest.mark.parametrize("name", ["model.xml", "model.pt2"])
def test_other_formats(run: Path, model: Path, tiny: Any, tmp_path: Path, name: str) -> None:
    """Proven, scored and used as the ONNX file is, and replaced by the next."""
    if name == "model.xml":
        pytest.importorskip("openvino")
    out, file = tmp_path / name, sorted(tiny.paths.images.iterdir())[0]
    words = [
        "export", str(run), "--out", str(out), "--weights", str(tiny.weights), "--images",
        str(tiny.paths.images), "--annotations", str(tiny.paths.val), "--json",
    ]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["format"] == {"model.xml": "openvino", "model.pt2": "torch"}[name]
    assert report["proof"]["box_px"] < 0.01
    assert report["bytes"] == sum(
        path.stat().st_size for path in tmp_path.iterdir() if path.suffix != ".md"
    )
    written = ModelFile.read(out)
    written.write(out)  # it knows its own files again
    assert ModelFile.read(out).weights == written.weights
    analysis = score_model(out, images=tiny.paths.images, annotations=tiny.paths.val)
    of_onnx = score_model(model, images=tiny.paths.images, annotations=tiny.paths.val)
    assert analysis.scores.ap == pytest.approx(of_onnx.scores.ap, abs=1e-4)
    found = predict(images=[file], model=out, out=tmp_path / "drawn", min_score=0.01)
    assert len(found.images[0].detections) > 0
    assert str(tmp_path) not in out.with_suffix(".md").read_text()


def test_its_scores_are_those_of_the_run(model: Path, run: Path, tiny: Any, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    of_run = evaluate(copy, tiny.val, config=EvalConfig(device="cpu"))
    analysis = score_model(model, images=tiny.paths.images, annotations=tiny.paths.val)
    assert analysis.scores.ap == pytest.approx(of_run.ap, abs=1e-4)
    assert analysis.scores.ap50 == pytest.approx(of_run.ap50, abs=1e-4)
    words = ["eval", "--model", str(model), "--images", str(tiny.paths.images), "--json"]
    result = CliRunner().invoke(app, [*words, "--annotations", str(tiny.paths.val)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["ap"] == pytest.approx(of_run.ap, abs=1e-4)


@pytest.mark.thorough
def test_int8(run: Path, tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    words = [
        "export", str(run), "--out", str(out), "--weights", str(tiny.weights), "--int8",
        "--images", str(tiny.paths.images), "--annotations", str(tiny.paths.val), "--json",
        "--most-ap-lost", "100",
    ]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["proof"]["box_px"] < 0.01  # of the float file
    assert report["int8"]["images"] == 8 + 2  # of training, and half of the others
    assert "every second one of the named among them" in report["int8"]["calibrated_on"]
    assert report["int8"]["scored_images"] == 2
    assert report["int8"]["layers"] > 5  # of a small network
    analysis = score_model(out, images=tiny.paths.images, annotations=tiny.paths.val, rows=[0, 2])
    assert report["int8"]["ap"] == pytest.approx(analysis.scores.ap, abs=1e-6)
    assert "this file is int8. AP " in out.with_suffix(".md").read_text()
    alone = tmp_path / "alone.onnx"
    refused(run, InputError, "give a folder, --images or --cal", out=alone, int8=True)
    refused(run, InputError, "takes its ranges from: give --int8", out=alone, calibrate=tmp_path)


def test_sides_that_are_no_multiples_are_refused(model: Path) -> None:
    exported = ExportedModel.open(model)
    images = torch.zeros(1, 64, 100, 3, dtype=torch.uint8)
    with pytest.raises(ExportError, match="multiples of 32, got 64 x 100: pad at the bottom"):
        exported.run(Inputs(images=images, sizes_hw=torch.tensor([[64, 100]])))


def test_other_files_are_refused(model: Path, tiny: Any, tmp_path: Path) -> None:
    text = tmp_path / "model.onnx"
    text.write_text("no model")
    with pytest.raises(ExportError, match="is no ONNX file that runs here"):
        ExportedModel.open(text)
    with pytest.raises(ExportError, match="No such file or directory; expected a file of"):
        ExportedModel.open(tmp_path / "missing.onnx")
    foreign = onnx.load(model)
    entry = foreign.metadata_props.pop()
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ExportError, match="was not written by `cachedet export`"):
        predict(images=[tiny.paths.images], out=tmp_path / "o", model=tmp_path / "foreign.onnx")
    for value, message in (("{}", "cannot be read"), ('{"format": 9}', "another version")):
        foreign.metadata_props.append(entry)
        foreign.metadata_props[-1].value = value
        onnx.save(foreign, tmp_path / "odd.onnx")
        with pytest.raises(ExportError, match=message):
            ExportedModel.open(tmp_path / "odd.onnx")
        foreign.metadata_props.pop()


def test_other_classes_are_refused(model: Path, tiny: Any, tmp_path: Path) -> None:
    def rename(values: Any) -> None:
        values["categories"][0]["name"] = "other"

    renamed = tiny.change(tiny.paths.val, tmp_path / "val.json", rename)
    with pytest.raises(ExportError, match=r"has other classes than the model: .*other"):
        score_model(model, images=tiny.paths.images, annotations=renamed)


def test_classes_are_chosen_and_sizes_compared(model: Path, tiny: Any, tmp_path: Path) -> None:
    def more(values: Any) -> None:
        values["categories"].append({"id": 99, "name": "other"})

    larger = tiny.change(tiny.paths.val, tmp_path / "more.json", more)
    analysis = score_model(model, images=tiny.paths.images, annotations=larger)
    assert any("what is scored does not know other" in note for note in analysis.notes)
    choose = ClassChoice(merge=("disc,square=blob",))
    with pytest.raises(ExportError, match="has other classes than the model"):
        score_model(model, images=tiny.paths.images, annotations=larger, choose=choose)
    with pytest.raises(InputError, match="--merge-classes cannot be used with --lvis"):
        score_model(model, images=tiny.paths.images, annotations=larger, choose=choose, lvis=True)

    def double(values: Any) -> None:
        values["images"][1]["width"] *= 2

    resized = tiny.change(tiny.paths.val, tmp_path / "resized.json", double)
    with pytest.raises(BadImageError, match=r"(?s)1 of 4 images cannot be scored:.*annotated as"):
        score_model(model, images=tiny.paths.images, annotations=resized)


def test_what_is_of_a_run_is_refused(model: Path, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--iou and --weights cannot be used with an exported"):
        predict(
            images=[tiny.paths.images], out=tmp_path / "o", model=model, iou=0.5, weights="none"
        )
    words = ["eval", str(tmp_path), "--store", "s", "--images", str(tiny.paths.images)]
    result = CliRunner().invoke(app, words)
    assert "--images are those that --model is scored on" in " ".join(result.output.split())


def test_a_missing_runtime_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # Python refuses to import it
    with pytest.raises(ExportError, match=r"onnxruntime .*pip install 'cachedet\[export\]'"):
        ExportedModel.open(model)


def refused(run: Path, error: type[CachedetError], message: str, **changes: Any) -> None:
    out = changes["out"]
    there = out.read_bytes() if out.is_file() else None
    with pytest.raises(error, match=message):
        export(run, **changes)
    assert (out.read_bytes() if out.is_file() else None) == there


def test_places_that_belong_to_others(run: Path, tiny: Any, tmp_path: Path) -> None:
    images, mine = tiny.paths.images, tmp_path / "mine.onnx"
    mine.write_bytes(b"\x08\x0a\x12\x07pytorch and so on")
    refused(run, InputError, "is not a model of `export`", out=mine)
    refused(run, InputError, "lies inside the run", out=run / "model.onnx")
    proof = ProofImages(folder=images)
    inside = images / "m.onnx"
    refused(run, InputError, "lies inside the folder of images", out=inside, proof=proof)
    raw = {"outputs": "raw", "with_script": True}
    refused(run, InputError, "give --outputs detections", out=tmp_path / "r.onnx", **raw)
    (tmp_path / "detect_s.py").write_text("mine")
    refused(run, InputError, "not a script of", out=tmp_path / "s.onnx", with_script=True)
    twin = tmp_path / "xml" / "m.xml"
    message = "--with-script and --int8 work on ONNX files"
    refused(run, InputError, message, out=twin, with_script=True, int8=True)
    refused(run, InputError, "which is --out", out=tmp_path / "m.md")
    script = Path(cachedet.exporting.__file__).with_name("standalone.py").read_text()
    (tmp_path / "detect_e.py").write_text(script.replace("min_score", "least_score"))
    refused(run, InputError, "was changed since", out=tmp_path / "e.onnx", with_script=True)
    (tmp_path / "c.md").write_text("# Mine")
    refused(run, InputError, "is not a model card of `export`", out=tmp_path / "c.onnx")
    alone = ProofImages(annotations=tiny.paths.val)
    refused(run, InputError, "give it with --images", out=tmp_path / "n.onnx", proof=alone)


def test_other_weights_are_refused(run: Path, tmp_path: Path) -> None:
    refused(run, BackboneError, "give the same ones", out=tmp_path / "m.onnx", weights="none")


@pytest.mark.thorough  # a second export
def test_a_file_that_differs_is_not_left(run: Path, tiny: Any, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    shutil.copy(model, out)
    proof = ProofImages(folder=tiny.paths.images, annotations=tiny.paths.val)
    exact = Tolerance(box_px=0.0, score=0.0)
    message = r"differs from torch: .* by up to .* \(--tolerance-(px|score) .* nothing was written"
    refused(
        run, ExportError, message, out=out, proof=proof, tolerance=exact, weights=str(tiny.weights)
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "r", "--out", "m.onnx", "--outputs", "all"], "--outputs expects raw or"),
        (["export", "r", "--out", "m.onnx", "--preprocess", "no"], "--preprocess expects inside"),
        (["export", "r", "--out", "m.onnx", "--most-ap-lost", "1"], "--most-ap-lost needs --int8"),
        (["export", "r", "--out", "m.xml", "--format", "torch"], "or --format openvino"),
        (["predict", "--model", "m.onnx", "--out", "o"], "expects images to look at: files"),
        (["predict", "--out", "o"], "predict expects a run or --model"),
        (["eval", "--model", "m.onnx"], "--model needs --images and --annotations"),
        (["eval", "r", "--model", "m.onnx"], "got both the run r and --model m.onnx"),
        (["eval", "--model", "m", "--store", "s"], "--store cannot be used with --model"),
        (
            ["predict", "photos", "--model", "m.onnx", "--out", "o", "--views", "base,hflip"],
            "looks at each image once",
        ),
    ],
)
def test_options_that_do_not_fit(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photo = np.zeros((8, 8, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    from PIL import Image

    Image.fromarray(photo).save(tmp_path / "photos" / "a.png")
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert message in result.output
