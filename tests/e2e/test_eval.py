"""`cachedet eval` as a user calls it: of runs, of files, and asked for what cannot be."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn
from typer.testing import CliRunner

from cachedet.cli import app
from cachedet.config.run import TrainConfig
from cachedet.errors import InputError
from cachedet.evaluate import Questions, evaluate
from cachedet.extract import extract
from cachedet.store.reader import FeatureStore
from cachedet.train import train
from cachedet.training.run_folder import count_annotations

SELECTION = {"score_threshold": 0.005}
NECK = {"kind": "fpn", "channels": 8}
RETINANET = {"kind": "retinanet", "neck": NECK, "num_convs": 1, "postprocess": SELECTION}
FASTER = {
    "kind": "faster_rcnn",
    "neck": NECK,
    "rpn": {"samples": 32, "train_post_nms": 40, "test_post_nms": 30},
    "roi_head": {"samples": 16, "num_convs": 0, "fc_channels": 16},
    "postprocess": SELECTION,
}


def make_config(detector: dict[str, Any]) -> TrainConfig:
    schedule = {"epochs": 2, "batch_size": 4, "optimizer": "adamw", "lr": 3e-3, "warmup_steps": 1}
    return TrainConfig.model_validate(
        {"detector": detector, "schedule": schedule, "device": "cpu", "eval_every": 0}
    )


@pytest.fixture(scope="module")
def runs(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs a and b."""
    folder = tmp_path_factory.mktemp("runs")
    train(make_config(RETINANET), train_store=tiny.train, run=folder / "a")
    train(make_config(FASTER), train_store=tiny.train, val_store=tiny.val, run=folder / "b")
    return folder


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def refused(*arguments: object) -> str:
    """The one line of an error."""
    result = call(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    return str(result.stderr)


def printed_by(*arguments: object) -> dict[str, Any]:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    printed: dict[str, Any] = json.loads(result.stdout)
    return printed


def test_a_run_knows_what_it_learnt_from(tiny: Any, runs: Path) -> None:
    """AP by training annotations without naming anything; the JSON is the results file."""
    printed = printed_by(runs / "a", "--store", tiny.val, "--device", "cpu")
    counts = count_annotations(FeatureStore.open(tiny.train).annotations)
    assert printed["strata"]["training_boxes"] == {str(k): number for k, number in counts.items()}
    names = [bin_["name"] for bin_ in printed["strata"]["bins"]]
    assert names == ["0-9", "10-99", "100-999", "1000+"]
    assert printed["training"] == str(tiny.train)
    assert not {"intervals", "comparison", "lvis", "proposals"} & printed.keys()
    assert json.loads((runs / "a" / "results.json").read_text()) == printed
    assert not [note for note in printed["notes"] if "trained on these" in note]
    of_its_own = printed_by(runs / "a", "--store", tiny.train, "--device", "cpu")
    assert "the run was trained on these images: AP on others will be lower" in of_its_own["notes"]


def test_a_run_made_before_runs_noted_it(tiny: Any, runs: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(runs / "a", old)
    (old / "training.json").unlink()
    shown = call(old, "--store", tiny.val, "--device", "cpu")
    assert shown.exit_code == 0
    assert shown.stdout.count("AP by training annotations is left out: the run was made bef") == 1
    printed = printed_by(old, "--store", tiny.val, "--training", tiny.train, "--bins", "0,3")
    assert [bin_["name"] for bin_ in printed["strata"]["bins"]] == ["0-2", "3+"]
    named = printed_by(old, "--store", tiny.val, "--training", tiny.paths.train, "--bins", "0,3")
    assert named["strata"] == printed["strata"]
    assert "--bins needs training annotations" in refused(old, "--store", tiny.val, "--bins", "0,3")


def test_a_run_is_scored_where_it_was_validated(tiny: Any, runs: Path, tmp_path: Path) -> None:
    shown = call(runs / "b", "--device", "cpu")
    assert shown.exit_code == 0, shown.output
    assert f"on {tiny.val}, where the run was validated" in shown.stderr
    assert json.loads((runs / "b" / "results.json").read_text())["store"] == str(tiny.val)
    other = tmp_path / "other"
    shutil.copytree(runs / "b", other)
    noted = (other / "training.json").read_text()
    (other / "training.json").write_text(noted.replace(str(tiny.val), str(tiny.train)))
    message = refused(other)
    assert f"{tiny.train} is no longer what {other} was validated on" in message
    assert message.endswith("name the store to score on\n")
    with pytest.raises(InputError, match="--store is missing: the store to score Linear on"):
        evaluate(nn.Linear(1, 1))


def test_two_runs_on_the_same_store(tiny: Any, runs: Path) -> None:
    options = ("--store", tiny.val, "--device", "cpu", "--resamples", 20)
    printed = printed_by(runs / "a", "--against", runs / "b", *options)
    single = printed_by(runs / "b", *options)
    assert printed["comparison"]["second"] == single["intervals"]
    assert printed["comparison"]["first"]["ap"]["value"] == pytest.approx(printed["ap"])
    assert printed["against"] == str(runs / "b")
    same = call(runs / "a", "--against", runs / "a", *options)
    assert "These images cannot tell the runs apart by AP" in same.stdout
    plain = printed_by(runs / "a", "--against", runs / "b", "--store", tiny.val)
    assert plain["comparison"]["difference"]["resamples"] == 1000


def test_files_tell_what_the_run_told(tiny: Any, runs: Path, tmp_path: Path) -> None:
    """Any producer's results: here ours, against the annotation file instead of the store."""
    of_run = printed_by(runs / "a", "--store", tiny.val, "--device", "cpu")
    printed_by(runs / "b", "--store", tiny.val, "--device", "cpu")
    files = ("--detections", runs / "a" / "detections.json", "--annotations", tiny.paths.val)
    out = tmp_path / "out.json"
    printed = printed_by(*files, "--training", tiny.train, "--out", out)
    assert json.loads(out.read_text()) == printed
    for name in ("ap", "ap50", "ar100", "strata", "errors", "oddities"):
        assert printed[name] == of_run[name], name
    shown = call(*files, "--against", runs / "b" / "detections.json", "--out", out)
    assert shown.exit_code == 0
    assert "COCO figures of boxes" in shown.stdout
    assert "1000 resamples of 4 images" in " ".join(shown.stdout.split())
    assert "comparison" in json.loads(out.read_text())


def lvis_file(annotations: Path, path: Path) -> Path:
    """The same images and boxes in another order, with LVIS's fields."""
    content = json.loads(annotations.read_text())
    for category in content["categories"]:
        category["frequency"] = "rcf"[category["id"] % 2]
    ids = [category["id"] for category in content["categories"]]
    for image in content["images"]:
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = [], ids[4:5]
    content["images"].reverse()
    path.write_text(json.dumps(content))
    return path


def test_lvis_of_a_run_and_of_its_file(tiny: Any, runs: Path, tmp_path: Path) -> None:
    lvis = lvis_file(tiny.paths.val, tmp_path / "lvis.json")
    scored = ("--annotations", lvis, "--lvis")
    of_run = printed_by(runs / "a", "--store", tiny.val, "--device", "cpu", *scored)
    of_file = printed_by("--detections", runs / "a" / "detections.json", *scored)
    assert of_run["lvis"] == of_file["lvis"]
    assert of_run["lvis"]["num_judged"] < of_run["lvis"]["num_detections"]
    assert of_run["annotations"] == str(lvis)
    plain = printed_by(runs / "a", "--store", tiny.val, "--device", "cpu")
    assert plain["ap"] == pytest.approx(of_run["ap"], abs=1e-9)
    shown = call(runs / "a", "--store", tiny.val, *scored)
    assert "LVIS v1 figures of boxes" in shown.stdout


def test_proposals_of_two_stage_detectors(tiny: Any, runs: Path) -> None:
    printed = printed_by(runs / "b", "--store", tiny.val, "--device", "cpu", "--proposals")
    assert printed["proposals"]["most_per_image"] == 30
    recalls = {at["limit"]: at["ar"] for at in printed["proposals"]["at_limits"]}
    assert list(recalls) == [10, 100, 300, 1000]
    assert 0 < recalls[10] <= recalls[100] == recalls[300] == recalls[1000]
    shown = call(runs / "b", "--store", tiny.val, "--proposals", "--views", "base")
    assert "recall of proposals (the RPN keeps 30 an image)" in shown.stdout
    message = refused(runs / "a", "--store", tiny.val, "--proposals")
    assert "needs a two-stage detector" in message
    assert "is a retinanet" in message
    assert "are those of one view, got base,hflip" in refused(
        runs / "b", "--store", tiny.train, "--proposals", "--views", "base,hflip"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "there is nothing to score: give a run, .* files of any producer"),
        ("{a}", "--store is missing: the store to score .*a on; give a run and its store"),
        ("{a} {f}", "got both the run .* and --detections"),
        ("--store {store}", "there is nothing to score"),
        ("--annotations {gt}", "there is nothing to score"),
        ("--detections {results}", "--detections and --annotations are needed together; give"),
        (
            "{f} --store {store} --proposals",
            "--store, --proposals cannot be used with --detections",
        ),
        ("{f} --views base", "--views cannot be used with"),
        ("{f} --weights last", "--weights cannot be used"),
        ("{f} --device cpu", "--device cannot be used"),
        (
            "{f} --against {b}",
            "--against expects a results file .* got the folder .*; of a run give .*b/detections",
        ),
        (
            "{f} --against {results} --resamples 0",
            "comparisons of runs need resamples of the bootstrap, such as 1000, got 0",
        ),
        ("{f} --bins 0,5", "--bins needs training annotat"),
        (
            "{f} --training {gt} --bins 5,1",
            "edges that rise from 0, such as 0,10,100,1000, got 5,1",
        ),
        (
            "{f} --training {gt} --bins few",
            "need whole numbers and commas, such as 0,10,100,1000, got 'few'",
        ),
        ("{f} --training nowhere", "there is no nowhere"),
        ("{f} --lvis", "needs a `frequency` of r, c or f"),
        ("{f} --out nowhere/x.json", "folder that exists"),
        ("{f} --out {gt}", "is one of the inputs; name"),
        ("{a} --store {store} --lvis", "--lvis needs --annotations: a store does not keep which"),
        (
            "{a} --store {store} --against {results}",
            "--against expects a run folder .* got the file",
        ),
        ("{a} --store {store} --against nowhere", "nowhere is not a run folder"),
        ("{a} --store {store} --against {b} --resamples 0", "comparisons of runs need resamples"),
        ("{a} --store {store} --weights worst", "--weights: expected best or last"),
        (
            "{a} --store {store} --annotations {train}",
            "says that image id 1 has 256 x 320 pixels, the store",
        ),
        ("{a} --store nowhere", "nowhere"),
        ("nowhere --store {store}", "nowhere is not a run folder"),
    ],
)
def test_what_cannot_be(
    tiny: Any, runs: Path, tmp_path: Path, arguments: str, message: str
) -> None:
    results = tmp_path / "results.json"
    results.write_text("[]")
    paths = {"a": runs / "a", "b": runs / "b", "store": tiny.val, "results": results}
    paths |= {"gt": tiny.paths.val, "train": tiny.paths.train}
    before = tiny.paths.val.read_bytes()
    arguments = arguments.replace("{f}", "--detections {results} --annotations {gt}")
    error = refused(*(part.format(**paths) for part in arguments.split()))
    assert re.search(message, error), error
    assert tiny.paths.val.read_bytes() == before


def test_results_that_are_seldom_meant(tiny: Any, tmp_path: Path) -> None:
    """Scored as the official tools do, and said."""
    content = json.loads(tiny.paths.val.read_text())
    image_id = content["images"][0]["id"]
    row = {"image_id": image_id, "category_id": 3, "bbox": [-50, 0, 400, 3], "score": 1.5}
    results = tmp_path / "results.json"
    results.write_text(json.dumps([row] * 10_001))
    shown = call("--detections", results, "--annotations", tiny.paths.val)
    assert shown.exit_code == 0
    for note in (
        "boxes beyond their image: 10001",
        "exact duplicates: 10000",
        "scores outside 0..1: 10001",
        "past the limit of a class and image: 9901",
        "images without detections: 3",
    ):
        assert f"note: {note}" in shown.stdout
    results.write_text("[]")
    printed = printed_by("--detections", results, "--annotations", tiny.paths.val)
    assert (printed["ap"], printed["num_detections"]) == (0.0, 0)


def test_runs_of_other_features(tiny: Any, runs: Path, tmp_path: Path) -> None:
    """Both runs must fit the store before either is scored; another class is named shortly."""
    from cachedet.extract import extract

    extract(tiny.extract_config(tmp_path / "none.zarr", weights="none"))
    train(make_config(RETINANET), train_store=tmp_path / "none.zarr", run=tmp_path / "c")
    error = refused(runs / "a", "--store", tiny.val, "--against", tmp_path / "c")
    assert f"the run {tmp_path / 'c'} was trained on features with weights_digest = " in error
    assert "cachedet eval --detections A/detections.json --against B/detections.json" in error


def test_from_python(tiny: Any, runs: Path) -> None:
    report = evaluate(runs / "a", store=tiny.val, questions=Questions(resamples=10))
    assert report.analysis.intervals.ap.value == pytest.approx(report.scores.ap)
    assert report.to_json()["run"] == str(runs / "a")
    assert yaml.safe_load((runs / "a" / "config.yaml").read_text())["seed"] == 0


def test_images_that_extraction_skipped_are_named(tiny: Any, runs: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(tiny.paths.images, images)
    bad = FeatureStore.open(tiny.val).annotations.file_names[2]
    (images / bad).write_bytes(b"")
    backwards = tiny.change(tiny.paths.val, tmp_path / "val.json", _draw_backwards)
    store = tmp_path / "val.zarr"
    config = {"images": images, "annotations": backwards, "on_bad_image": "skip", "views": "base"}
    report = extract(tiny.extract_config(store, **config))
    note = "1 box of negative width or height turned round (annotation id 1)"
    assert report.notes == ((str(backwards), note),)

    options = (runs / "a", "--store", store, "--device", "cpu")
    told = " ".join(call(*options).stdout.split())
    expected = f"1 image was skipped at extraction, and was not scored: {bad} (the file is empty)"
    assert f"note: {expected}" in told
    printed = printed_by(*options, "--annotations", backwards)
    assert printed["skipped"] == [[bad, "the file is empty"]]
    as_it_stands = "1 box of negative width or height, which match nothing (annotation id 1)"
    assert printed["notes"] == [
        expected,
        f"{backwards}: {as_it_stands}",
        f"{backwards} describes 1 image more than the store holds: not scored",
    ]
    assert json.loads((runs / "a" / "results.json").read_text()) == printed


def _draw_backwards(content: dict[str, Any]) -> None:
    x, y, width, height = content["annotations"][0]["bbox"]
    content["annotations"][0]["bbox"] = [x + width, y + height, -width, -height]


def test_notes_on_the_truth_are_printed(tmp_path: Path) -> None:
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": 5, "image_id": "1", "category_id": 1, "bbox": [10, 10, 30, 30],
             "segmentation": {"size": [100, 80], "counts": [8000]}}
        ],
    }  # fmt: skip
    found = [{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": [[1, 1, 9, 1, 9, 9]]}]
    files = []
    for option, content in {"--annotations": truth, "--detections": found}.items():
        (tmp_path / f"{option[2:]}.json").write_text(json.dumps(content))
        files += [option, tmp_path / f"{option[2:]}.json"]
    told = " ".join(call(*files).stdout.split())
    assert "1 id read as whole numbers, the first is image_id '1' in annotations" in told
    assert "1 mask cannot be used and was dropped, the first of annotation id 5: expected" in told


def test_figures_are_shown_where_the_run_cannot_be_written(
    tiny: Any, runs: Path, tmp_path: Path, store_kit: Any
) -> None:
    run, out = tmp_path / "run", tmp_path / "scores.json"
    shutil.copytree(runs / "a", run)
    with store_kit.read_only(run):
        shown = call(run, "--store", tiny.val, "--device", "cpu")
        as_json = call(run, "--store", tiny.val, "--device", "cpu", "--json", "--out", out)
    for result in (shown, as_json):
        assert result.exit_code == 1
        assert re.search(r"error: cannot write .*detections.json: (Read-only|Perm)", result.stderr)
    assert "AP50" in shown.stdout
    assert "results.json" not in shown.stdout
    assert json.loads(out.read_text()) == json.loads(as_json.stdout)


def test_somebodys_files_in_a_run_folder_stay(tiny: Any, runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "a", run)
    for name in ("results.json", "detections.json"):
        before = (run / name).read_bytes() if (run / name).exists() else None
        (run / name).write_text('{"mine": 1}')
        message = f"{name} is there already and is not"
        assert message in refused(run, "--store", tiny.val, "--device", "cpu")
        assert (run / name).read_text() == '{"mine": 1}'
        (run / name).unlink() if before is None else (run / name).write_bytes(before)


@pytest.mark.parametrize("name", ["best.pt", "train.json", "photo.jpg", "notes.txt"])
def test_out_replaces_nothing_but_scores(tiny: Any, runs: Path, tmp_path: Path, name: str) -> None:
    """Refused before anything is opened; twice to the same file is no harm."""
    sources = {
        "best.pt": runs / "a/weights/best.pt",
        "train.json": tiny.paths.train,
        "photo.jpg": next(tiny.paths.images.iterdir()),
    }
    out = tmp_path / name
    out.write_bytes(sources[name].read_bytes() if name in sources else b"")
    before = out.read_bytes()
    assert f"{out} is there already and is not scores" in refused(
        "no run", "--store", tiny.val, "--out", out
    )
    assert out.read_bytes() == before
    again = tmp_path / "scores.json"
    for _ in range(2):
        files = ("--detections", tmp_path / "found.json", "--annotations", tiny.paths.val)
        (tmp_path / "found.json").write_text("[]")
        assert call(*files, "--out", again).exit_code == 0


def test_out_in_a_run_folder_has_a_name_of_its_own(tiny: Any, runs: Path) -> None:
    message = "config.yaml belongs to the run folder"
    assert message in refused(runs / "a", "--store", tiny.val, "--out", runs / "b/config.yaml")
