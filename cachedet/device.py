"""Which device and cores a stage runs on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from cachedet.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """``auto`` -> CUDA, MPS or the CPU, in this order; else the device named.

    Of several CUDA devices `auto` and `cuda` take that of this process's rank on its machine.

    Raises ConfigError where the device does not exist on this machine.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
        return torch.device("cuda", local % torch.cuda.device_count())
    if name == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device {name!r} cannot be used here: {reason}; try --device auto"
        ) from error
    return device


def usable_cores() -> int | None:
    """CPU cores this process may run on; None where the system does not say (macOS, Windows)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def default_workers() -> int:
    """Decoding threads for this machine."""
    return max(1, min(16, usable_cores() or 4))


def wait_for(device: torch.device) -> None:
    """Return when the device has done all it was given; before that no clock tells its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, in the order they lie in; what is there is not copied.

    From CUDA all at once, into pinned memory, and when that is done.
    """
    copies, streams = {}, set()
    for name, tensor in tensors.items():
        if tensor.device.type != "cuda":
            copies[name] = tensor.cpu()
            continue
        pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
        copies[name] = pinned.copy_(tensor, non_blocking=True)
        streams.add(torch.cuda.current_stream(tensor.device))
    for stream in streams:
        stream.synchronize()
    return copies


def single_core_threads(
    count: int, name: str, *, begin: Callable[[], None] | None = None
) -> ThreadPoolExecutor:
    """Threads in each of which torch uses one core, for work beside the backbone or the step.

    One that used several would keep a team of its own spinning on the cores of those: a training
    step of 0.14 s took a third longer beside 1 ms of reading.

    Args:
        count: of the threads.
        name: that theirs begin with.
        begin: called in each before its first job.
    """

    def start() -> None:
        torch.set_num_threads(1)
        if begin is not None:
            begin()

    # torch gives a thread that has not computed yet the number set last, in whichever thread: the
    # calling one takes its own now.
    torch.get_num_threads()
    return ThreadPoolExecutor(count, name, initializer=start)
