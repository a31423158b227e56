"""Features, losses and scores of the main job as numbers to compare between two checkouts.

Refactoring must not change a bit of them. Run it in each checkout and compare:

    python benchmarks/bit_equality.py --data bccd --out /tmp/now --save now.json
    python benchmarks/bit_equality.py --data bccd --out /tmp/new --against now.json

Everything goes through the command line, so that the script knows no module of the package. It
prints one line a figure; the exit status is 1 where one differs from the file's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[1] / "configs"
STEPS = 50
SCORES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100", "per_class")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="images/, train.json, val.json")
    parser.add_argument("--out", type=Path, required=True, help="for stores and runs")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    figures = measure(options.data, options.out, image_size=options.image_size)
    text = json.dumps(figures, indent=1)
    if options.save is not None:
        options.save.write_text(text + "\n", encoding="utf-8")
    if options.against is None:
        print(text)
        return
    known = json.loads(options.against.read_text(encoding="utf-8"))
    differing = [name for name in sorted(known | figures) if known.get(name) != figures.get(name)]
    for name in sorted(known | figures):
        print(f"{'DIFFERS' if name in differing else 'equal  '} {name}")
    sys.exit(1 if differing else 0)


def measure(data: Path, out: Path, *, image_size: int) -> dict[str, Any]:
    """Digests of both stores, losses of 50 steps and the scores of each tiny config."""
    figures: dict[str, Any] = {}
    stores = {name: out / f"{name}.zarr" for name in ("train", "val")}
    for name, store in stores.items():
        views = "base,hflip,jitter=1" if name == "train" else "base"
        cachedet(
            *("extract", "--images", data / "images", "--annotations", data / f"{name}.json"),
            *("--store", store, "--image-size", image_size, "--views", views),
            *("--on-bad-image", "skip", "--workers", 2),
        )
        figures[f"features/{name}"] = digest(store)
    for config in sorted(CONFIGS.glob("*_tiny.yaml")):
        run = out / config.stem
        report = cachedet(
            *("train-heads", config, "--train", stores["train"], "--run", run),
            *("--set", f"max_steps={STEPS}", "--set", "device=cpu"),
        )
        assert len(report["losses"]) == STEPS
        figures[f"losses/{config.stem}"] = report["losses"]
        scores = cachedet("eval", run, "--store", stores["val"], "--weights", "last")
        figures[f"scores/{config.stem}"] = {name: scores[name] for name in SCORES}
    return figures


def cachedet(*arguments: object) -> dict[str, Any]:
    """What a command prints with --json."""
    command = [sys.executable, "-m", "cachedet", *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def digest(store: Path) -> str:
    """SHA-256 of names and bytes of all shards and of what decodes them."""
    found = hashlib.sha256()
    for path in sorted(store.rglob("*")):
        inside = path.relative_to(store).as_posix()
        if path.is_file() and ("/c/" in inside or inside == "codec.npz"):
            found.update(inside.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()
