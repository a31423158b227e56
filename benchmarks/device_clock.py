"""What the benchmarks share: seconds and peak memory on the device they are told to run on.

On a CPU seconds are processor time where a benchmark counts those, so that other work on the
machine takes nothing away. A GPU's work is asynchronous: there seconds are those of the clock,
taken when it is done, and memory is what torch allocated there.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch


def add_device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")


def describe_device(device: torch.device) -> str:
    """The name of the GPU, or the machine's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def wall_seconds(device: torch.device) -> float:
    """Of the clock, once everything queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def busy_seconds(device: torch.device) -> float:
    """Of the processor; on CUDA of the clock."""
    return wall_seconds(device) if device.type == "cuda" else time.process_time()


def busy_name(device: torch.device) -> str:
    """What `busy_seconds` are called in results."""
    return "seconds" if device.type == "cuda" else "processor_seconds"


def forget_peak(device: torch.device) -> None:
    """Count the peak from here on; on a CPU it is that of the whole process."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def peak_megabytes(device: torch.device) -> float:
    """Most memory of tensors on CUDA since `forget_peak`; on a CPU most this process ever held.

    ru_maxrss would count the parent it was forked from.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in status if line.startswith("VmHWM"))
