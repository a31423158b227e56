"""The folder of a sweep: settings.json, study.journal, trials/, final/, sweep.json, sweep.html."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cachedet.errors import InputError
from cachedet.series.settings_folder import SettingsFolder, differences
from cachedet.training.run_folder import RunFolder

_STORES = {
    "train": "--train is another store than at its beginning",
    "train_labels": "the annotations in --train are others",
    "val": "--val is another store than at its beginning",
    "val_labels": "the annotations in --val are others",
}


class SweepFolder:
    """Where each file of a sweep lies."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.journal = root / "study.journal"
        self.results = root / "sweep.json"
        self._kept = SettingsFolder(root=root, of="sweep", works="sweeps", may_hold="trials")

    def trial(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.root / "trials" / f"{number:04d}"

    def final(self, name: str, seed: int) -> RunFolder:
        """That of a final training, of "default" or of the trial of this number."""
        return RunFolder(self.root / "final" / f"{name}-{seed}")

    @contextmanager
    def owned(self) -> Iterator[None]:
        """One sweep at a time. Raises InputError while another process works here."""
        if self._kept.settings.is_file():
            self._read()
        elif self.root.is_dir():
            self._kept.require_empty()
        with self._kept.owned():
            yield

    def require_same(self, settings: Mapping[str, Any]) -> None:
        """Keep what the sweep is of, or hold it against what was kept.

        Raises InputError where the folder is of another sweep.
        """
        now = json.loads(json.dumps(dict(settings)))
        changed = _changes(self._read(), now) if self._kept.settings.is_file() else []
        if changed:
            raise InputError(
                f"{self.root} holds another sweep: {'; '.join(changed)}. Give the same options to "
                "go on with it or to add trials, or another --out"
            )
        self._kept.write(now)

    def _read(self) -> dict[str, Any]:
        kept = self._kept.read()
        heads = kept.get("heads")
        parts = [heads, *heads.values()] if isinstance(heads, dict) else [heads]
        if "space" not in kept or not all(isinstance(part, dict) for part in parts):
            raise self._kept.is_foreign()
        return kept


def _changes(kept: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, by the options that a person gives."""
    stores = [words for key, words in _STORES.items() if kept.get(key) != now[key]]
    old, new = ({**one, **dict.fromkeys(_STORES)} for one in (kept, now))
    names = [", ".join(one["heads"]) for one in (old, new)]
    if names[0] != names[1]:
        return [*stores, f"its configs were {names[0]}, are {names[1]}"]
    if old.get("seed") != new["seed"]:  # the configs' is the sweep's
        for one in (old, new):
            one["heads"] = {name: {**each, "seed": None} for name, each in one["heads"].items()}
    return [*stores, *differences(old, new)]
