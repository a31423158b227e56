from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cachedet.training.optimizer import WeightAverage, warm_decay


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
    own = {name: value.clone() for name, value in module.state_dict().items()}

    def look_and_fail() -> None:
        with average.applied_to(module):
            for name, value in average.state_dict().items():
                assert torch.equal(module.state_dict()[name], value)
            assert not torch.equal(module.state_dict()["0.weight"], own["0.weight"])
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        look_and_fail()
    for name, value in own.items():
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
