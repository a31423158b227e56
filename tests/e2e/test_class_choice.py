"""Stores of some classes or of merged ones, and runs on them, from the command line to a score."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cachedet.cli import app
from cachedet.config.run import ClassChoice, TrainConfig
from cachedet.errors import CheckpointError, ConfigError, InputError, StoreMismatchError
from cachedet.evaluate import Questions, evaluate
from cachedet.extract import extract
from cachedet.report import report
from cachedet.store.reader import FeatureStore
from cachedet.train import train

CONFIG = TrainConfig.model_validate(
    {
        "detector": {
            "kind": "retinanet",
            "neck": {"kind": "fpn", "channels": 8},
            "num_convs": 1,
            "postprocess": {"score_threshold": 0.005},
        },
        "schedule": {"epochs": 1, "batch_size": 4, "optimizer": "adamw", "lr": 3e-3},
        "device": "cpu",
        "eval_every": 0,
    }
)
SOME = {"classes": "disc,star"}
MERGED = {"merge": "disc,square=shape", "ignore": "crescent"}


def run_words(words: Sequence[object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status, and what stands on the screen, its lines joined."""
    try:
        status = app([str(word) for word in words], standalone_mode=False)
    except SystemExit as ended:
        status = ended.code
    output = capsys.readouterr()
    return int(status or 0), " ".join((output.out + output.err).split())


@pytest.fixture(scope="module")
def made(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores and runs of some classes and of merged ones, with their validation stores."""
    root = tmp_path_factory.mktemp("made")
    for name, choice in (("some", SOME), ("merged", MERGED)):
        for kind in ("train", "val"):
            path = getattr(tiny.paths, kind)
            store = root / f"{name}-{kind}.zarr"
            extract(tiny.extract_config(store, annotations=path, views="base", choose=choice))
        train(CONFIG, train_store=root / f"{name}-train.zarr", run=root / name)
    return root


def test_the_choice_is_part_of_what_a_store_is(tiny: Any, made: Path) -> None:
    store = FeatureStore.open(made / "some-train.zarr")
    assert store.annotations.categories.names == ("disc", "star")
    assert store.annotations.categories.ids == (3, 12)
    assert len(store) == 8  # those without boxes too
    config = tiny.extract_config(made / "some-train.zarr", views="base", choose=SOME)
    assert extract(config).blocks_written == 0
    other = tiny.extract_config(made / "some-train.zarr", views="base", choose=MERGED)
    with pytest.raises(StoreMismatchError) as caught:
        extract(other)
    assert "classes: only there {3: 'disc'}, only now {3: 'shape'" in str(caught.value)
    assert "also those of --classes, --ignore-classes and --merge-classes" in str(caught.value)
    bare = tiny.extract_config(
        made / "some-train.zarr", views="base", choose={**SOME, "background": False}
    )
    with pytest.raises(StoreMismatchError, match="images gone: "):
        extract(bare)


def test_python_says_it_as_the_command_line_does(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"choose.clases.*unknown|unknown.*clases"):
        tiny_extract(tiny, tmp_path, choose={"clases": "disc"})
    counts = tiny_extract(tiny, tmp_path, choose=ClassChoice(classes=("star",), background=False))
    assert counts["boxes"] == 7
    assert counts["images without boxes left out"] == 8 - counts["images"] > 0
    assert counts["boxes of classes left out"] == 33 - 7


def tiny_extract(tiny: Any, folder: Path, **options: Any) -> dict[str, int]:
    """By plain arguments; the counts."""
    return extract(
        images=tiny.paths.images, annotations=tiny.paths.train, store=folder / "s.zarr",
        backbone="test_resnet", weights=str(tiny.weights), image_size=64, views="base",
        device="cpu", **options,
    ).counts  # fmt: skip


def test_a_run_of_some_classes_agrees_on_every_truth(tiny: Any, made: Path) -> None:
    """The store of the same classes, that of all, and the full file, with and without choice."""
    run, val = made / "some", made / "some-val.zarr"
    expected = evaluate(run, store=val)
    assert [score.name for score in expected.per_class] == ["disc", "star"]
    assert expected.analysis.notes == ()
    full = evaluate(run, store=tiny.val)
    file = evaluate(run, store=tiny.val, questions=Questions(annotations=tiny.paths.val))
    given = Questions(annotations=tiny.paths.val, choose=ClassChoice(**SOME))
    chosen = evaluate(run, store=val, questions=given)
    for other in (full, file, chosen):
        assert other.scores.to_json() == expected.scores.to_json()
        assert other.analysis.to_json()["errors"] == expected.analysis.to_json()["errors"]
    said = "scored on 2 of 10 classes of {}: what is scored does not know square; triangle; ring; "
    assert any(said.format(tiny.val) in note for note in full.analysis.notes)
    assert any(said.format(tiny.paths.val) in note for note in file.analysis.notes)
    assert not any("does not know" in note for note in chosen.analysis.notes)


def test_a_run_of_merged_classes_needs_the_same_merging(tiny: Any, made: Path) -> None:
    run, val = made / "merged", made / "merged-val.zarr"
    expected = evaluate(run, store=val)
    assert expected.per_class[0].name == "shape"
    message = (
        r"the run .*merged was trained on other classes than the store .*val.zarr has: only there "
        r"{3: 'shape'}, only in the store .*or give --annotations, and the --merge-classes"
    )
    with pytest.raises(CheckpointError, match=message):
        evaluate(run, store=tiny.val)
    with pytest.raises(InputError, match="other classes than the store.*and the --merge-classes"):
        evaluate(run, store=val, questions=Questions(annotations=tiny.paths.val))
    questions = Questions(
        annotations=tiny.paths.val, choose=ClassChoice(**MERGED), training=str(tiny.paths.train)
    )
    for store in (val, tiny.val):  # the features are the same
        found = evaluate(run, store=store, questions=questions)
        assert found.scores.to_json() == expected.scores.to_json()
        assert found.analysis.to_json()["strata"] == expected.analysis.to_json()["strata"]


def test_what_eval_refuses_about_classes(tiny: Any, made: Path) -> None:
    choose = ClassChoice(merge="disc,square=shape")
    refused = [
        (Questions(choose=choose), "are those of --annotations, which is missing: a run is scored"),
        (Questions(choose=ClassChoice(classes="disc,ring"), annotations=tiny.paths.val),
         r"--classes leaves out classes that the run knows: 1 of 2 .star.. A run is scored on all"),
        (Questions(choose=ClassChoice(classes="disc,ring", ignore="star"),
                   annotations=tiny.paths.val),
         "--classes and --ignore-classes leave out classes that the run knows: 1 of 2"),
        (Questions(choose=choose, lvis=True, annotations=tiny.paths.val),
         "--merge-classes cannot be used with --lvis: it says of each class by itself how freq"),
        (Questions(against=made / "merged", resamples=3),
         "--against was trained on other classes: only there {3: 'shape'.*compare runs of the sa"),
    ]  # fmt: skip
    for questions, message in refused:
        with pytest.raises(InputError, match=message):
            evaluate(made / "some", store=tiny.val, questions=questions)


def test_files_are_scored_on_the_chosen_classes(
    tiny: Any, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Detections of a detector of all classes, of some, or of merged ones."""
    run = tmp_path / "run"
    shutil.copytree(made / "merged", run)
    expected = evaluate(run, store=made / "merged-val.zarr")
    words = ["eval", "--detections", run / "detections.json", "--annotations", tiny.paths.val]
    choice = ["--merge-classes", "disc,square=shape", "--ignore-classes", "crescent"]
    status, said = run_words([*words, *choice, "--json"], capsys)
    assert status == 0, said
    assert json.loads(said)["ap"] == expected.to_json()["ap"]
    found = json.loads((run / "detections.json").read_text())
    (tmp_path / "all.json").write_text(
        json.dumps([*found, {**found[0], "category_id": 30}, {**found[0], "category_id": 6}])
    )
    status, said = run_words(
        [*words, *choice, "--json", "--detections", tmp_path / "all.json"], capsys
    )
    scores = json.loads(said)
    assert any(
        "all.json: detections of classes that are left out, not scored: 1" in note
        for note in scores["notes"]
    )
    assert scores["num_detections"] == len(found) + 1  # a square is a shape
    status, said = run_words([*words, "--classes", "dics"], capsys)
    assert status == 1
    assert "has no class 'dics'; nearest: 'disc', 'cross'; it has disc, square, triangle," in said


def test_the_page_reads_the_same_classes(tiny: Any, made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made / "some", run)
    evaluate(run, store=tiny.val)
    assert "disc" in report([run], resamples=2).markdown.read_text()
    merged = tmp_path / "merged"
    shutil.copytree(made / "merged", merged)
    choose = ClassChoice(**MERGED)
    questions = Questions(annotations=tiny.paths.val, choose=choose)
    evaluate(merged, store=tiny.val, questions=questions)
    results = json.loads((merged / "results.json").read_text())
    assert results["choose"]["merge"] == ["disc,square=shape"]
    assert "shape" in report([merged], resamples=2).markdown.read_text()
    results["choose"]["merge"] = 3
    (merged / "results.json").write_text(json.dumps(results))
    with pytest.raises(ConfigError, match=r"results.json: merge"):
        report([merged], resamples=2)


def test_commands_take_a_choice(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = ["--classes", "disc", "--classes", "shape", "--merge-classes", "square,star=shape"]
    choice += ["--no-background"]
    shared = ["--images", tiny.paths.images, "--annotations", tiny.paths.train, "--backbone"]
    shared += ["test_resnet", "--weights", tiny.weights, "--image-size", 64, "--device", "cpu"]
    words = ["extract", *shared, "--store", tmp_path / "s.zarr", "--views", "base", *choice]
    status, said = run_words(words, capsys)
    assert status == 0, said
    assert "classes used: 2 of 9; left out: triangle, ring, cross, hexagon," in said
    assert "merged into 'shape': square, star" in said
    assert "14 boxes of classes left out" in said
    assert "2 images without boxes left out" in said
    status, said = run_words(["convert", tiny.paths.train, tmp_path / "a.json", *choice], capsys)
    assert status == 0, said
    assert "14 boxes of classes left out" in said
    wrong = ["--ignore-classes", "disc,blob"]
    for command in (
        ["estimate", *shared, "--store", tmp_path / "t.zarr"],
        ["convert", tiny.paths.train, tmp_path / "b.json"],
        ["compare", "retinanet_fpn_tiny", *shared, "--val-annotations", tiny.paths.val,
         "--out", tmp_path / "c"],
    ):  # fmt: skip
        status, said = run_words([*command, *wrong], capsys)
        assert status == 1
        assert "--ignore-classes: " in said
        assert "has no class 'blob'" in said
    assert not (tmp_path / "c").exists()
