"""Applications whose detector finds the same in every image, so that all about it is known."""

from __future__ import annotations

import importlib.util
import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from cachedet.data.backbone_input import make_input
from cachedet.evaluation.merging import Merging
from cachedet.prediction.image_detector import ImageDetector
from cachedet.structures import CategoryMap, Detections, Preprocessing, SizeHW

pytest.importorskip("starlette", reason="cachedet[serve]")
from starlette.testclient import TestClient

from cachedet.serving.application import Served, make_application
from cachedet.serving.gallery import Gallery
from cachedet.serving.local_server import LocalServer

NAMES = (
    "cat", "dog", "<b>bold</b>", "bird", "fish", "ant", "bee", "yak", "emu", "\u732b"
)  # fmt: skip
Found = tuple[int, float, tuple[float, float, float, float]]  # label, score, shares of the sides
FOUND: tuple[Found, ...] = (
    (0, 0.875, (0.1, 0.1, 0.5, 0.5)),
    (1, 0.625, (0.4, 0.3, 0.9, 0.8)),
    (2, 0.4375, (0.05, 0.6, 0.35, 0.95)),
    (8, 0.34375, (0.6, 0.05, 0.95, 0.3)),
    (1, 0.015625, (0.0, 0.0, 1.0, 1.0)),
)
_PREPROCESSING = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear")
_PLACE = Path(__file__).parents[1] / "e2e" / "conftest.py"


def _browser_of_the_pages() -> Any:
    spec = importlib.util.spec_from_file_location("tests_browser", _PLACE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.browser


browser = _browser_of_the_pages()


@dataclass(frozen=True)
class Finds:
    """A network."""

    rows: Sequence[Found] = FOUND
    has_masks: bool = False
    fault: Exception | None = None

    def __call__(
        self, images: Tensor, *, sizes_hw: Sequence[SizeHW], image_ids: Sequence[int]
    ) -> list[Detections]:
        if self.fault is not None:
            raise self.fault
        return [self._found(*pair) for pair in zip(sizes_hw, image_ids, strict=True)]

    def _found(self, size_hw: SizeHW, image_id: int) -> Detections:
        height, width = size_hw
        shares = torch.tensor([box for _, _, box in self.rows]).reshape(-1, 4)
        masks = torch.zeros(len(self.rows), 8, 8)
        masks[:, :, :4] = 1.0  # the left half
        return Detections(
            image_id=image_id,
            boxes=shares * torch.tensor([width, height, width, height]),
            scores=torch.tensor([score for _, score, _ in self.rows]),
            labels=torch.tensor([label for label, _, _ in self.rows], dtype=torch.int64),
            masks=masks if self.has_masks else None,
        )


class ServingKit:
    """Makes applications, and images to send."""

    names = NAMES
    found = FOUND

    def detector(self, **options: Any) -> ImageDetector:
        return ImageDetector(
            network=Finds(**options),
            categories=CategoryMap(ids=tuple(range(10, 20)), names=NAMES),
            image_size=128,
            pad_multiple=32,
            make=partial(make_input, preprocessing=_PREPROCESSING),
            merging=Merging(),
        )

    def served(self, **changes: Any) -> Served:
        return replace(Served(detector=self.detector(), title="my-run"), **changes)

    def client(self, **changes: Any) -> TestClient:
        return TestClient(make_application(self.served(**changes)), base_url="http://127.0.0.1")

    @contextmanager
    def running(self, served: Served) -> Iterator[str]:
        """The address of a server in a thread."""
        server = LocalServer(0)
        server.listen()
        thread = threading.Thread(target=server.run, args=[make_application(served)])
        thread.start()
        try:
            yield server.url
        finally:
            while thread.is_alive():
                server.stop()
                thread.join(0.05)

    def gallery(self, folder: Path, **changes: Any) -> Gallery:
        options = {"recursive": False, "follow_links": False, "annotations": None}
        return Gallery.open(folder, **(options | changes))

    def image(self, size: tuple[int, int] = (96, 64), *, turned: bool = False) -> bytes:
        """A JPEG (width, height), or one on its side."""
        exif = Image.Exif()
        if turned:
            exif[0x0112] = 6
        buffer = io.BytesIO()
        Image.linear_gradient("L").resize(size).convert("RGB").save(buffer, "JPEG", exif=exif)
        return buffer.getvalue()


@pytest.fixture(scope="session")
def kit() -> ServingKit:
    return ServingKit()
