"""Small data sets with any fault: noise images, and COCO files written as a test wants them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cachedet.check import CheckReport, check
from cachedet.inspection.finding import Finding


@dataclass
class DataSet:
    """A folder of images and the entries of its COCO files."""

    root: Path
    size_wh: tuple[int, int] = (128, 96)
    files: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> Path:
        return self.root / "images"

    def noise(self, seed: int, size_wh: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Large blots, which survive encoding and resizing."""
        rng = np.random.default_rng(seed)
        blots = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        return np.asarray(blots.resize(size_wh or self.size_wh, Image.Resampling.BICUBIC))

    def draw(self, name: str, seed: int, **options: Any) -> Path:
        path = self.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.noise(seed)).save(path, **options)
        return path

    def write(
        self,
        name: str,
        images: Sequence[str],
        boxes: Sequence[tuple[int, int, Sequence[float]]],
        classes: Sequence[tuple[int, str]] = ((1, "cat"), (2, "dog")),
    ) -> Path:
        """Boxes are image (from 0), category and bbox."""
        width, height = self.size_wh
        content = {
            "images": [
                {"id": number, "file_name": one, "width": width, "height": height}
                for number, one in enumerate(images)
            ],
            "annotations": [
                {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox)}
                for number, (image, category, bbox) in enumerate(boxes, start=1)
            ],
            "categories": [{"id": number, "name": one} for number, one in classes],
        }
        path = self.root / name
        path.write_text(json.dumps(content))
        return path

    def check(self, annotations: Path, **options: Any) -> CheckReport:
        return check(images=self.images, annotations=annotations, workers=2, **options)


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    """Six images, 0.png to 5.png, without annotations."""
    made = DataSet(tmp_path)
    for number in range(6):
        made.draw(f"{number}.png", number)
    return made


@pytest.fixture
def of_kind() -> Callable[[CheckReport, str], Finding]:
    """The one finding of a kind."""

    def find(report: CheckReport, kind: str) -> Finding:
        found = [finding for finding in report.findings if finding.kind == kind]
        assert len(found) == 1, [(finding.kind, finding.text) for finding in report.findings]
        return found[0]

    return find
