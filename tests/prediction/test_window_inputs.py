"""Windows of a size in pixels: few of their inputs at once, whatever the image."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cachedet.data import images
from cachedet.data.backbone_input import Pixels, make_input
from cachedet.data.geometry import Geometry
from cachedet.data.images import DecodedImage, decode_giant
from cachedet.data.pixel_windows import parse_file_views
from cachedet.errors import BadImageError
from cachedet.evaluation.merging import Merging
from cachedet.prediction.image_detector import ImageDetector
from cachedet.prediction.read_ahead import read_image
from cachedet.prediction.window_inputs import Window, window_batches
from cachedet.structures import CategoryMap, Detections, Preprocessing, SizeHW


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

    def __call__(self, pixels: Pixels, geometry: Geometry) -> Tensor:
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


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_a_giant_is_not_in_memory_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Windows are cut from what Pillow decoded, and are those of an array of all pixels."""
    file = tmp_path / f"giant{suffix}"
    monkeypatch.setattr(images, "_GIANT", 1_000_000)
    pixels = np.random.default_rng(3).integers(0, 256, (1200, 1300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    preprocessing = Preprocessing(
        mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="bicubic"
    )
    make = partial(make_input, preprocessing=preprocessing)
    detector = detector_of("base,tile=100px", make=make)
    spared = read_image(file, detector, keeps_pixels=False)
    usual = read_image(file, detector, keeps_pixels=True)
    assert isinstance(spared.sources[0], Image.Image)
    assert usual.sources[0] is usual.pixels
    assert len(spared.windows) == len(usual.windows) == 15 * 16
    assert spared.nbytes == 4 * 1200 * 1300 + spared.inputs[0].nbytes
    torch.testing.assert_close(spared.inputs[0], usual.inputs[0], rtol=0, atol=0.05)
    for number in (0, 100, 239):
        ours = detector.make(spared.sources[number], spared.windows[number])
        theirs = detector.make(usual.sources[number], usual.windows[number])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_others_are_decoded_as_ever(tmp_path: Path) -> None:
    detector = detector_of("tile=64px")
    for name in ("small.jpg", "small.tif", "small.png"):
        Image.new("RGB", (200, 200)).save(tmp_path / name)
        assert decode_giant((tmp_path / name).read_bytes()) is None
        prepared = read_image(tmp_path / name, detector, keeps_pixels=False)
        assert isinstance(prepared.sources[0], np.ndarray)
    for content, message in {b"": "is empty", b"II*\0none": "none.tif: "}.items():
        (tmp_path / "none.tif").write_bytes(content)
        with pytest.raises(BadImageError, match=message):
            read_image(tmp_path / "none.tif", detector, keeps_pixels=False)


def test_what_fails_in_a_thread_is_raised() -> None:
    geometries = parse_file_views("tile=64px")[1][0].geometries(
        (64, 400), image_size=64, pad_multiple=32
    )
    pixels = image(64, 400).pixels
    windows = [Window(pixels=pixels, geometry=each, image=0) for each in geometries]

    def fails(pixels: Pixels, geometry: Geometry) -> Tensor:
        raise MemoryError("none left")

    with pytest.raises(MemoryError, match="none left"):
        list(window_batches(windows, fails, size=2))
    assert list(window_batches([], fails, size=2)) == []
