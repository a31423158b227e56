"""What the tests on a GPU share. They are skipped where torch finds none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.extract import extract


@pytest.fixture
def float32() -> Iterator[None]:
    """Convolutions in float32: torch takes TF32 on CUDA, whose factors have 11 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="session")
def cuda_train(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store of the eight generated images, views base and hflip, fp32, extracted on CUDA."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    root: Path = tmp_path_factory.mktemp("cuda") / "train.zarr"
    extract(tiny.extract_config(root, device="cuda"))
    torch.backends.cudnn.allow_tf32 = before
    return root
