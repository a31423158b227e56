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
        if self.root.is_dir() and not self._kept.settings.exists():
            self._kept.require_empty()
        with self._kept.owned():
            yield

    def require_same(self, settings: Mapping[str, Any]) -> None:
        """Keep what the sweep is of, or hold it against what was kept.

        Raises InputError where the folder is of another sweep.
        """
        now = json.loads(json.dumps(dict(settings)))
        if self._kept.settings.is_file():
            kept = self._kept.read()
            if "space" not in kept:
                raise self._kept.is_foreign()
            if changed := differences(kept, now):
                raise InputError(
                    f"{self.root} holds another sweep: {'; '.join(changed)}. Give the same options "
                    "to go on with it or to add trials, or another --out"
                )
        self._kept.write(now)
