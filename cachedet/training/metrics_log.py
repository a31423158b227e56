"""metrics.csv: one row per logged step, continued when a run is resumed."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from cachedet.errors import CheckpointError


class MetricsLog:
    """Appends rows with fixed columns; rows after the resumed step are dropped first.

    Args:
        path: of the file; one that lacks some of the columns gets them.
        columns: names, "step" and "epoch" among them.
        keep_until_step, keep_until_epoch: where the run goes on; a row of a validation counts the
            epochs that are done, so that one that will be made again is dropped.

    Raises CheckpointError where the file has columns that are not among these.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        *,
        keep_until_step: int = 0,
        keep_until_epoch: int = 0,
    ) -> None:
        self.path = path
        self.columns = tuple(columns)
        kept = [
            row
            for row in self._rows()
            if int(row["step"]) <= keep_until_step and int(row["epoch"]) <= keep_until_epoch
        ]
        self._file = path.open("w", encoding="utf-8", newline="", buffering=1)
        self._writer = csv.DictWriter(self._file, self.columns)
        self._writer.writeheader()
        self._writer.writerows(kept)
        self._file.flush()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, row: Mapping[str, float]) -> None:
        """Write one row; columns it lacks stay empty, unknown columns are a ValueError."""
        self._writer.writerow(row)

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        if not {"step", "epoch"} <= set(reader.fieldnames or ()) <= set(self.columns):
            raise CheckpointError(
                f"{self.path} has columns {reader.fieldnames}, expected {list(self.columns)}; "
                "move the file away to start a new one"
            )
        return rows
