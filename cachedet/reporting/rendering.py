"""A report as one HTML file that needs nothing else, and as GitHub's kind of Markdown.

The HTML holds style, script, images and data. Text from outside is escaped by Jinja2, and a content
security policy allows the page's own script, by its digest, and nothing from anywhere: also where
escaping failed, no foreign script would run. The Markdown escapes such text itself.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from cachedet.outputs import MARKDOWN_COMMENT
from cachedet.reporting.content import Report, Row, Section, Table
from cachedet.reporting.curve_sections import PRECISION_CHART, ClassPaths
from cachedet.reporting.image_sheet import Sheet
from cachedet.text import escape_markdown, printable


def render_page(report: Report, *, curves: Sequence[ClassPaths], sheet: Sheet | None) -> str:
    """HTML of the whole page.

    `curves` are the choices of the chart of precision against recall; `sheet` is None where no
    folder of images was given.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = _read("page.js"), _read("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    data: dict[str, Any] = {
        "chart": PRECISION_CHART,
        "curves": [vars(paths) | {"name": _visible(paths.name)} for paths in curves],
        "sheet": None if sheet is None else _sheet_data(sheet),
    }
    return environment.get_template("page.html").render(
        report=report,
        curves=curves,
        chart_with_choice=PRECISION_CHART,
        sheet=sheet,
        data=data,
        script=Markup(script),
        script_digest=digest,
        style=Markup(style),
    )


def _sheet_data(sheet: Sheet) -> dict[str, Any]:
    return sheet.to_json() | {"classes": [_visible(name) for name in sheet.class_names]}


def render_markdown(report: Report) -> str:
    """The tables and sentences of a page; everything that came from outside is escaped."""
    title = f"{MARKDOWN_COMMENT.decode()}\n\n# {escape_markdown(report.title)}"
    parts = [title, escape_markdown(report.standfirst)]
    for section in (*report.sections, *report.last):
        parts += _section(section)
    parts.append(f"Written {report.written} by cachedet {escape_markdown(report.version)}.")
    return "\n\n".join(parts) + "\n"


def _visible(value: object) -> object:
    """What a template puts into the page: names as they are shown, the page's own code as it is."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return printable(value, keep="\n\u2028\u2029")  # these break nothing in HTML


def _read(name: str) -> str:
    return files("cachedet.reporting").joinpath(name).read_text(encoding="utf-8")


def _section(section: Section) -> list[str]:
    parts = [f"## {escape_markdown(section.title)}"]
    if section.charts and not (section.leads or section.tables or section.folds):
        return []  # the page draws it
    parts += [escape_markdown(lead) for lead in section.leads]
    parts += [_table(table) for table in section.tables]
    for fold in section.folds:
        parts.append(f"### {escape_markdown(fold.title)}")
        if fold.table is not None:
            parts.append(_table(fold.table))
        if fold.text is not None:
            parts.append(_block(fold.text))
    return parts + [escape_markdown(note) for note in section.notes]


def _table(table: Table) -> str:
    align = "--:" if table.numeric else ":--"
    lines = [
        _line([table.corner, *table.columns]),
        "|" + "|".join([":--", *(align for _ in table.columns)]) + "|",
        *(_line(_texts(row, table)) for row in table.rows),
    ]
    return escape_markdown(table.caption) + "\n\n" + "\n".join(lines)


def _texts(row: Row, table: Table) -> list[str]:
    if row.group:
        return [row.name, *("" for _ in table.columns)]
    name = f"{row.name} ({row.note})" if row.note else row.name
    return [name, *(cell.plain for cell in row.cells)]


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(map(escape_markdown, texts)) + " |"


def _block(text: str) -> str:
    """A fence longer than any in the text."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{printable(text.rstrip(), keep=chr(10))}\n{fence}"
