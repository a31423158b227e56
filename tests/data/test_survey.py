from __future__ import annotations

import io
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cachedet.data.annotation_formats import read_dataset
from cachedet.data.coco import CocoDataset
from cachedet.data.file_names import NearestFiles, names_below
from cachedet.data.images import DecodedImage, decode_image
from cachedet.data.survey import require_good, scan_images
from cachedet.errors import BadImageError


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    images = tmp_path / "images"
    images.mkdir()
    whole = encoded(Image.effect_noise((64, 48), 50).convert("RGB"), "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "good.jpg": whole,
        "truncated.jpg": whole[: len(whole) // 2],
        "empty.jpg": b"",
        "page.jpg": b"<html>not found</html>",
        "turned.jpg": encoded(Image.new("RGB", (64, 48)), "JPEG", exif=exif),
    }
    for name, content in files.items():
        (images / name).write_bytes(content)
    (images / "folder.jpg").mkdir()
    entries = [
        {"id": number, "file_name": name, "width": 64, "height": 48}
        for number, name in enumerate([*files, "folder.jpg", "missing.jpg"])
    ]
    content = {"images": entries, "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    return read_dataset(annotations=tmp_path / "a.json", images=images)


def test_scan_finds_every_bad_file_at_once(dataset: CocoDataset) -> None:
    scan = scan_images(dataset, workers=2)
    assert [row for row, _ in scan.bad] == [1, 2, 3, 4, 5, 6]
    reasons = dict(scan.bad)
    assert "truncated" in reasons[1]
    assert reasons[2] == "the file is empty"
    assert reasons[3].startswith("not an image of a format that is read (AVIF, BMP")
    assert reasons[4].startswith("annotated as 64x48, the upright file is 48x64: it was")
    assert scan.contents[0] != 0
    message = r"6 of 7 images cannot be used:(.|\n)*--on-bad-image skip"
    with pytest.raises(BadImageError, match=message):
        require_good(dataset, scan)


def data_set(folder: Path, names: list[str], there: list[str]) -> CocoDataset:
    """Annotations of `names`, and the files that are there."""
    images = folder / "images"
    for name in there:
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 4), "navy").save(images / name)
    entries = [
        {"id": number, "file_name": name, "width": 8, "height": 4}
        for number, name in enumerate(names)
    ]
    content = {"images": entries, "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    (folder / "a.json").write_text(json.dumps(content))
    return read_dataset(annotations=folder / "a.json", images=images)


NFC, NFD = (unicodedata.normalize(form, "café.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("a.JPG", "a.jpg"),
        (NFC, NFD),
        (NFD, NFC),
        ("train\\A.png", "train/a.png"),
        ("images/a.png", "a.png"),
        ("a.png", "train2017/a.png"),
        ("train/a.png", "val/a.png"),
        ("a.jpeg", "a.jpg"),
    ],
)
def test_the_nearest_file_is_named_for_a_missing_one(tmp_path: Path, name: str, there: str) -> None:
    scan = scan_images(data_set(tmp_path, [name], ["other.png", there]), workers=1)
    assert scan.bad == ((0, f"No such file or directory; nearest: {there!r}"),)


def test_of_several_near_files_the_one_in_the_like_folder_is_named(tmp_path: Path) -> None:
    there = ["x/a.png", "val/a.jpg", "val/a.png", "y/val/b.png"]
    scan = scan_images(data_set(tmp_path, ["root/val/a.png"], there), workers=1)
    assert scan.bad[0][1].endswith("nearest: 'val/a.png'")


def test_names_that_no_file_can_have_are_bad_images_shown_escaped(tmp_path: Path) -> None:
    names = ["good.png", "p\ud83d.png", "n\0l.png", "a\nb.png", "\x1b[31mred.png", "x" * 300, "."]
    dataset = data_set(tmp_path, names, ["good.png"])
    scan = scan_images(dataset, workers=2)
    assert [row for row, _ in scan.bad] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(BadImageError) as raised:
        require_good(dataset, scan)
    message = str(raised.value)
    assert r"p\ud83d.png: no file can have this name" in message
    assert r"a\nb.png: its file name has control characters" in message
    assert r"\x1b[31mred.png: its file name has control characters" in message
    assert "File name too long" in message
    message.encode()  # any terminal can show it


def test_pixels_are_kept_as_far_as_they_fit(tmp_path: Path) -> None:
    """Small ones only: a large one would take the room of many."""
    names = [f"{number}.png" for number in range(20)]
    dataset = data_set(tmp_path, names, names)
    nbytes = 8 * 4 * 3
    assert scan_images(dataset, workers=2).images == {}
    assert scan_images(dataset, workers=2, keep_nbytes=15 * nbytes).images == {}
    kept = scan_images(dataset, workers=2, keep_nbytes=17 * nbytes).images
    assert len(kept) == 17
    for row, image in kept.items():
        np.testing.assert_array_equal(image.pixels, decode_image(dataset.path_of(row)))


def test_a_small_look_finds_the_same_faults(dataset: CocoDataset) -> None:
    """Reduced JPEGs too, and those that were cut and given an end."""
    large = Image.effect_noise((640, 480), 50).convert("RGB")
    whole = encoded(large, "JPEG", quality=60)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "good.jpg": whole,
        "truncated.jpg": whole[: len(whole) // 2],
        "page.jpg": whole[: len(whole) // 3] + b"\xff\xd9",
        "turned.jpg": encoded(large, "JPEG", exif=exif),
    }
    for name, content in files.items():
        (dataset.images / name).write_bytes(content)
    dataset.annotations.sizes_hw[:] = (480, 640)
    seen: dict[int, DecodedImage] = {}
    whole_scan = scan_images(dataset, workers=2)
    scan = scan_images(dataset, workers=2, image_size=32, on_image=seen.__setitem__)
    assert scan.bad == whole_scan.bad
    assert [row for row, _ in scan.bad] == [1, 2, 3, 4, 5, 6]
    assert scan.missing == {6}
    assert scan.contents.tolist() == whole_scan.contents.tolist()
    assert scan.images == {}
    assert seen[0].pixels.shape == (60, 80, 3)
    assert seen[0].image_hw == (480, 640)
    assert seen[4].image_hw == (640, 480)
    assert [seen[row].is_turned for row in (0, 4)] == [False, True]


@pytest.mark.parametrize(
    "name",
    ["IMAGES\\Cat 1.JPG", "cat%201.jpg", "train/images/cat 1.png", "./images//cat 1.jpg"],
)
def test_nearest_files_by_what_people_change(tmp_path: Path, name: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat 1.jpg").touch()
    (tmp_path / "other.jpg").touch()
    assert NearestFiles(names_below(tmp_path)).find(name) == "images/cat 1.jpg"
    assert NearestFiles(names_below(tmp_path)).find("dog.jpg") is None
