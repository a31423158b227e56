"""`cachedet report` on runs that were really trained and scored."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cachedet.cli import app
from cachedet.config.run import TrainConfig
from cachedet.errors import CheckpointError, InputError, StoreError
from cachedet.evaluate import Questions, evaluate
from cachedet.extract import extract
from cachedet.report import report
from cachedet.train import train

CONFIG = TrainConfig.model_validate(
    yaml.safe_load("""
        detector:
          {kind: retinanet, neck: {kind: fpn, channels: 16}, num_convs: 1,
           postprocess: {score_threshold: 0.005}}
        schedule:
          {epochs: 2, batch_size: 3, optimizer: adamw, lr: 0.003, kind: cosine, warmup_steps: 2}
        device: cpu
    """)
)


@pytest.fixture(scope="module")
def runs(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        run = root / f"seed{seed}"
        config = CONFIG.model_copy(update={"seed": seed})
        train(config, **tiny.stores, run=run)
        evaluate(run, store=tiny.val)
    return root / "seed0", root / "seed1"


def copy_of(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / run.name))


def test_every_file_is_written_and_holds_the_figures_of_eval(
    tiny: Any, runs: Any, tmp_path: Path
) -> None:
    out = tmp_path / "new folder" / "page.html"
    written = report(runs, images=tiny.paths.images, out=out, resamples=20)
    assert [written.html, written.markdown, written.json] == [
        out, out.with_suffix(".md"), out.with_suffix(".json"),
    ]  # fmt: skip
    content = json.loads(out.with_suffix(".json").read_text())
    for run, values in zip(runs, content["runs"], strict=True):
        results = json.loads((run / "results.json").read_text())
        for name in ("ap", "ap50", "ap75", "ap_small", "ar100", "per_class"):
            assert values[name] == results[name], name
        assert values["errors"] == results["errors"]
        assert values["oddities"] == results["oddities"]
        assert values["config"]["seed"] == int(run.name[-1])
        assert values["training_seconds"] >= 0
        assert values["backbone_passes_spared_at_most"] == 8 * 3  # steps of 3 images
        page, text = out.read_text(), out.with_suffix(".md").read_text()
        assert f"{results['ap']:.3f}" in page
        assert f"{results['ap']:.3f}" in text
        assert values["weights_digest"] in page
    assert content["runs"][0]["difference_to_first"] is None
    assert content["runs"][1]["difference_to_first"]["resamples"] == 20
    assert written.images == 4
    assert page.count("data:image/jpeg;base64,") == 4
    assert "seed" in text.split("Keys of the config that differ")[1]


def test_the_page_names_runs_as_it_is_told(runs: Any, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    written = report(runs, names=["frozen", "fine-tuned"], out=out, resamples=2)
    assert [run["name"] for run in written.content["runs"]] == ["frozen", "fine-tuned"]
    assert "frozen against fine-tuned" in out.read_text()
    for names in (["frozen"], ["frozen", "frozen"]):
        with pytest.raises(InputError, match="names expects one for each run, all different, got "):
            report(runs, names=names, out=out)


def test_training_annotations_are_those_the_run_noted(tiny: Any, runs: Any, tmp_path: Path) -> None:
    values = report(runs[:1], out=tmp_path / "r.html", resamples=2).content["runs"][0]
    boxes = json.loads(tiny.paths.train.read_text())["annotations"]
    assert sum(stratum["num_classes"] for stratum in values["strata"]["bins"]) == 10
    assert values["strata"]["bins"][0]["high"] == 10
    few = {box["category_id"] for box in boxes}
    counts = {c: sum(box["category_id"] == c for box in boxes) for c in few}
    assert set(values["strata"]["bins"][1]["category_ids"]) == {
        c for c, number in counts.items() if number >= 10
    }
    old = copy_of(runs[0], tmp_path)
    (old / "training.json").unlink()
    results = json.loads((old / "results.json").read_text())
    results.pop("strata", None)
    (old / "results.json").write_text(json.dumps(results))
    written = report([old], resamples=2)
    assert written.html == old / "report.html"
    assert "strata" not in written.content["runs"][0]
    assert "Not recorded: no run here has the training.json" in written.html.read_text()


def test_what_a_run_does_not_record_is_said_not_invented(runs: Any, tmp_path: Path) -> None:
    run = copy_of(runs[0], tmp_path)
    for name in ("log.txt", "metrics.csv", "training.json"):
        (run / name).unlink()
    results = json.loads((run / "results.json").read_text())
    for name in ("seconds", "views", "cachedet", "step", "oddities"):
        results.pop(name)
    (run / "results.json").write_text(json.dumps(results))
    written = report([run], resamples=2)
    lines = written.markdown.read_text().splitlines()
    for fact in (
        "Trained on", "Views scored", "Step of the scored checkpoint", "Time of training",
        "Time of scoring", "Passes of the backbone spared", "Time saved against the live backbone",
        "Scored with cachedet",
    ):  # fmt: skip
        line = next(line for line in lines if line.startswith(f"| {fact} |"))
        assert "| not recorded" in line, line
    assert any("no validation recorded in metrics.csv" in line for line in lines)
    assert written.content["runs"][0]["training_seconds"] is None


def test_no_file_of_the_run_is_changed(runs: Any, tmp_path: Path) -> None:
    run = copy_of(runs[0], tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    report([run], resamples=2)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert {path: content for path, content in after.items() if path in before} == before
    assert {path.name for path in after.keys() - before.keys()} == {
        "report.html", "report.md", "report.json",
    }  # fmt: skip


def test_the_command_prints_one_object_or_the_files(runs: Any, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    call = ["report", *map(str, runs), "--out", str(out), "--resamples", "2"]
    done = CliRunner().invoke(app, [*call, "--json"])
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert values["files"]["html"] == str(out)
    assert [run["name"] for run in values["runs"]] == ["seed0", "seed1"]
    done = CliRunner().invoke(app, call)
    assert done.stdout.splitlines() == [str(out.with_suffix(s)) for s in (".html", ".md", ".json")]


def test_a_run_that_was_not_scored_is_refused(runs: Any, tmp_path: Path) -> None:
    run = copy_of(runs[0], tmp_path)
    for name in ("detections.json", "results.json"):
        (run / name).unlink()
        with pytest.raises(InputError, match=r"has not been scored.*`cachedet eval .* --store"):
            report([run])
    with pytest.raises(CheckpointError, match="is not a run folder"):
        report([tmp_path])
    with pytest.raises(CheckpointError, match="config.yaml is not a run folder"):
        report([run / "config.yaml"])


def test_damaged_files_are_named(runs: Any, tmp_path: Path) -> None:
    run = copy_of(runs[0], tmp_path)
    results, whole = run / "results.json", (run / "results.json").read_text()
    for text, message in (
        ("{", r"results.json is not JSON"),
        ("[]", r"results.json should hold an object, got a list"),
        ("{}", r"does not say which store it was scored on, got None"),
        (json.dumps({**json.loads(whole), "ap": 0.99}), r"have AP .*, results.json says 0.99"),
        (
            json.dumps({**json.loads(whole), "strata": {"training_boxes": {"x": 1}}}),
            r"strata.training_boxes should hold counts by category id",
        ),
        (
            json.dumps({**json.loads(whole), "annotations": "/nowhere/val.json"}),
            r"was scored against /nowhere/val.json, which cannot be used now: .*Score the run",
        ),
    ):
        results.write_text(text)
        with pytest.raises(InputError, match=message):
            report([run], resamples=2)
    results.write_text(whole)
    for path in (run / "weights").iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match=r"holds no checkpoint: expected .*best.pt or"):
        report([run])


def test_a_store_that_has_moved_is_named_with_store(tiny: Any, runs: Any, tmp_path: Path) -> None:
    run = copy_of(runs[0], tmp_path)
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "store": "/nowhere/val.zarr"}))
    with pytest.raises(StoreError, match=r"was scored on /nowhere/val.zarr.*with --store"):
        report([run])
    written = report([run], store=tiny.val, resamples=2)
    assert written.content["runs"][0]["ap"] == results["ap"]
    with pytest.raises(InputError, match="was scored on other labels than .*train.zarr has"):
        report([run], store=tiny.train)
    del results["truth_digest"]
    (run / "results.json").write_text(json.dumps(results))
    message = "have AP .* the store is not the one the run was scored on"
    with pytest.raises(InputError, match=message):
        report([run], store=tiny.train)
    with pytest.raises(StoreError):
        report([run], store=tmp_path / "no.zarr")


def test_relative_places_are_found_from_anywhere(
    tiny: Any, runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And after run, store and annotation file were moved together."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copytree(tiny.val, home / "val.zarr")
    shutil.copy(tiny.paths.val, home / "val.json")
    copy_of(runs[0], home).rename(home / "run")
    monkeypatch.chdir(home)
    asked = Questions(annotations=Path("val.json"))
    scored = evaluate("run", "val.zarr", questions=asked)
    for where in (home / "run", tmp_path):
        monkeypatch.chdir(where)
        written = report([Path(os.path.relpath(home / "run"))], resamples=2)
        assert written.content["runs"][0]["ap"] == scored.ap
    home.rename(tmp_path / "moved")
    written = report([Path("moved/run")], resamples=2)
    assert written.content["runs"][0]["store"] == str(tmp_path / "moved" / "val.zarr")
    (tmp_path / "moved" / "val.zarr").rename(tmp_path / "elsewhere.zarr")
    with pytest.raises(StoreError, match=r"was scored on .*home/val.zarr.* with --store"):
        report([Path("moved/run")], resamples=2)


def test_runs_on_different_images_do_not_stand_side_by_side(
    tiny: Any, runs: Any, tmp_path: Path
) -> None:
    other = copy_of(runs[1], tmp_path)
    evaluate(other, store=tiny.train)
    with pytest.raises(InputError, match=r"seed0 and seed1 were scored on different images"):
        report([runs[0], other])
    fewer = tiny.change(
        tiny.paths.val, tmp_path / "fewer.json", lambda content: content["annotations"].pop(0)
    )
    store = tmp_path / "fewer.zarr"
    extract(tiny.extract_config(store, annotations=fewer, views="base"))
    evaluate(other, store=store)
    with pytest.raises(InputError, match="were scored on different boxes"):
        report([runs[0], other])


def test_a_run_scored_against_an_annotation_file_is_shown_against_it(
    tiny: Any, runs: Any, tmp_path: Path
) -> None:
    from cachedet.evaluate import Questions

    run = copy_of(runs[0], tmp_path)
    content = json.loads(tiny.paths.val.read_text())
    content["annotations"] = content["annotations"][::2]
    annotations = tmp_path / "half.json"
    annotations.write_text(json.dumps(content))
    evaluate(run, store=tiny.val, questions=Questions(annotations=annotations))
    values = report([run], resamples=2).content["runs"][0]
    assert values["ap"] == json.loads((run / "results.json").read_text())["ap"]
    assert sum(score["num_boxes"] for score in values["per_class"]) == len(content["annotations"])
    with pytest.raises(InputError, match=r"different boxes \(.*val.zarr: 4 images, .*half.json"):
        report([runs[0], run])


def test_what_cannot_be_written_is_refused(runs: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--out expects a file that ends in .html, got r.pdf"):
        report(runs, out=Path("r.pdf"))
    with pytest.raises(InputError, match=r"results.json belongs to the run folder .*seed1, whose"):
        report(runs, out=runs[1] / "results.html")
    with pytest.raises(InputError, match="named more than once"):
        report([runs[0], runs[0] / "." / "weights" / ".."])
    with pytest.raises(InputError, match="a report needs a run folder or more"):
        report([])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*r.html"):
        report(runs, out=tmp_path / "file" / "r.html", resamples=2)


@pytest.mark.parametrize("name", ["README.html", "README.md", "README.json"])
def test_neighbours_of_the_page_are_kept(runs: Any, tmp_path: Path, name: str) -> None:
    """Each of the three files, before anything is read; a page of ours is written anew."""
    out = tmp_path / "README.html"
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"{name} is there already and is not"):
        report([tmp_path / "no run"], out=out)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"
    (tmp_path / name).unlink()
    for _ in range(2):
        report(runs, out=out, resamples=2)
