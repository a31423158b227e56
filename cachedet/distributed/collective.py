"""What the processes (ranks) of one training run tell each other, over torch.distributed.

Without `join` this process is the only one: every function is then the identity and costs nothing.
All ranks call the same functions in the same order; what decides whether one is called is therefore
itself agreed on. Images of a global batch are dealt in turn: rank r of W has r, r + W, ...

Letters: W ranks.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

from cachedet.errors import CachedetError, RankError

T = TypeVar("T")

# Others wait this long while rank 0 validates or writes. A rank that dies is noticed at once, by
# its closed connection; this is for one that hangs.
_LONGEST_ERRAND = timedelta(hours=12)

_rank = 0
_world = 1  # plain numbers, so that compiled code that asks for them stays whole
_errands: dist.ProcessGroup | None = None  # waits long; messages between CPUs


def rank() -> int:
    """Number of this process, from 0."""
    return _rank


def world_size() -> int:
    """How many ranks share the work at hand."""
    return _world


def is_first() -> bool:
    """Whether this is the rank that writes files and speaks."""
    return _rank == 0


def join(
    *,
    backend: str,
    rank: int,
    world: int,
    timeout: timedelta,
    attempt: int = 0,
    init_method: str = "env://",
) -> None:
    """Meet the other ranks. Every rank must call it; `leave` ends it.

    The `backend` must carry CPU tensors: "gloo", "cpu:gloo,cuda:nccl". `attempt` counts how often
    the processes were started before: torchrun may keep its store over a restart, and gloo would
    then find the addresses of the dead.

    Raises RankError where the `world` ranks do not meet within `timeout`.
    """
    global _rank, _world, _errands
    try:
        met, *_ = next(rendezvous(init_method, rank, world, timeout=timeout))
        store = PrefixStore(f"attempt {attempt}", met)
        store.set_timeout(timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
        errands = dist.new_group(backend="gloo", timeout=_LONGEST_ERRAND)
        dist.all_reduce(torch.zeros(1))  # one that is done at once must not leave before all met
    except (RuntimeError, ValueError) as error:
        raise RankError(
            f"rank {rank} of {world} did not meet the others (it waits "
            f"{timeout.total_seconds():g} s): {_first_line(error)}; check that every rank was "
            "started and that MASTER_ADDR and MASTER_PORT can be reached"
        ) from error
    assert isinstance(errands, dist.ProcessGroup)  # torch's type also has what non-members get
    _rank, _world, _errands = rank, world, errands


def leave() -> None:
    """Be alone again."""
    global _rank, _world, _errands
    _rank, _world, _errands = 0, 1, None
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def single_process(really: bool = True) -> Iterator[None]:
    """Inside, this rank counts as the only one: what it does is not shared. No-op if not `really`.

    For batches with fewer images than ranks, which every rank has whole.
    """
    global _world
    before = _world
    _world = 1 if really else before
    try:
        yield
    finally:
        _world = before


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of every rank's `values`, of one shape; no gradient flows through it."""
    if _world == 1:
        return values
    summed = values.detach().clone()
    with _lost_ranks_named():
        dist.all_reduce(summed)
    return summed


def count_over_ranks(count: int) -> int:
    """The sum of every rank's count, such as the positives that a loss is divided by.

    Examples:
        >>> loss = summed / (cachedet.count_over_ranks(num_positives) + 1)
    """
    return count if _world == 1 else int(sum_over_ranks(torch.tensor(count)))


def on_any_rank(flag: bool) -> bool:
    """Whether `flag` is true on one rank at least."""
    return flag if _world == 1 else count_over_ranks(int(flag)) > 0


def gather(values: Tensor) -> Tensor:
    """(...) -> (W, ...) every rank's values, of one shape, in order; no gradient flows through."""
    if _world == 1:
        return values.detach()[None]
    parts = [torch.empty_like(values) for _ in range(_world)]
    with _lost_ranks_named():
        dist.all_gather(parts, values.detach())
    return torch.stack(parts)


def gather_texts(text: str) -> list[str]:
    """Every rank's text, in order."""
    if _world == 1:
        return [text]
    texts: list[str] = [""] * _world
    with _lost_ranks_named():
        dist.all_gather_object(texts, text, group=_errands)
    return texts


def rand_of_rank(rows: int, columns: int, *, generator: torch.Generator | None) -> Tensor:
    """(rows, columns) uniform numbers: those one process would draw for this rank's images.

    Each rank draws the numbers of the whole global batch and keeps its own rows, so the random
    state of all ranks stays the same, and the same as with any other number of ranks. Ranks may
    differ in `columns`: the widest one's table is drawn, and the first columns are taken.
    """
    if _world == 1:
        return torch.rand(rows, columns, generator=generator)
    shapes = gather(torch.tensor([rows, columns]))
    drawn = torch.rand(int(shapes[:, 0].sum()), int(shapes[:, 1].max()), generator=generator)
    return drawn[_rank::_world, :columns]


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns on rank 0, on every rank; the others do not call it, and wait.

    Raises the CachedetError that `make` raised on rank 0; on the others RankError that quotes it.
    """
    if _world == 1:
        return make()
    answer: list[tuple[str | None, T | None]] = [(None, None)]
    failure: CachedetError | None = None
    if _rank == 0:
        try:
            answer = [(None, make())]
        except CachedetError as error:
            failure, answer = error, [(str(error), None)]
    with _lost_ranks_named():
        dist.broadcast_object_list(answer, src=0, group=_errands)
    if failure is not None:
        raise failure
    message, made = answer[0]
    if message is not None:
        raise RankError(f"rank 0 stopped: {message}")
    return made  # type: ignore[return-value]


def sum_in_place(tensors: Sequence[Tensor]) -> None:
    """Sum every rank's tensors, of the same shapes on all of them, without copies of their own."""
    if _world == 1:
        return
    with _lost_ranks_named():
        for tensor in tensors:
            dist.all_reduce(tensor)


@contextmanager
def _lost_ranks_named() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise RankError(
            f"rank {_rank} of {_world} lost another rank, which died or did not answer: "
            f"{_first_line(error)}; its own message says why. The last checkpoint is whole: "
            "continue with --resume, or let torchrun do so with --max-restarts"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
