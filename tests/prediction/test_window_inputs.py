"""Windows of a size in pixels: few of their inputs at once, whatever the image."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedet.data.geometry import Geometry
from cachedet.data.images import DecodedImage
from cachedet.data.pixel_windows import parse_file_views
from cachedet.evaluation.merging import Merging
from cachedet.prediction.image_detector import ImageDetector
from cachedet.prediction.window_inputs import Window, window_batches
from cachedet.structures import CategoryMap, Detections, SizeHW


class Finds:
    """One box in the middle of each input, of a score that says which call it was."""

    def __init__(self) -> None:
        self.batches: list[list[SizeHW]] = []

    def __call__(
        self, images: Tensor, *, sizes_hw: Sequence[SizeHW], image_ids: Sequence[int]
    ) -> list[Detections]:
        assert len(images) == len(sizes_hw) == len(image_ids)
        self.batches.append(list(sizes_hw))
        return [
            Detections(
                image_id=image_id,
                boxes=torch.tensor([[0.4 * width, 0.4 * height, 0.6 * width, 0.6 * height]]),
                scores=torch.tensor([1 / len(self.batches)]),
                labels=torch.tensor([0]),
            )
            for (height, width), image_id in zip(sizes_hw, image_ids, strict=True)
        ]


class Makes:
    """Empty inputs, and counts how many of them are alive."""

    def __init__(self) -> None:
        self.alive = self.made = self.most = 0

    def __call__(self, pixels: NDArray[np.uint8], geometry: Geometry) -> Tensor:
        made = torch.zeros(1, *geometry.padded_hw)
        self.alive, self.made = self.alive + 1, self.made + 1
        self.most = max(self.most, self.alive)
        weakref.finalize(made, self._is_gone)
        return made

    def _is_gone(self) -> None:
        self.alive -= 1


def detector_of(views: str, **changes: Any) -> ImageDetector:
    named, windows = parse_file_views(views)
    settings = {
        "network": Finds(), "categories": CategoryMap(ids=(1,), names=("a",)), "image_size": 64,
        "pad_multiple": 32, "make": Makes(), "merging": Merging(max_detections=5),
        "views": named, "windows": windows,
    }  # fmt: skip
    return ImageDetector(**settings | changes)


def image(height: int, width: int) -> DecodedImage:
    """Without memory of its own."""
    pixels = np.broadcast_to(np.zeros(3, dtype=np.uint8), (height, width, 3))
    return DecodedImage(pixels=pixels, image_hw=(height, width))


def test_few_inputs_of_a_huge_image_are_held() -> None:
    """400 windows, four at once: those the network sees, and those made meanwhile."""
    detector = detector_of("tile=640px")
    prepared = detector.prepare([image(10_000, 10_000)])
    assert prepared.inputs == ()
    assert len(prepared.windows) == 400
    (found,) = detector.detect([prepared], windows_at_once=4)
    assert detector.make.made == 400  # type: ignore[attr-defined]
    assert detector.make.most <= 12  # type: ignore[attr-defined]
    assert [len(batch) for batch in detector.network.batches] == [4] * 100  # type: ignore[attr-defined]
    assert len(found) == 400  # not the five of one image: each window may find as many
    assert found.scores.diff().le(0).all()
    first = found.boxes[found.boxes.sum(dim=1).argmin()]
    torch.testing.assert_close(first, torch.tensor([256.0, 256, 384, 384]), rtol=0, atol=1e-3)


def test_an_image_smaller_than_a_window_is_seen_once() -> None:
    for views in ("base,tile=640px", "tile=640px", "tile=640px,tile=800px", "base"):
        detector = detector_of(views)
        found = detector(image(300, 500).pixels)
        assert detector.network.batches == [[(38, 64)]]  # type: ignore[attr-defined]
        assert len(found) == 1


def test_windows_of_several_images_share_batches() -> None:
    """Of one bucket of the base view: large, not larger than a window, and flat."""
    detector = detector_of("base,tile=100px")
    sizes = [(180, 180), (100, 100), (90, 100), (180, 170)]
    prepared = [detector.prepare([image(*size)], image_id=n) for n, size in enumerate(sizes)]
    assert len({each.bucket for each in prepared}) == 1
    found = detector.detect(prepared, windows_at_once=3)
    network = detector.network
    assert [len(batch) for batch in network.batches] == [4, 3, 3, 2]  # type: ignore[attr-defined]
    assert [each.image_id for each in found] == [0, 1, 2, 3]
    assert [len(each) for each in found] == [5, 1, 1, 5]


def test_pixels_are_those_with_the_detail_and_counted_once() -> None:
    detector = detector_of("base,tile=500px,tile=8000px")
    whole, half = image(4000, 6000), image(2000, 3000)
    reduced = DecodedImage(pixels=half.pixels, image_hw=whole.image_hw)
    assert not detector.needs_all_pixels(reduced)  # of 500 pixels as 64
    assert detector_of("tile=64px").needs_all_pixels(reduced)
    prepared = detector.prepare([reduced, whole], keeps_pixels=True)
    assert {id(pixels) for pixels in prepared.sources} == {id(half.pixels)}
    held = sum(each.nbytes for each in prepared.inputs) + half.pixels.nbytes + whole.pixels.nbytes
    assert prepared.nbytes == held


def test_what_fails_in_a_thread_is_raised() -> None:
    geometries = parse_file_views("tile=64px")[1][0].geometries(
        (64, 400), image_size=64, pad_multiple=32
    )
    pixels = image(64, 400).pixels
    windows = [Window(pixels=pixels, geometry=each, image=0) for each in geometries]

    def fails(pixels: NDArray[np.uint8], geometry: Geometry) -> Tensor:
        raise MemoryError("none left")

    with pytest.raises(MemoryError, match="none left"):
        list(window_batches(windows, fails, size=2))
    assert list(window_batches([], fails, size=2)) == []
