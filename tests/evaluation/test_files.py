from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cachedet.errors import DatasetError, InputError, StoreError
from cachedet.evaluation.error_kinds import analyse_errors
from cachedet.evaluation.files import read_annotations_of, read_counts, score_files
from cachedet.evaluation.metrics import coco_results, ground_truth_json, score_detections
from cachedet.evaluation.significance import compare_runs
from cachedet.structures import Annotations, Detections
from cachedet.training.run_folder import count_annotations

Scene = tuple[Annotations, list[Detections]]


@pytest.fixture
def drawn(scene: Any, tmp_path: Path) -> Scene:
    annotations, detections = scene(images=8).draw(8)
    detections[0] = detections[0].above(2)  # none
    (tmp_path / "annotations.json").write_text(json.dumps(ground_truth_json(annotations)))
    (tmp_path / "detections.json").write_text(json.dumps(coco_results(annotations, detections)))
    (tmp_path / "less.json").write_text(
        json.dumps(coco_results(annotations, [of_image.above(0.5) for of_image in detections]))
    )
    return annotations, detections


def score_in(folder: Path, **options: Any) -> Any:
    files = {name: folder / f"{name}.json" for name in ("detections", "annotations")}
    return score_files(**files, **options)


def test_the_files_give_what_the_parts_give(drawn: Scene, tmp_path: Path) -> None:
    annotations, detections = drawn
    report = score_in(
        tmp_path, training=str(tmp_path / "annotations.json"), edges=(0, 5), resamples=20
    )
    values = report.to_json()
    scores = score_detections(annotations, detections)
    assert {name: values[name] for name in scores.to_json()} == scores.to_json()
    assert values["errors"] == analyse_errors(annotations, detections).to_json()
    assert values["intervals"]["ap"]["value"] == pytest.approx(scores.ap)
    assert [bin_["name"] for bin_ in values["strata"]["bins"]] == ["0-4", "5+"]
    assert values["oddities"]["images without detections"] >= 1
    assert not {"masks", "lvis", "comparison"} & values.keys()
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_two_files(drawn: Scene, tmp_path: Path) -> None:
    annotations, detections = drawn
    report = score_in(tmp_path, against=tmp_path / "less.json", resamples=20, seed=3)
    less = [of_image.above(0.5) for of_image in detections]
    expected = compare_runs(annotations, detections, less, resamples=20, seed=3)
    assert report.to_json()["comparison"] == expected.to_json()
    assert report.intervals is None
    with pytest.raises(InputError, match="comparisons of runs need resamples .* got 0"):
        score_in(tmp_path, against=tmp_path / "less.json")


def test_lvis_only_of_its_own_files(drawn: Scene, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="needs a `frequency` of r, c or f .* got None"):
        score_in(tmp_path, lvis=True)
    recorded = json.loads((Path(__file__).parent / "fixtures" / "lvis_official.json").read_text())
    (tmp_path / "annotations.json").write_text(json.dumps(recorded["annotations"]))
    (tmp_path / "detections.json").write_text(json.dumps(recorded["results"]))
    report = score_in(tmp_path, lvis=True)
    assert report.to_json()["lvis"]["ap"] == pytest.approx(recorded["figures"][0], abs=1e-12)
    assert report.mask_lvis is None


def test_masks_where_both_files_have_them(drawn: Scene, tmp_path: Path) -> None:
    annotations, _ = drawn
    content = ground_truth_json(annotations)
    rows = []
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        rows.append(
            {key: annotation[key] for key in ("image_id", "category_id", "segmentation")}
            | {"score": 0.5}
        )
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "detections.json").write_text(json.dumps(rows))
    report = score_in(tmp_path)
    assert report.mask_scores is not None
    assert report.mask_lvis is None
    assert report.to_json()["masks"]["ar100"] > 0.9


def test_what_a_detector_was_trained_on(drawn: Scene, tmp_path: Path) -> None:
    annotations, _ = drawn
    path = tmp_path / "annotations.json"
    counts = read_counts(str(path), annotations.categories)
    assert counts == count_annotations(annotations)
    content = json.loads(path.read_text())
    content["categories"][1]["name"] = "zebra"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="category id 3 is 'zebra' in the training data .*'class"):
        read_counts(str(path), annotations.categories)
    with pytest.raises(DatasetError, match="--training expects .* or a store; there is no nowhere"):
        read_counts("nowhere", annotations.categories)
    with pytest.raises(StoreError, match="is not a feature store"):
        read_counts(str(tmp_path), annotations.categories)


def test_a_missing_file_is_named_by_its_option(drawn: Scene, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--against expects a COCO results file; there is no file"):
        score_in(tmp_path, against=tmp_path / "none.json", resamples=1)


def test_a_file_about_the_images_of_a_store(drawn: Scene, tmp_path: Path) -> None:
    """In the order of the store's rows, whatever the file's, which may describe more images."""
    annotations, _ = drawn
    store = annotations.keep_rows([5, 0, 3])
    detections, federated = read_annotations_of(store, tmp_path / "annotations.json")
    assert federated is None
    for name in ("image_ids", "labels", "boxes", "crowd", "areas"):
        assert getattr(detections, name).tolist() == getattr(store, name).tolist(), name
    content = json.loads((tmp_path / "annotations.json").read_text())
    for category in content["categories"]:
        category["frequency"] = "c"
    for row, image in enumerate(content["images"]):
        image["neg_category_ids"] = [0] if row == 3 else []
        image["not_exhaustive_category_ids"] = [6] if row == 0 else []
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    _, federated = read_annotations_of(store, tmp_path / "lvis.json", lvis=True)
    assert federated.negative.tolist() == [2 * 3]  # row 3 of the file is row 2 of the store
    assert federated.not_exhaustive.tolist() == [1 * 3 + 2]


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("images", {"id": 10_000}, "does not describe image id .* .1 of its 8 images are unknown"),
        ("images", {"height": 77}, "has 77 x 200 pixels, the store 200 x 200 .1 images differ"),
        ("categories", {"id": 1}, "has other classes than the store: only there {1: 'class 0'}"),
        ("categories", {"name": "b"}, "only in the store {0: 'class 0'}; give a file with the st"),
    ],
)
def test_a_file_about_other_images(
    drawn: Scene, tmp_path: Path, section: str, change: dict[str, Any], message: str
) -> None:
    annotations, _ = drawn
    content = json.loads((tmp_path / "annotations.json").read_text())
    changed = content[section][0]
    if "id" in change:
        key = "image_id" if section == "images" else "category_id"
        for annotation in content["annotations"]:
            if annotation[key] == changed["id"]:
                annotation[key] = change["id"]
    changed.update(change)
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_annotations_of(annotations, tmp_path / "annotations.json")
