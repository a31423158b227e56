"""The folder that the page browses."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cachedet.errors import BadImageError, DatasetError, InputError
from cachedet.serving.gallery import PAGE


@pytest.fixture
def folder(exports: Any, tmp_path: Path) -> Path:
    """Four images, of which d.jpg is stored on its side, one in a folder and a text."""
    photos: Path = exports.write_images(tmp_path / "photos")
    exports.write_image(photos / "more" / "e.jpg", exports.Shot("e.jpg", (50, 60)))
    (photos / "notes.txt").write_text("mine")
    (photos / "z.jpg").write_text("no image")
    return photos


def test_images_are_listed_in_pages(kit: Any, tmp_path: Path) -> None:
    for number in range(PAGE + 3):
        (tmp_path / f"{number:03d}.jpg").write_bytes(kit.image())
    client = kit.client(gallery=kit.gallery(tmp_path))
    first, second = (client.get(f"/images?start={start}").json() for start in (0, PAGE))
    assert first["total"] == second["total"] == PAGE + 3
    assert [one["name"] for one in first["images"]] == [f"{n:03d}.jpg" for n in range(PAGE)]
    assert [one["number"] for one in second["images"]] == [PAGE, PAGE + 1, PAGE + 2]
    assert client.get("/images?start=999999999").json()["images"] == []
    for start in ("-1", "x", "1e3", "9" * 400, "\u0664"):
        error = client.get("/images", params={"start": start})
        assert error.status_code == 400
        assert "start expects a number of an image" in error.json()["error"]


def test_folders_inside_come_with_recursive(kit: Any, folder: Path) -> None:
    assert kit.gallery(folder).names == ["a.jpg", "b.png", "c.jpg", "d.jpg", "z.jpg"]
    assert kit.gallery(folder, recursive=True).names[-1] == "more/e.jpg"


def test_thumbnails_are_small_and_upright(kit: Any, folder: Path, exports: Any) -> None:
    exports.write_image(folder / "big.jpg", exports.Shot("big.jpg", (600, 900)))
    gallery = kit.gallery(folder)
    client = kit.client(gallery=gallery)
    sizes = {}
    for number, name in enumerate(gallery.names[:-1]):
        response = client.get(f"/images/{number}/thumbnail")
        assert response.headers["content-type"] == "image/jpeg"
        sizes[name] = Image.open(io.BytesIO(response.content)).size
    assert sizes["d.jpg"] == (80, 120)
    assert sizes["big.jpg"] == (224, 149)
    assert gallery.thumbnail(0) is gallery.thumbnail(0)
    with pytest.raises(BadImageError, match="z.jpg: not an image of a format"):
        gallery.thumbnail(len(gallery) - 1)


def test_images_are_asked_for_by_number(kit: Any, folder: Path) -> None:
    client = kit.client(gallery=kit.gallery(folder))
    answer = client.post("/images/3/detect").json()
    assert (answer["name"], answer["width"], answer["height"]) == ("d.jpg", 80, 120)
    beyond = client.post("/images/5/detect")
    assert beyond.status_code == 404
    assert beyond.json()["error"] == "there is no image 5; the folder has 5"
    damaged = client.post("/images/4/detect")
    assert damaged.status_code == 422
    assert damaged.json()["error"].startswith("not an image of a format")
    for path in (
        "/images/../../etc/passwd/detect", "/images/a.jpg/detect", "/images/-1/detect",
        f"/images/{'9' * 5000}/detect",
    ):  # fmt: skip
        assert client.post(path).status_code == 404


def test_links_out_of_the_folder_are_followed_only_where_that_is_allowed(
    kit: Any, folder: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(kit.image())
    os.symlink(secret, folder / "link.jpg")
    os.symlink(folder / "a.jpg", folder / "inside.jpg")
    gallery = kit.gallery(folder)
    number, inside = gallery.names.index("link.jpg"), gallery.names.index("inside.jpg")
    client = kit.client(gallery=gallery)
    for response in (
        client.post(f"/images/{number}/detect"), client.get(f"/images/{number}/thumbnail")
    ):  # fmt: skip
        assert response.status_code == 422
        assert "is a link, or lies behind one, that leaves the folder" in response.json()["error"]
        assert "secret" not in response.json()["error"]
    assert client.post(f"/images/{inside}/detect").status_code == 200
    (folder / "c.jpg").unlink()  # also where it became one since
    os.symlink(secret, folder / "c.jpg")
    with pytest.raises(BadImageError, match=r"^c\.jpg: it is a link.* leaves the folder"):
        gallery.thumbnail(gallery.names.index("c.jpg"))
    followed = kit.client(gallery=kit.gallery(folder, follow_links=True))
    assert followed.post(f"/images/{number}/detect").status_code == 200


def test_ground_truth_lies_beside(kit: Any, folder: Path, exports: Any, tmp_path: Path) -> None:
    annotations = exports.write_coco(tmp_path / "val.json", exports.SHOTS[:2])
    gallery = kit.gallery(folder, annotations=annotations)
    assert gallery.names == ["a.jpg", "b.png"]  # that are named
    client = kit.client(gallery=gallery)
    answer = client.post("/images/0/detect").json()
    assert answer["truth_note"] is None
    assert answer["truth"] == [
        {"name": "cat", "label": 0, "box": [10, 12, 50, 42], "crowd": False},
        {"name": "dog", "label": 1, "box": [60, 20, 110, 91], "crowd": False},
    ]
    assert client.post("/images/1/detect").json()["truth"][0]["label"] == 3  # bird, of ten classes


def test_truth_of_another_size_is_not_drawn(
    kit: Any, folder: Path, exports: Any, tmp_path: Path
) -> None:
    shot = exports.Shot("a.jpg", (50, 70), ((0, 1, 2, 3, 4),))
    annotations = exports.write_coco(tmp_path / "val.json", [shot])
    client = kit.client(gallery=kit.gallery(folder, annotations=annotations))
    answer = client.post("/images/0/detect").json()
    assert answer["truth"] is None
    assert answer["truth_note"] == (
        "annotated as 70x50, the upright file is 128x96: its ground truth is not shown"
    )


def test_classes_that_the_detector_does_not_know(
    kit: Any, folder: Path, exports: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "NAMES", ("cat", "tree", "bird"))
    annotations = exports.write_coco(tmp_path / "val.json")
    client = kit.client(gallery=kit.gallery(folder, annotations=annotations))
    truth = client.post("/images/0/detect").json()["truth"]
    assert [(one["name"], one["label"]) for one in truth] == [("cat", 0), ("tree", -1)]


def test_what_is_no_folder_of_these_images(
    kit: Any, folder: Path, exports: Any, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="cannot list .*nowhere: No such file or directory"):
        kit.gallery(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no images"):
        kit.gallery(tmp_path / "empty")
    shot = exports.Shot("more/e.jpg", (50, 60), ((0, 1, 2, 3, 4),))
    annotations = exports.write_coco(tmp_path / "val.json", [shot])
    message = r"none of the 5 images in .*photos is named in .*val.json, which names more/e.jpg; fo"
    with pytest.raises(InputError, match=message):
        kit.gallery(folder, annotations=annotations)
    gallery = kit.gallery(folder, annotations=annotations, recursive=True)
    assert gallery.names == ["more/e.jpg"]
    assert gallery.truth_of(0).row == 0
    with pytest.raises(DatasetError, match="there is no file"):
        kit.gallery(folder, annotations=tmp_path / "no.json")
