"""Sharing the blocks of one store among processes, ranks and machines."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cachedet.errors import ConfigError
from cachedet.store.files.leases import LeaseBook
from cachedet.store.files.owner import Life
from cachedet.store.format.layout import Block
from cachedet.store.writer import StoreWriter

# torchrun's names first, then SLURM's
_ENVIRONMENT = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
_POLL_SECONDS = 1.0
_random = random.Random()  # of its own: the user's random numbers stay theirs


@dataclass(frozen=True, kw_only=True)
class Rank:
    """This process is number `number` of `world` that extract into one store."""

    number: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.world:
            raise ConfigError(
                f"--rank expects 0 to {self.world - 1} for --world-size {self.world}, "
                f"got {self.number}"
            )

    def owns(self, index: int) -> bool:
        """Whether the block of this index in the plan is ours by the static map."""
        return index % self.world == self.number


def find_rank(
    number: int | None, world: int | None, environment: Mapping[str, str] = os.environ
) -> Rank:
    """What was asked for, else what torchrun or SLURM say, else the only process.

    Raises ConfigError on half a specification or a number out of range.
    """
    if (number is None) != (world is None):
        raise ConfigError(
            f"--rank and --world-size belong together, got rank {number}, world size {world}"
        )
    if number is not None and world is not None:
        return Rank(number=number, world=world)
    for number_name, world_name in _ENVIRONMENT:
        if number_name in environment and world_name in environment:
            texts = environment[number_name], environment[world_name]
            try:
                return Rank(number=int(texts[0]), world=int(texts[1]))
            except ValueError as error:
                raise ConfigError(
                    f"{number_name} and {world_name} expect whole numbers, got {texts}"
                ) from error
    return Rank()


def blocks_to_write(
    writer: StoreWriter,
    leases: LeaseBook,
    rank: Rank,
    *,
    on_wait: Callable[[Sequence[Block]], None],
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[Block | None]:
    """The blocks this process shall write, each leased to it: its own first, then what is left.

    Blocks that a living process works on are left to it. A block leased on another machine is
    watched until it is committed, renewed or stale; None comes before each such wait.

    `on_wait` is called with the blocks it is about to wait for, and with none when that is over.
    Raises StoreError where the store cannot be read, or a lease not be written.
    """
    ours_first = sorted(enumerate(writer.blocks), key=lambda item: not rank.owns(item[0]))
    waiting = [block for _, block in ours_first]
    while waiting:
        unsure = []
        for block in waiting:
            if writer.is_committed(block):
                continue
            if not leases.take(block.name):
                if leases.holder_life(block.name) is Life.UNKNOWN:
                    unsure.append(block)
            elif writer.is_committed(block):  # its writer finished in between
                leases.release(block.name)
            else:
                yield block
        waiting = unsure
        if waiting:
            yield None
            on_wait(waiting)
            pause(_POLL_SECONDS)
            on_wait([])


def blocks_to_try(
    writer: StoreWriter,
    rank: Rank,
    missing: Sequence[Block],
    *,
    draw: Callable[[int], int] = _random.randrange,
) -> Iterator[Block]:
    """The blocks this process shall write where no lease tells what others write: its own first.

    It begins at a random place and goes on from there; where it finds that somebody else has been,
    it lists which blocks are recorded, and goes on at another place. So few blocks are computed
    twice, which costs time and nothing else: of N blocks some log(N) for each process beside the
    first.

    Raises StoreError where the store cannot be read.
    """
    number_of = {block.name: number for number, block in enumerate(writer.blocks)}
    ours = [block for block in missing if rank.owns(number_of[block.name])]
    others = [block for block in missing if not rank.owns(number_of[block.name])]
    for left in (ours, others):
        if left is others and left:
            left = _unrecorded(writer, left)
        at, lost = draw(len(left)) if left else 0, writer.blocks_lost
        while left:
            block = left.pop(at % len(left))
            is_there = writer.is_committed(block)
            if not is_there:
                yield block
            if left and (is_there or lost != writer.blocks_lost):
                left = _unrecorded(writer, left)
                at, lost = draw(len(left)) if left else 0, writer.blocks_lost


def _unrecorded(writer: StoreWriter, blocks: Sequence[Block]) -> list[Block]:
    recorded = writer.recorded_blocks()
    return [block for block in blocks if block.name not in recorded]
