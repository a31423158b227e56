"""What the presets cost on a usual input, as `benchmarks/preset_costs.py` has counted it.

Counting takes seconds, and a list of presets is the first that many people ask for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cachedet.config.presets import FOLDER

NUM_CLASSES = 80
COSTS = "costs.json"  # beside the presets


@dataclass(frozen=True, kw_only=True)
class UsualInput:
    """What the presets for one kind of machine mostly work on."""

    backbone: str
    features: str  # name, channels and stride of each level
    side: int  # of a square image, in pixels


TINY = UsualInput(backbone="EfficientNet-lite0", features="C3:40:8,C4:112:16,C5:320:32", side=384)
PAPER = UsualInput(backbone="a ResNet-50", features="C3:512:8,C4:1024:16,C5:2048:32", side=640)


def usual_input(preset: str) -> UsualInput:
    """What a preset's cost is counted on."""
    return TINY if preset.endswith(("_tiny", "_small")) else PAPER


def read_costs() -> dict[str, dict[str, Any]]:
    """Of each preset what `cachedet model --json` tells of it on its usual input."""
    costs: dict[str, dict[str, Any]] = json.loads((FOLDER / COSTS).read_text(encoding="utf-8"))
    return costs
