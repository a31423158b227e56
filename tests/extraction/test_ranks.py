"""Who extracts which block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedet.errors import ConfigError
from cachedet.extraction.ranks import Rank, blocks_to_write, find_rank
from cachedet.store.files.leases import LeaseBook
from cachedet.store.files.owner import Owner

ELSEWHERE = Owner(host="another-machine", pid=1, start=1)


@given(st.integers(1, 9), st.integers(0, 50))
def test_each_block_belongs_to_one_rank(world: int, index: int) -> None:
    owners = [number for number in range(world) if Rank(number=number, world=world).owns(index)]
    assert len(owners) == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "4"}, (1, 4)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "3"}, (2, 3)),
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "2", "SLURM_NTASKS": "3"}, (0, 2)),
        ({"RANK": "1"}, (0, 1)),
    ],
)
def test_the_environment_of_launchers(
    environment: dict[str, str], expected: tuple[int, int]
) -> None:
    rank = find_rank(None, None, environment)
    assert (rank.number, rank.world) == expected
    assert find_rank(3, 5, environment) == Rank(number=3, world=5)


def test_ranks_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match=r"--rank expects 0 to 1 for --world-size 2, got 2"):
        find_rank(2, 2, {})
    with pytest.raises(ConfigError, match=r"--rank and --world-size belong together, got rank 1"):
        find_rank(1, None, {})
    with pytest.raises(ConfigError, match=r"RANK and WORLD_SIZE expect whole numbers, got \('a'"):
        find_rank(None, None, {"RANK": "a", "WORLD_SIZE": "2"})


@pytest.fixture
def writer(tmp_path: Path, store_kit: Any) -> Any:
    return store_kit.blank(12).open_writer(tmp_path / "s.zarr", views=("base",))


def names(blocks: list[Any]) -> list[int]:
    return [block.number for block in blocks if block is not None]


class Waits:
    """What a person sees: numbers of the blocks waited for."""

    def __init__(self) -> None:
        self.shown: list[list[int]] = []

    def __call__(self, blocks: Sequence[Any]) -> None:
        self.shown.append(names(list(blocks)))


def test_own_blocks_come_first_and_nobody_waits_for_the_dead(writer: Any, store_kit: Any) -> None:
    with LeaseBook(writer.root) as leases:
        done = []
        for block in blocks_to_write(writer, leases, Rank(number=1, world=2), on_wait=Waits()):
            done.append(block)
            writer.write(block, store_kit.features_of(block))
            leases.release(block.name)
    assert names(done) == [1, 3, 5, 0, 2, 4]


def test_blocks_of_living_writers_are_left_to_them(writer: Any) -> None:
    other = LeaseBook(writer.root)
    assert other.take(writer.blocks[2].name)
    waits = Waits()
    with LeaseBook(writer.root) as leases:
        done = list(blocks_to_write(writer, leases, Rank(), on_wait=waits))
    assert names(done) == [0, 1, 3, 4, 5]
    assert waits.shown == []


def test_committed_blocks_are_not_done_again(writer: Any, store_kit: Any) -> None:
    for block in writer.blocks[:4]:
        writer.write(block, store_kit.features_of(block))
    with LeaseBook(writer.root) as leases:
        left = blocks_to_write(writer, leases, Rank(), on_wait=Waits())
        assert names(list(left)) == [4, 5]


def test_a_machine_that_fell_silent_is_waited_for_and_then_replaced(writer: Any) -> None:
    now = 0.0

    def pause(seconds: float) -> None:
        nonlocal now
        now += seconds

    waits = Waits()
    LeaseBook(writer.root, owner=ELSEWHERE).take(writer.blocks[0].name)
    with LeaseBook(writer.root, patience=60, watch=lambda: now) as leases:
        done = list(blocks_to_write(writer, leases, Rank(), on_wait=waits, pause=pause))
    assert names(done) == [1, 2, 3, 4, 5, 0]
    assert done[5] is None  # so that nobody holds back the last block meanwhile
    assert now >= 60
    assert waits.shown[:2] == [[0], []]
    assert len(waits.shown) == 2 * now


def test_a_machine_that_commits_while_we_wait(writer: Any, store_kit: Any) -> None:
    def commit_elsewhere(seconds: float) -> None:
        writer.write(writer.blocks[0], store_kit.features_of(writer.blocks[0]))

    LeaseBook(writer.root, owner=ELSEWHERE).take(writer.blocks[0].name)
    with LeaseBook(writer.root, watch=lambda: 0.0) as leases:
        left = blocks_to_write(writer, leases, Rank(), on_wait=Waits(), pause=commit_elsewhere)
        done = list(left)
    assert names(done) == [1, 2, 3, 4, 5]
