from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from cachedet.config.run import ClassChoice
from cachedet.errors import DatasetError, InputError, StoreError
from cachedet.evaluation.analysis import analyse
from cachedet.evaluation.detection_table import tabulate
from cachedet.evaluation.files import read_annotations_of, read_counts, score_files
from cachedet.evaluation.metrics import coco_results, ground_truth_json
from cachedet.evaluation.significance import compare_runs
from cachedet.structures import Annotations, CategoryMap, Detections
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
    options = {"edges": (0, 5), "resamples": 20}
    report = score_in(tmp_path, training=str(tmp_path / "annotations.json"), **options)
    values, counts = report.to_json(), count_annotations(annotations)
    table = tabulate(annotations, detections)
    assert values == analyse(annotations, table, counts=counts, **options).to_json()
    assert [bin_["name"] for bin_ in values["strata"]["bins"]] == ["0-4", "5+"]
    assert values["oddities"]["images without detections"] >= 1


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
    assert report.notes == ()
    (tmp_path / "annotations.json").write_text(json.dumps(ground_truth_json(annotations)))
    (tmp_path / "detections.json").write_text(
        json.dumps([row | {"image_id": str(row["image_id"])} for row in rows])
    )
    report = score_in(tmp_path)
    assert report.mask_scores is None
    assert "ids read as whole numbers, the first is image_id" in report.notes[0]
    assert report.notes[1].startswith("the detections have masks, the annotations have none")


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
    truth = read_annotations_of(store, tmp_path / "annotations.json")
    assert truth.federated is None
    assert "describes 5 images more than the store holds: not scored" in truth.notes[0]
    for name in ("image_ids", "labels", "boxes", "crowd", "areas"):
        assert getattr(truth.annotations, name).tolist() == getattr(store, name).tolist(), name
    content = json.loads((tmp_path / "annotations.json").read_text())
    for category in content["categories"]:
        category["frequency"] = "c"
    for row, image in enumerate(content["images"]):
        image["neg_category_ids"] = [0] if row == 3 else []
        image["not_exhaustive_category_ids"] = [6] if row == 0 else []
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    federated = read_annotations_of(store, tmp_path / "lvis.json", lvis=True).federated
    assert federated is not None
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


def polygon_files(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Masks that stick out on all sides, in the truth and in the results."""
    rng = np.random.default_rng(seed)
    images = [{"id": n, "file_name": f"{n}.png", "width": 90, "height": 60} for n in range(4)]
    truth, results = [], []
    for number in range(16):
        center = rng.random(2) * [90, 60]
        polygon = center + rng.normal(0, 60, (int(rng.integers(3, 7)), 2)).round(1)
        moved = polygon + rng.normal(0, 3, polygon.shape).round(1)
        runs = coco_mask.merge(coco_mask.frPyObjects([polygon.ravel().tolist()], 60, 90))
        found = coco_mask.merge(coco_mask.frPyObjects([moved.ravel().tolist()], 60, 90))
        shared = {"image_id": number % 4, "category_id": 1}
        truth.append(
            {**shared, "id": number + 1, "iscrowd": int(number == 7), "area": runs_area(runs),
             "bbox": coco_mask.toBbox(runs).tolist(), "segmentation": [polygon.ravel().tolist()]}
        )  # fmt: skip
        text = {"size": [60, 90], "counts": found["counts"].decode()}
        results.append({**shared, "score": float(rng.random()), "segmentation": text})
    classes = [{"id": 1, "name": "a"}]
    return {"images": images, "annotations": truth, "categories": classes}, results


def runs_area(runs: dict[str, Any]) -> float:
    return float(coco_mask.area(runs))


@pytest.mark.parametrize("seed", range(6))
def test_polygons_that_stick_out_score_as_with_pycocotools(
    seed: int, pycocotools: Any, tmp_path: Path
) -> None:
    truth, results = polygon_files(seed)
    (tmp_path / "annotations.json").write_text(json.dumps(truth))
    (tmp_path / "detections.json").write_text(json.dumps(results))
    report = score_in(tmp_path)
    theirs = pycocotools(truth, results, of="segm")
    ours = list(report.mask_scores.to_json().values())[:12]
    expected = [None if value == -1 else value for value in theirs.stats.tolist()]
    assert [None if v is None else pytest.approx(v, abs=1e-12) for v in ours] == expected
    assert report.mask_scores.ap > 0.1


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ({"size": [90, 60], "counts": [5400]}, "they stand as [width, height]"),
        ({"size": [60, 90], "counts": [0, 54]}, "expected run lengths that sum to 5400, got 54"),
        ([[1, 2, 30, 2, 30]], "expected an x and a y for each point, got 5 numbers"),
        ([[1, 2, 30, 2]], "expected a polygon of at least 3 points"),
        (None, None),
    ],
)
def test_truth_without_a_usable_mask_is_said_and_no_filled_box(
    segmentation: Any, reason: str | None, pycocotools: Any, tmp_path: Path
) -> None:
    """The figures are those of a file without these annotations."""
    truth, results = polygon_files(3)
    for index in (2, 5):
        truth["annotations"][index]["segmentation"] = segmentation
    (tmp_path / "annotations.json").write_text(json.dumps(truth))
    (tmp_path / "detections.json").write_text(json.dumps(results))
    report = score_in(tmp_path)
    del truth["annotations"][5], truth["annotations"][2]
    theirs = pycocotools(truth, results, of="segm")
    assert report.mask_scores.ap == pytest.approx(theirs.stats[0], abs=1e-12)
    assert report.mask_scores.ar100 == pytest.approx(theirs.stats[8], abs=1e-12)
    counted = report.to_json()["oddities"]
    assert counted["annotations without a mask, left out of the figures of masks"] == 2
    named = (
        "annotations.json: 2 masks cannot be used and were dropped, the first of annotation id 6: "
    )
    said = [note for note in report.to_json()["notes"] if named in note]
    assert len(said) == (reason is not None)
    assert all((reason or "") in note for note in said)


def test_ground_truth_with_nothing_but_boxes(drawn: Scene, tmp_path: Path) -> None:
    """As pycocotools takes it: no names, no sizes; here no areas and crowd flags either."""
    path = tmp_path / "annotations.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    path.write_text(json.dumps(content))
    expected = score_in(tmp_path).scores.to_json()
    content["images"] = [{"id": image["id"]} for image in content["images"]]
    for annotation in content["annotations"]:
        del annotation["area"]
        if not annotation["iscrowd"]:
            del annotation["iscrowd"]
    path.write_text(json.dumps(content))
    report = score_in(tmp_path)
    assert report.scores.to_json() == expected
    assert report.oddities["boxes beyond their image"] <= 1, "left of the image, if anywhere"
    store = drawn[0].keep_rows([1, 2])
    truth = read_annotations_of(store, path).annotations
    assert truth.sizes_hw.tolist() == store.sizes_hw.tolist()


def test_numbers_of_formats_without_ids_are_told(exports: Any, tmp_path: Path) -> None:
    exports.write_images(tmp_path / "images")
    exports.write_cvat(tmp_path / "a.xml")
    row = {"image_id": 1, "category_id": 1, "bbox": [10, 12, 40, 30], "score": 0.9}
    (tmp_path / "detections.json").write_text(json.dumps([row]))
    report = score_files(detections=tmp_path / "detections.json", annotations=tmp_path / "a.xml")
    assert "images are numbered from 1 by name, classes from 1" in report.notes[0]
    assert "the file `cachedet convert` writes" in report.notes[0]


def test_lvis_of_some_classes(drawn: Scene, tmp_path: Path) -> None:
    """Lists of an image lose the classes that are left out, by choice or as none of the run's."""
    annotations, _ = drawn
    content = json.loads((tmp_path / "annotations.json").read_text())
    for category in content["categories"]:
        category["frequency"] = "c"
    for image in content["images"]:
        image["neg_category_ids"] = [0, 3]
        image["not_exhaustive_category_ids"] = [6]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    last = CategoryMap(ids=annotations.categories.ids[1:], names=annotations.categories.names[1:])
    choose = ClassChoice(ignore=(annotations.categories.names[0],))
    cut = read_annotations_of(annotations, path, categories=last, lvis=True)
    chosen = read_annotations_of(annotations, path, categories=last, lvis=True, choose=choose)
    for truth in (cut, chosen):
        assert truth.federated is not None
        assert truth.federated.negative.tolist() == list(range(0, 16, 2))  # class 3 of 8 images
        assert truth.federated.not_exhaustive.tolist() == list(range(1, 17, 2))
        assert truth.federated.frequencies == ("c", "c")
    assert cut.annotations.labels.tolist() == chosen.annotations.labels.tolist()
    report = score_in(tmp_path, lvis=True, choose=choose)
    assert report.lvis is not None
    assert len(report.lvis.per_class) == 2
    with pytest.raises(InputError, match="--merge-classes cannot be used with --lvis"):
        score_in(tmp_path, lvis=True, choose=ClassChoice(merge=("class 0=a",)))
