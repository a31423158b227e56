"""What a run learnt from, kept in its folder: eval needs the counts when the store is long gone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from cachedet.errors import CheckpointError
from cachedet.store.durable import encode_json, write_durably
from cachedet.store.reader import FeatureStore
from cachedet.structures import CategoryMap, Truth
from cachedet.training.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """A training store in numbers."""

    store: str  # where it lay
    fingerprint: str
    pictures: int
    categories: CategoryMap
    boxes: dict[int, int]  # category id -> boxes to learn from; crowds are none

    @classmethod
    def of(cls, store: FeatureStore) -> TrainingData:
        return cls(
            store=str(store.location),
            fingerprint=store.manifest.fingerprint(),
            pictures=len(store),
            categories=store.truth.categories,
            boxes=count_annotations(store.truth),
        )

    @classmethod
    def read(cls, folder: RunFolder) -> TrainingData | None:
        """None: the run was made before runs kept it. Raises CheckpointError on another content."""
        if not folder.training.is_file():
            return None
        try:
            values = json.loads(folder.training.read_text(encoding="utf-8"))
            classes = values["classes"]
            return cls(
                store=str(values["store"]),
                fingerprint=str(values["fingerprint"]),
                pictures=int(values["pictures"]),
                categories=CategoryMap(
                    ids=tuple(int(own["id"]) for own in classes),
                    names=tuple(str(own["name"]) for own in classes),
                ),
                boxes={int(own["id"]): int(own["boxes"]) for own in classes},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder.training} is damaged ({error!r}): expected store, fingerprint, pictures "
                "and classes as `train-heads` writes them; remove the file, and name the training "
                "data with --training"
            ) from error

    def write(self, folder: RunFolder) -> None:
        """Into the run folder; again where the run is continued, with the same content."""
        write_durably(folder.training, encode_json(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        classes = zip(self.categories.ids, self.categories.names, strict=True)
        return {
            "store": self.store,
            "fingerprint": self.fingerprint,
            "pictures": self.pictures,
            "classes": [
                {"id": category_id, "name": name, "boxes": self.boxes[category_id]}
                for category_id, name in classes
            ],
        }


def count_annotations(training: Truth) -> dict[int, int]:
    """Category id -> boxes to learn from; crowds are none."""
    counts = np.bincount(training.labels[~training.crowd], minlength=len(training.categories))
    return dict(zip(training.categories.ids, counts.tolist(), strict=True))
