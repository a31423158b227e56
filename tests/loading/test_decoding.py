"""Memory of maps: used again, but never while anybody holds it."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cachedet.loading.decoding import MapMemory
from cachedet.structures import Features

SMALL = {"C4": (3, 4, 5), "C5": (7, 2, 3)}
LARGE = {"C4": (64, 128, 128), "C5": (128, 64, 64)}  # 6 MB an image


def address(maps: Features) -> int:
    return maps["C4"].data_ptr()


@pytest.mark.parametrize("shapes", [SMALL, LARGE], ids=["small", "large"])
def test_maps_have_their_shapes_and_do_not_overlap(shapes: dict[str, tuple[int, int, int]]) -> None:
    maps = MapMemory().take(2, shapes)
    for number, (level, shape) in enumerate(shapes.items()):
        assert maps[level].shape == (2, *shape)
        assert maps[level].dtype == torch.float32
        assert maps[level].is_contiguous(memory_format=torch.channels_last)
        maps[level].fill_(number)
    for number, level in enumerate(shapes):
        assert (maps[level] == number).all()


def test_memory_is_used_again_only_when_every_map_is_gone() -> None:
    memory = MapMemory()
    first = memory.take(2, LARGE)
    location = address(first)
    kept = first["C5"][1, :3]  # a view of one level holds it all
    kept.fill_(7.0)
    del first
    second = memory.take(2, LARGE)
    assert address(second) != location
    second["C5"].fill_(0.0)
    assert (kept == 7.0).all()
    del kept
    gc.collect()
    assert address(memory.take(2, LARGE)) == location


def test_what_a_graph_still_needs_is_not_used_again() -> None:
    memory = MapMemory()
    maps = memory.take(2, LARGE)
    maps["C4"].fill_(3.0)
    weight = torch.ones(64, 1, 1, requires_grad=True)
    loss = (maps["C4"] * weight).sum()
    del maps
    memory.take(2, LARGE)["C4"].fill_(0.0)
    loss.backward()
    torch.testing.assert_close(weight.grad, torch.full((64, 1, 1), 3.0 * 2 * 128 * 128))


def test_much_larger_memory_is_left_to_others() -> None:
    memory = MapMemory()
    location = address(memory.take(6, LARGE))
    assert address(memory.take(2, LARGE)) != location
    assert address(memory.take(5, LARGE)) == location


def test_threads_never_share_memory_that_is_held() -> None:
    memory = MapMemory()

    def work(number: int) -> bool:
        maps = memory.take(2, LARGE)
        maps["C5"].fill_(number)
        return bool((maps["C5"] == number).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(60)))
