from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cachedet.loading.memory import free_memory, free_ram

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
