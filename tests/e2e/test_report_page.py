"""The report as a browser shows it: Debian's chromium, driven by Playwright, checked by axe-core.

Skipped only where no chromium is installed. Nothing is fetched: every request to the network fails
the test that made it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from cachedet.config.run import EvalConfig, TrainConfig
from cachedet.evaluate import evaluate
from cachedet.extract import extract
from cachedet.report import report
from cachedet.train import train

HOSTILE = "</script><script>document.title='taken'</script>"
QUOTED = "<img src=x onerror=\"document.title='taken'\"> & 'single'"
LONG = "pneumonoultramicroscopicsilicovolcanoconiosis" * 4
RUNS = ("run <b>0", "a_name_without_spaces_" * 5)
TITLE = f"{RUNS[0]} against {RUNS[1]}"
_CONFIG = yaml.safe_load("""
    detector:
      {kind: retinanet, neck: {kind: fpn, channels: 16}, num_convs: 1,
       postprocess: {score_threshold: 0.005}}
    schedule: {epochs: 4, batch_size: 3, optimizer: adamw, lr: 0.003, kind: cosine, warmup_steps: 2}
    device: cpu
""")


@pytest.fixture(scope="module")
def page_file(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on classes whose names hold HTML, with images."""
    root = tmp_path_factory.mktemp("report")
    stores = {}
    for split, source in (("train", tiny.paths.train), ("val", tiny.paths.val)):
        content = json.loads(source.read_text())
        content["categories"][0]["name"] = HOSTILE
        content["categories"][1]["name"] = QUOTED
        content["categories"][2]["name"] = LONG
        annotations = root / f"{split}.json"
        annotations.write_text(json.dumps(content))
        stores[split] = root / f"{split}.zarr"
        extract(tiny.extract_config(stores[split], annotations=annotations, views="base"))
    runs = []
    for seed, name in enumerate(RUNS):
        runs.append(root / name)
        config = TrainConfig.model_validate({**_CONFIG, "seed": seed})
        train(config, train_store=stores["train"], val_store=stores["val"], run=runs[-1])
        evaluate(runs[-1], store=stores["val"], config=EvalConfig(weights="last"))
    return report(runs, images=tiny.paths.images, out=root / "r.html", resamples=20).html


class Opened:
    """A page with what it complained of and what it asked the network for."""

    def __init__(self, browser: Browser, file: Path, *, width: int, scheme: Any = "light") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page: Page = self.context.new_page()
        self.page.on("console", lambda line: self.complaints.append(f"{line.type}: {line.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.route("http://**", lambda route: route.abort())
        self.page.route("https://**", lambda route: route.abort())
        self.page.goto(file.as_uri())

    def __enter__(self) -> Page:
        return self.page

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.context.close()
        if kind is None:
            assert self.complaints == []
            fetched = [url for url in self.requests if not url.startswith(("file:", "data:"))]
            assert fetched == []


def drawn(page: Page, kind: str) -> int:
    return page.locator(f".sheet rect.{kind}").count()


def detections(page: Page) -> int:
    return drawn(page, "right") + drawn(page, "wrong")


def set_score(page: Page, value: float) -> None:
    page.locator("#score").fill(str(value))


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1600, "dark")])
def test_it_opens_without_errors_or_overflow(
    browser: Browser, page_file: Path, width: int, scheme: str
) -> None:
    with Opened(browser, page_file, width=width, scheme=scheme) as page:
        for line in page.locator(".legend path").all():
            assert line.evaluate("line => getComputedStyle(line).stroke") != "none"
        for fold in page.locator("details").all():
            fold.evaluate("fold => { fold.open = true; }")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("h1").inner_text() == TITLE
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(float, paper[4:-1].split(",")))
        assert brightness < 150 if scheme == "dark" else brightness > 600


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1600, "dark")])
def test_axe_finds_nothing_serious(
    browser: Browser, page_file: Path, width: int, scheme: str
) -> None:
    with Opened(browser, page_file, width=width, scheme=scheme) as page:
        for fold in page.locator("details").all():
            fold.evaluate("fold => { fold.open = true; }")
        page.locator("#names").check()
        result = Axe().run(page).response
        assert result["testEngine"]["name"] == "axe-core"
        assert len(result["passes"]) > 15
        violations = [
            (rule["id"], rule["impact"], [node["html"][:200] for node in rule["nodes"]][:5])
            for rule in result["violations"]
        ]
        assert violations == []


def test_the_switch_overrides_the_system(browser: Browser, page_file: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    with Opened(browser, page_file, width=1600, scheme="light") as page:
        light = page.evaluate(paper)
        page.get_by_label("Theme").select_option("dark")
        dark = page.evaluate(paper)
        assert dark != light
        page.reload()
        assert page.evaluate(paper) == dark  # remembered
        page.get_by_label("Theme").select_option("auto")
        assert page.evaluate(paper) == light


def test_names_with_html_in_them_are_text(browser: Browser, page_file: Path) -> None:
    with Opened(browser, page_file, width=1600) as page:
        assert page.title() == f"{TITLE} · cachedet report"
        assert page.locator("img[src=x]").count() == 0
        for name in (HOSTILE, QUOTED):
            assert page.locator("#classes th", has_text=name).count() == 1
            assert name in page.locator("#class").inner_text()
        set_score(page, 0)
        page.locator("#names").check()
        titles = page.locator(".sheet rect title").all_text_contents()
        assert any(HOSTILE in title for title in titles)
        assert page.title().startswith("run")


def test_slider_and_filters_change_what_is_drawn(browser: Browser, page_file: Path) -> None:
    data = json.loads(page_file.with_suffix(".json").read_text())
    with Opened(browser, page_file, width=1600) as page:
        set_score(page, 0)
        everything, boxes = detections(page), drawn(page, "ground-truth")
        assert boxes == sum(score["num_boxes"] for score in data["runs"][0]["per_class"])
        assert everything > boxes
        scores = page.evaluate(
            "JSON.parse(document.getElementById('data').textContent)"
            ".sheet.images.flatMap(image => image.runs[0].map(detection => detection[4]))"
        )
        end = float(page.locator("#score").get_attribute("max") or 0)
        step = float(page.locator("#score").get_attribute("step") or 0)
        assert max(scores) < end  # the slider can hide them all
        cuts = [round(n * step, 4) for n in range(round(end / step))]
        cut = next(cut for cut in cuts if 0 < sum(score >= cut for score in scores) < everything)
        set_score(page, cut)
        assert 0 < detections(page) == sum(score >= cut for score in scores) < everything
        assert float(page.locator("#score-shown").inner_text()) == pytest.approx(cut, abs=0.005)
        page.locator("#class").select_option("0")
        of_class = next(c for c in data["runs"][0]["per_class"] if c["name"] == HOSTILE)
        assert drawn(page, "ground-truth") == of_class["num_boxes"]
        page.locator("#class").select_option("-1")
        set_score(page, end)
        assert detections(page) == 0
        assert drawn(page, "ground-truth.missed") == boxes
        assert f"0 of {boxes} boxes found" in page.locator("#sheet-summary").inner_text()
        page.locator("#run").select_option("1")
        assert float(page.locator("#score").input_value()) == pytest.approx(
            data["runs"][1]["curves"]["best"]["score"], abs=0.011
        )
        page.locator("#group").select_option("best")
        assert page.locator(".group[data-group=worst]").is_hidden()


def test_the_keyboard_reaches_everything(browser: Browser, page_file: Path) -> None:
    with Opened(browser, page_file, width=390) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the result"
        page.locator("#score").focus()
        before = page.locator("#score").input_value()
        page.keyboard.press("ArrowRight")
        assert float(page.locator("#score").input_value()) == pytest.approx(
            float(before) + float(page.locator("#score").get_attribute("step") or 0)
        )
        image = page.locator("button.image").first
        image.focus()
        page.keyboard.press("Enter")
        assert page.locator("dialog").is_visible()
        assert page.locator("dialog img").count() == 1
        page.keyboard.press("Escape")
        assert page.locator("dialog").is_hidden()
        assert image.evaluate("button => document.activeElement === button")


def test_tables_sort_and_curves_change(browser: Browser, page_file: Path) -> None:
    with Opened(browser, page_file, width=1600) as page:
        head = page.locator("#classes thead th").nth(1)
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        counts = page.locator("#classes tbody td:nth-child(2) .value").all_inner_texts()
        assert [int(text) for text in counts] == sorted(map(int, counts), reverse=True)
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        line = page.locator("#chart-precision-recall path[data-line='0']")
        mean = line.get_attribute("d")
        page.get_by_label("Curve of").select_option("1")
        assert line.get_attribute("d") != mean
        page.get_by_label("Curve of").select_option("0")
        assert line.get_attribute("d") == mean


def test_without_script_everything_but_boxes_stands(browser: Browser, page_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 390, "height": 900})
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert page.locator("#classes tbody tr").count() == 10
    assert page.locator(".sheet img").count() == 4
    assert "switched off" in page.locator("noscript").first.inner_text()
    context.close()
