"""Which of all detections are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cachedet.errors import ConfigError, InputError, nearest_names
from cachedet.structures import CategoryMap, Detections
from cachedet.text import printable


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The least score, the classes, and how many of an image."""

    min_score: float
    classes: Sequence[str] | None = None  # names; None: all
    max_per_image: int | None = None  # the best; None: all

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        if not 0 <= self.min_score <= 1:
            raise ConfigError(f"min_score expects 0 to 1, got {self.min_score}")
        if self.max_per_image is not None and self.max_per_image < 1:
            raise ConfigError(f"max_per_image expects 1 or more, got {self.max_per_image}")
        if self.classes is not None and (isinstance(self.classes, str) or not self.classes):
            raise ConfigError(f"classes expects a list of names, got {self.classes!r}")

    def require_known(self, categories: CategoryMap) -> None:
        """Raises InputError on a class that the detector was not trained on."""
        for name in self.classes or ():
            if name not in categories.names:
                near = nearest_names(name, categories.names)
                known = printable(", ".join(categories.names[:20]))
                more = ", ..." if len(categories) > 20 else ""
                raise InputError(
                    f"the run knows no class {name!r}{near}; its {len(categories)} classes: "
                    f"{known}{more}"
                )

    def __call__(self, detections: Detections, categories: CategoryMap) -> Detections:
        """Those that are asked for, best first."""
        kept = detections.above(self.min_score)
        if self.classes is not None:
            names = categories.names
            wanted = [label for label in range(len(names)) if names[label] in self.classes]
            kept = kept.keep(torch.isin(kept.labels, torch.tensor(wanted, dtype=torch.int64)))
        return (
            kept
            if self.max_per_image is None
            else kept.keep(torch.arange(len(kept))[: self.max_per_image])
        )
