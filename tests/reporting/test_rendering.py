"""The HTML itself; how a browser sees it is tests/e2e/test_report_page.py."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cachedet.reporting.image_sheet import make_sheet

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)> \"double\" & 'single'",
    "{{ 7 * 7 }} {% raw %} \u2028",
)


class Outline(HTMLParser):
    """Tags with their attributes, and the text of each script."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self._in_script = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        (self.scripts if self._in_script else self.texts).append(data)

    def of(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture(scope="module")
def hostile(kit: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    annotations = kit.annotations(names=HOSTILE)
    analyses = kit.analyse(annotations, run=kit.detections(annotations, seed=1, skill=0.8))
    images = kit.photographs(tmp_path_factory.mktemp("photographs"), annotations)
    sheet = make_sheet(annotations, analyses, images=images, most=3, on_done=lambda _: None)
    page: str = kit.page(analyses, names=['run <b>"x"</b>'], sheet=sheet)
    return page


def test_names_with_html_in_them_are_text(hostile: str) -> None:
    page = Outline(hostile)
    assert len(page.scripts) == 2  # the data and the page's own
    assert not [attributes for attributes in page.of("img") if attributes["src"] == "x"]
    assert not page.of("b")
    for name in HOSTILE:
        assert any(name in text for text in page.texts), name
    data = json.loads(page.scripts[0])
    assert data["sheet"]["classes"] == list(HOSTILE)
    assert "<" not in page.scripts[0]


def test_names_that_are_no_text_are_shown_escaped(kit: Any) -> None:
    names = ("a\x00\x1b[31m\nb", "caf\udce9", "c\u202ed")
    annotations = kit.annotations(names=names)
    page = kit.page(
        kit.analyse(annotations, run=kit.detections(annotations, seed=1, skill=0.8)),
        names=["run \udce9\x07"],
        sheet=None,
    )
    page.encode("utf-8")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", page)
    assert r"caf\xe9" in page
    outline = Outline(page)
    assert any(r"a\x00\x1b[31m" in text for text in outline.texts)
    curves = json.loads(outline.scripts[0])["curves"]
    assert r"caf\xe9" in [curve["name"] for curve in curves]


def test_the_policy_allows_its_own_script_and_nothing_else(hostile: str) -> None:
    page = Outline(hostile)
    policy = next(
        meta["content"] for meta in page.of("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )  # fmt: skip
    assert policy is not None
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_nothing_is_fetched(hostile: str) -> None:
    page = Outline(hostile)
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert not page.of("iframe", "object", "embed", "base")
    style = re.search(r"<style>(.*?)</style>", hostile, re.S)
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_headings_ids_and_headers_are_in_order(hostile: str) -> None:
    page = Outline(hostile)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {(link["href"] or "")[1:] for link in page.of("a")}
    assert targets <= set(ids)
    assert all(head.get("scope") in ("col", "row", "colgroup") for head in page.of("th"))
    assert all(image.get("alt") for image in page.of("img"))


def test_without_images_it_says_how_to_get_them(kit: Any, two_runs: Any) -> None:
    _, analyses = two_runs
    page = kit.page(analyses)
    assert "--images DIR" in page
    assert 'id="score"' not in page


def test_1203_classes_fit(kit: Any, tmp_path: Path) -> None:
    names = [f"class number {n} of the many" for n in range(1203)]
    annotations = kit.annotations(images=120, boxes=12, names=names)
    analyses = kit.analyse(
        annotations,
        training_boxes=dict.fromkeys(range(1, 1204), 1),
        resamples=2,
        run=kit.detections(annotations, seed=1, skill=0.5),
    )
    page = kit.page(analyses)
    assert len(page.encode()) < 2_000_000
    assert page.count('<th scope="row">class number') >= 1203
    assert 'class="frame long"' in page
    assert "the 30 pairs" in page
