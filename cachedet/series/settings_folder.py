"""The folder of many trainings: what they share, kept in a file, and who works there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachedet.errors import InputError
from cachedet.outputs import owner_of
from cachedet.store.files.durable import TEMPORARY_SUFFIX, encode_json, write_durably
from cachedet.store.files.folder_lock import sole_owner
from cachedet.training.same_run import first_named, flatten


@dataclass(frozen=True, kw_only=True)
class SettingsFolder:
    """settings.json and a lock in a folder."""

    root: Path
    of: str  # what it is the folder of, such as "comparison"
    works: str  # what is done there, such as "compares"
    may_hold: str  # a folder that may be there before

    @property
    def settings(self) -> Path:
        return self.root / "settings.json"

    @property
    def lock(self) -> Path:
        return self.root / f"{self.works.rstrip('s')}.lock"

    @contextmanager
    def owned(self) -> Iterator[None]:
        """One process at a time. Raises InputError while another one works here."""
        try:
            (self.root / self.may_hold).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make the folder {self.root}: {error.strerror}; choose another --out"
            ) from error
        with sole_owner(self.lock, works=self.works, instead="choose another --out"):
            yield

    def read(self) -> dict[str, Any]:
        """The settings that were kept. Raises InputError where they are not an object."""
        try:
            kept = json.loads(self.settings.read_text(encoding="utf-8"))
        except (OSError, RecursionError, ValueError) as error:
            raise InputError(
                f"{self.settings} is damaged ({error}); choose another --out"
            ) from error
        if not isinstance(kept, dict):
            raise self.is_foreign()
        return kept

    def is_foreign(self) -> InputError:
        """What to raise where the settings are of something else."""
        owner = owner_of(self.root)
        if owner not in (None, self.of):
            return InputError(f"{self.root} holds a {owner}; choose another --out")
        return InputError(
            f"{self.root} holds other things than a {self.of}: {self.settings.name} is not "
            "of cachedet's; choose another --out"
        )

    def write(self, settings: Mapping[str, Any]) -> None:
        write_durably(self.settings, encode_json(dict(settings)))

    def require_empty(self) -> None:
        """Refuse other things than what may be there before and what a killed write left."""
        names = {path.name for path in self.root.iterdir()} - {self.may_hold, self.lock.name}
        cut_off = re.compile(rf"{re.escape(self.settings.name)}\..*{re.escape(TEMPORARY_SUFFIX)}")
        others = sorted(name for name in names if not cut_off.fullmatch(name))
        if others:
            raise InputError(
                f"{self.root} holds other things than a {self.of} ({', '.join(others[:3])}); "
                "choose another --out"
            )


def differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say what differs between two settings, the first eight of it."""
    old, new = flatten(dict(kept)), flatten(dict(now))
    changed = (
        f"{name} was {old.get(name)}, is {new.get(name)}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    )
    return first_named(list(changed))
