from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cachedet.config.schedule import LearningRate
from cachedet.errors import ConfigError
from cachedet.training.optimizer import WeightAverage, choose_autocast, make_scaler, warm_decay


def make_rate(**values: Any) -> LearningRate:
    return LearningRate(warmup_from=0.0067 / 0.32, **values)


def test_the_papers_schedule_by_hand() -> None:
    rate = make_rate(
        peak=0.32, total_steps=33264, warmup_steps=500, kind="step", drops=(48 / 72, 68 / 72)
    )
    assert rate.at(0) == pytest.approx(0.0067)
    assert rate.at(250) == pytest.approx((0.0067 + 0.32) / 2)
    assert rate.at(500) == rate.at(22175) == 0.32
    assert rate.at(22176) == pytest.approx(0.032)
    assert rate.at(31416) == pytest.approx(0.0032)


def test_cosine_by_hand() -> None:
    rate = make_rate(peak=1.0, total_steps=110, warmup_steps=10, kind="cosine")
    assert rate.at(10) == 1.0
    assert rate.at(60) == pytest.approx(0.5)
    assert rate.at(110) == pytest.approx(0.0)
    assert rate.at(500) == pytest.approx(0.0)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.integers(1, 400), st.integers(0, 400), st.sampled_from(["cosine", "step"]))
def test_rises_then_falls_within_the_peak(total: int, warmup: int, kind: str) -> None:
    rate = make_rate(peak=0.1, total_steps=total, warmup_steps=warmup, kind=kind, drops=(0.5, 0.9))
    rates = [rate.at(step) for step in range(total)]
    warmup = min(warmup, total // 2)
    assert all(0 <= value <= 0.1 for value in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_wrong_values() -> None:
    with pytest.raises(ValueError, match="expected warmup_steps >= 0, got -1"):
        make_rate(peak=1.0, total_steps=5, warmup_steps=-1, kind="step")
    with pytest.raises(ValueError, match="expected peak > 0 and total_steps >= 1, got 0.0 and 5"):
        make_rate(peak=0.0, total_steps=5, warmup_steps=0, kind="step")


def small_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(decay=st.floats(0.1, 0.9999), steps=st.integers(1, 30))
def test_is_the_weighted_sum_of_all_weights_so_far(decay: float, steps: int) -> None:
    """Against the recursion in float64."""
    module = nn.Linear(3, 2)
    average = WeightAverage(module, decay=decay)
    expected = module.weight.detach().double()
    generator = torch.Generator().manual_seed(steps)
    for step in range(1, steps + 1):
        with torch.no_grad():
            module.weight.copy_(torch.randn(2, 3, generator=generator))
        average.update(module, step=step)
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * module.weight.detach().double()
    torch.testing.assert_close(
        average.state_dict()["weight"].double(), expected, rtol=1e-5, atol=1e-6
    )


def test_a_short_run_forgets_its_beginning() -> None:
    assert warm_decay(0.9999, 1) == pytest.approx(2 / 11)
    assert warm_decay(0.9999, 90) == pytest.approx(0.91)
    assert warm_decay(0.9, 10**6) == 0.9
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 100.0)
    average = WeightAverage(module, decay=0.9999)
    nn.init.constant_(module.weight, 1.0)
    for step in range(1, 31):
        average.update(module, step=step)
    assert float(average.state_dict()["weight"]) == pytest.approx(1.0, abs=1e-3)


def test_running_statistics_are_averaged_and_counters_copied() -> None:
    module = small_net()
    average = WeightAverage(module, decay=0.5)
    module(torch.randn(4, 2, 5, 5) + 3)
    before = average.state_dict()["1.running_mean"].clone()
    average.update(module, step=10**6)
    state = average.state_dict()
    expected = (before + module.state_dict()["1.running_mean"]) / 2
    torch.testing.assert_close(state["1.running_mean"], expected)
    assert int(state["1.num_batches_tracked"]) == 1


def test_applied_and_taken_back_bit_for_bit_also_after_an_error() -> None:
    module = small_net()
    average = WeightAverage(module, decay=0.9)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def look_and_fail() -> None:
        with average.applied_to(module):
            for name, value in average.state_dict().items():
                assert torch.equal(module.state_dict()[name], value)
            assert not torch.equal(module.state_dict()["0.weight"], before["0.weight"])
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        look_and_fail()
    for name, value in before.items():
        assert torch.equal(module.state_dict()[name], value)


def test_float32_whatever_the_weights_are() -> None:
    module = small_net().to(torch.bfloat16)
    average = WeightAverage(module, decay=0.9)
    average.update(module, step=5)
    assert average.state_dict()["0.weight"].dtype == torch.float32


def test_saved_and_continued() -> None:
    module = small_net()
    first, second = (WeightAverage(module, decay=0.9) for _ in range(2))
    with torch.no_grad():
        module[0].weight.add_(1.0)
    first.update(module, step=3)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for average in (first, second):
        average.update(module, step=4)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value)


CPU = torch.device("cpu")


def test_on_a_cpu() -> None:
    assert choose_autocast("fp32", CPU) is None
    assert choose_autocast("auto", CPU) is None
    assert choose_autocast("bf16", CPU) is torch.bfloat16
    with pytest.raises(ConfigError, match="precision fp16 is not there on device cpu: fp16 needs"):
        choose_autocast("fp16", CPU)


def test_elsewhere_nothing_is_promised() -> None:
    assert choose_autocast("auto", torch.device("mps")) is None
    with pytest.raises(ConfigError, match="precision bf16 is not there on device mps"):
        choose_autocast("bf16", torch.device("mps"))


def test_only_fp16_is_scaled() -> None:
    assert make_scaler(None, CPU) is None
    assert make_scaler(torch.bfloat16, CPU) is None
    assert isinstance(make_scaler(torch.float16, CPU), torch.amp.GradScaler)
