"""metrics.csv: rows that are appended while a run trains, and read back whatever a crash left."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cachedet.errors import CheckpointError
from cachedet.store.files.durable import write_durably
from cachedet.training.run_folder import cannot_write
from cachedet.training.run_log import open_no_link

_POSITION = ("step", "epoch")  # columns of every metrics.csv, whole numbers


@dataclass(frozen=True, kw_only=True)
class MetricsTable:
    """What can be read of a metrics.csv, and what cannot."""

    columns: tuple[str, ...]  # none where the first line is no header
    rows: list[dict[str, str]]
    damaged: list[bytes]  # lines that are no rows


def read_table(path: Path) -> MetricsTable:
    """Every whole row; a missing file has none. Raises CheckpointError where it cannot be read."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path}: {error.strerror or error}; the run needs nothing of it: move it "
            "away and run the same command again"
        ) from error
    *lines, cut_off = content.split(b"\n")
    columns = tuple(_cells(lines[0])) if lines else ()
    if not set(_POSITION) <= set(columns) or len(set(columns)) < len(columns):
        return MetricsTable(columns=(), rows=[], damaged=[content] if content else [])
    rows, damaged = [], []
    for line in lines[1:]:
        row = _row(line, columns)
        if row is None:
            damaged.append(line)
        else:
            rows.append(row)
    return MetricsTable(
        columns=columns, rows=rows, damaged=[*damaged, cut_off] if cut_off else damaged
    )


def repair(
    path: Path, *, until_step: int, until_epoch: int, columns: Sequence[str] | None = None
) -> str:
    """Keep the rows up to there, under these columns where they are known.

    What is damaged, or has other columns, is added to metrics.csv.damaged.

    Returns a note on that; empty where nothing was. Raises CheckpointError on a place that cannot
    be read or written.
    """
    table = read_table(path)
    damaged, reason = table.damaged, "lines of it are damaged"
    rows = [
        row
        for row in table.rows
        if int(row["step"]) <= until_step and int(row["epoch"]) <= until_epoch
    ]
    if columns is not None and table.columns != tuple(columns):
        if table.columns:
            damaged, rows = [path.read_bytes()], []
            reason = f"it has columns {', '.join(table.columns)}, not {', '.join(columns)}"
        header = tuple(columns)
    else:
        header = table.columns
    aside = path.with_name(f"{path.name}.damaged")
    try:
        if damaged:
            with open_no_link(aside) as file:
                file.write(b"\n".join(damaged) + b"\n")
        if damaged or rows != table.rows or header != table.columns:
            write_durably(path, _text(header, rows).encode() if header else b"")
    except OSError as error:
        raise cannot_write(path, error) from error
    return f"{path}: {reason}; set aside as {aside.name}" if damaged else ""


class MetricsLog:
    """Appends rows with fixed columns; rows after the resumed step are dropped first.

    A row of a validation counts the epochs that are done, so that one that will be made again is
    dropped. `note` says what was set aside. Raises CheckpointError.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],  # "step" and "epoch" among them
        *,
        keep_until_step: int = 0,
        keep_until_epoch: int = 0,
    ) -> None:
        self.path = path
        self.columns = tuple(columns)
        self.note = repair(
            path, until_step=keep_until_step, until_epoch=keep_until_epoch, columns=columns
        )
        try:
            self._file = io.TextIOWrapper(
                open_no_link(path), encoding="utf-8", newline="", line_buffering=True
            )
        except OSError as error:
            raise cannot_write(path, error) from error
        self._writer = csv.DictWriter(self._file, self.columns)

    def close(self) -> None:
        self._file.close()

    def append(self, row: Mapping[str, float]) -> None:
        """Write one row; columns it lacks stay empty, unknown columns are a ValueError."""
        try:
            self._writer.writerow(row)
        except OSError as error:
            raise cannot_write(self.path, error) from error


def _text(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(line: bytes, columns: Sequence[str]) -> dict[str, str] | None:
    """None: it is no row of these columns."""
    cells = _cells(line)
    if len(cells) != len(columns):
        return None
    row = dict(zip(columns, cells, strict=True))
    is_whole = all(row[name].isascii() and row[name].isdigit() for name in _POSITION)
    is_whole = is_whole and all(len(row[name]) < 19 for name in _POSITION)
    return row if is_whole and all(map(_is_number, cells)) else None


def _cells(line: bytes) -> list[str]:
    """None where it is no line of CSV in UTF-8."""
    try:
        lines = list(csv.reader([line.decode("utf-8").rstrip("\r")], strict=True))
    except (UnicodeDecodeError, csv.Error):
        return []
    return lines[0] if len(lines) == 1 and b"\0" not in line else []


def _is_number(cell: str) -> bool:
    """Or empty: a column that the row has not."""
    try:
        float(cell or 0)
    except ValueError:
        return False
    return True
