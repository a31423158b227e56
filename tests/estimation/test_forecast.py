"""Every formula against figures worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cachedet.estimation.disk import DiskRates
from cachedet.estimation.forecast import (
    break_even,
    expected_residency,
    gain_limit,
    make_forecast,
    reads_disk,
    with_features,
)
from cachedet.estimation.measured import CodecFigures, Measured, Memory, Training

Make = Callable[..., Measured]


def test_the_whole_forecast(measured_of: Make) -> None:
    forecast = make_forecast(measured_of())
    assert forecast.nbytes == 2e9
    assert forecast.nbytes_by_codec == {"int8": 2e9, "fp16": 4e9, "int4": 1e9}
    assert (forecast.scan_seconds, forecast.fit_seconds, forecast.extract_seconds) == (
        5.0,
        0.0,
        242.0,
    )
    assert forecast.extraction_seconds == 247.0
    assert forecast.extract_bottleneck == "backbone"
    seconds = {name: mode.seconds_per_epoch for name, mode in forecast.modes.items()}
    assert seconds == {"cached": 20.0, "live": 50.0, "tuned": 110.0}
    assert forecast.break_even == pytest.approx(247 / 30)
    assert forecast.gain == pytest.approx(2.5)
    assert forecast.limit == pytest.approx(48 / 18)
    assert forecast.heads_share == pytest.approx(18 / 48)
    assert forecast.read_rate_needed == pytest.approx(1e9 / 20)
    assert forecast.residency == "ram"
    assert not forecast.is_disk_read


def test_features_in_ram_count_as_memory_of_the_cached_mode_alone(measured_of: Make) -> None:
    modes = make_forecast(measured_of()).modes
    assert modes["cached"].ram == pytest.approx(0.7e9 + 0.3e9 + 2e9)
    assert modes["live"].ram == pytest.approx(1.0e9)
    assert modes["tuned"].ram == pytest.approx(2.0e9)


def test_a_slow_disk_holds_up_extraction(measured_of: Make) -> None:
    """2 GB at 4 MB/s take 500 s, more than the 240 s that everything else takes."""
    forecast = make_forecast(measured_of(disk=DiskRates(write=4e6, read=5e8, is_cold=True)))
    assert forecast.extract_seconds == 502.0
    assert forecast.extract_bottleneck == "write"


@pytest.mark.parametrize(
    ("rate", "seconds", "bottleneck"), [(1e8, 20.0, "heads"), (2e7, 50.0, "disk")]
)
def test_an_epoch_takes_the_longer_of_computing_and_reading(
    measured_of: Make, rate: float, seconds: float, bottleneck: str
) -> None:
    """One GB an epoch: 10 s at 100 MB/s, 50 s at 20 MB/s; it does not stay in 1 GB of RAM."""
    disk = DiskRates(write=1e8, read=rate, is_cold=True)
    forecast = make_forecast(measured_of(disk=disk, free_ram=1e9))
    assert forecast.residency == "stream"
    assert forecast.is_disk_read
    assert forecast.modes["cached"].seconds_per_epoch == seconds
    assert forecast.modes["cached"].bottleneck == bottleneck


def test_without_a_live_figure_nothing_is_said_of_the_gain(measured_of: Make) -> None:
    measured = measured_of()
    trainings = {
        **measured.trainings,
        "live": Training(phase=None, memory=None, failure="memory does not suffice"),
    }
    forecast = make_forecast(replace(measured, trainings=trainings))
    assert (forecast.gain, forecast.break_even) == (None, None)
    assert forecast.modes["live"].failure == "memory does not suffice"
    assert forecast.modes["live"].seconds_per_epoch is None


def test_a_cut(measured_cut_of: Make) -> None:
    """Its backbone takes 160 of 240 s an extraction, the longest stage: 5 + 2 + 192 s in all."""
    forecast = make_forecast(measured_cut_of())
    cut = forecast.cuts["C4"]
    assert (cut.trunk_seconds, cut.stages_seconds) == pytest.approx((24.0, 6.0))
    assert (cut.of_cached, cut.of_tuned) == pytest.approx((1.3, 26 / 110))
    assert cut.nbytes == pytest.approx(1.6e9)
    assert cut.extraction_seconds == pytest.approx(199.0)
    assert cut.break_even_live == pytest.approx(199 / 24)
    assert cut.break_even_tuned == pytest.approx(199 / 84)
    assert forecast.modes["partial_C4"].ram == pytest.approx(1.2e9 + 1.6e9)
    # the config trains heads alone, on a store of all levels
    assert (forecast.mode, forecast.rival, forecast.nbytes) == ("cached", "live", 2e9)


def test_a_config_that_trains_stages_is_held_against_fine_tuning(measured_cut_of: Make) -> None:
    forecast = make_forecast(measured_cut_of(freeze_at="C4"))
    assert (forecast.mode, forecast.rival, forecast.limit) == ("partial_C4", "tuned", None)
    assert forecast.nbytes == 2e9
    assert forecast.gain == pytest.approx(110 / 26)
    assert forecast.break_even == pytest.approx(247 / 84)
    assert forecast.read_rate_needed == pytest.approx(0.8e9 / 26)


def test_a_store_that_ends_at_the_cut(measured_cut_of: Make) -> None:
    forecast = make_forecast(measured_cut_of(freeze_at="C4", stored_to="C4"))
    assert forecast.nbytes == pytest.approx(1.6e9)
    assert forecast.nbytes_by_codec["int4"] == pytest.approx(0.8e9)
    assert forecast.extraction_seconds == pytest.approx(199.0)
    assert forecast.break_even == pytest.approx(199 / 84)


def test_a_cut_whose_store_is_read_from_the_disk(measured_cut_of: Make) -> None:
    """0.8 GB an epoch at 20 MB/s take 40 s; all levels would be 50."""
    disk = DiskRates(write=1e8, read=2e7, is_cold=True)
    modes = make_forecast(measured_cut_of(disk=disk, free_ram=1e9)).modes
    assert modes["partial_C4"].seconds_per_epoch == pytest.approx(40.0)
    assert modes["cached"].seconds_per_epoch == pytest.approx(50.0)


def test_a_cut_that_could_not_be_tried(measured_cut_of: Make) -> None:
    measured = measured_cut_of()
    failed = Training(phase=None, memory=None, failure="memory does not suffice")
    cut = make_forecast(
        replace(measured, trainings={**measured.trainings, "partial_C4": failed})
    ).cuts["C4"]
    assert (cut.of_cached, cut.of_tuned, cut.break_even_live) == (None, None, None)
    assert cut.extraction_seconds == pytest.approx(199.0)


@pytest.mark.parametrize(
    ("live", "cached", "expected"),
    [(50.0, 20.0, 4.0), (20.0, 20.0, None), (19.0, 20.0, None), (None, 20.0, None)],
)
def test_break_even(live: float | None, cached: float, expected: float | None) -> None:
    assert break_even(120.0, live=live, cached=cached) == expected


def test_limit_is_b_plus_h_over_h() -> None:
    assert gain_limit(0.13, 0.043) == pytest.approx(4.0233, abs=1e-4)
    assert gain_limit(0.13, 0.0) is None


def test_where_the_cached_mode_could_not_be_run(measured_of: Make) -> None:
    measured = measured_of(heads_seconds=0.0)
    failed = Training(phase=None, memory=None, failure="memory does not suffice")
    trainings = {**measured.trainings, "cached": failed}
    forecast = make_forecast(replace(measured, trainings=trainings))
    assert (forecast.limit, forecast.gain, forecast.read_rate_needed) == (None, None, None)
    assert forecast.modes["live"].seconds_per_epoch == 50.0


@pytest.mark.parametrize(
    ("wanted", "stored", "device", "expected"),
    [
        ("auto", 4e9, None, "ram"),  # exactly half of what is free
        ("auto", 4.1e9, None, "stream"),
        ("auto", 4e9, 20e9, "device"),
        ("auto", 4e9, 9e9, "ram"),  # 5 GB unpacked are more than half of 9 GB
        ("stream", 1e9, None, "stream"),
        ("ram", 7e9, None, "ram"),
        ("ram", 9e9, None, "stream"),  # `train-heads` refuses it
    ],
)
def test_expected_residency(
    wanted: Any, stored: float, device: float | None, expected: str
) -> None:
    features = CodecFigures(nbytes=stored, unpacked=5e9, encode_seconds=0.0)
    residency = expected_residency(wanted, features, ram=8e9, device=device)
    assert residency == expected


@pytest.mark.parametrize(
    ("residency", "has_own", "resting", "device"),
    [
        ("stream", False, 1.0, 5.0),
        ("ram", True, 11.0, 5.0),
        ("device", True, 1.0, 25.0),
        ("device", False, 21.0, 5.0),
    ],
)
def test_features_are_added_where_they_wait(
    residency: Any, has_own: bool, resting: float, device: float
) -> None:
    """10 bytes stored, 20 unpacked."""
    features = CodecFigures(nbytes=10.0, unpacked=20.0, encode_seconds=0.0)
    memory = Memory(resting=1.0, working=2.0, device=5.0)
    assert with_features(memory, residency, features, has_own=has_own) == Memory(
        resting=resting, working=2.0, device=device
    )
    assert with_features(None, residency, features, has_own=has_own) is None


@pytest.mark.parametrize(
    ("residency", "nbytes", "expected"),
    [("stream", 9e8, True), ("stream", 7e8, False), ("ram", 9e8, False), ("device", 9e8, False)],
)
def test_what_stays_in_the_systems_cache_is_not_read_again(
    residency: str, nbytes: float, expected: bool
) -> None:
    assert reads_disk(residency, nbytes, free_ram=1e9) is expected  # type: ignore[arg-type]
