"""The page of `serve` in a real browser, on a real server; see tests/e2e/test_report_page.py.

Skipped only where no chromium is installed. Whatever the page asks of another server fails the
test that made it.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from cachedet.drawing.image_drawing import PALETTE, colour_of

NONE = "1 found · 0 annotated"
_DROP = """([texts, names]) => {
  const carried = new DataTransfer();
  texts.forEach((text, n) => carried.items.add(new File(
    [Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], names[n])));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    document.body.dispatchEvent(
      new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true }));
  }
}"""


@pytest.fixture(scope="module")
def folder(exports: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 files, the first of which have boxes and the last of which is no image."""
    root: Path = tmp_path_factory.mktemp("served")
    shots = [*exports.SHOTS]
    shots += [exports.Shot(f"more_{number:02d}.png", (60, 90)) for number in range(25)]
    exports.write_images(root / "photos", shots)
    exports.write_coco(root / "val.json", [*shots, exports.Shot("zz.jpg", (60, 90))])
    (root / "photos" / "zz.jpg").write_text("no image")
    return root


@pytest.fixture(scope="module")
def address(kit: Any, folder: Path) -> Iterator[str]:
    """With masks, a folder and its truth."""
    gallery = kit.gallery(folder / "photos", annotations=folder / "val.json")
    served = kit.served(
        detector=kit.detector(has_masks=True), gallery=gallery, cut=0.4237, most_nbytes=1 << 20
    )
    with kit.running(served) as url:
        yield url


class Opened:
    """A page with what it complained of and what it asked other servers for."""

    def __init__(
        self, browser: Browser, url: str, *, width: int = 1400, scheme: Any = "light"
    ) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.page.on("console", lambda line: self.complaints.append(f"{line.type}: {line.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url, url))
        self.page.goto(url)
        expect(self.page.locator("#title")).to_have_text("my-run")

    def _note(self, asked: str, url: str) -> None:
        if not asked.startswith((url, "data:", "blob:")):
            self.foreign.append(asked)

    def __enter__(self) -> Page:
        return self.page

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.context.close()
        if kind is None:
            ours = ("Failed to load resource", "willReadFrequently")  # that the tests asked for
            assert [line for line in self.complaints if not any(map(line.count, ours))] == []
            assert self.foreign == []


def drop(page: Page, *files: tuple[str, bytes]) -> None:
    contents = [base64.b64encode(content).decode() for _, content in files]
    page.evaluate(_DROP, [contents, [name for name, _ in files]])


def boxes(page: Page) -> int:
    return page.locator("#boxes .box").count()


def open_first(page: Page) -> None:
    page.locator(".thumbnail").first.click()
    expect(page.locator("#name")).to_have_text("a.jpg")


def test_a_dropped_image_shows_its_boxes(browser: Browser, kit: Any) -> None:
    with kit.running(kit.served()) as url, Opened(browser, url) as page:
        assert page.locator("#folder").is_hidden()
        drop(page, ("my photo.jpg", kit.image((96, 64))))
        expect(page.locator("#name")).to_have_text("my photo.jpg")
        assert boxes(page) == 4
        expect(page.locator("#status")).to_have_text("4 of 5 detections shown, from score 0.30")
        assert "96 × 64 pixels" in page.locator("#size").inner_text()
        assert page.locator("#truth-control").is_hidden()
        assert page.locator("#masks-control").is_hidden()
        frame = page.locator("#canvas").bounding_box()
        cat = page.locator("#boxes .box[data-label='0']").bounding_box()
        assert frame is not None
        assert cat is not None
        assert (cat["x"] - frame["x"]) / frame["width"] == pytest.approx(0.1, abs=0.02)
        assert cat["height"] / frame["height"] == pytest.approx(0.4, abs=0.02)
        assert page.locator("#image").evaluate("image => image.naturalWidth") == 96


def test_the_file_dialog_takes_several_and_arrows_go_through_them(
    browser: Browser, kit: Any
) -> None:
    with kit.running(kit.served()) as url, Opened(browser, url) as page:
        files = [
            {"name": f"{n}.jpg", "mimeType": "image/jpeg", "buffer": kit.image((50 + n, 40))}
            for n in range(3)
        ]
        page.locator("#file").set_input_files(files)  # type: ignore[arg-type]
        expect(page.locator("#name")).to_have_text("0.jpg")
        assert page.locator("#previous").is_disabled()
        page.locator("body").press("ArrowRight")
        expect(page.locator("#name")).to_have_text("1.jpg")
        page.locator("#next").click()
        expect(page.locator("#name")).to_have_text("2.jpg")
        assert page.locator("#next").is_disabled()
        page.locator("body").press("ArrowRight")  # there is no further one
        page.locator("body").press("ArrowLeft")
        expect(page.locator("#name")).to_have_text("1.jpg")


def test_the_slider_begins_at_the_best_cut_and_hides_what_is_weaker(
    browser: Browser, address: str
) -> None:
    with Opened(browser, address) as page:
        assert page.locator("#score").input_value() == "0.42"  # a step below 0.4237
        assert page.locator("#cut-note").inner_text() == "the run’s best cut"
        open_first(page)
        assert boxes(page) == 3
        for cut, number in (("0", 5), ("0.34", 4), ("0.5", 2), ("0.88", 0)):
            page.locator("#score").fill(cut)
            assert boxes(page) == number
        assert page.locator("#cut-note").inner_text() == "the run’s best cut is 0.424"
        text = page.locator("#status").inner_text()
        assert "Nothing scores 0.88 or more; the highest is 0.875" in text
        page.locator("#score").focus()
        page.locator("#score").press("ArrowLeft")  # moves the slider, not the image
        assert page.locator("#score").input_value() == "0.875"
        assert boxes(page) == 1
        expect(page.locator("#name")).to_have_text("a.jpg")


def test_classes_are_switched_off_for_all_images(browser: Browser, address: str) -> None:
    with Opened(browser, address) as page:
        open_first(page)
        page.locator("#score").fill("0")
        names = page.locator("#class-list .called").all_inner_texts()
        assert names == ["cat", "dog", "<b>bold</b>", "emu"]
        counts = page.locator("#class-list .count").all_inner_texts()
        assert counts == ["1 found · 1 annotated", "2 found · 1 annotated", *2 * [NONE]]
        page.locator("#class-list label", has_text="dog").locator("input").uncheck()
        assert boxes(page) == 3
        assert page.locator("#boxes .truth").count() == 1
        page.locator("#next").click()
        expect(page.locator("#name")).to_have_text("b.png")
        assert boxes(page) == 3
        page.locator("#no-classes").click()
        assert boxes(page) == 0
        page.locator("#all-classes").click()
        assert boxes(page) == 5


def test_colours_are_those_of_drawings(browser: Browser, address: str) -> None:
    """The ninth class begins anew."""
    with Opened(browser, address) as page:
        open_first(page)
        page.locator("#score").fill("0.3")
        for label in (0, 1, 2, 8):
            box = page.locator(f"#boxes .box[data-label='{label}']").first
            stroke = box.evaluate("box => getComputedStyle(box).stroke")
            assert tuple(map(int, re.findall(r"\d+", stroke))) == colour_of(label)
        assert colour_of(8) == PALETTE[0]


def test_pointing_shows_figures_and_tags_hide_no_other(browser: Browser, address: str) -> None:
    with Opened(browser, address) as page:
        open_first(page)
        page.locator("#score").fill("0")
        tags = [tag.bounding_box() for tag in page.locator("#boxes .tag rect").all()]
        assert 4 <= len(tags) <= 5
        for number, one in enumerate(tags):
            for other in tags[:number]:
                assert one is not None
                assert other is not None
                apart_x = abs(one["x"] - other["x"]) >= min(one["width"], other["width"]) - 1
                assert apart_x or abs(one["y"] - other["y"]) >= one["height"] - 1
        page.locator("#canvas").hover(position={"x": 58, "y": 134})
        tip = page.locator("#tip")
        assert tip.inner_text() == "cat, score 0.8750: left 13, top 10, 51 × 38 pixels"
        page.locator("#title").hover()
        assert tip.is_hidden()
        page.locator("#names").uncheck()
        assert page.locator("#boxes .tag").count() == 0


def test_truth_and_masks_can_be_hidden(browser: Browser, address: str) -> None:
    painted = (
        "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)"
        ".data.some((value) => value > 0)"
    )
    with Opened(browser, address) as page:
        open_first(page)
        masks = page.locator("#masks")
        assert masks.evaluate(painted)
        page.locator("#with-masks").uncheck()
        assert not masks.evaluate(painted)
        assert page.locator("#boxes .truth").count() == 2
        page.locator("#with-truth").uncheck()
        assert page.locator("#boxes .truth").count() == 0
        expect(page.locator("#status")).to_contain_text("; 2 in the ground truth")
        page.locator(".thumbnail", has_text="more_00.png").click()
        expect(page.locator("#status")).to_contain_text("; 0 in the ground truth")


def test_masks_lie_where_they_are(browser: Browser, address: str, kit: Any) -> None:
    """The left half of each box."""
    with Opened(browser, address) as page:
        open_first(page)
        page.locator("#score").fill("0.7")  # the cat
        alpha = (
            "(canvas, [x, y]) => canvas.getContext('2d')"
            ".getImageData(x * canvas.width, y * canvas.height, 1, 1).data[3]"
        )
        masks = page.locator("#masks")
        for at, expected in (
            ((0.2, 0.3), 255), ((0.4, 0.3), 0), ((0.05, 0.3), 0), ((0.2, 0.6), 0)
        ):  # fmt: skip
            assert masks.evaluate(alpha, list(at)) == expected, at


def test_arrows_go_through_the_folder_and_its_pages(browser: Browser, address: str) -> None:
    with Opened(browser, address) as page:
        expect(page.locator("#range")).to_have_text("1 to 24 of 30")
        expect(page.locator(".thumbnail img").first).to_have_js_property("naturalWidth", 128)
        page.locator("body").press("ArrowRight")
        expect(page.locator("#name")).to_have_text("a.jpg")
        page.locator("body").press("ArrowRight")
        expect(page.locator("#name")).to_have_text("b.png")
        assert page.locator(".thumbnail[aria-current=true]").inner_text() == "b.png"
        page.locator("#later").click()
        expect(page.locator("#range")).to_have_text("25 to 30 of 30")
        assert page.locator("#later").is_disabled()
        page.locator(".thumbnail").first.click()
        expect(page.locator("#name")).to_have_text("more_20.png")
        page.locator("body").press("ArrowLeft")
        expect(page.locator("#name")).to_have_text("more_19.png")
        assert page.locator("#range").inner_text() == "1 to 24 of 30"


def test_what_was_chosen_below_is_scrolled_to(browser: Browser, address: str) -> None:
    """On a phone, where the folder lies far below the image; an error, too."""
    with Opened(browser, address, width=390) as page:
        for thumbnail in ("more_15.png", "more_10.png"):
            chosen = page.locator(f".thumbnail[data-name='{thumbnail}']")
            chosen.scroll_into_view_if_needed()
            expect(page.locator("#stage")).not_to_be_in_viewport(ratio=0.99)
            chosen.click()
            expect(page.locator("#name")).to_have_text(thumbnail)
            expect(page.locator("#stage")).to_be_in_viewport(ratio=0.99)
            expect(page.locator("#status")).to_be_in_viewport(ratio=0.99)
        page.locator("#later").click()
        page.locator(".thumbnail[data-name='zz.jpg']").click()
        expect(page.locator("#message")).to_be_in_viewport(ratio=0.99)


def test_what_cannot_be_shown_is_said_in_one_sentence(
    browser: Browser, address: str, kit: Any
) -> None:
    with Opened(browser, address) as page:
        message = page.locator("#message")
        open_first(page)
        drop(page, ("notes.txt", b"my notes"))
        expect(message).to_contain_text("notes.txt: not an image of a format that is read")
        assert page.locator("#result").is_hidden()  # what was shown before is not its answer
        assert page.locator("#save-json").is_disabled()
        drop(page, ("empty.jpg", b""))
        expect(message).to_have_text("empty.jpg: the file is empty")
        drop(page, ("huge.jpg", bytes((1 << 20) + 1)))
        expect(message).to_contain_text("huge.jpg: its 2 MB are more than the 1 MB that are taken")
        drop(page)
        expect(message).to_contain_text("That is no file: drop an image from your disk")
        page.locator("#later").click()
        page.locator(".thumbnail.broken").click()
        expect(message).to_contain_text("zz.jpg: not an image of a format")
        drop(page, ("dot.png", kit.image((1, 1))))
        expect(page.locator("#name")).to_have_text("dot.png")
        assert message.is_hidden()


def test_a_server_that_ended_is_said(browser: Browser, kit: Any) -> None:
    with kit.running(kit.served()) as url:
        opened = Opened(browser, url)
    with opened as page:
        drop(page, ("a.jpg", kit.image()))
        expect(page.locator("#message")).to_contain_text(
            "a.jpg: The server does not answer: is `cachedet serve` still running?"
        )


def test_names_with_html_in_them_are_text(browser: Browser, kit: Any) -> None:
    name = "<img src=x onerror=\"document.title='taken'\">.jpg"
    with kit.running(kit.served()) as url, Opened(browser, url) as page:
        drop(page, (name, kit.image()))
        expect(page.locator("#name")).to_have_text(name)
        assert page.locator("img[src=x]").count() == 0
        assert page.locator("#class-list b, #boxes b").count() == 0
        assert page.title() == "my-run · cachedet serve"


def test_downloads(browser: Browser, address: str, tmp_path: Path) -> None:
    with Opened(browser, address) as page:
        open_first(page)
        page.locator("#score").fill("0.5")
        with page.expect_download() as download:
            page.locator("#save-json").click()
        assert download.value.suggested_filename == "a-detections.json"
        values = json.loads(download.value.path().read_text())
        assert (values["file"], values["min_score"]) == ("a.jpg", 0.5)
        assert [one["name"] for one in values["detections"]] == ["cat", "dog"]
        keys = {"name", "category_id", "score", "box", "segmentation"}
        assert values["detections"][0].keys() == keys
        page.locator("#with-truth").uncheck()
        with page.expect_download() as download:
            page.locator("#save-png").click()
        assert download.value.suggested_filename == "a-boxes.png"
        drawn = np.asarray(Image.open(io.BytesIO(download.value.path().read_bytes())))[..., :3]
        assert drawn.shape == (96, 128, 3)
        for label, (x, y) in {0: (13, 30), 1: (51, 60)}.items():  # left sides of the boxes
            near = drawn[y, x - 2 : x + 3].astype(int)
            assert np.abs(near - colour_of(label)).sum(axis=1).min() < 30


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1600, "dark")])
def test_it_fits_and_follows_the_system(
    browser: Browser, address: str, width: int, scheme: str
) -> None:
    with Opened(browser, address, width=width, scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        open_first(page)
        page.locator("#list").evaluate("fold => { fold.open = true; }")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(float, paper[4:-1].split(",")))
        assert brightness < 150 if scheme == "dark" else brightness > 600
        rows = page.locator("#rows tr").all_inner_texts()
        assert rows[0].split() == ["cat", "0.88", "13", "10", "51", "×", "38"]


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1600, "dark")])
@pytest.mark.parametrize("state", ["empty", "found", "refused"])
def test_axe_finds_nothing(
    browser: Browser, address: str, width: int, scheme: str, state: str
) -> None:
    with Opened(browser, address, width=width, scheme=scheme) as page:
        if state == "found":
            open_first(page)
            page.locator("#list").evaluate("fold => { fold.open = true; }")
        elif state == "refused":
            drop(page, ("notes.txt", b"my notes"))
            expect(page.locator("#message")).to_be_visible()
        result = Axe().run(page).response
        assert len(result["passes"]) > 15
        violations = [
            (rule["id"], rule["impact"], [node["html"][:200] for node in rule["nodes"]][:5])
            for rule in result["violations"]
        ]
        assert violations == []


def test_the_keyboard_reaches_everything(browser: Browser, address: str) -> None:
    with Opened(browser, address) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the image"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "file"
        outline = page.locator(".button.main").evaluate("label => getComputedStyle(label).outline")
        assert "solid" in outline
        page.locator(".thumbnail").nth(1).focus()
        page.keyboard.press("Enter")
        expect(page.locator("#name")).to_have_text("b.png")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#name")).to_have_text("c.jpg")


def test_without_script_it_says_so(browser: Browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert "switched off" in page.locator("noscript").inner_text()
    context.close()
