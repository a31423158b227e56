from __future__ import annotations

import shutil
import unicodedata
from typing import Any

import pytest
from PIL import Image

NAMES = [f"{number}.png" for number in range(6)]
BOXES = [(image, 1 + image % 2, (10, 10, 40, 30)) for image in range(6)]


def test_images_that_cannot_be_decoded_stop(data: Any, of_kind: Any) -> None:
    """Empty, cut off, a page, a folder, and a JPEG that was cut politely."""
    whole = data.draw("whole.jpg", 7).read_bytes()
    bad = {
        "empty.jpg": b"",
        "cut.jpg": whole[: len(whole) // 2],
        "ended.jpg": whole[: len(whole) // 2] + b"\xff\xd9",
        "page.jpg": b"<html>",
    }
    for name, content in bad.items():
        (data.images / name).write_bytes(content)
    (data.images / "folder.jpg").mkdir()
    names = [*NAMES, *bad, "folder.jpg"]
    finding = of_kind(data.check(data.write("a.json", names, BOXES)), "broken")
    assert (finding.rank, finding.count) == ("stops", 5)
    assert finding.text == "train: 5 of 11 images cannot be decoded"
    assert finding.first_places[0] == "empty.jpg: the file is empty"
    assert "--on-bad-image skip" in finding.advice


def test_names_that_no_file_can_have_are_named_so(data: Any, of_kind: Any) -> None:
    """Control characters, NUL, and more bytes than a file system takes."""
    names = [*NAMES, "\x07.jpg", "a\0b.jpg", f"{'é' * 150}.jpg"]
    report = data.check(data.write("a.json", names, BOXES))
    finding = of_kind(report, "bad names")
    assert (finding.rank, finding.count) == ("stops", 3)
    assert finding.text == "train: 3 of 9 images have names that cannot be used"
    assert finding.first_places[0] == "\\x07.jpg: its file name has control characters"
    assert "Rename the files, and their entries" in finding.advice
    assert not [one for one in report.findings if one.kind == "broken"]


def test_sizes_that_differ_stop(data: Any, of_kind: Any) -> None:
    Image.fromarray(data.noise(1, (64, 48))).save(data.images / "1.png")
    finding = of_kind(data.check(data.write("a.json", NAMES, BOXES)), "other size")
    assert (finding.rank, finding.count) == ("stops", 1)
    assert finding.first_places == ["1.png: annotated as 128x96, the upright file is 64x48"]
    assert "resized or cropped" in finding.advice


def test_images_that_exif_turns(data: Any, of_kind: Any) -> None:
    """Annotated lying: stops. Of the same size either way: to be looked at."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data.draw("lying.jpg", 8, exif=exif)
    finding = of_kind(data.check(data.write("a.json", [*NAMES, "lying.jpg"], BOXES)), "other size")
    assert finding.first_places == [
        "lying.jpg: annotated as 128x96, the upright file is 96x128: it was annotated lying, and "
        "EXIF turns it"
    ]
    assert finding.advice == (
        "Annotated lying, and turned upright by EXIF: 1. Turn their boxes, or write the images "
        "upright."
    )
    exif[0x0112] = 3
    data.draw("turned.jpg", 9, exif=exif)
    finding = of_kind(data.check(data.write("a.json", [*NAMES, "turned.jpg"], BOXES)), "EXIF turn")
    assert (finding.rank, finding.first_places) == ("look at", ["turned.jpg"])


@pytest.mark.parametrize(
    ("boxes", "counts", "advice"),
    [
        ([(5, 100, 20, 20)] * 3, "3 of their 3 boxes lie inside the upright files, 0 inside the "
         "stated sizes", "Exchange the two in their entries."),
        ([(100, 5, 20, 20)] * 3, "0 of their 3 boxes lie inside the upright files, 3 inside the "
         "stated sizes", "Turn their boxes, or write the images upright."),
        ([(5, 5, 20, 20)], "1 of their 1 boxes lie inside the upright files, 1 inside",
         "Exchange the two in their entries."),
    ],
)  # fmt: skip
def test_sizes_that_are_swapped_say_so(
    data: Any, of_kind: Any, boxes: Any, counts: str, advice: str
) -> None:
    """By what the boxes fit; images resized among them are said apart."""
    Image.fromarray(data.noise(1, (96, 128))).save(data.images / "1.png")
    annotations = data.write("a.json", NAMES, [(1, 1, box) for box in boxes])
    finding = of_kind(data.check(annotations), "other size")
    assert finding.first_places == [
        "1.png: annotated as 128x96, the upright file is 96x128: width and height swapped"
    ]
    assert finding.advice.startswith(f"Width and height swapped: 1 ({counts}")
    assert finding.advice.endswith(advice)
    Image.fromarray(data.noise(2, (64, 48))).save(data.images / "2.png")
    finding = of_kind(data.check(annotations), "other size")
    assert finding.advice.startswith("Width and height swapped: 1 (")
    assert "The others were resized or cropped after they were annotated" in finding.advice


def test_oddities_of_images_are_shown(data: Any, of_kind: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    data.draw("odd.jpg", 9, exif=exif)
    finding = of_kind(data.check(data.write("a.json", [*NAMES, "odd.jpg"], BOXES)), "odd")
    assert "EXIF orientation 9 is invalid" in finding.first_places[0]


def test_copies_and_what_looks_alike(data: Any, of_kind: Any) -> None:
    shutil.copy(data.images / "0.png", data.images / "copy.png")
    Image.open(data.images / "1.png").resize((64, 48)).resize((128, 96)).save(
        data.images / "again.jpg", quality=40
    )
    names = [*NAMES, "copy.png", "again.jpg"]
    report = data.check(data.write("a.json", names, BOXES))
    assert of_kind(report, "copies").first_places == ["copy.png: like 0.png"]
    assert of_kind(report, "look alike").first_places == ["again.jpg: like 1.png"]
    assert {of_kind(report, kind).rank for kind in ("copies", "look alike")} == {"look at"}
    assert not report.stops


def test_flat_images_are_not_alike(data: Any) -> None:
    for name, grey in (("black.png", 0), ("grey.png", 99)):
        Image.new("RGB", (128, 96), (grey,) * 3).save(data.images / name)
    report = data.check(data.write("a.json", [*NAMES, "black.png", "grey.png"], BOXES))
    assert "look alike" not in {finding.kind for finding in report.findings}


def test_images_in_both_sets(data: Any, of_kind: Any) -> None:
    """By name, by bytes under another name, and encoded again."""
    shutil.copy(data.images / "1.png", data.images / "other name.png")
    Image.open(data.images / "2.png").save(data.images / "again.jpg", quality=60)
    train = data.write("a.json", NAMES[:4], BOXES[:4])
    val = data.write("v.json", ["0.png", "other name.png", "again.jpg", "5.png"], BOXES[:4])
    report = data.check(train, val=val)
    same = of_kind(report, "in both")
    assert same.text == "val: 2 of 4 images are in train, too"
    assert same.first_places == ["0.png: like 0.png", "other name.png: like 1.png"]
    assert of_kind(report, "alike in both").first_places == ["again.jpg: like 2.png"]
    assert not report.stops
    apart = data.check(train, val=data.write("w.json", NAMES[4:], []))
    assert of_kind(apart, "leaks").rank == "fine"


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (str.upper, "nearly the same name"),
        (lambda name: name.replace("/", "\\").replace("train", "Train"), "nearly the same name"),
        (lambda name: name.replace(" ", "%20"), "nearly the same name"),
        (lambda name: unicodedata.normalize("NFD", name), "nearly the same name"),
        (lambda name: f"images/{name}", "there without 'images/': take it out of the names"),
        (lambda name: name.removeprefix("train/"), "below another folder: give --images "),
        (lambda name: name.replace("été", "gone"), "Bring the files"),
    ],
)
def test_missing_names_and_the_nearest_file(
    data: Any, of_kind: Any, change: Any, advice: str
) -> None:
    real = [f"train/été {number}.png" for number in range(7)]
    for number, name in enumerate(real):
        data.draw(name, number)
    report = data.check(data.write("a.json", [change(name) for name in real], BOXES))
    finding = of_kind(report, "missing")
    assert (finding.rank, finding.count) == ("stops", 7)
    assert finding.text == "train: 7 of 7 images are not there"
    assert advice in finding.advice
    assert len(finding.first_places) == 5
    is_named = "nearest: 'train/été 0.png'" in finding.first_places[0]
    assert is_named == ("Bring" not in advice)
