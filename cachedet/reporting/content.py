"""What a report is made of before it becomes HTML or Markdown. All text is plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cachedet.reporting.charts import Chart
from cachedet.reporting.figures import Track

Tone = Literal["", "better", "worse", "faint"]
_FEW_COLUMNS = 2  # with their intervals, that two thirds of the page have room for


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table."""

    text: str
    note: str = ""  # a smaller second line
    tone: Tone = ""
    bar: float | None = None  # 0..1, drawn beside the text
    shade: float | None = None  # 0..1, behind the text
    is_name: bool = False  # flush left, and broken where it is long
    rank: float | None = None  # what the column is sorted by; None: always last

    @property
    def plain(self) -> str:
        """Both lines as one."""
        return f"{self.text} ({self.note})" if self.note else self.text


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a table; `name` is its header."""

    name: str
    cells: tuple[Cell, ...]
    note: str = ""  # a smaller second line under the name
    group: bool = False  # a line above a group of lines, without cells
    same: bool = False  # all cells say the same: the first stands for all


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose first column names the rows."""

    caption: str
    corner: str  # what the first column holds
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    sortable: bool = False
    numeric: bool = True  # False: texts, set flush left
    dense: bool = False  # many narrow columns

    @property
    def is_long(self) -> bool:
        """Whether it scrolls inside a frame of its own."""
        return self.sortable and len(self.rows) > 24


@dataclass(frozen=True, kw_only=True)
class Fold:
    """What is folded away until somebody opens it."""

    title: str
    table: Table | None = None
    text: str | None = None  # as a file has it, line by line
    is_open: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands under it."""

    key: str  # of the link to it
    title: str
    short: str  # title in the list of contents
    leads: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    folds: tuple[Fold, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_beside(self) -> bool:
        """Whether its words stand beside its tables on a wide screen: these have few figures."""
        tables = [*self.tables, *(fold.table for fold in self.folds if fold.table is not None)]
        is_narrow = (each.numeric and len(each.columns) <= _FEW_COLUMNS for each in tables)
        return bool(tables) and not self.charts and all(is_narrow)


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One run's figure above everything else."""

    run: str
    value: str
    interval: str
    interval_name: str = "95 % interval"
    verdict: str  # against the first run; empty for itself
    tone: Tone = ""
    track: Track | None = None  # on a scale of 0..1


@dataclass(frozen=True, kw_only=True)
class Report:
    """The whole page but for the images."""

    title: str
    standfirst: str
    headlines: tuple[Headline, ...]
    sections: tuple[Section, ...]  # before the images
    last: tuple[Section, ...] = ()  # after them
    version: str
    written: str  # date
    kind: str = "report"
    has_images: bool = True  # whether the page has a place for them, be it empty


def facts_section(facts: Sequence[tuple[str, str]], *, caption: str, column: str) -> Section:
    """Names and what they are, under "Conditions"."""
    table = Table(
        caption=caption,
        corner="Fact",
        columns=(column,),
        rows=tuple(Row(name=name, cells=(Cell(text=text),)) for name, text in facts),
        numeric=False,
    )
    return Section(
        key="conditions",
        title="Conditions",
        short="Conditions",
        leads=() if facts else ("None were recorded.",),
        tables=(table,) if facts else (),
    )
