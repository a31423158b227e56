"""Painted batches for the tests of augmentation: every cell of a map says where it came from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from cachedet.augmentation.draws import RandomDraws
from cachedet.augmentation.regions import Grid
from cachedet.data.views import LEAST_VISIBLE
from cachedet.structures import Batch, Features, FeatureSpec, LevelSpec, SizeHW, Targets

Step = Callable[[Batch, RandomDraws], Batch]
MakeStep = Callable[[Grid, float], Step]


def make_spec(*strides: int) -> FeatureSpec:
    return FeatureSpec(tuple(LevelSpec(name=f"S{s}", channels=3, stride=s) for s in strides))


# With a level of stride 1 every pixel is checked; 14 is a plain ViT; 2 and 3 meet at 6.
SPECS = tuple(make_spec(*strides) for strides in ((1, 4), (8, 16, 32), (14,), (2, 3)))


@dataclass(frozen=True)
class Scene:
    """A painted batch; the label of a box is its number in the whole batch."""

    spec: FeatureSpec
    batch: Batch
    origin: dict[int, tuple[int, list[int], bool]]  # label -> image, box, crowd


def paint(spec: FeatureSpec, shape_hw: SizeHW, count: int) -> Features:
    """Channels: number of the image, of the row, of the column, each from 1; 0 is nothing."""
    features = {}
    for level in spec:
        height, width = shape_hw[0] // level.stride, shape_hw[1] // level.stride
        maps = torch.empty(count, 3, height, width)
        maps[:, 0] = torch.arange(1.0, count + 1)[:, None, None]
        maps[:, 1] = torch.arange(1.0, height + 1)[:, None]
        maps[:, 2] = torch.arange(1.0, width + 1)
        features[level.name] = maps
    return features


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    spec = draw(st.sampled_from(SPECS))
    cell = spec.pad_multiple
    unit = 1 if spec.levels[0].stride == 1 else cell
    shape = (cell * draw(st.integers(1, 5)), cell * draw(st.integers(1, 5)))
    count = draw(st.integers(1, 5))
    origin: dict[int, tuple[int, list[int], bool]] = {}
    targets = []
    for image in range(count):
        size_hw = draw(st.tuples(st.integers(1, shape[0]), st.integers(1, shape[1])))
        first, most = len(origin), 3 if min(size_hw) >= unit else 0
        for label in range(first, first + draw(st.integers(0, most))):
            x1, x2 = draw(_ends(size_hw[1] // unit))
            y1, y2 = draw(_ends(size_hw[0] // unit))
            box = [x1 * unit, y1 * unit, x2 * unit, y2 * unit]
            origin[label] = (image, box, draw(st.integers(0, 3)) == 0)
        boxes = [origin[label] for label in range(first, len(origin))]
        targets.append(
            Targets(
                image_id=100 + image,
                size_hw=size_hw,
                boxes=torch.tensor([box for _, box, _ in boxes], dtype=torch.float32).view(-1, 4),
                labels=torch.arange(first, len(origin)),
                crowd=torch.tensor([crowd for *_, crowd in boxes], dtype=torch.bool),
            )
        )
    return Scene(spec, Batch(features=paint(spec, shape, count), targets=targets), origin)


def _ends(most: int) -> st.SearchStrategy[tuple[int, int]]:
    pairs = st.tuples(st.integers(0, most), st.integers(0, most))
    return pairs.filter(lambda pair: pair[0] != pair[1]).map(lambda p: (min(p), max(p)))


def seeded(seed: int = 0) -> RandomDraws:
    return RandomDraws((seed,), indices=range(1000))


def cells_from(maps: Tensor, image: int, box: list[int], stride: int) -> Tensor:
    """(h, w) bool: the cells of one map (3, h, w) that came from inside the box of an image."""
    x1, y1, x2, y2 = (edge // stride for edge in box)
    source, row, column = maps[0] - 1, maps[1] - 1, maps[2] - 1
    inside = (row >= y1) & (row < y2) & (column >= x1) & (column < x2)
    return inside & (source == image)


def cells_under(box: Tensor, shape: torch.Size, stride: int) -> Tensor:
    """(h, w) bool"""
    x1, y1, x2, y2 = (int(edge) // stride for edge in box.tolist())
    cells = torch.zeros(shape, dtype=torch.bool)
    cells[y1:y2, x1:x2] = True
    return cells


def check_boxes(scene: Scene, after: Batch, *, check_crowd: bool = True) -> None:
    """The box of each label is where its cells are, on every level."""
    checked = 0
    for level in scene.spec:
        for maps, targets in zip(after.features[level.name], after.targets, strict=True):
            for label, (image, box, was_crowd) in scene.origin.items():
                if any(edge % level.stride for edge in box):
                    continue
                content = cells_from(maps, image, box, level.stride)
                mine = targets.labels == label
                if not mine.any():
                    assert not content.any()
                    continue
                (kept,) = targets.boxes[mine]
                assert torch.equal(cells_under(kept, content.shape, level.stride), content)
                visible = float(content.sum()) / (
                    (box[2] - box[0]) * (box[3] - box[1]) / level.stride**2
                )
                if check_crowd:
                    assert targets.crowd[mine].tolist() == [was_crowd or visible < LEAST_VISIBLE]
                checked += 1
    assert checked >= sum(len(targets.boxes) for targets in after.targets)


def check_shapes(scene: Scene, after: Batch) -> None:
    assert list(after.features) == list(scene.batch.features)
    assert after.image_ids == scene.batch.image_ids
    levels = zip(scene.spec, after.features.values(), strict=True)
    assert len({maps.shape[2] * level.stride for level, maps in levels}) == 1
    for targets in after.targets:
        assert len(targets.boxes) == len(targets.labels) == len(targets.crowd)
        assert (targets.boxes.dtype, targets.labels.dtype) == (torch.float32, torch.int64)
        height, width = targets.size_hw
        level = scene.spec.levels[0]
        maps = after.features[level.name]
        assert 0 < height <= maps.shape[2] * level.stride
        assert 0 < width <= maps.shape[3] * level.stride
        x1, y1, x2, y2 = targets.boxes.unbind(1)
        assert bool(((x1 >= 0) & (x1 < x2) & (x2 <= width)).all())
        assert bool(((y1 >= 0) & (y1 < y2) & (y2 <= height)).all())


def one_level_batch(boxes: list[list[list[float]]], *, cells: int = 8) -> tuple[Grid, Batch]:
    """Images of 8 x 8 cells of 10 pixels, all valid; labels count within an image."""
    spec = make_spec(10)
    targets = [
        Targets(
            image_id=number,
            size_hw=(cells * 10, cells * 10),
            boxes=torch.tensor(of_image, dtype=torch.float32).view(-1, 4),
            labels=torch.arange(len(of_image)),
            crowd=torch.zeros(len(of_image), dtype=torch.bool),
        )
        for number, of_image in enumerate(boxes)
    ]
    features = paint(spec, (cells * 10, cells * 10), len(boxes))
    return Grid(spec), Batch(features=features, targets=targets)


def with_own_maps(batch: Batch) -> Batch:
    """The same, to be written on."""
    return replace(batch, features={level: maps.clone() for level, maps in batch.features.items()})


def check_pure(step: Step, batch: Batch, seed: int, *, writes: bool = False) -> Batch:
    """Take the step twice from one seed: the same twice, and the input as it was.

    Of a step that `writes` on maps only the boxes stay.
    """
    boxes = [of_image.boxes.clone() for of_image in batch.targets]
    given = [with_own_maps(batch) for _ in range(2)]
    after, again = (step(one, seeded(seed)) for one in given)
    if not writes:
        torch.testing.assert_close(given[0].features, batch.features, rtol=0, atol=0)
    assert all(
        torch.equal(targets.boxes, old) for targets, old in zip(batch.targets, boxes, strict=True)
    )
    torch.testing.assert_close(after.features, again.features, rtol=0, atol=0)
    for one, other in zip(after.targets, again.targets, strict=True):
        assert one.size_hw == other.size_hw
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.crowd, other.crowd)
    return after


def check_step(
    make: MakeStep, data: st.DataObject, seed: int, probability: float, *, writes: bool
) -> None:
    """Boxes follow the cells on every level, and the step is pure."""
    scene = data.draw(scenes())
    after = check_pure(make(Grid(scene.spec), probability), scene.batch, seed, writes=writes)
    check_shapes(scene, after)
    check_boxes(scene, after)


def share_changed(make: MakeStep, probability: float) -> float:
    """Of 800 images of 80 x 80 pixels with one object, those whose map the step changes."""
    grid, batch = one_level_batch([[[0, 0, 20, 20]]] * 4)
    maps, changed = batch.features["S10"], 0
    for seed in range(200):
        after = make(grid, probability)(with_own_maps(batch), seeded(seed)).features["S10"]
        same = [after.shape == maps.shape and after[n].equal(maps[n]) for n in range(4)]
        changed += 4 - sum(same)
    return changed / 800


@pytest.fixture(scope="session")
def painting() -> ModuleType:
    """All of this module; tests cannot import a conftest."""
    return sys.modules[__name__]
