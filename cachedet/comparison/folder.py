"""The folder of a comparison: what it is of, who works in it, and what its features took.

Beside the parts that `ComparisonFolder` names, features/ holds the two stores and seconds.json, the
log of their extraction: a cell on cached features is charged with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachedet.comparison.results import RESULT, CellKey, CellResult
from cachedet.config.run import ExtractConfig
from cachedet.errors import InputError
from cachedet.series.settings_folder import SettingsFolder, differences
from cachedet.store.files.durable import encode_json, write_durably
from cachedet.store.files.inside import remove_inside
from cachedet.store.files.leases import COMMIT_LOCK
from cachedet.store.files.locations import shown
from cachedet.store.files.names import COMMITS, LEASES, MANIFEST
from cachedet.store.files.places import find_obstacle

_FILES = ("images", "annotations")  # settings that name files: these may be moved


class ComparisonFolder:
    """settings.json, features/, cells/, failed/, comparison.json, .md and .html."""

    def __init__(self, root: Path) -> None:
        features = root / "features"
        self.root = root
        self.train = features / "train.zarr"
        self.val = features / "val.zarr"
        self.extraction = ExtractionLog(path=features / "seconds.json", store=self.train)
        self.page = root / "comparison.html"
        self._kept = SettingsFolder(
            root=root, of="comparison", works="compares", may_hold="features"
        )
        self._settings = self._kept.settings

    def owns(self, part: ExtractConfig) -> bool:
        """Whether its store is one of the two here; any other one is only read."""
        return part.store in (self.train, self.val)

    def cell(self, key: CellKey) -> Path:
        return self.root / "cells" / key.folder

    def result_of(self, key: CellKey) -> CellResult | None:
        """Result of a cell; None where it is to be trained: new, begun, or failed before."""
        path = self.cell(key) / RESULT
        result = CellResult.read(path) if path.is_file() else None
        return None if result is None or result.has_failed else result

    def results(self) -> tuple[CellResult, ...]:
        """All cells that ended, failed ones among them. Raises InputError on a damaged one."""
        results = (CellResult.read(path) for path in self.root.glob(f"cells/*/{RESULT}"))
        return tuple(sorted(results, key=lambda cell: cell.key))

    @contextmanager
    def owned(self) -> Iterator[None]:
        """One comparison at a time. Raises InputError while another process works here."""
        with self._kept.owned():
            yield

    @contextmanager
    def undone_if_refused(self) -> Iterator[None]:
        """An error before the first feature of a new comparison leaves the folder as it was.

        To be entered before `owned`. Raises InputError where the folder holds other things, or
        nothing can be written.
        """
        obstacle = find_obstacle(self.root)
        if obstacle is not None:
            raise InputError(
                f"cannot make the folder {self.root}: {obstacle.filename}: {obstacle.strerror}; "
                "choose another --out"
            )
        is_new = not self._settings.exists()
        if not is_new:
            self._read_settings()
        elif self.root.exists():
            self._kept.require_empty()
        above = [path for path in (self.root, *self.root.parents) if not path.exists()]
        had_features = (self.root / "features").exists()
        try:
            yield
        except BaseException:
            begun = (self.train / MANIFEST, self.val / MANIFEST, self.root / "cells")
            if is_new and not any(path.exists() for path in begun):
                self._remove_begun(above, had_features=had_features)
            raise

    def _remove_begun(self, above: Sequence[Path], *, had_features: bool) -> None:
        """Remove what a comparison begins with, and the folders that were made for it."""
        features = self.root / "features"
        for path in (self._settings, self.extraction.path, features / COMMIT_LOCK):
            remove_inside(self.root, path)
        made = [] if had_features else [features / LEASES, features]
        for folder in (*made, *above):
            with suppress(OSError):  # something is left in it
                folder.rmdir()

    def require_same(self, settings: Mapping[str, Any]) -> None:
        """Keep what the comparison is of, or hold it against what was kept.

        `settings` are plain values, `heads` among them by name: new ones are added, and those of
        which every cell failed may be changed; these cells are then set aside.

        Raises InputError where the folder is of another comparison.
        """
        now = json.loads(json.dumps(dict(settings)))
        if not self._settings.is_file():
            self._kept.require_empty()
        else:
            kept = self._read_settings()
            common = kept["heads"].keys() & now["heads"].keys()
            changed = _differences(kept, now, heads=common & self._settled_heads())
            if changed:
                raise InputError(
                    f"{self.root} holds another comparison: {'; '.join(changed)}. Give the same "
                    "options to go on with it, a changed config another name, or another --out"
                )
            self._set_aside({name for name in common if kept["heads"][name] != now["heads"][name]})
            now["heads"] = {**kept["heads"], **now["heads"]}
        self._kept.write(now)

    def _settled_heads(self) -> set[str]:
        """Configs with a cell that is done or under way. Raises InputError on a damaged result."""
        return {
            CellKey.heads_in(cell.name)
            for cell in self.root.glob("cells/*")
            if not (cell / RESULT).is_file() or not CellResult.read(cell / RESULT).has_failed
        }

    def _set_aside(self, heads: set[str]) -> None:
        """Move their cells, which failed with another config: nothing goes on from them."""
        failed = self.root / "failed"
        for cell in sorted(self.root.glob("cells/*")):
            if CellKey.heads_in(cell.name) in heads:
                failed.mkdir(exist_ok=True)
                cell.rename(failed / f"{len(list(failed.iterdir()))}-{cell.name}")

    def _read_settings(self) -> dict[str, Any]:
        settings = self._kept.read()
        parts = [settings.get("heads"), settings.get("train"), settings.get("val", {})]
        if not all(map(_is_map, parts)) or not all(map(_is_map, parts[0].values())):
            raise self._kept.is_foreign()
        return settings


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _differences(
    kept: Mapping[str, Any], now: Mapping[str, Any], *, heads: Collection[str]
) -> list[str]:
    """Say what differs, of the heads only in these, which are in both."""
    old, new = (
        {**_without_files(one), "heads": {name: one["heads"][name] for name in heads}}
        for one in (kept, now)
    )
    return differences(old, new)


def _without_files(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The stores hold digests of what is in the files, which `extract` compares."""
    stripped = dict(settings)
    for part in ("train", "val"):
        values = {k: v for k, v in stripped.get(part, {}).items() if k not in _FILES}
        if values.get("weights", "auto") not in ("auto", "none"):
            values["weights"] = "a file"
        stripped[part] = values
    return stripped


@dataclass(frozen=True, kw_only=True)
class ExtractionLog:
    """What writing a store took, all calls together.

    A call that was cut off, by a signal, an error or a kill, could not tell: the times of the
    commit records it left do, from its first block to its last.
    """

    path: Path  # of the log
    store: Path

    def begin(self) -> None:
        """Just before a call of `extract`."""
        seconds, blocks, is_open = self._read()
        if is_open:
            begun = self.path.stat().st_mtime_ns  # by the clock that dates the records
            records = (path.stat().st_mtime_ns for path in (self.store / COMMITS).glob("*.json"))
            times = sorted(at for at in records if at >= begun)
            if len(times) > 1:
                seconds += (times[-1] - times[0]) / 1e9
                blocks += len(times) - 1
        self._write(seconds, blocks, is_open=True)

    def end(self, *, seconds: float, blocks: int) -> None:
        """Just after it; without blocks it was no writing, whatever it took."""
        before, written, _ = self._read()
        self._write(before + (seconds if blocks else 0.0), written + blocks, is_open=False)

    def seconds_of(self, blocks: int) -> float:
        """Seconds to write so many at the pace of those that were timed; NaN where none was."""
        seconds, written, _ = self._read()
        return seconds / written * blocks if written else math.nan

    def _write(self, seconds: float, blocks: int, *, is_open: bool) -> None:
        values = {"train": seconds, "blocks": blocks, "is_open": is_open}
        write_durably(self.path, encode_json(values))

    def _read(self) -> tuple[float, int, bool]:
        """Seconds, the blocks written in them, and whether a call is under way or was cut off.

        Raises InputError on a damaged file.
        """
        if not self.path.is_file():
            return 0.0, 0, False
        try:
            values: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            return float(values["train"]), int(values["blocks"]), bool(values["is_open"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.path} is damaged ({error}): it should tell what extraction took; remove "
                "it, and that is not known"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What the cells may read, and what it took."""

    views: tuple[str, ...]  # that were asked for; the store may hold more
    seconds: float  # to write their features once; NaN where that is not known


def require_known(extracted: Extracted, *, store: Path | str, is_own: bool) -> None:
    """Raises InputError where a budget cannot be charged with extraction."""
    if math.isnan(extracted.seconds):
        instead = (
            "Remove it and it is extracted anew, or move it to another --out and compare with "
            "--epochs"
            if is_own
            else "Compare with --epochs, or leave --train-store out"
        )
        raise InputError(
            f"--budget has to pay for extraction, and how long {shown(store)} took is not known: "
            f"it was not written by this comparison. {instead}"
        )
