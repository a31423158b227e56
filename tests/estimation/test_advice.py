"""Each rule where it speaks, with the numbers in its words, and where it is silent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cachedet.estimation import advice
from cachedet.estimation.disk import DiskRates
from cachedet.estimation.forecast import Forecast, make_forecast
from cachedet.estimation.measured import CodecFigures, Measured, Memory, Phase, Training

Make = Callable[..., Measured]
SLOW = DiskRates(write=1e8, read=2e7, is_cold=True)  # 1 GB an epoch: 50 s


def both(measured: Measured) -> tuple[Measured, Forecast]:
    return measured, make_forecast(measured)


def with_training(measured: Measured, name: str, training: Training) -> Measured:
    return replace(measured, trainings={**measured.trainings, name: training})


def test_on_a_good_machine_only_the_residency_is_said(measured_of: Make) -> None:
    line = advice.advise(*both(measured_of()))
    assert line == ["the cache fits into RAM (residency ram): epochs read no disk"]


def test_the_verdict_in_one_sentence(measured_of: Make) -> None:
    """247 s of extraction; an epoch is 20 s instead of 50 s."""
    run = "10:47, extraction included, instead of 16:40 live frozen, for 20 epochs; it pays"
    verdict = advice.give_verdict(*both(measured_of()))
    assert verdict == f"yes: {run} from epoch 9"
    short = advice.give_verdict(*both(measured_of(epochs=5)))
    assert short.startswith("not for one run: 5:47, extraction included, instead of 4:10 live froz")
    assert short.endswith("; it pays from epoch 9, so in several runs")
    full = advice.give_verdict(*both(measured_of(free_disk=1e9)))
    assert full == "no: the cache does not fit on the disk"
    live = Training(phase=Phase(seconds=21.0, stages={"backbone and heads": 21.0}), memory=None)
    slight = with_training(measured_of(epochs=1000), "live", live)
    assert advice.give_verdict(*both(slight)).startswith("hardly: 5:37:27, extraction included,")
    never = with_training(
        measured_of(), "live", replace(live, phase=Phase(seconds=9.0, stages={"decode": 9.0}))
    )
    assert advice.give_verdict(*both(never)).endswith("; the cache never pays")
    failed = Training(phase=None, memory=None, failure="no memory")
    untried = with_training(measured_of(), "live", failed)
    assert (
        advice.give_verdict(*both(untried))
        == "no verdict: cached or live frozen could not be tried"
    )


def test_the_latest_cut_is_named(measured_cut_of: Make) -> None:
    measured = measured_cut_of()
    line = advice.train_stages(*both(measured))
    assert line == "train from C4 (freeze_at: C4): 1.3 of the cached step, 0.24 of fine-tuning's"
    assert line in advice.advise(*both(measured))
    assert advice.train_stages(*both(measured_cut_of(freeze_at="C4"))) is None  # it does


def test_a_cut_that_spares_little(measured_cut_of: Make) -> None:
    slow = Training(phase=Phase(seconds=99.0, stages={"stages and heads": 99.0}), memory=None)
    measured = with_training(measured_cut_of(), "partial_C4", slow)
    line = advice.train_stages(*both(measured))
    assert line == "training from C4 spares little: 5 of the cached step, 0.9 of fine-tuning's"
    assert advice.not_worth_it(*both(replace(measured, freeze_at="C4"))) == (
        "do not train from C4 like this: an epoch takes 0.90 of fine-tuning's; a later cut, or "
        "leaner heads"
    )


def test_a_cut_where_fine_tuning_does_not_fit(measured_cut_of: Make) -> None:
    failed = Training(phase=None, memory=None, failure="memory does not suffice")
    line = advice.train_stages(*both(with_training(measured_cut_of(), "tuned", failed)))
    assert line.endswith("1.3 of the cached step; fine-tuning could not be tried")


def test_a_disk_that_is_too_small(measured_of: Make) -> None:
    line = advice.disk_too_small(*both(measured_of(free_disk=1.5e9)))
    assert line == (
        "the disk is too small: the cache needs 2.00 GB, 1.50 GB are free. It has room for "
        "--codec int4 (1.00 GB) or 1 of the 2 views"
    )


def test_a_disk_with_no_room_at_all(measured_of: Make) -> None:
    line = advice.disk_too_small(*both(measured_of(free_disk=1e8)))
    assert line.endswith("100.00 MB are free. Smaller images, or another disk")


def test_a_disk_that_will_be_nearly_full(measured_of: Make) -> None:
    assert advice.disk_nearly_full(*both(measured_of())) is None
    line = advice.disk_nearly_full(*both(measured_of(free_disk=2.1e9)))
    assert line == "the cache takes 95% of what is free on the disk"
    assert advice.disk_nearly_full(*both(measured_of(free_disk=1e9))) is None  # said elsewhere


def test_heads_that_are_most_of_the_step(measured_of: Make) -> None:
    """B = 2, H = 18: 18 of 20 s, at most 1.11 times as fast."""
    live = Training(phase=Phase(seconds=21.0, stages={"backbone and heads": 20.0}), memory=None)
    measured = with_training(measured_of(backbone_seconds=2.0), "live", live)
    line = advice.not_worth_it(*both(measured))
    assert line.startswith(
        "do not cache: the heads are 90% of the step, so that no cache gains more"
    )
    assert "1.11" in line


def test_a_cache_that_does_not_reach_its_limit(measured_of: Make) -> None:
    line = advice.not_worth_it(*both(measured_of(disk=SLOW, free_ram=1e9)))
    assert line == (
        "do not cache like this: an epoch gains 1.00 of at most 2.67; what holds it up is disk"
    )


def test_a_cache_that_pays_late(measured_of: Make) -> None:
    assert advice.pays_late(*both(measured_of())) is None
    line = advice.pays_late(*both(measured_of(epochs=3)))
    assert line == (
        "the cache pays for itself after 8.2 epochs, the config trains for 3 epochs: it pays only "
        "in several runs, with fewer --views or with a larger backbone"
    )


def test_a_disk_that_holds_up_the_epoch(measured_of: Make) -> None:
    """1 GB at 20 MB/s: 50 s; with int4 25 s."""
    line = advice.disk_bound_epoch(*both(measured_of(disk=SLOW, free_ram=1e9)))
    assert line == "codec int4 halves the epoch: the disk is the bottleneck"


def test_a_codec_whose_cache_stays_in_memory(measured_of: Make) -> None:
    """int4 with 1 GB stays in 1.5 GB of RAM, so that its epoch reads no disk: 20 of 50 s."""
    line = advice.disk_bound_epoch(*both(measured_of(disk=SLOW, free_ram=1.5e9)))
    assert line == "codec int4 brings the epoch to 40%: the disk is the bottleneck"


def test_no_codec_that_helps(measured_of: Make) -> None:
    codecs = {"int8": CodecFigures(nbytes=2e9, unpacked=2e9, encode_seconds=1.0)}
    line = advice.disk_bound_epoch(*both(measured_of(disk=SLOW, free_ram=1e9, codecs=codecs)))
    assert line == "the disk is the bottleneck of the cached epoch, and no other codec helps"


@pytest.mark.parametrize(
    ("stage", "words"),
    [("decode", "more --workers"), ("encode", "codec int8"), ("write", "writes less")],
)
def test_extraction_that_does_not_wait_for_the_backbone(
    measured_of: Make, stage: str, words: str
) -> None:
    stages = {**measured_of().extract.stages, stage: 900.0}
    line = advice.slow_extraction(*both(measured_of(extract=Phase(seconds=950.0, stages=stages))))
    assert line is not None
    assert words in line
    assert line.startswith("extraction waits not for the backbone but for ")
    assert advice.slow_extraction(*both(measured_of())) is None


def test_modes_that_need_too_much_memory(measured_of: Make) -> None:
    assert advice.does_not_fit(*both(measured_of())) is None
    hungry = Training(
        phase=Phase(seconds=110.0, stages={"backbone and heads": 108.0}),
        memory=Memory(resting=1e9, working=9e9),
    )
    line = advice.does_not_fit(*both(with_training(measured_of(), "tuned", hungry)))
    assert line == (
        "tuned may need more memory than the 8.00 GB that are free: a smaller "
        "schedule.batch_size takes less"
    )
    failed = Training(phase=None, memory=None, failure="memory does not suffice")
    line = advice.does_not_fit(*both(with_training(measured_of(), "tuned", failed)))
    assert line == "tuned: memory does not suffice: a smaller schedule.batch_size takes less"
    broken = Training(phase=None, memory=None, failure="no step in 600 s")
    line = advice.does_not_fit(*both(with_training(measured_of(), "tuned", broken)))
    assert line == "tuned: no step in 600 s"


@pytest.mark.parametrize(
    ("free_ram", "words"), [(3e9, "which keeps it in memory"), (1e9, "not all of it stays")]
)
def test_features_that_are_streamed(measured_of: Make, free_ram: float, words: str) -> None:
    line = advice.where_features_wait(*both(measured_of(free_ram=free_ram)))
    assert line is not None
    assert words in line


def test_features_that_fit_on_the_device(measured_of: Make) -> None:
    line = advice.where_features_wait(*both(measured_of(free_device=8e9)))
    assert line is not None
    assert "residency device" in line


def test_a_small_data_set_wants_more_draws(measured_of: Make) -> None:
    """Two views of 1 GB: four more are 4 GB, less than a tenth of 41."""
    views = ("base", "jitter-0.5-1.5-s0", "jitter-0.5-1.5-s1")
    small = measured_of(views=("base", "hflip"), free_disk=41e9)
    line = advice.few_draws(*both(small))
    assert line == (
        "100 images are few: 4 jittered views in place of 0 take 4.00 GB more and may bring "
        "an AP or more (--views base,hflip,jitter=4:0.5-1.5)"
    )
    line = advice.few_draws(*both(measured_of(views=views, free_disk=41e9)))
    assert line is not None
    assert "4 jittered views in place of 2 take 1.33 GB more" in line
    assert advice.few_draws(*both(replace(small, free_disk=39e9))) is None
    assert advice.few_draws(*both(replace(small, images=1001))) is None
    enough = (*views, "jitter-0.5-1.5-s2", "jitter-0.5-1.5-s3")
    assert advice.few_draws(*both(measured_of(views=enough, free_disk=41e9))) is None
