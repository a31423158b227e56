from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cachedet.loading.memory import MapMemory, free_memory, free_ram
from cachedet.structures import Features

GB = 1 << 30


def machine(root: Path, *, available: int, cgroup: str, files: dict[str, str]) -> Path:
    """A file system with the files of Linux that say how much memory is free."""
    contents = {
        "proc/meminfo": f"MemTotal: 99999999 kB\nMemAvailable: {available // 1024} kB\n",
        "proc/self/cgroup": cgroup,
        **{f"sys/fs/cgroup/{name}": content for name, content in files.items()},
    }
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_this_machine() -> None:
    assert free_memory(torch.device("cpu")) > 10 << 20


def test_without_limits(tmp_path: Path) -> None:
    files = {"memory.max": "max\n", "memory.current": "5\n", "memory.stat": "inactive_file 1\n"}
    root = machine(tmp_path, available=7 * GB, cgroup="0::/\n", files=files)
    assert free_ram(root) == 7 * GB


@pytest.mark.parametrize("limited", ["job/memory", "memory", "job/step/memory"])
def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path, limited: str) -> None:
    files = {}
    for group in ("", "job/", "job/step/"):
        tight = f"{group}memory" == limited
        files[f"{group}memory.max"] = str((4 if tight else 50) * GB)
        files[f"{group}memory.current"] = str(3 * GB)
        files[f"{group}memory.stat"] = f"anon 7\ninactive_file {GB}\n"
    root = machine(tmp_path, available=90 * GB, cgroup="0::/job/step\n", files=files)
    assert free_ram(root) == 2 * GB  # 4 - 3, and 1 that files keep cached


def test_version_1_of_cgroups(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": str(6 * GB),
        "memory/memory.usage_in_bytes": str(2 * GB),
        "memory/memory.stat": f"total_inactive_file {GB}\n",
        "memory/docker/x/memory.limit_in_bytes": "9223372036854771712",
        "memory/docker/x/memory.usage_in_bytes": "5",
        "memory/docker/x/memory.stat": "",
    }
    cgroup = "12:cpu,cpuacct:/a\n3:memory:/docker/x\n0::/\n"
    root = machine(tmp_path, available=90 * GB, cgroup=cgroup, files=files)
    assert free_ram(root) == 5 * GB


def test_a_group_beyond_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = {"memory.max": "1000", "memory.current": "5000", "memory.stat": ""}
    root = machine(tmp_path, available=GB, cgroup="0::/../..\n", files=files)
    assert free_ram(root) == 0


def test_a_system_that_says_nothing_has_half_of_its_ram(tmp_path: Path) -> None:
    assert free_ram(tmp_path) > 10 << 20


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
    place = address(first)
    kept = first["C5"][1, :3]  # a view of one level holds it all
    kept.fill_(7.0)
    del first
    second = memory.take(2, LARGE)
    assert address(second) != place
    second["C5"].fill_(0.0)
    assert (kept == 7.0).all()
    del kept
    gc.collect()
    assert address(memory.take(2, LARGE)) == place


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
    place = address(memory.take(6, LARGE))
    assert address(memory.take(2, LARGE)) != place
    assert address(memory.take(5, LARGE)) == place


def test_threads_never_share_memory_that_is_held() -> None:
    memory = MapMemory()

    def work(number: int) -> bool:
        maps = memory.take(2, LARGE)
        maps["C5"].fill_(number)
        return bool((maps["C5"] == number).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(60)))
