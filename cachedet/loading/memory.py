"""How much memory is free: on an accelerator, or for this process in its cgroup; and used."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on `device`."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        used = torch.mps.driver_allocated_memory()
        return max(0, int(torch.mps.recommended_max_memory()) - int(used))
    return free_ram()


def free_ram(root: Path = Path("/")) -> int:
    """Bytes of RAM this process can still have: what the machine has left, and each cgroup allows.

    Where the system does not say what it has left (macOS), half of all RAM; 0 where it says nothing
    (Windows). `root` holds /proc and /sys; another folder in tests.
    """
    return max(0, min([_left_on_machine(root), *_left_in_cgroups(root)]))


def peak_memory(device: torch.device, root: Path = Path("/")) -> int:
    """Most bytes this process ever held: on an accelerator what tensors took, else all its RAM.

    0 where the system does not say (Windows). `root` holds /proc; another folder in tests.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        # Not ru_maxrss: it counts what the process this one was forked from held.
        status = (root / "proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # bytes there, kilobytes elsewhere


def _left_on_machine(root: Path) -> int:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return 0


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """Bytes left by every limit from the group of this process up to the root, version 1 and 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):  # a container may see only the upper ones
            left = _left_in_group(top.joinpath(*parts[:depth]), *names)
            if left is not None:
                yield left


def _left_in_group(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    """Bytes left, None where the group has no limit. What files keep cached can be had back."""
    try:
        most = int((folder / limit).read_text())  # "max" where there is none
        used = int((folder / usage).read_text())
        statistics = dict(
            line.split() for line in (folder / "memory.stat").read_text().splitlines()
        )
        return most - used + int(statistics.get(cached, "0"))
    except (OSError, ValueError):
        return None
