"""Many processes train one model: each takes its images of every batch, gradients are summed.

Losses are divided by counts over all ranks and BatchNorm takes the statistics of all, so the sum
over ranks of the gradients is the gradient one process would have computed. It is summed here, once
a step, rather than by torch's DistributedDataParallel: that averages, expects a gradient for every
parameter in every backward, and needs to be told which backward of an accumulated step is the last.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn

from cachedet.device import choose_device
from cachedet.distributed import collective
from cachedet.errors import ConfigError

_BUCKET_VALUES = 2**23  # summed in one message: 32 MB of float32
_TIMEOUT_NAME = "CACHEDET_RANK_TIMEOUT"
_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How torchrun started this process; the defaults are those of a process on its own."""

    rank: int = 0
    world: int = 1
    local_world: int = 1  # processes of this machine
    restarts: int = 0  # how often torchrun has started the whole group anew

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    @property
    def command(self) -> list[str]:
        """The first words of a command that starts as many processes on this machine."""
        if self.world == 1:
            return ["cachedet"]
        # Without the lone dashes torchrun takes our --run for its own --run-path.
        return ["torchrun", "--nproc-per-node", str(self.local_world), "-m", "--", "cachedet"]


def find_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """What torchrun says in the environment; without it, a process on its own.

    SLURM's variables are not looked at: a batch script has them without being a group.

    Raises ConfigError where the variables contradict each other or are no numbers.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return Launch()
    names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    texts = [environment.get(name, default) for name, default in zip(names, "0110", strict=True)]
    try:
        rank, world, local_world, restarts = (int(text) for text in texts)
    except ValueError as error:
        came = ", ".join(f"{name}={text}" for name, text in zip(names, texts, strict=True))
        raise ConfigError(f"the launcher's variables must be whole numbers, got {came}") from error
    if not 0 <= rank < world:
        raise ConfigError(
            f"RANK must be 0 to {world - 1} for WORLD_SIZE={world}, got {rank}; start with torchrun"
        )
    if world > 1 and not ("MASTER_ADDR" in environment and "MASTER_PORT" in environment):
        raise ConfigError(
            f"WORLD_SIZE={world} without MASTER_ADDR and MASTER_PORT: the ranks cannot meet; "
            "start with `torchrun --nproc-per-node N -m cachedet train-heads ...`"
        )
    return Launch(rank=rank, world=world, local_world=local_world, restarts=restarts)


@contextmanager
def joined_ranks(
    launch: Launch, *, device: str, environment: Mapping[str, str] = os.environ
) -> Iterator[None]:
    """Inside, `distributed.collective` reaches all ranks of the launch; with one rank, nothing.

    On CUDA each process of a machine takes a GPU of its own. CACHEDET_RANK_TIMEOUT in the
    environment says how many seconds to wait for a silent rank.

    Raises:
        ConfigError: the device or the timeout does not fit.
        RankError: the ranks do not meet.
    """
    if launch.world == 1:
        yield
        return
    timeout = _timeout(environment)
    chosen = choose_device(device)
    if chosen.type == "cuda":
        _require_own_gpu(launch, device)
        torch.cuda.set_device(chosen)
    collective.join(
        # Counts travel between CPUs: sending them from the GPU would make the host wait for it.
        backend="cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo",
        rank=launch.rank,
        world=launch.world,
        timeout=timeout,
        attempt=launch.restarts,
    )
    try:
        yield
    finally:
        collective.leave()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Make every parameter's gradient the sum of all ranks' gradients, the same on all of them.

    `parameters` come in the same order on every rank. A trainable one without a gradient has a
    gradient of zero: on some ranks nothing may have been sampled for it.
    """
    if collective.world_size() == 1:
        return
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    for bucket in _buckets(trainable):
        flat = torch.cat([_gradient_of(parameter).reshape(-1) for parameter in bucket])
        collective.sum_in_place([flat])
        parts = torch.split(flat, [parameter.numel() for parameter in bucket])
        for parameter, part in zip(bucket, parts, strict=True):
            _gradient_of(parameter).copy_(part.view(parameter.shape))


def of_ranks(message: str) -> str:
    """One message made of those of the ranks that have one; the same on every rank."""
    if collective.world_size() == 1:
        return message
    messages = enumerate(collective.gather_texts(message))
    return "; ".join(f"rank {number}: {text}" for number, text in messages if text)


def first_of_ranks(name: str | None) -> str | None:
    """The name that the first rank which has one has; the same on every rank."""
    if not collective.on_any_rank(name is not None):
        return None
    return next(text for text in collective.gather_texts(name or "") if text)


def describe_ranks(batch_size: int) -> str:
    """For a person: how many processes share a batch, and whether evenly."""
    world = collective.world_size()
    share = f"{world} processes share each batch of {batch_size} images"
    if batch_size < world:
        return f"{share}: fewer images than processes, so each computes the whole batch"
    if batch_size % world:
        most, least = -(-batch_size // world), batch_size // world
        return f"{share} unevenly: some take {most}, some {least}, and those wait"
    return f"{share}: {batch_size // world} each"


def _buckets(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Neighbours of one type, together at most _BUCKET_VALUES or a single one."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        size = sum(one.numel() for one in bucket) + parameter.numel()
        if bucket and (size > _BUCKET_VALUES or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def _gradient_of(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _timeout(environment: Mapping[str, str]) -> timedelta:
    text = environment.get(_TIMEOUT_NAME, str(_TIMEOUT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{_TIMEOUT_NAME} must be seconds above 0, such as 300, got {text!r}")
    return timedelta(seconds=seconds)


def _require_own_gpu(launch: Launch, device: str) -> None:
    gpus = torch.cuda.device_count()
    if launch.local_world > gpus:
        raise ConfigError(
            f"{launch.local_world} processes on this machine, {gpus} GPUs: each needs one of its "
            f"own; start with --nproc-per-node {gpus}, or set device: cpu"
        )
    if ":" in device and launch.local_world > 1:
        raise ConfigError(
            f"device {device} for {launch.local_world} processes of this machine: each needs a GPU "
            "of its own; set device: auto"
        )
