from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.errors import CodecError, InputError
from cachedet.store.codec import CODECS, make_codec

VALUES = st.lists(st.floats(-65504, 65504, width=32), min_size=4, max_size=4)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(values=VALUES, name=st.sampled_from(sorted(CODECS)))
def test_error_stays_within_the_stated_bound(values: list[float], name: str) -> None:
    maps = torch.tensor(values, dtype=torch.float32).view(1, 1, 2, 2)
    codec = make_codec(name)
    decoded = codec.decode(codec.encode(maps, level="C3", pictures=["a"]))
    assert decoded.dtype == torch.float32
    assert bool(((decoded - maps).abs() <= codec.error_bound(maps)).all())


@pytest.mark.parametrize("value", [2.0**-24, 2.0**-25, 6.1e-5, 1e-30])
def test_tiny_numbers_of_fp16(value: float) -> None:
    maps = torch.full((1, 1, 1, 1), value)
    codec = make_codec("fp16")
    decoded = codec.decode(codec.encode(maps, level="C3", pictures=["a"]))
    assert float((decoded - maps).abs()) <= float(codec.error_bound(maps))


def test_fp32_is_exact_and_sizes_are_exact() -> None:
    maps = torch.randn(2, 3, 4, 5)
    for name, itemsize in (("fp32", 4), ("fp16", 2)):
        codec = make_codec(name)
        encoded = codec.encode(maps, level="C3", pictures=["a", "b"])
        assert codec.encoded_nbytes(maps.shape) == encoded.nbytes == maps.numel() * itemsize
    exact = make_codec("fp32")
    assert torch.equal(exact.decode(exact.encode(maps, level="C3", pictures=["a", "b"])), maps)


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_refuses_what_is_no_number(name: str, value: float) -> None:
    maps = torch.zeros(2, 1, 2, 2)
    maps[1, 0, 1, 0] = value
    message = rf"b.jpg: level C4 holds {value:g}, which is not a number"
    with pytest.raises(CodecError, match=message):
        make_codec(name).encode(maps, level="C4", pictures=["a.jpg", "b.jpg"])


def test_fp16_refuses_overflow_that_fp32_takes() -> None:
    maps = torch.full((1, 1, 1, 1), 65520.0)
    with pytest.raises(CodecError, match=r"a.jpg: level C5 holds 65520, .* use --codec fp32"):
        make_codec("fp16").encode(maps, level="C5", pictures=["a.jpg"])
    assert np.isfinite(make_codec("fp32").encode(maps, level="C5", pictures=["a.jpg"])).all()


def test_unknown_codec() -> None:
    with pytest.raises(InputError, match="unknown codec 'fp15'; nearest: 'fp16'"):
        make_codec("fp15")
