"""What ranks tell each other, in real processes."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.distributed import collective
from cachedet.errors import ConfigError, RankError


def test_alone_every_function_is_the_identity() -> None:
    values = torch.arange(3.0, requires_grad=True)
    assert (collective.rank(), collective.world_size(), collective.is_first()) == (0, 1, True)
    assert collective.sum_over_ranks(values) is values
    assert collective.count_over_ranks(5) == 5
    assert collective.on_any_rank(True) is True
    assert torch.equal(collective.gather(values), torch.arange(3.0)[None])
    assert collective.gather_texts("a") == ["a"]
    assert collective.from_first(lambda: 7) == 7
    collective.sum_in_place([values])
    assert torch.equal(values, torch.arange(3.0))
    drawn = collective.rand_of_rank(2, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn, torch.rand(2, 3, generator=torch.Generator().manual_seed(1)))


def speak(_: Any) -> dict[str, Any]:
    rank = collective.rank()
    values = torch.tensor([rank + 1.0, 10.0], requires_grad=True)
    in_place = torch.tensor([float(rank)])
    collective.sum_in_place([in_place])
    with collective.single_process():
        when_alone = collective.count_over_ranks(5), collective.world_size()
    with collective.single_process(False):
        not_alone = collective.count_over_ranks(5)
    return {
        "rank": rank,
        "is first": collective.is_first(),
        "sum": collective.sum_over_ranks(values),
        "own": values.detach().clone(),
        "in place": in_place,
        "count": collective.count_over_ranks(rank),
        "flags": (collective.on_any_rank(rank == 2), collective.on_any_rank(False)),
        "gathered": collective.gather(values),
        "texts": collective.gather_texts("x" * rank),
        "from first": collective.from_first(lambda: f"of rank {rank}"),
        "alone": (when_alone, not_alone),
    }


def test_three_ranks_agree(ranks: Any) -> None:
    for rank, said in enumerate(ranks.run(speak, world=3)):
        assert said["rank"] == rank
        assert said["is first"] == (rank == 0)
        assert said["sum"].tolist() == [6.0, 30.0]
        assert not said["sum"].requires_grad
        assert said["own"].tolist() == [rank + 1.0, 10.0]
        assert said["in place"].tolist() == [3.0]
        assert said["count"] == 3
        assert said["flags"] == (True, False)
        assert said["gathered"].tolist() == [[1.0, 10.0], [2.0, 10.0], [3.0, 10.0]]
        assert said["texts"] == ["", "x", "xx"]
        assert said["from first"] == "of rank 0"
        assert said["alone"] == ((5, 1), 15)


def draw(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of a batch whose images differ in width, then the random state."""
    rank, world = collective.rank(), collective.world_size()
    mine = list(range(images))[rank::world]
    widest = max(4 + n for n in mine)
    return collective.rand_of_rank(len(mine), widest, generator=None), torch.get_rng_state()


def test_draws_are_those_of_one_process(ranks: Any) -> None:
    images = 5
    (whole, state) = ranks.run(draw, images, world=1)[0]
    for world in (2, 4):
        for rank, (drawn, own_state) in enumerate(ranks.run(draw, images, world=world)):
            assert torch.equal(drawn, whole[rank::world, : drawn.shape[1]])
            assert torch.equal(own_state, state)


def fail_on_the_first(_: Any) -> tuple[str, str]:
    def fail() -> int:
        raise ConfigError("no such key")

    try:
        collective.from_first(fail)
    except (ConfigError, RankError) as error:
        return type(error).__name__, str(error)
    return "", ""


def test_errors_of_the_first_rank_reach_all(ranks: Any) -> None:
    assert ranks.run(fail_on_the_first, world=2) == [
        ("ConfigError", "no such key"),
        ("RankError", "rank 0 stopped: no such key"),
    ]


def lose_a_rank(folder: Path) -> None:
    for step in range(10_000):
        collective.count_over_ranks(1)
        if step == 3 and collective.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def wait_for_a_rank_that_dies(folder: Path) -> None:
    if collective.rank() == 0:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    collective.from_first(lambda: 1)


@pytest.mark.parametrize(
    ("function", "dead", "left"), [(lose_a_rank, 1, 0), (wait_for_a_rank_that_dies, 0, 1)]
)
def test_a_rank_that_died_is_an_error_at_once(
    ranks: Any, tmp_path: Path, function: Any, dead: int, left: int
) -> None:
    folder = ranks.start(function, tmp_path, world=2)
    started = time.monotonic()
    statuses = ranks.statuses()
    assert statuses[dead] == -signal.SIGKILL
    assert statuses[left] == 1
    assert time.monotonic() - started < 40  # the timeout is 90 s
    message = (folder / f"{left}.txt").read_text()
    assert f"RankError: rank {left} of 2 lost another rank, which died or did not answer" in message
    assert "continue with --resume, or let torchrun do so with --max-restarts" in message


_PATIENCE = 5  # seconds; meeting anew takes two of them on a busy machine


def wait_for_a_rank_that_hangs(folder: Path) -> tuple[str, float]:
    """Joined anew with a short patience; rank 1 is busy elsewhere until it is given up."""
    number = collective.rank()
    collective.leave()
    collective.join(
        backend="gloo",
        rank=number,
        world=2,
        timeout=timedelta(seconds=_PATIENCE),
        init_method=f"file://{folder}/second-meeting",
    )
    started = time.monotonic()
    if number == 1:
        while not (folder / "given up").exists():
            time.sleep(0.05)
        return "", 0.0
    try:
        collective.count_over_ranks(1)
    except RankError as error:
        return str(error), time.monotonic() - started
    finally:
        (folder / "given up").touch()
    return "", 0.0


def test_a_rank_that_hangs_is_given_up(ranks: Any, tmp_path: Path) -> None:
    message, seconds = ranks.run(wait_for_a_rank_that_hangs, tmp_path, world=2)[0]
    assert message.startswith("rank 0 of 2 lost another rank, which died or did not answer")
    assert _PATIENCE - 1 < seconds < _PATIENCE + 20


def test_ranks_that_do_not_meet(tmp_path: Path) -> None:
    message = r"rank 0 of 2 did not meet the others \(it waits 0.2 s\): .*ch"
    with pytest.raises(RankError, match=message):
        collective.join(
            backend="gloo",
            rank=0,
            world=2,
            timeout=timedelta(seconds=0.2),
            init_method=f"file://{tmp_path}/meeting",
        )
    collective.leave()
    assert collective.world_size() == 1
