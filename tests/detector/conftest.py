"""A small batch of features and the six detectors on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from cachedet.config.detector import DetectorConfig
from cachedet.detector.build import build_detector
from cachedet.structures import Features, FeatureSpec, LevelSpec, Targets

KINDS = ("retinanet", "faster_rcnn", "cascade_rcnn")
NECKS = ("fpn", "nasfpn")
SPEC = FeatureSpec(
    (LevelSpec(name="C3", channels=4, stride=8), LevelSpec(name="C4", channels=6, stride=16))
)
_NECK = {
    "fpn": {"kind": "fpn", "channels": 16, "num_levels": 3},
    "nasfpn": {"kind": "nasfpn", "channels": 16, "repeats": 1},
}
_TWO_STAGE = {
    "rpn": {"size_factor": 3.0, "samples": 32, "train_post_nms": 40, "test_post_nms": 30},
    "roi_head": {"samples": 16, "num_convs": 1, "conv_channels": 8, "fc_channels": 24},
}


class Kit:
    """What the tests of detectors share."""

    spec = SPEC

    def config(self, kind: str, neck: str = "fpn", **changes: Any) -> DetectorConfig:
        parts: dict[str, Any] = {"num_convs": 1} if kind == "retinanet" else _TWO_STAGE
        values = {"kind": kind, "neck": _NECK[neck], **parts} | changes
        adapter: TypeAdapter[DetectorConfig] = TypeAdapter(DetectorConfig)
        return adapter.validate_python(values)

    def detector(
        self, kind: str, neck: str = "fpn", *, num_classes: int = 3, **changes: Any
    ) -> Any:
        torch.manual_seed(3)
        config = self.config(kind, neck, **changes)
        return build_detector(config, spec=self.spec, num_classes=num_classes)

    def features(self, height: int = 64, width: int = 96, *, images: int = 2) -> Features:
        generator = torch.Generator().manual_seed(5)
        return {
            level.name: torch.randn(
                images,
                level.channels,
                height // level.stride,
                width // level.stride,
                generator=generator,
            )
            for level in self.spec
        }

    def targets(
        self,
        boxes: list[list[float]],
        *,
        labels: list[int] | None = None,
        crowd: list[bool] | None = None,
        size_hw: tuple[int, int] = (64, 96),
    ) -> Targets:
        return Targets(
            image_id=1,
            size_hw=size_hw,
            boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(labels or [n % 3 for n in range(len(boxes))], dtype=torch.int64),
            crowd=torch.tensor(crowd or [False] * len(boxes), dtype=torch.bool),
        )

    def batch(self) -> tuple[Features, list[Targets]]:
        boxes = [[4.0, 4.0, 40.0, 44.0], [50.0, 10.0, 90.0, 60.0], [0.0, 0.0, 30.0, 30.0]]
        first = self.targets(boxes, labels=[2, 0, 1], crowd=[False, False, True])
        return self.features(), [first, self.targets([])]


@pytest.fixture(scope="session")
def detectors() -> Kit:
    return Kit()
