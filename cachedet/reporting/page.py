"""The report as one HTML file that needs nothing else: style, script, pictures and data inside.

Text from outside is escaped by Jinja2. A content security policy allows the page's own script, by
its digest, and nothing from anywhere: also where escaping failed, no foreign script would run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from cachedet.reporting.charts import DASHES
from cachedet.reporting.curve_sections import PRECISION_CHART, ClassPaths
from cachedet.reporting.layout import Report
from cachedet.reporting.pictures import Sheet


def render_page(report: Report, *, curves: Sequence[ClassPaths], sheet: Sheet | None) -> str:
    """HTML of the whole page.

    Args:
        report: everything but pictures.
        curves: the choices of the chart of precision against recall.
        sheet: the pictures; None where no folder of pictures was given.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = _read("page.js"), _read("page.css")
    data: dict[str, Any] = {
        "chart": PRECISION_CHART,
        "curves": [own.to_json() for own in curves],
        "sheet": None if sheet is None else sheet.to_json(),
    }
    return environment.get_template("page.html").render(
        report=report,
        curves=curves,
        chart_with_choice=PRECISION_CHART,
        sheet=sheet,
        data=data,
        dashes=DASHES,
        script=Markup(script),
        script_digest=_digest(script),
        style=Markup(style),
    )


def _read(name: str) -> str:
    return files("cachedet.reporting").joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
