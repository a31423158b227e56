"""`cachedet check`: what stands on the screen, in the JSON, and what the exit status says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cachedet
from cachedet.cli import app
from cachedet.data.annotation_formats import with_split
from cachedet.errors import InputError


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["check", *map(str, words)])


def test_the_screen_of_a_broken_set(tiny: Any, tmp_path: Path) -> None:
    """Ranks in their order; of many places the first five; status 1."""

    def spoil(values: dict[str, Any]) -> None:
        for entry in values["annotations"][:7]:
            entry["bbox"][0] += 250
        values["images"][0]["file_name"] = "gone.jpg"

    broken = tiny.change(tiny.paths.train, tmp_path / "a.json", spoil)
    done = run("--images", tiny.paths.images, "--annotations", broken, "--val", tiny.paths.val)
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    ranks = [line for line in lines if line in ("STOPS", "LOOK AT", "FINE")]
    assert ranks == ["STOPS", "LOOK AT", "FINE"]
    assert lines[1:3] == [
        "  train: 1 of 8 images is not there",
        "      gone.jpg: No such file or directory",
    ]
    assert "--on-bad-image skip" in lines[3]
    assert "  10 classes, the same in train and val" in lines
    assert "val boxes" in done.stdout
    assert lines[-1] == "To see them drawn: --out sheet.png"
    assert "check images: 12/12" in done.stderr


def test_the_json_is_one_object(tiny: Any) -> None:
    words = ("--images", tiny.paths.images, "--annotations", tiny.paths.train, "--json")
    done = run(*words, "--image-size", "128", "--workers", "1")
    assert done.exit_code == 0
    values = json.loads(done.stdout)
    assert list(values) == ["stops", "findings", "classes", "counts", "sizes", "sheet"]
    assert values["stops"] is False
    assert values["counts"]["train"]["images"] == 8
    assert values["sizes"]["image_size"] == 128
    assert len(values["classes"]) == 10
    keys = ["rank", "kind", "text", "advice", "count", "places"]
    assert all(list(finding) == keys for finding in values["findings"])


def test_many_classes_are_cut_on_the_screen(tiny: Any, tmp_path: Path) -> None:
    def add(values: dict[str, Any]) -> None:
        values["categories"] += [{"id": 100 + n, "name": f"extra {n}"} for n in range(20)]

    many = tiny.change(tiny.paths.train, tmp_path / "a.json", add)
    done = run("--images", tiny.paths.images, "--annotations", many, "--out", tmp_path / "s.png")
    assert done.exit_code == 0
    assert "10 classes between them: --json has all" in done.stdout
    assert "train: 20 classes without a box" in done.stdout
    assert done.stdout.splitlines()[-1] == str(tmp_path / "s.png")


def test_other_formats_and_their_splits(exports: Any, tmp_path: Path) -> None:
    root = tmp_path / "set"
    exports.write_yolo(root, {"train": exports.SHOTS[:2], "val": exports.SHOTS[2:]})
    words = ("--images", root, "--annotations", root / "data.yaml", "--val", root / "data.yaml")
    done = run(*words, "--split", "train", "--val-split", "val")
    assert done.exit_code == 0, done.output
    assert "YOLO data set, split train" in done.stderr
    assert "no image of val is in train" in done.stdout
    report = cachedet.check(images=root, annotations=with_split(root / "data.yaml", "val"))
    assert report.counts["train"]["boxes"] == 2
    assert "--rotated expects" in run(*words, "--rotated", "x").stderr
    stopped = run(*words)
    assert stopped.exit_code == 1
    assert "has several splits (train, val)" in stopped.stdout


def test_places_that_cannot_be_written(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--out expects a file"):
        cachedet.check(images=tiny.paths.images, annotations=tiny.paths.train, out=tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--image-size", "0"), "expects an image_size of 1 or more"),
        (("--workers", "-3"), "workers of 0 or more, got 512 and -3"),
        (("--val-split", "x"), "--val-images and --val-split are of --val"),
    ],
)
def test_words_that_cannot_be(tiny: Any, words: tuple[str, ...], message: str) -> None:
    done = run("--images", tiny.paths.images, "--annotations", tiny.paths.train, *words)
    assert done.exit_code != 0
    assert message in " ".join(done.output.split())


def test_a_sheet_among_the_images_is_refused(tiny: Any) -> None:
    with pytest.raises(InputError, match="where it would be taken for one of them"):
        cachedet.check(
            images=tiny.paths.images,
            annotations=tiny.paths.train,
            out=tiny.paths.images / "sheet.png",
        )


def test_annotations_without_a_box_stop(tiny: Any, tmp_path: Path) -> None:
    none = tiny.change(tiny.paths.train, tmp_path / "a.json", lambda v: v["annotations"].clear())
    report = cachedet.check(images=tiny.paths.images, annotations=none)
    assert report.stops
    assert [finding.text for finding in report.findings if finding.rank == "stops"] == [
        "train: not one box"
    ]


def test_the_command_takes_a_choice(tiny: Any) -> None:
    words = ("--images", tiny.paths.images, "--annotations", tiny.paths.train, "--json")
    done = run(*words, "--classes", "disc,shape", "--merge-classes", "square,star=shape")
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert [one["name"] for one in values["classes"]] == ["shape", "disc"]
    assert values["counts"]["train"]["boxes of classes left out"] == 14


def test_extract_says_what_it_would_look_at_before_it_begins(tiny: Any, tmp_path: Path) -> None:
    """At most five lines, the rest by number; all of them in the JSON, where none is printed."""

    def spoil(values: dict[str, Any]) -> None:
        for number, entry in enumerate(values["annotations"][:9]):
            entry["bbox"] = [[1, 1, -9, 9], [1, 1, 0, 9], [30, 1, 900, 9]][number % 3]
        del values["images"][-1]
        kept = {image["id"] for image in values["images"]}
        values["annotations"] = [a for a in values["annotations"] if a["image_id"] in kept]

    spoiled = tiny.change(tiny.paths.train, tmp_path / "a.json", spoil)
    config = tiny.extract_config(tmp_path / "s.zarr", annotations=spoiled, views="base")
    words = ["extract", "--images", config.images, "--annotations", spoiled, "--store"]
    words += [config.store, "--backbone", config.backbone, "--weights", config.weights]
    words += ["--image-size", config.image_size, "--views", "base", "--device", "cpu"]
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)["look_at"]
    lines = [line for line in done.stderr.splitlines() if line.startswith("look at: ")]
    assert lines[:5] == [f"look at: {text}" for text in told[:5]]
    assert lines[5:] == ([f"look at: {len(told) - 5} more"] if len(told) > 5 else [])
    assert any("boxes without area, or of NaN or Inf, dropped" in text for text in told)
    assert "`cachedet check` with the same options" in done.stderr
    assert "are not named by a.json (" in done.stderr
    first = done.stderr.index("look at: ")
    assert first < done.stderr.index("check images")
