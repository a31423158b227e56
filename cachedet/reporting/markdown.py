"""The same report as Markdown: tables and sentences, without curves and pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cachedet.reporting.layout import Report, Row, Section, Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&!])")


def render_markdown(report: Report) -> str:
    """GitHub's kind of Markdown; everything that came from outside is escaped."""
    parts = [f"# {escape(report.title)}", escape(report.standfirst)]
    for section in (*report.sections, *report.last):
        parts += _section(section)
    parts.append(f"Written {report.written} by cachedet {escape(report.version)}.")
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Plain text that Markdown and the HTML in it show as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _section(section: Section) -> list[str]:
    parts = [f"## {escape(section.title)}"]
    parts += [escape(lead) for lead in section.leads]
    parts += [_table(table) for table in section.tables]
    for fold in section.folds:
        parts.append(f"### {escape(fold.title)}")
        if fold.table is not None:
            parts.append(_table(fold.table))
        if fold.text is not None:
            parts.append(_block(fold.text))
    return parts + [escape(note) for note in section.notes]


def _table(table: Table) -> str:
    align = "--:" if table.numeric else ":--"
    lines = [
        _line([table.corner, *table.columns]),
        "|" + "|".join([":--", *(align for _ in table.columns)]) + "|",
        *(_line(_texts(row, table)) for row in table.rows),
    ]
    return escape(table.caption) + "\n\n" + "\n".join(lines)


def _texts(row: Row, table: Table) -> list[str]:
    if row.group:
        return [row.name, *("" for _ in table.columns)]
    name = f"{row.name} ({row.note})" if row.note else row.name
    return [name, *(cell.plain for cell in row.cells)]


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(map(escape, texts)) + " |"


def _block(text: str) -> str:
    """A fence longer than any in the text."""
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text.rstrip()}\n{fence}"
