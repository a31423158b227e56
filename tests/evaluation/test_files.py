from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cachedet.errors import DatasetError, InputError
from cachedet.evaluation.error_kinds import analyse_errors
from cachedet.evaluation.files import score_files
from cachedet.evaluation.metrics import coco_results, ground_truth_json, score_detections
from cachedet.evaluation.significance import compare_runs
from cachedet.structures import Detections, Truth

Scene = tuple[Truth, list[Detections]]


@pytest.fixture
def drawn(scene: Any, tmp_path: Path) -> Scene:
    truth, found = scene(pictures=8).draw(8)
    found[0] = found[0].above(2)  # none
    (tmp_path / "truth.json").write_text(json.dumps(ground_truth_json(truth)))
    (tmp_path / "found.json").write_text(json.dumps(coco_results(truth, found)))
    (tmp_path / "less.json").write_text(
        json.dumps(coco_results(truth, [own.above(0.5) for own in found]))
    )
    return truth, found


def test_the_files_tell_what_the_parts_tell(drawn: Scene, tmp_path: Path) -> None:
    truth, found = drawn
    report = score_files(
        detections=tmp_path / "found.json",
        annotations=tmp_path / "truth.json",
        training=tmp_path / "truth.json",
        edges=(0, 5),
        resamples=20,
    )
    told = report.to_json()
    scores = score_detections(truth, found)
    assert {name: told[name] for name in scores.to_json()} == scores.to_json()
    assert told["errors"] == analyse_errors(truth, found).to_json()
    assert told["intervals"]["ap"]["value"] == pytest.approx(scores.ap)
    assert [own["name"] for own in told["strata"]["bins"]] == ["0-4", "5+"]
    assert told["oddities"]["pictures without detections"] >= 1
    assert not {"masks", "lvis", "comparison"} & told.keys()
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_two_files(drawn: Scene, tmp_path: Path) -> None:
    truth, found = drawn
    report = score_files(
        detections=tmp_path / "found.json",
        annotations=tmp_path / "truth.json",
        against=tmp_path / "less.json",
        resamples=20,
        seed=3,
    )
    less = [own.above(0.5) for own in found]
    expected = compare_runs(truth, found, less, resamples=20, seed=3)
    assert report.to_json()["comparison"] == expected.to_json()
    assert report.intervals is None
    with pytest.raises(InputError, match="comparing two runs needs resamples .* got 0"):
        score_files(
            detections=tmp_path / "found.json",
            annotations=tmp_path / "truth.json",
            against=tmp_path / "less.json",
        )


def test_lvis_only_of_its_own_files(drawn: Scene, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="needs a `frequency` of r, c or f .* got None"):
        score_files(
            detections=tmp_path / "found.json", annotations=tmp_path / "truth.json", lvis=True
        )
    recorded = json.loads((Path(__file__).parent / "fixtures" / "lvis_official.json").read_text())
    (tmp_path / "truth.json").write_text(json.dumps(recorded["annotations"]))
    (tmp_path / "found.json").write_text(json.dumps(recorded["results"]))
    report = score_files(
        detections=tmp_path / "found.json", annotations=tmp_path / "truth.json", lvis=True
    )
    assert report.to_json()["lvis"]["ap"] == pytest.approx(recorded["figures"][0], abs=1e-12)
    assert report.mask_lvis is None


def test_masks_where_both_files_have_them(drawn: Scene, tmp_path: Path) -> None:
    truth, _ = drawn
    content = ground_truth_json(truth)
    rows = []
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        rows.append(
            {key: annotation[key] for key in ("image_id", "category_id", "segmentation")}
            | {"score": 0.5}
        )
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text(json.dumps(rows))
    report = score_files(detections=tmp_path / "found.json", annotations=tmp_path / "truth.json")
    assert report.mask_scores is not None
    assert report.mask_lvis is None
    assert report.to_json()["masks"]["ar100"] > 0.9
