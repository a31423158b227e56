"""Writes golden_detectors.json: losses of three steps of each detector at a fixed seed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from conftest import KINDS, NECKS, Kit


def main() -> None:
    kit = Kit()
    golden = {}
    for kind in KINDS:
        for neck in NECKS:
            detector = kit.detector(kind, neck, adapters={"kind": "bottleneck"})
            optimizer = torch.optim.SGD(detector.parameters(), lr=0.01)
            rows = []
            for _ in range(3):
                losses = detector(*kit.batch())
                optimizer.zero_grad()
                torch.stack(list(losses.values())).sum().backward()
                optimizer.step()
                rows.append([loss.item() for loss in losses.values()])
            golden[f"{kind} {neck}"] = rows
    Path(__file__).with_name("golden_detectors.json").write_text(json.dumps(golden, indent=1))


if __name__ == "__main__":
    main()
