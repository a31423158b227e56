"""What extraction of the training store took: cached cells pay for it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cachedet.errors import InputError
from cachedet.store.durable import encode_json, write_durably
from cachedet.store.layout import COMMITS


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Blocks whose writing was timed, and how long they took together."""

    seconds: float = 0.0
    blocks: int = 0
    is_open: bool = False  # a call is under way, or was cut off

    def plus(self, *, seconds: float, blocks: int) -> Timed:
        """Without blocks it was no writing, whatever it took."""
        if not blocks:
            return self
        return replace(self, seconds=self.seconds + seconds, blocks=self.blocks + blocks)


@dataclass(frozen=True, kw_only=True)
class ExtractionLog:
    """What writing a store took, all calls together.

    A call that was cut off, by a signal, an error or a kill, could not tell: the times of the
    commit records it left do, from its first block to its last.

    Attributes:
        path: of the file it is kept in.
        store: folder of the store.
    """

    path: Path
    store: Path

    def begin(self) -> None:
        """Just before a call of `extract`."""
        self._write(replace(self._settled(), is_open=True))

    def end(self, *, seconds: float, blocks: int) -> None:
        """Of the call that was begun: how many blocks it wrote, and in which time."""
        timed = self._read().plus(seconds=seconds, blocks=blocks)
        self._write(replace(timed, is_open=False))

    def seconds_of(self, blocks: int) -> float:
        """To write so many, at the pace of those that were timed; NaN where none was."""
        timed = self._read()
        return timed.seconds / timed.blocks * blocks if timed.blocks else math.nan

    def _settled(self) -> Timed:
        timed = self._read()
        if not timed.is_open:
            return timed
        begun = self.path.stat().st_mtime_ns  # by the clock that dates the records
        times = [at for at in self._commit_times() if at >= begun]
        if not times:
            return timed
        return timed.plus(seconds=(max(times) - min(times)) / 1e9, blocks=len(times) - 1)

    def _commit_times(self) -> list[int]:
        return [path.stat().st_mtime_ns for path in (self.store / COMMITS).glob("*.json")]

    def _write(self, timed: Timed) -> None:
        told = {"train": timed.seconds, "blocks": timed.blocks, "is_open": timed.is_open}
        write_durably(self.path, encode_json(told))

    def _read(self) -> Timed:
        """Nothing where there is no file. Raises InputError on a damaged one."""
        if not self.path.is_file():
            return Timed()
        try:
            values: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            return Timed(
                seconds=float(values["train"]),
                blocks=int(values.get("blocks", len(self._commit_times()))),
                is_open=bool(values.get("is_open", False)),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.path} is damaged ({error}): it should tell what extraction took; remove "
                "it, and that is not known"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What the cells may read.

    Attributes:
        views: that were asked for; the store may hold more.
        seconds: to write their features once; NaN where that is not known.
    """

    views: tuple[str, ...]
    seconds: float


def require_known(extracted: Extracted, *, store: Path) -> None:
    """Raises InputError where a budget cannot be charged with extraction."""
    if math.isnan(extracted.seconds):
        raise InputError(
            f"--budget has to pay for extraction, and how long {store} took is not known: it was "
            "not written by this comparison. Remove it and it is extracted anew, or move it to "
            "another --out and compare with --epochs"
        )
