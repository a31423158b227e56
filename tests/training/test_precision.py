from __future__ import annotations

import pytest
import torch

from cachedet.errors import ConfigError
from cachedet.training.optimizer import choose_autocast, make_scaler

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
