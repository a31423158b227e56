"""What may be written: only what cachedet made for the same purpose is ever replaced."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import cachedet
from cachedet.errors import InputError, StoreError
from cachedet.outputs import (
    CARD_COMMENT,
    COCO_IMAGES_DESCRIPTION,
    CROP_COMMENT,
    DRAWING_COMMENT,
    MARKDOWN_COMMENT,
    MODEL_COMMENT,
    MODEL_WEIGHTS_MARK,
    SHEET_COMMENT,
    YAML_COMMENT,
    Kind,
    distinct_names,
    require_empty_folder,
    require_file,
    require_folder,
    require_local,
    require_ours,
    require_outside_stores,
    write_file,
)
from cachedet.report import report
from cachedet.store.creation import require_place
from cachedet.train import train


def jpeg(comment: bytes | None = None) -> bytes:
    buffer = io.BytesIO()
    extra = {} if comment is None else {"comment": comment}
    Image.new("RGB", (16, 16), (9, 99, 9)).save(buffer, "JPEG", **extra)
    return buffer.getvalue()


def png(**texts: str) -> bytes:
    buffer, info = io.BytesIO(), PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (16, 16), (9, 99, 9)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def as_json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode()


SCORES = {
    "ap": None, "ap50": 0.5, "a": [0] * 5000, "evaluator": "cachedet, equal", "cachedet": "0.1"
}  # fmt: skip
ANNOTATIONS = {
    "info": {"description": "Written by `cachedet convert` from CVAT for images"},
    "images": [{"id": 1}] * 900, "annotations": [], "categories": [{"id": 1, "name": "a"}],
}  # fmt: skip
FORECAST = {"store": {"backbone": "r"}, "nbytes": 1.0, "peak_memory": None, "version": "0.1"}
OURS = {
    Kind.PAGE: b'\n<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    b'<meta name="generator" content="cachedet 0.1">' + b" " * 9000 + b"</script></body></html>\n",
    Kind.MARKDOWN: MARKDOWN_COMMENT
    + b"\n\n# Runs\n" * 2000
    + b"\nWritten 2026-11-28 by cachedet 0.1.\n",
    Kind.REPORT: as_json({"cachedet": "0.1", "resamples": 9, "runs": ["x"] * 3000}),
    Kind.COMPARISON: as_json({"cachedet": "0.1", "settings": {}, "cells": []}),
    Kind.SCORES: as_json(SCORES),
    Kind.RESULTS: as_json([{"image_id": 3, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]),
    Kind.FOUND: as_json([{"file": 'a".jpg', "drawing": "b.jpg", "detections": []}]),
    Kind.FOUND_COCO: json.dumps(
        [{"image_id": 1, "score": 0.5, "category_id": 1, "bbox": [0.5] * 4}] * 300
    ).encode(),
    Kind.FOUND_IMAGES: as_json(
        {"info": {"description": COCO_IMAGES_DESCRIPTION}, "images": [0] * 9000, "categories": []}
    ),
    Kind.CLASSES: f"{YAML_COMMENT}\nnames:\n".encode() + b"  0: 'cat'\n" * 900,
    Kind.LABELS: b"0 0.500000 0.500000 1.000000 0.250000 0.9000\n" * 500,
    Kind.TABLE: b"file,frame,time,name,category_id,score,x1,y1,x2,y2\n" + b"a.jpg,,,cat\n" * 900,
    Kind.CROP: jpeg(CROP_COMMENT),
    Kind.DRAWING: jpeg(DRAWING_COMMENT),
    Kind.SHEET: png(Comment=SHEET_COMMENT.decode()),
    Kind.ANNOTATIONS: as_json(ANNOTATIONS),
    Kind.MODEL: b"\x08\x0a\x12\x08cachedet\x1a\x050.1.0",
    Kind.MODEL_GRAPH: b'<?xml version="1.0"?>\n<net name="cachedet" version="11">\n</net>\n',
    Kind.MODEL_WEIGHTS: bytes(5000) + MODEL_WEIGHTS_MARK + b"a" * 64,
    Kind.MODEL_PROGRAM: b"PK\x03\x04 archive " + MODEL_COMMENT,
    Kind.CARD: CARD_COMMENT + b"\n\n# model\n\nWritten 2026-11-29 by cachedet 0.1.0.\n",
    Kind.SCRIPT: (Path(cachedet.__file__).parent / "exporting" / "standalone.py").read_bytes(),
    Kind.FORECAST: as_json(FORECAST),
}
THEIRS = {
    "page.html": b"<!DOCTYPE html><title>mine, about cachedet</title>",
    "README.md": b"# Mine\n\nWritten 2026-11-28 by cachedet 0.1.\n\nAnd more.\n",
    "pasted.md": b"# Mine\n\n" + OURS[Kind.MARKDOWN],
    "continued.md": OURS[Kind.MARKDOWN] + b"\nAnd more.\n",
    "continued.html": OURS[Kind.PAGE] + b"<p>And more.</p>",
    "about.html": b"<!DOCTYPE html><pre>" + OURS[Kind.PAGE],
    "holds.json": as_json({"mine": [1], "scores": SCORES}),
    "around.json": as_json({"ap": SCORES, "scores": SCORES}),
    "more.json": as_json({**SCORES, "mine": 1}),
    "before.json": as_json({"mine": 1, **SCORES}),
    "mended.json": as_json({**ANNOTATIONS, "mine": 1}),
    "mine.json": as_json({**ANNOTATIONS, "info": {"description": "from `cachedet convert`"}}),
    "plan.json": as_json({**FORECAST, "mine": 1}),
    "table.json": as_json({"store": {"backbone": "mine"}, "version": "2"}),
    "card.md": b"# Mine\n\n" + OURS[Kind.CARD],
    "empty": b"",
    "yolo.txt": b"0 0.500000 0.500000 1.000000 0.250000\n",
    "ultralytics.txt": b"0 0.5 0.5 1 0.25 0.9\n0 0.512345 0.512345 0.512345 0.512345 0.912345\n",
    "detectron.json": json.dumps(
        [{"image_id": 1, "category_id": 1, "bbox": [0.5] * 4, "score": 0.5}]
    ).encode()[:-1],  # whole, it is as `eval` writes results
    "table.csv": b"file,frame,name\n",
    "data.yaml": b"names:\n  0: cat\n",
    "voc.xml": b'<?xml version="1.0"?>\n<annotation><folder>cachedet</folder></annotation>',
    "best.pt": b"PK\x03\x04 cachedet",
    "train.json": as_json({"images": [], "annotations": [], "categories": [], "cachedet": "0.1"}),
    "list.json": as_json([{"file": "a.jpg", "label": "cat"}]),
    "photo.jpg": jpeg(),
    "photo of cachedet.jpg": jpeg(b"cachedet at the sea"),
    "photo.png": b"\x89PNG\r\n\x1a\n" + DRAWING_COMMENT,
    "plot.png": png(Title="mine", Comment=SHEET_COMMENT.decode()),
}


@pytest.mark.parametrize("kind", [*Kind], ids=lambda kind: kind.name)
def test_only_what_was_made_for_the_same_purpose_is_replaced(tmp_path: Path, kind: Kind) -> None:
    assert OURS.keys() == {*Kind}
    path = tmp_path / "out"
    others = [content for other, content in OURS.items() if other is not kind]
    for content in (*others, *THEIRS.values()):
        path.write_bytes(content)
        for act in (
            lambda: require_file(path, kind=kind),
            lambda: require_ours(path, kind=kind),
            lambda: write_file(path, b"new", kind=kind),
        ):
            with pytest.raises(InputError, match="out is there already and is not .* never repl"):
                act()
        assert path.read_bytes() == content
    path.write_bytes(OURS[kind])
    require_file(path, kind=kind)
    write_file(path, b"new", kind=kind)
    assert path.read_bytes() == b"new"
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_link_is_followed_and_what_it_leads_to_is_judged(tmp_path: Path) -> None:
    photo, drawing, link = (tmp_path / name for name in ("photo.jpg", "drawing.jpg", "link.jpg"))
    photo.write_bytes(jpeg())
    drawing.write_bytes(OURS[Kind.DRAWING])
    link.symlink_to(photo)
    with pytest.raises(InputError, match=r"link.jpg is there already and is not a drawing"):
        write_file(link, b"new", kind=Kind.DRAWING)
    link.unlink()
    link.symlink_to(drawing)
    write_file(link, b"new", kind=Kind.DRAWING)
    assert link.is_symlink()
    assert (drawing.read_bytes(), photo.read_bytes()) == (b"new", jpeg())
    for target, message in (
        ("nowhere", "is a link to nowhere, which is not there"),
        ("link.jpg", "cannot write .*link.jpg: Too many levels"),
    ):
        link.unlink()
        link.symlink_to(target)
        with pytest.raises(InputError, match=message):
            require_file(link, kind=Kind.DRAWING)
    os.link(photo, tmp_path / "hard.jpg")
    with pytest.raises(InputError, match=r"hard.jpg is there already"):
        write_file(tmp_path / "hard.jpg", b"new", kind=Kind.DRAWING)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        (tmp_path, "a folder"),
        (tmp_path / "pipe", "no regular file"),  # opening it would wait for ever
        (Path("/dev/null"), "no regular file"),  # root could put a file in its place
    ):
        with pytest.raises(InputError, match=f"expects a file, and {path} is {what}"):
            require_file(path, kind=Kind.PAGE)
    for text in ("", ".", ".."):
        with pytest.raises(InputError, match="--out expects a file, got"):
            require_file(Path(text), kind=Kind.PAGE)


def folders(root: Path) -> dict[str, Path]:
    """The beginnings of a run folder, a store and a comparison."""
    made = {"run folder": "config.yaml", "feature store": "manifest.json"}
    for name, file in {**made, "comparison": "settings.json"}.items():
        for folder in ("weights", "commits", "features"):
            (root / name / folder).mkdir(parents=True)
        (root / name / file).touch()
    (root / "run folder" / "commits").rmdir()
    (root / "comparison" / "commits").rmdir()
    return {name: root / name for name in (*made, "comparison")}


def test_files_of_runs_stores_and_comparisons_are_theirs(tmp_path: Path) -> None:
    """Whether or not they are there: a training.json of another kind would spoil a run."""
    kinds = folders(tmp_path)
    (kinds["run folder"] / "results.json").write_bytes(OURS[Kind.SCORES])
    for name, file in (
        ("run folder", "results.json"),
        ("run folder", "training.json"),
        ("feature store", "manifest.json"),
        ("comparison", "comparison.json"),
    ):
        with pytest.raises(InputError, match=f"{file} belongs to the {name}"):
            require_file(kinds[name] / file, kind=Kind.SCORES)
        require_file(kinds[name] / "mine.json", kind=Kind.SCORES)
    for name, folder in kinds.items():
        with pytest.raises(InputError, match=f"is a {name}, whose files belong to it; choose an"):
            require_folder(folder)
        require_folder(folder / "drawn")


def test_a_link_to_a_file_of_a_run_is_judged_as_that_file(tmp_path: Path) -> None:
    results = folders(tmp_path)["run folder"] / "results.json"
    results.write_bytes(OURS[Kind.SCORES])
    (tmp_path / "link.json").symlink_to(results)
    (tmp_path / "linked").symlink_to(results.parent)
    for path in (tmp_path / "link.json", tmp_path / "linked" / "results.json"):
        with pytest.raises(InputError, match=r"results.json belongs to the run folder"):
            require_file(path, kind=Kind.SCORES)


def test_a_folder_of_commits_is_no_store(tmp_path: Path) -> None:
    commits = tmp_path / "mine" / "commits"
    commits.mkdir(parents=True)
    (commits / "today.json").touch()
    require_folder(tmp_path / "mine")
    with pytest.raises(StoreError, match="mine exists and is not a feature store"):
        require_place(tmp_path / "mine")
    (commits / "base-b64x96-000001.json").touch()  # a store that has lost its manifest
    with pytest.raises(InputError, match="is a feature store, whose files"):
        require_folder(tmp_path / "mine")


def test_no_run_in_a_store(tmp_path: Path) -> None:
    store = folders(tmp_path)["feature store"]
    (tmp_path / "link").symlink_to(store)
    for run in (store, store / "run", tmp_path / "link" / "a" / "b"):
        with pytest.raises(InputError, match="lies inside the feature store .*; choose another"):
            require_outside_stores(run)
        assert not run.exists() or run == store
    require_outside_stores(store.parent / "run")


@pytest.mark.parametrize("text", ["http://u:pw@host/x.html", "s3://b/x.html", "odd+x://u:pw@h/x"])
def test_a_url_is_no_place_to_write(text: str, monkeypatch: Any, tmp_path: Path) -> None:
    """As it was given, and as a path that has made one slash of two; no credentials are told."""
    monkeypatch.chdir(tmp_path)
    for place in (text, Path(text)):
        for act in (
            lambda place=place: require_local(place),
            lambda place=place: require_outside_stores(place),
            lambda place=place: require_file(Path(place), kind=Kind.PAGE),
            lambda place=place: require_ours(Path(place), kind=Kind.PAGE),
            lambda place=place: require_folder(Path(place)),
            lambda place=place: require_empty_folder(Path(place)),
            lambda place=place: train("retinanet_fpn_tiny", train_store="t", run=place),
            lambda place=place: report([Path("run")], out=Path(place)),
        ):
            with pytest.raises(InputError, match=r"expects a place on this .*; got \S+://") as told:
                act()
            assert "pw" not in str(told.value)
    require_local(tmp_path / "a:b" / "c")
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_read_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (tmp_path / "link").symlink_to(photos)
    monkeypatch.chdir(photos)
    for out in (photos, tmp_path / "link", Path("."), photos / ".." / "photos"):
        with pytest.raises(InputError, match="is also a folder of images: what is written there"):
            require_folder(out, inputs=[photos])
        (photos / "a.jpg").touch()
        with pytest.raises(InputError, match="is also a folder of images: what is written there"):
            require_folder(out, inputs=[photos / "a.jpg"])
    require_folder(photos / "drawn", inputs=[photos, photos / "a.jpg"])


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    for check in (require_folder, require_empty_folder):
        check(tmp_path / "a" / "b")
        with pytest.raises(
            InputError, match=r"cannot write .*file/b: .*file: is a file, not a folder; re"
        ):
            check(tmp_path / "file" / "b")
        with pytest.raises(
            InputError, match=r"cannot write .*file: is a file, not a folder; repair the"
        ):
            check(tmp_path / "file")
    with pytest.raises(InputError, match="full exists already and is not empty; remove it or ch"):
        require_empty_folder(tmp_path / "full")
    with pytest.raises(
        InputError, match=r"cannot write .*b.md: .*file: (is a file|File ex|Not a dir)"
    ):
        write_file(tmp_path / "file" / "b.md", b"", kind=Kind.MARKDOWN)


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        (["a.jpg", "b.jpg"], ["a.jpg", "b.jpg"]),
        (["a.jpg", "a.jpg", "a-2.jpg"], ["a.jpg", "a-2.jpg", "a-2-2.jpg"]),
        (["a.jpg", "A.JPG.jpg", "A.jpg"], ["a.jpg", "A.JPG.jpg", "A-2.jpg"]),
        (["\u00e9.jpg", "e\u0301.jpg"], ["\u00e9.jpg", "e\u0301-2.jpg"]),
        (["\u00df.jpg", "SS.jpg"], ["\u00df.jpg", "SS-2.jpg"]),
        (["x" * 300 + ".jpg", "x" * 299 + ".jpg"], ["x" * 251 + ".jpg", "x" * 249 + "-2.jpg"]),
        (["\udcff.jpg"], ["\udcff.jpg"]),
    ],
)
def test_names_that_no_file_system_mixes_up(wanted: list[str], given: list[str]) -> None:
    assert distinct_names(wanted) == given
