from __future__ import annotations

import pytest

from cachedet.training.trainer import StepStatistics


def test_means_weigh_every_picture_the_same() -> None:
    epoch = StepStatistics()
    epoch.merge(StepStatistics.of_step({"loss": 4.0}, pictures=8, seconds=2.0, waiting=0.5))
    epoch.merge(StepStatistics.of_step({"loss": 1.0}, pictures=2, seconds=0.5, waiting=0.0))
    assert epoch.means() == {"loss": pytest.approx(3.4)}
    assert epoch.pictures_per_second == pytest.approx(4.0)
    assert epoch.waiting_share == pytest.approx(0.2)


def test_nothing_yet() -> None:
    empty = StepStatistics()
    assert (empty.means(), empty.pictures_per_second, empty.waiting_share) == ({}, 0.0, 0.0)


def test_saved_and_continued() -> None:
    epoch = StepStatistics.of_step({"loss": 1.5}, pictures=3, seconds=1.0, waiting=0.25)
    again = StepStatistics(**epoch.state_dict())
    epoch.merge(epoch)
    assert again.state_dict() == {
        "pictures": 3, "seconds": 1.0, "waiting": 0.25, "loss_sums": {"loss": 4.5},
    }  # fmt: skip
