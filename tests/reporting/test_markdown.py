"""The Markdown beside the page."""

from __future__ import annotations

from typing import Any

import pytest

from cachedet.reporting.content import Fold, Report, Section
from cachedet.reporting.rendering import render_markdown
from cachedet.text import escape_markdown

HOSTILE = '<script>alert("x")</script> | `a` *b* [c](d) &lt;'


def test_what_came_from_outside_stays_text() -> None:
    escaped = escape_markdown(HOSTILE)
    for special in "<>|`*[]&":
        assert escaped.count("\\" + special) == HOSTILE.count(special)
    assert escape_markdown("a\x1b[31m\udce9") == r"a\\x1b\[31m\\xe9"
    assert escape_markdown("two\nlines | # no heading") == r"two lines \| \# no heading"


def test_tables_have_as_many_cells_in_every_line(kit: Any, two_runs: Any) -> None:
    _, analyses = two_runs
    text = render_markdown(kit.report(analyses, names=["a|b", "c"]))
    assert "## How good it is" in text
    assert "## Class by class" in text
    lines = [line.replace(r"\|", "") for line in text.splitlines()]
    tables, width = 0, 0
    for before, line in zip(["", *lines], lines, strict=False):
        if not line.startswith("|"):
            continue
        if not before.startswith("|"):
            tables, width = tables + 1, line.count("|")
        assert line.count("|") == width, line
    assert tables >= 6


@pytest.mark.parametrize("text", ["a: 1\n", "a: ```\nb: ````\n"])
def test_a_file_stands_in_a_fence_longer_than_its_own(text: str) -> None:
    section = Section(key="k", title="t", short="s", folds=(Fold(title="config.yaml", text=text),))
    report = Report(
        title="r", standfirst="s", headlines=(), sections=(section,), version="1", written="today"
    )
    markdown = render_markdown(report)
    fence = "`" * (3 if "`" not in text else 5)
    assert f"\n{fence}yaml\n{text.rstrip()}\n{fence}\n" in markdown
