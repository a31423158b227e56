"""Counts what the presets cost and writes configs/costs.json, which `cachedet configs` shows.

python benchmarks/preset_costs.py

To be run when a preset is new or its detector is another; a test tells when the file is out of
date.
"""

from __future__ import annotations

import json

from cachedet.config.preset_costs import COSTS
from cachedet.config.presets import FOLDER, preset_names
from cachedet.model import measure_preset


def main() -> None:
    costs = {name: measure_preset(name).to_json() for name in preset_names()}
    lines = (f"{json.dumps(name)}: {json.dumps(cost)}" for name, cost in costs.items())
    (FOLDER / COSTS).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
