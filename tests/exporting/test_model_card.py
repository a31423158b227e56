from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cachedet.detector.boxes import Postprocess
from cachedet.exporting.agreement import Agreement
from cachedet.exporting.int8 import Int8Report
from cachedet.exporting.model_card import CardFacts, KnownScores, make_card
from cachedet.exporting.model_facts import ModelFacts
from cachedet.structures import CategoryMap, Preprocessing
from cachedet.training.run_folder import RunFolder, TrainingData

REPORT = Int8Report(
    images=8, calibrated_on="8 images of b", scored_images=5, layers=80, float_layers=11,
    float_nbytes=13_800_000, nbytes=5_000_000, sure=50,
    kept=49, milliseconds=31.6, float_milliseconds=48.1, ap=0.365, float_ap=0.372,
)  # fmt: skip
RESULTS: dict[str, Any] = {
    "ap": 0.25, "ap50": 0.5, "ap_small": None, "num_images": 41, "views": ["base"], "step": 7,
    "store": "/home/ana/val.zarr", "per_class": [{"category_id": 2, "ap": 0.25}],
    "intervals": {"ap": {"low": 0.2, "high": 0.3}, "confidence": 0.95},
}  # fmt: skip


def facts(**changes: Any) -> ModelFacts:
    values: dict[str, Any] = {
        "outputs": "detections",
        "preprocess": "inside",
        "has_masks": False,
        "categories": CategoryMap(ids=(2, 5), names=("cat", "<b>|dog")),
        "image_size": 400,
        "pad_multiple": 32,
        "preprocessing": Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic"),
        "postprocess": Postprocess(
            score_threshold=0.01, pre_nms=1000, nms_iou=0.5, max_detections=70
        ),
        "opset": 20,
        "provenance": {
            "backbone": "resnet50",
            "weights": "file /home/ana/w.pth",
            "weights_digest": "ab" * 32,
            "store_fingerprint": "cd" * 32,
            "step": 7,
            "freeze_at": None,
            "cachedet": "0.1.0",
            "torch": "2.14.1",
            "config": {"detector": {"kind": "faster_rcnn"}},
        },
    }
    return ModelFacts(**values | changes)


def card(**changes: Any) -> CardFacts:
    values: dict[str, Any] = {
        "file": "model.onnx",
        "nbytes": 13_780_000,
        "finest_stride": 8,
        "licence": "apache-2.0, as timm says",
        "proof": Agreement(
            images=12, detections=843, box_px=4e-4, score=1e-6, mask=0.0, changed=3, at_edge=0
        ),
        "proven_on": "12 generated images",
        "training": None,
        "scores": None,
    }
    return CardFacts(**values | changes)


def text_of(one: CardFacts, other: ModelFacts) -> str:
    return make_card(one, other, written="2026-11-29").decode()


def scored(root: Path, step: int = 7, **changes: Any) -> KnownScores | None:
    (root / "results.json").write_text(json.dumps(RESULTS | changes))
    return KnownScores.read(RunFolder(root), step=step)


def test_it_says_what_is_known(tmp_path: Path) -> None:
    boxes, categories = {2: 1200, 5: 30}, facts().categories
    training = TrainingData(
        store="s", fingerprint="f", truth="t", images=122, categories=categories, boxes=boxes
    )
    text = text_of(card(training=training, scores=scored(tmp_path)), facts())
    assert "Finds objects of 2 classes in images: a Faster R-CNN on resnet50" in text
    assert "Trained on 122 images with 1,230 boxes." in text
    assert "| cat | 2 | 1,200 | 0.250 |" in text
    assert r"| \<b\>\|dog | 5 | 30 | ? |" in text
    assert "AP 0.250 (95% interval over the images 0.200 to 0.300), AP50 0.500, on 41" in text
    assert "smaller than about 16 pixels is hardly seen; in a photo of 4000 pixels that is 160" in (
        text
    )
    assert "boxes differ by up to 4e-04 px, scores by 1e-06; 3 of 843 detections" in text
    assert "apache-2.0, as timm says" in text
    assert "w.pth" in text
    assert "/home/ana" not in text  # no place of this machine


def test_it_says_what_is_not_known() -> None:
    text = text_of(card(), facts())
    assert "The run does not tell what it was trained on." in text
    assert "| cat | 2 | ? | ? |" in text
    assert "Not known here. `cachedet eval --model` with this file" in text


def test_int8_is_told() -> None:
    text = text_of(card(int8=REPORT), facts())
    assert "13.8 MB (int8)" in text
    assert "this file is int8. AP 0.365, 0.372 in float, on 5 images. 80 of 91 layers" in text
    assert "int8." not in text_of(card(), facts())


@pytest.mark.parametrize(
    ("format", "words"),
    [
        ("onnx", ["as one ONNX file of 13.8 MB (float32)", "onnxruntime beside torch", "opset 20"]),
        ("openvino", ["two files that stay together", "OpenVINO beside torch", "get_rt_info"]),
        (
            "torch",
            ["that torch and torchvision run alone", "loaded again, beside torch", "from_numpy"],
        ),
    ],
)
def test_each_format_is_told(format: Any, words: list[str]) -> None:
    text = text_of(card(format=format), facts(opset=None if format == "torch" else 20))
    assert all(each in text for each in words)
    assert ("opset" in text) == (format != "torch")


def test_many_classes_do_not_fill_it() -> None:
    many = CategoryMap(ids=tuple(range(90)), names=tuple(f"c{n}" for n in range(90)))
    text = text_of(card(), facts(categories=many, has_masks=True, preprocess="outside"))
    assert "And 50 more classes; all are in the file's metadata." in text
    assert "| out | `masks` |" in text
    assert "(N, 3, H, W) float32, normalised RGB" in text
    assert "scores by 1e-06, masks by 0e+00" in text
    raw = text_of(replace(card(), file="raw.onnx"), facts(outputs="raw"))
    assert "all boxes x1 y1 x2 y2 before suppression" in raw


@pytest.mark.parametrize(
    "changes", [{"step": 6}, {"views": ["base", "hflip"]}, {"ap": None}, {"per_class": 3}]
)
def test_scores_of_something_else_are_not_its_scores(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert scored(tmp_path) is not None
    (tmp_path / "results.json").write_text(json.dumps(RESULTS | changes))
    assert KnownScores.read(RunFolder(tmp_path), step=7) is None
    (tmp_path / "results.json").write_text("{")
    assert KnownScores.read(RunFolder(tmp_path), step=7) is None
