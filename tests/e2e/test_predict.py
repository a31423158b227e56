"""`predict --views`: what `eval --views` finds in a store that holds them, from the files."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.ops import box_iou
from typer.testing import CliRunner

from cachedet.backbone.frozen import load_backbone
from cachedet.cli import app
from cachedet.config.run import EvalConfig, TrainConfig
from cachedet.data.images import decode_image
from cachedet.data.views import parse_views
from cachedet.errors import CheckpointError, ConfigError, InputError, UnwrittenError
from cachedet.evaluate import evaluate
from cachedet.extract import extract
from cachedet.predict import predict
from cachedet.prediction.image_detector import load_image_detector
from cachedet.store.reader import FeatureStore
from cachedet.structures import Detections
from cachedet.train import train

ASKED = "base,hflip,scale=1.5,tile-2-r0c1"
SHARED = yaml.safe_load("""
    schedule: {epochs: 2, batch_size: 3, optimizer: adamw, lr: 0.003}
    device: cpu
""")
# its postprocess is another than `Merging` has by itself
RETINANET = yaml.safe_load("""
    kind: retinanet
    neck: {kind: fpn, channels: 16}
    num_convs: 1
    postprocess: {score_threshold: 0.005, nms_iou: 0.3, max_detections: 30}
""")
WITH_MASKS = yaml.safe_load("""
    kind: faster_rcnn
    neck: {kind: fpn, channels: 16}
    rpn: {samples: 32, train_post_nms: 40, test_post_nms: 30}
    roi_head: {samples: 16, num_convs: 0, fc_channels: 16}
    mask_head: {resolution: 7, num_convs: 1, channels: 8}
    postprocess: {score_threshold: 0.005}
""")


@pytest.fixture(scope="module")
def store(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """The validation images in several views, lossless."""
    root = tmp_path_factory.mktemp("stores") / "val.zarr"
    views = f"{ASKED},crop=2,jitter=1"
    extract(tiny.extract_config(root, annotations=tiny.paths.val, views=views))
    return FeatureStore.open(root)


@pytest.fixture(scope="module")
def runs(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, detector in {"retinanet": RETINANET, "masks": WITH_MASKS}.items():
        config = TrainConfig.model_validate({"detector": detector, **SHARED})
        train(config, train_store=tiny.train, run=folder / name)
    return {"retinanet": folder / "retinanet", "masks": folder / "masks"}


def stored_detections(run: Path, store: FeatureStore, views: str) -> list[Detections]:
    config = EvalConfig(views=views, device="cpu")
    return evaluate(run, store=str(store.location), config=config).detections


def image_files(tiny: Any, store: FeatureStore) -> list[Path]:
    return [tiny.paths.images / name for name in store.annotations.file_names]


def assert_same(live: Detections, stored: Detections) -> None:
    assert live.labels.tolist() == stored.labels.tolist()
    torch.testing.assert_close(live.scores, stored.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(live.boxes, stored.boxes, rtol=1e-4, atol=1e-2)
    assert (live.masks is None) == (stored.masks is None)
    if live.masks is not None:
        torch.testing.assert_close(live.masks, stored.masks, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["retinanet", "masks"])
@pytest.mark.parametrize("views", [ASKED, "base,crop=2"])
def test_a_image_gives_what_its_cached_views_give(
    tiny: Any, runs: dict[str, Path], store: FeatureStore, views: str, kind: str
) -> None:
    """Windows too, for who knows the image id."""
    detector = load_image_detector(
        runs[kind], weights=str(tiny.weights), device="cpu", views=parse_views(views)
    )
    stored = stored_detections(runs[kind], store, views)
    assert sum(len(of_image) for of_image in stored) > 20
    for row, file in enumerate(image_files(tiny, store)):
        live = detector(decode_image(file), image_id=int(store.annotations.image_ids[row]))
        assert_same(live, stored[row])


def test_of_equal_scores_the_view_named_first_wins(
    tiny: Any, runs: dict[str, Path], store: FeatureStore
) -> None:
    """An image that is its own mirror image gives both views the same scores."""
    half = decode_image(image_files(tiny, store)[0])[:128, :64]
    pixels = np.concatenate([half, half[:, ::-1]], axis=1)
    strongest = {}
    for views in ("base", "hflip", "base,hflip", "hflip,base"):
        detector = load_image_detector(
            runs["retinanet"], weights=str(tiny.weights), device="cpu", views=parse_views(views)
        )
        strongest[views] = detector(pixels).boxes[0].tolist()
    assert strongest["base"] != strongest["hflip"]
    assert strongest["base,hflip"] == strongest["base"]
    assert strongest["hflip,base"] == strongest["hflip"]


def test_views_are_merged_into_what_is_written(
    tiny: Any, runs: dict[str, Path], store: FeatureStore, tmp_path: Path
) -> None:
    files = image_files(tiny, store)[:2]
    settings: dict[str, Any] = {"weights": str(tiny.weights), "min_score": 0.0, "device": "cpu"}
    merged = predict(runs["masks"], images=files, out=tmp_path, views=ASKED, **settings)
    entries = merged.to_json()["images"]
    assert json.loads((tmp_path / "detections.json").read_text()) == entries
    assert all("segmentation" in entry for entry in entries[0]["detections"])
    single = predict(runs["masks"], images=files, out=tmp_path / "base", **settings)
    stored = stored_detections(runs["masks"], store, ASKED)[:2]
    for image, of_one_view, expected in zip(merged.images, single.images, stored, strict=True):
        scores = image.detections.scores
        torch.testing.assert_close(scores, expected.scores, rtol=1e-4, atol=1e-5)
        assert scores.tolist() != of_one_view.detections.scores.tolist()


def test_windows_of_a_size_in_pixels(
    tiny: Any, runs: dict[str, Path], store: FeatureStore, tmp_path: Path
) -> None:
    """Larger than every image they are the base view; else detections of all are merged."""
    files = image_files(tiny, store)[:2]
    settings: dict[str, Any] = {"weights": str(tiny.weights), "min_score": 0.0, "device": "cpu"}
    found = {
        views: predict(
            runs["masks"], images=files, out=tmp_path / views, views=views, drawings=False,
            **settings,
        ).images
        for views in ("base", "base,tile=640px", "tile=640px", "base,tile=100px")
    }  # fmt: skip
    for number, expected in enumerate(found["base"]):
        for views in ("base,tile=640px", "tile=640px"):
            assert_same(found[views][number].detections, expected.detections)
        merged = found["base,tile=100px"][number].detections
        assert len(merged) > len(expected.detections)
        assert merged.masks is not None
        assert merged.boxes[:, 2].max() > 100  # also in the last windows


def test_only_predict_with_a_run_takes_windows_of_a_size_in_pixels(
    tiny: Any, runs: dict[str, Path], store: FeatureStore, tmp_path: Path
) -> None:
    """In one message, before anything is read or written."""
    named = "only predict cuts windows of a size in pixels, .* name tile=<n>, as tile=2"
    config = tiny.extract_config(tmp_path / "new.zarr", views="base,tile=640px")
    with pytest.raises(InputError, match=f"tile=640px: {named}"):
        extract(config)
    assert not (tmp_path / "new.zarr").exists()
    with pytest.raises(InputError, match=f"tile=640px: {named}"):
        stored_detections(runs["retinanet"], store, "base,tile=640px")
    with pytest.raises(InputError, match="tile=10px: expected 64 to 8192 pixels of the image"):
        predict(tmp_path / "no", images=[tmp_path], out=tmp_path, views="tile=10px")
    with pytest.raises(InputError, match="--views cannot be used with an exported model"):
        predict(
            images=[image_files(tiny, store)[0]], out=tmp_path / "out", views="base,tile=640px",
            model=tmp_path / "no.onnx",
        )  # fmt: skip


@pytest.mark.parametrize("views", ["jitter=2", "base,crop=1", "base,jitter-0.5-1.5-s3"])
def test_views_drawn_from_an_image_id_are_refused(tmp_path: Path, views: str) -> None:
    """Before anything is opened or written."""
    message = (
        f"expects views among base, hflip, scale=<f>, tile=<n> and tile=<size>px, got '{views}'"
    )
    with pytest.raises(InputError, match=message):
        predict(tmp_path / "no", images=[tmp_path], out=tmp_path / "out", views=views)
    assert not (tmp_path / "out").exists()


def test_through_the_command_line(
    tiny: Any, runs: dict[str, Path], store: FeatureStore, tmp_path: Path
) -> None:
    command = ["predict", runs["retinanet"], image_files(tiny, store)[0], "--out", tmp_path]
    command += ["--weights", tiny.weights, "--min-score", "0", "--device", "cpu"]

    def call(*more: str) -> Any:
        return CliRunner().invoke(app, [*map(str, command), *more])

    shown = call("--views", ASKED, "--json")
    assert shown.exit_code == 0, shown.output
    scores = [entry["score"] for entry in json.loads(shown.stdout)["images"][0]["detections"]]
    expected = stored_detections(runs["retinanet"], store, ASKED)[0].scores
    torch.testing.assert_close(torch.tensor(scores), expected, rtol=1e-4, atol=1e-5)
    for views, message in {
        "bse": "unknown view 'bse'; nearest: 'base', 'scale'; known: base, hflip",
        "base,base": "views must name each view once, got base more than once",
        "scale=9": "scale=9: expected scales from 0.1 to 4, got 9",
        "base,jitter=2": "got 'base,jitter=2': crop, jitter and colour are drawn from",
        "colour=1": "got 'colour=1': crop, jitter and colour are drawn from",
    }.items():
        refused = call("--views", views)
        assert refused.exit_code == 1
        assert message in refused.stderr


def test_the_score_is_the_best_cut_of_a_scored_run(
    tiny: Any, runs: dict[str, Path], store: FeatureStore, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["retinanet"], run)
    (run / "results.json").write_text('{"curves": {"best": {"score": 0.0078125}}}')
    command = ["predict", run, image_files(tiny, store)[0], "--out", tmp_path / "out"]
    command += ["--weights", tiny.weights, "--device", "cpu", "--no-drawings"]

    def call(*more: str) -> str:
        done = CliRunner().invoke(app, [*map(str, command), *more])
        assert done.exit_code == 0, done.output
        return str(done.stdout)

    told = "shown from score 0.008 on, the run's best cut; --min-score sets another"
    assert told in call()
    found = json.loads(call("--json"))["images"][0]["detections"]
    asked = json.loads(call("--json", "--min-score", "0.0078125"))["images"][0]["detections"]
    assert found == asked
    assert "best cut" not in call("--min-score", "0.5")


def test_a_bad_file_costs_the_others_nothing(
    tiny: Any, runs: dict[str, Path], store: FeatureStore, tmp_path: Path
) -> None:
    """Nor do what macOS leaves beside images, a pipe's name, or half a file."""
    good = image_files(tiny, store)[0]
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(good, folder / f"good{good.suffix}")
    shutil.copy(good, folder / "z.jfif")  # its content says what it is
    (folder / "._good.jpg").write_bytes(b"\0\5\x16\7" + bytes(80))
    (folder / "half.jpg").write_bytes(b"cut off")
    (folder / "loop.png").symlink_to("loop.png")
    command = ["predict", runs["retinanet"], folder, "--out", tmp_path / "out", "--device", "cpu"]
    command += ["--weights", tiny.weights, "--min-score", "1", "--json"]
    shown = CliRunner().invoke(app, [*map(str, command)])
    assert shown.exit_code == 1
    report = json.loads(shown.stdout)
    assert [Path(entry["file"]).name for entry in report["images"]] == [
        f"good{good.suffix}", "z.jfif",
    ]  # fmt: skip
    assert report["images"] == json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [Path(entry["file"]).name for entry in report["bad"]] == ["half.jpg", "loop.png"]
    assert "passed over 1 hidden" in shown.stderr
    assert "error: 2 files cannot be used:" in shown.stderr
    assert "half.jpg: not an image of a format that is read" in shown.stderr
    assert "loop.png: Too many levels of symbolic links" in shown.stderr


def test_nothing_found_names_the_score(
    tiny: Any, runs: dict[str, Path], store: FeatureStore, tmp_path: Path
) -> None:
    command = ["predict", runs["retinanet"], image_files(tiny, store)[0], "--out", tmp_path]
    command += ["--weights", tiny.weights, "--min-score", "1", "--device", "cpu"]
    shown = CliRunner().invoke(app, [*map(str, command)])
    assert shown.exit_code == 0
    told = r"nothing scores 1 or more \(the highest is 0\.\d+\); a lower --min-score shows weaker"
    assert re.search(told, shown.stdout)


def test_nothing_of_the_users_is_drawn_over(
    tiny: Any, runs: dict[str, Path], store: FeatureStore, tmp_path: Path
) -> None:
    """Refused before the run is opened; the same call again replaces its own drawings."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number, file in enumerate(image_files(tiny, store)[:3]):
        (photos / ("a.png", "a.png.jpg", "b.jpg")[number]).write_bytes(file.read_bytes())
    before = {path.name: path.read_bytes() for path in photos.iterdir()}

    def draw(out: Path, run: Path = tmp_path / "no run") -> dict[str, bytes]:
        predict(run, images=[photos], out=out, weights=str(tiny.weights), device="cpu")
        return {path.name: path.read_bytes() for path in out.iterdir()}

    for named in (photos, photos / "*.jpg", photos / "b.jpg"):
        with pytest.raises(InputError, match="is also a folder of images"):
            predict(tmp_path / "no run", images=[named], out=photos)
    out.mkdir()
    (out / "b.jpg").write_bytes(before["b.jpg"])
    with pytest.raises(InputError, match=r"out/b.jpg is there already and is not a drawing"):
        draw(out)
    (out / "b.jpg").unlink()
    (out / "detections.json").write_text("[1]")
    with pytest.raises(InputError, match=r"detections.json is there already and is not detec"):
        draw(out)
    (out / "detections.json").unlink()
    with pytest.raises(InputError, match="is a run folder, whose files belong to it"):
        draw(runs["masks"])
    assert list(out.iterdir()) == []
    drawn = draw(out, runs["retinanet"])
    assert drawn.keys() == {"a.png.jpg", "a.png-2.jpg", "b.jpg", "detections.json"}
    assert draw(out, runs["retinanet"]) == drawn
    assert {path.name: path.read_bytes() for path in photos.iterdir()} == before
    entries = json.loads(drawn["detections.json"])
    assert [Path(entry["drawing"]).name for entry in entries] == [
        "a.png.jpg", "a.png-2.jpg", "b.jpg",
    ]  # fmt: skip


def test_batches_change_neither_the_detections_nor_their_order(
    tiny: Any, runs: dict[str, Path], store: FeatureStore, tmp_path: Path
) -> None:
    """Images of two sizes in turn, two views, masks; a file that is none in the middle."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, file in enumerate(2 * image_files(tiny, store)):
        with Image.open(file) as image:
            upright = image if number % 2 else image.transpose(Image.Transpose.ROTATE_90)
            upright.crop((0, 0, 128, 160 - 64 * (number % 2))).save(photos / f"{number}.png")
    (photos / "3 is none.png").write_bytes(b"none")
    settings: dict[str, Any] = {"weights": str(tiny.weights), "min_score": 0.0, "device": "cpu"}
    reports = [
        predict(
            runs["masks"], images=[photos], out=tmp_path / f"{size}", views="base,hflip",
            batch_size=size, workers=workers, drawings=False, **settings,
        )
        for size, workers in ((1, 1), (3, 2), (64, 4))
    ]  # fmt: skip
    alone = reports[0]
    assert [image.file.name for image in alone.images] == [f"{n}.png" for n in range(8)]
    assert [file.name for file, _ in alone.bad] == ["3 is none.png"]
    assert os.listdir(tmp_path / "1") == ["detections.json"]
    for report in reports[1:]:
        assert [image.file for image in report.images] == [image.file for image in alone.images]
        assert report.bad == alone.bad
        for image, expected in zip(report.images, alone.images, strict=True):
            assert image.size_hw == expected.size_hw
            assert image.drawing is None
            assert_same(image.detections, expected.detections)


def test_a_disk_that_refuses_costs_no_detections(
    tiny: Any, runs: dict[str, Path], store: FeatureStore, tmp_path: Path
) -> None:
    """Drawings are written beside the detection: what fails there is told all the same."""
    out = tmp_path / "out"
    file = image_files(tiny, store)[0]
    drawing = out / f"{file.stem}.jpg"

    settings: dict[str, Any] = {"weights": str(tiny.weights), "device": "cpu", "min_score": 0.0}
    backbone = load_backbone("test_resnet", weights=str(tiny.weights), image_size=128)
    backbone.register_forward_hook(lambda *_: drawing.mkdir(parents=True, exist_ok=True))
    with pytest.raises(UnwrittenError, match="expects a file, and .* is a folder") as raised:
        predict(runs["retinanet"], images=[file], out=out, backbone=backbone, **settings)
    assert len(raised.value.report.images[0].detections)


def test_folders_in_folders_and_a_second_call(
    tiny: Any, runs: dict[str, Path], store: FeatureStore, tmp_path: Path
) -> None:
    """What is drawn inside of the folder of images is not read the next time."""
    photos = tmp_path / "photos"
    (photos / "inner").mkdir(parents=True)
    for number, file in enumerate(image_files(tiny, store)[:3]):
        shutil.copy(file, photos / ("a.jpg", "b.jpg", "inner/a.jpg")[number])
    for _ in range(2):
        command = ["predict", runs["retinanet"], photos, "--recursive", "--out", photos / "drawn"]
        command += ["--weights", tiny.weights, "--device", "cpu"]
        shown = CliRunner().invoke(app, [*map(str, command)])
        assert shown.exit_code == 0, shown.output
        entries = json.loads((photos / "drawn" / "detections.json").read_text())
        assert [entry["file"] for entry in entries] == [
            str(photos / name) for name in ("a.jpg", "b.jpg", "inner/a.jpg")
        ]
        assert [Path(entry["drawing"]).name for entry in entries] == [
            "a.jpg", "b.jpg", "a-2.jpg",
        ]  # fmt: skip


@pytest.mark.parametrize("name", ["batch_size", "workers", "every"])
def test_numbers_out_of_range(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="expect 0 or more, every 1 or more, got "):
        predict(tmp_path, images=[tmp_path], out=tmp_path / "out", **{name: -1})


def test_frames_of_videos_among_images(
    tiny: Any, runs: dict[str, Path], store: FeatureStore, tmp_path: Path, write_video: Any
) -> None:
    """Every third one, with its number and time; what is no video costs the others nothing."""
    files = image_files(tiny, store)
    frames = [decode_image(file)[:128, :128] for file in 2 * files]
    write_video(tmp_path / "clip.mp4", frames, rate=4)
    (tmp_path / "bad.mp4").write_bytes(b"none")
    command = ["predict", runs["retinanet"], tmp_path / "bad.mp4", files[0], tmp_path / "*.mp4"]
    command += ["--every", "3", "--out", tmp_path / "out", "--json", "--min-score", "0.3"]
    command += ["--weights", tiny.weights, "--device", "cpu", "--batch-size", "2"]
    shown = CliRunner().invoke(app, [*map(str, command)])
    assert shown.exit_code == 1
    report = json.loads(shown.stdout)
    assert [(Path(e["file"]).name, e.get("frame"), e.get("time")) for e in report["images"]] == [
        (files[0].name, None, None),
        ("clip.mp4", 0, 0.0), ("clip.mp4", 3, 0.75), ("clip.mp4", 6, 1.5),
    ]  # fmt: skip
    assert [(Path(bad["file"]).name, bad["reason"]) for bad in report["bad"]] == [
        ("bad.mp4", "Invalid data found when processing input")
    ]
    drawn = tmp_path / "out" / "clip-frames"
    assert sorted(os.listdir(drawn)) == ["000000.jpg", "000003.jpg", "000006.jpg"]
    with Image.open(drawn / "000003.jpg") as image:
        assert image.size == (128, 128)
    detector = load_image_detector(runs["retinanet"], weights=str(tiny.weights), device="cpu")
    expected = detector(frames[3]).scores[:3]  # the codec loses a little
    found = torch.tensor([entry["score"] for entry in report["images"][2]["detections"]][:3])
    torch.testing.assert_close(found, expected[: len(found)], rtol=0.3, atol=0.1)


def test_lists_for_other_programs_and_crops(
    tiny: Any, runs: dict[str, Path], store: FeatureStore, tmp_path: Path
) -> None:
    """All formats say the same; a second call replaces its own files, and no others."""
    files, out = image_files(tiny, store)[:3], tmp_path / "out"
    command = ["predict", runs["masks"], *files, "--out", out, "--format", "json,coco,yolo,csv"]
    command += ["--crops", "--no-drawings", "--min-score", "0", "--max-per-image", "4"]
    command += ["--weights", tiny.weights, "--device", "cpu"]
    for _ in range(2):
        shown = CliRunner().invoke(app, [*map(str, command)])
        assert shown.exit_code == 0, shown.output
    assert f"written into {out}: json,coco,yolo,csv" in shown.stdout
    found = json.loads((out / "detections.json").read_text())
    assert [len(entry["detections"]) for entry in found] == [4, 4, 4]
    assert [entry["drawing"] for entry in found] == [None] * 3
    assert sorted(path.name for path in out.iterdir()) == [
        "coco_images.json", "coco_results.json", "crops", "data.yaml", "detections.csv",
        "detections.json", "labels",
    ]  # fmt: skip
    images = json.loads((out / "coco_images.json").read_text())["images"]
    assert [image["file_name"] for image in images] == list(map(str, files))
    rows = json.loads((out / "coco_results.json").read_text())
    lines = list(csv.DictReader((out / "detections.csv").read_text().splitlines()))
    flat = [(entry["file"], each) for entry in found for each in entry["detections"]]
    for (file, each), row, line in zip(flat, rows, lines, strict=True):
        assert images[row["image_id"] - 1]["file_name"] == line["file"] == file
        assert row["segmentation"] == each["segmentation"]
        assert (row["category_id"], row["score"]) == (each["category_id"], each["score"])
        (x, y, w, h), (x1, y1, x2, y2) = row["bbox"], each["box"]
        np.testing.assert_allclose([x, y, x + w, y + h], each["box"], atol=1e-4)
        np.testing.assert_allclose([float(line[k]) for k in ("x1", "y2")], [x1, y2], atol=1e-3)
        assert (line["name"], line["frame"]) == (each["name"], "")
    names = yaml.safe_load((out / "data.yaml").read_text())["names"]
    labels = (out / "labels" / f"{files[0].stem}.txt").read_text().split("\n")
    for label, each in zip(labels, found[0]["detections"], strict=False):
        number, x, y, w, h, score = map(float, label.split())
        assert names[int(number)] == each["name"]
        scale = np.array([images[0]["width"], images[0]["height"]] * 2)
        box = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * scale
        np.testing.assert_allclose(box, each["box"], atol=1e-3)
        assert abs(score - each["score"]) < 1e-4
    crops = sorted((out / "crops").rglob("*.jpg"))
    assert len(crops) == 12
    strongest = found[0]["detections"][0]
    with Image.open(out / "crops" / strongest["name"] / f"{files[0].stem}-1.jpg") as crop:
        x1, y1, x2, y2 = strongest["box"]
        assert abs(crop.width - (x2 - x1)) < 2
        assert abs(crop.height - (y2 - y1)) < 2
    (out / "labels" / f"{files[1].stem}.txt").write_text("0 0.5 0.5 1 1\n")
    shown = CliRunner().invoke(app, [*map(str, command)])
    assert shown.exit_code == 1
    assert "is there already and is not labels of `predict`" in shown.stderr


def test_only_what_is_asked_for(
    tiny: Any, runs: dict[str, Path], store: FeatureStore, tmp_path: Path
) -> None:
    files = image_files(tiny, store)[:2]
    settings: dict[str, Any] = {
        "weights": str(tiny.weights), "device": "cpu", "min_score": 0.0, "drawings": False,
        "images": files, "out": tmp_path,
    }  # fmt: skip
    everything = predict(runs["retinanet"], **settings)
    counts = [len(image.detections) for image in everything.images]
    names = everything.images[0].categories.names
    label = int(everything.images[0].detections.labels[1])
    of_class = predict(runs["retinanet"], classes=[names[label]], max_per_image=2, **settings)
    for image, whole in zip(of_class.images, everything.images, strict=True):
        expected = whole.detections.keep((whole.detections.labels == label).nonzero()[:2, 0])
        assert_same(image.detections, expected)
    looser = predict(runs["retinanet"], iou=1.0, max_per_image=10_000, **settings)
    tighter = predict(runs["retinanet"], iou=0.05, **settings)
    assert counts[0] <= 30 < len(looser.images[0].detections)
    for image in tighter.images:
        for name in set(image.detections.labels.tolist()):
            boxes = image.detections.boxes[image.detections.labels == name]
            overlaps = box_iou(boxes, boxes).fill_diagonal_(0)
            assert float(overlaps.max()) <= 0.05 + 1e-3
    with pytest.raises(InputError, match=r"knows no class 'kat'.*; its \d+ classes: "):
        predict(runs["retinanet"], classes=["kat"], **settings)
    for changed, message in (
        ({"formats": "json,voc"}, "--format expects some of json, coco, yolo, csv, got 'voc'"),
        ({"min_score": 2}, "min_score expects 0 to 1, got 2"),
        ({"max_per_image": 0}, "max_per_image expects 1 or more, got 0"),
        ({"classes": "cat"}, "classes expects a list of names, got 'cat'"),
        ({"iou": 0}, "iou expects more than 0 and at most 1, got 0"),
        ({"iou": 0.5, "detector": torch.nn.Identity()}, "iou is of detectors that a config"),
    ):
        with pytest.raises((InputError, ConfigError), match=message):
            predict(runs["retinanet"], **{**settings, **changed})


def test_arrays_are_what_supervision_takes(
    tiny: Any, runs: dict[str, Path], store: FeatureStore, tmp_path: Path
) -> None:
    """Its names, types and shapes; it is not asked for."""
    file = image_files(tiny, store)[0]
    settings: dict[str, Any] = {"weights": str(tiny.weights), "device": "cpu", "min_score": 0.0}
    for kind in ("masks", "retinanet"):
        report = predict(runs[kind], images=[file], out=tmp_path, drawings=False, **settings)
        (image,) = report.images
        arrays, count = image.arrays(), len(image.detections)
        assert list(arrays) == ["xyxy", "confidence", "class_id", "mask"]
        shapes = [None if array is None else array.shape for array in arrays.values()]
        mask = (count, *image.size_hw) if kind == "masks" else None
        assert shapes == [(count, 4), (count,), (count,), mask]


def test_a_run_on_random_weights_asks_no_hub(tiny: Any, tmp_path: Path) -> None:
    """They are those of a seed; timm knows none for this network, nor is there a network here."""
    extract(tiny.extract_config(tmp_path / "s.zarr", weights="none", views="base"))
    config = {"detector": RETINANET, **SHARED, "max_steps": 1}
    train(TrainConfig.model_validate(config), train_store=tmp_path / "s.zarr", run=tmp_path / "run")
    (tmp_path / "run" / "weights" / "last.pt").rename(tmp_path / "run" / "weights" / "best.pt")
    detector = load_image_detector(tmp_path / "run", device="cpu")
    assert len(detector(decode_image(next(tiny.paths.images.iterdir()))).boxes) >= 0


def test_a_run_and_images_that_were_swapped(tmp_path: Path) -> None:
    photos, run = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    run.mkdir()
    with pytest.raises(CheckpointError, match="photos is not a run folder"):
        predict(photos, images=[run], out=tmp_path / "out")
