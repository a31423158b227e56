"""Drawings tell classes apart, whatever script their names are written in."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cachedet.drawing import lettering
from cachedet.drawing.contact_sheet import SheetRow, contact_sheet
from cachedet.drawing.image_drawing import Drawing, draw_boxes
from cachedet.drawing.lettering import Lettering, drawable
from cachedet.evaluation.plots import plot_training

NAMES = (
    "cat", "猫", "犬", "ねこ", "いぬ", "고양이", "개", "кот", "пёс", "γάτα", "Ω", "قطة", "كلب",
    "बिल्ली", "कुत्ता", "\N{CAT}", "\N{DOG}", "é", "è", "[bold]cat[/]", "a\nb", "a\x1b[31mb",
    "a\udce9",     "x" * 300, "x" * 299 + "y", "x" * 150 + "y" + "x" * 149, "",
)  # fmt: skip


def drawn(name: str, *, width: int = 300) -> NDArray[np.uint8]:
    drawing = Drawing(
        boxes=np.array([[5.0, 60, width - 5, 95]]), labels=np.array([0]), captions=(f"{name} 0.93",)
    )
    return np.asarray(draw_boxes(np.zeros((100, width, 3), np.uint8), drawing))


def test_no_two_names_look_alike() -> None:
    images = {name: drawn(name) for name in NAMES}
    for one, other in combinations(NAMES, 2):
        assert (images[one] != images[other]).any(), (one, other)


def test_letters_that_no_font_has_are_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "_other_fonts", lambda: ())
    lettering._font_of.cache_clear()
    assert drawable("猫 кот \N{CAT}") == r"\u732b кот \U0001f408"
    lettering._font_of.cache_clear()


def test_fonts_that_are_gone_damaged_or_hold_one_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"\0\1\0\0 no font")
    fonts = (str(tmp_path / "gone.ttf"), str(tmp_path / "broken.ttf"))
    monkeypatch.setattr(lettering, "_other_fonts", lambda: fonts)
    lettering._font_of.cache_clear()
    assert drawable("猫") == r"\u732b"
    lettering._font_of.cache_clear()


@pytest.mark.parametrize("name", ["x" * 300, "猫" * 300, "a rather long name of a class"])
@pytest.mark.parametrize("width", [90, 300, 2000])
def test_captions_fit_into_the_image_and_keep_their_score(name: str, width: int) -> None:
    letters = Lettering(11)
    shown = letters.fit(f"{name} 0.93", width)
    assert letters.width(shown) <= width
    assert shown.endswith("0.93") or width < 100
    assert len(shown) <= 40


def test_the_letters_are_where_they_were_measured() -> None:
    letters = Lettering(20)
    text = letters.fit("gÅ قطة 猫", 400)
    image = Image.new("L", (400, 60))
    letters.draw(ImageDraw.Draw(image.convert("RGB")), (10, 5), text, fill=(255, 255, 255))
    canvas = image.convert("RGB")
    letters.draw(ImageDraw.Draw(canvas), (10, 5), text, fill=(255, 255, 255))
    left, top, right, bottom = canvas.getbbox() or (0, 0, 0, 0)
    assert 8 <= left <= 14
    assert right <= 12 + letters.width(text)
    assert 4 <= top < bottom <= 6 + letters.height


def test_plots_have_a_label_for_every_loss(tmp_path: Path) -> None:
    """Warnings of missing letters and errors of formulas would fail it."""
    names = ("猫", "кот", "$x^{", "_hidden", "a\x1bb", "y" * 300)
    header = ",".join(["step", "epoch", "lr", "loss", *(f"loss_{name}" for name in names)])
    rows = "".join(f"{step},0,0.1{',1.0' * (len(names) + 1)}\n" for step in (1, 20))
    (tmp_path / "metrics.csv").write_text(f"{header}\n{rows}", encoding="utf-8")
    plot_training(tmp_path / "metrics.csv", tmp_path / "training.png")
    with Image.open(tmp_path / "training.png") as image:
        assert image.size == (960, 1080)


def test_names_of_images_end_where_the_next_one_begins(tmp_path: Path) -> None:
    nothing = Drawing(boxes=np.zeros((0, 4)), labels=np.zeros(0, dtype=np.int64), captions=())
    grey = np.full((100, 200, 3), 128, np.uint8)
    sheets = []
    for name in ("猫" * 80 + ".jpg", "猫" * 79 + "犬.jpg"):
        row = SheetRow(name=name, pixels=grey, annotations=nothing, prediction=nothing)
        contact_sheet([row], tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as sheet:
            sheets.append(np.asarray(sheet.convert("L")))
    assert (sheets[0] != sheets[1]).any()
    captions = sheets[0][10:30]
    assert captions[:, 320:324].min() > 240  # the gap between ground truth and prediction


def test_words_of_one_font_stay_together() -> None:
    """Letters that join, and marks that combine, are not torn apart: they are shaped together."""
    for text in ("قِطّة 0.93", "cafe\u0301 nai\u0308ve", "क्\u200dष"):
        assert len(lettering._split(text)) <= 3
        assert "".join(part for _, part in lettering._split(text)) == text
    ((_, alone),) = lettering._split("e\u0301")
    assert alone == "e\u0301"


def test_fonts_of_installed_packages_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what their metadata say, without importing them."""
    package, metadata = tmp_path / "some_fonts", tmp_path / "some_fonts-1.0.dist-info"
    (package / "files").mkdir(parents=True)
    metadata.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    for name in ("A.ttf", "A-Italic.ttf", "B.otf", "C.woff2"):
        (package / "files" / name).touch()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: some-fonts\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[fontpkg.family]\nsome = some_fonts\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = [Path(path).name for path in lettering._packaged_fonts() if "some_fonts" in path]
    assert found == ["A.ttf", "B.otf"]
