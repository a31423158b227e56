"""Every codec: shapes, sizes, error bounds, state, refusals."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cachedet.errors import CodecError, InputError, StoreError
from cachedet.store.codecs.codec import Codec, state_digest
from cachedet.store.codecs.integers import pack_nibbles, unpack_nibbles
from cachedet.store.codecs.projections import SnrCodec, principal_components
from cachedet.store.codecs.registry import CODECS, make_codec
from cachedet.store.codecs.statistics import FeatureStatistics, LevelStatistics
from cachedet.store.format.shards import pack_chunk, unpack_zstd
from cachedet.structures import FeatureSpec, LevelSpec

NAMES = [*CODECS, "pca2+int8", "pca64+int8", "snr6", "snr12", "snr20"]
LOSSLESS = {"fp32"}
SPEC = FeatureSpec((LevelSpec(name="C4", channels=3, stride=16),))

values = st.floats(-60000, 60000, width=32)
maps_of_any_values = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 17)),
    elements=values,
)
maps_of_any_floats = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 5), st.integers(1, 9)),
    elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
)


def fitted(name: str, maps: torch.Tensor) -> Codec:
    codec = make_codec(name)
    statistics = FeatureStatistics()
    statistics.add({"C4": maps})
    return codec.fit(statistics.levels)


def round_trip(codec: Codec, maps: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Through encoding, packing, unpacking and decoding; also how many codes were cut off."""
    count, *shape = maps.shape
    images = [f"{n}.jpg" for n in range(count)]
    encoded = codec.encode(maps, level="C4", images=images)
    arrays = encoded.arrays()
    stored = {}
    for part in codec.parts("C4", (shape[0], shape[1], shape[2])):
        array = arrays[part.name]
        assert array.shape == (count, *part.shape)
        assert array.dtype == np.dtype(part.dtype)
        out = np.empty_like(array)
        for one, values_out in zip(array, out, strict=True):
            packed = b"".join(pack_chunk(one, part))
            assert len(packed) <= part.packed_nbytes
            if part.packing == "zstd":
                unpack_zstd(packed, values_out, where="here")
            else:
                assert len(packed) == part.packed_nbytes
                values_out[...] = np.frombuffer(packed[:-4], part.dtype).reshape(part.shape)
        stored[part.name] = torch.from_numpy(out)
    decoded = codec.decode(stored, level="C4", shape=(shape[0], shape[1], shape[2]))
    assert decoded.dtype == torch.float32
    return decoded, encoded.saturated


def assert_within_bound(
    codec: Codec, maps: torch.Tensor, decoded: torch.Tensor, saturated: int
) -> None:
    """Bit for bit where the codec is lossless; where codes were cut off nothing is promised."""
    assert torch.isfinite(decoded).all()
    if codec.name in LOSSLESS:
        torch.testing.assert_close(decoded, maps, rtol=0, atol=0)
    elif not saturated:
        bound = codec.error_bound(maps, level="C4").double().expand_as(maps)
        assert ((decoded - maps).double().abs() <= bound * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stored_last", [False, True])
def test_given_memory_takes_the_maps(name: str, stored_last: bool) -> None:
    """Whatever lies in which order: stored arrays and memory, channels first or last."""
    maps = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    codec = fitted(name, maps)
    encoded = codec.encode(maps, level="C4", images=["a.jpg", "b.jpg"])
    parts = {key: values.clone() for key, values in encoded.parts.items()}
    if stored_last:
        last = torch.channels_last
        parts = {
            k: v.contiguous(memory_format=last) if v.ndim == 4 else v for k, v in parts.items()
        }
    expected = codec.decode(parts, level="C4", shape=(6, 5, 4))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        out = torch.empty(2, 6, 5, 4, memory_format=memory_format)
        assert codec.decode(parts, level="C4", shape=(6, 5, 4), out=out) is out
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
        assert out.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(array=maps_of_any_values)
def test_what_comes_back_is_within_the_stated_bound(name: str, array: np.ndarray) -> None:
    maps = torch.from_numpy(array)
    codec = fitted(name, maps)
    try:
        decoded, saturated = round_trip(codec, maps)
    except CodecError as refusal:  # a lone spike among zeros: one step for all has no room for it
        if name.startswith("snr") and "would be cut off" in str(refusal):
            return
        raise
    assert decoded.shape == maps.shape
    assert_within_bound(codec, maps, decoded, saturated)


def plain_int8(maps: np.ndarray) -> dict[str, np.ndarray]:
    """What `int8` is said to store, without torch: all in float32, halves to the even code."""
    signed = bool((maps < 0).any())
    scale = np.abs(maps).max(axis=(2, 3)) / np.float32(127 if signed else 255)
    divisor = np.where(scale > 0, scale, np.float32(1))[:, :, None, None]
    codes = np.rint(maps / divisor).astype(np.int8 if signed else np.uint8)
    return {"codes": codes, "scale": scale}


@settings(max_examples=200, deadline=None)
@given(array=maps_of_any_values)
def test_int8_is_what_numpy_makes_of_its_definition(array: np.ndarray) -> None:
    """To the bit, so that it matters not which device computes it; see tests/cuda."""
    maps = torch.from_numpy(array)
    arrays = fitted("int8", maps).encode(maps, level="C4", images=["x.jpg"] * len(maps)).arrays()
    for name, expected in plain_int8(array).items():
        assert arrays[name].dtype == expected.dtype
        np.testing.assert_array_equal(arrays[name], expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_arrays_are_the_parts(name: str) -> None:
    """On a CPU without a copy."""
    maps = torch.randn(2, 3, 6, 8)
    encoded = fitted(name, maps).encode(maps, level="C4", images=["a", "b"])
    for part, array in encoded.arrays().items():
        assert array.ctypes.data == encoded.parts[part].data_ptr()
        assert array.shape == tuple(encoded.parts[part].shape)


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16", "int8", "int8+zstd", "int4", "int4+zstd"])
def test_zeros_stay_exact(name: str) -> None:
    maps = torch.randn(2, 3, 6, 8).relu()
    maps[1] = 0
    decoded, _ = round_trip(fitted(name, maps), maps)
    assert (decoded[maps == 0] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_true_values_are_not_changed_and_decoding_makes_new_ones(name: str) -> None:
    maps = torch.randn(2, 3, 6, 8)
    before = maps.clone()
    codec = fitted(name, maps)
    encoded = codec.encode(maps, level="C4", images=["a", "b"])
    stored = encoded.parts
    kept = {key: tensor.clone() for key, tensor in stored.items()}
    codec.decode(stored, level="C4", shape=(3, 6, 8)).fill_(7)
    torch.testing.assert_close(maps, before, rtol=0, atol=0)
    for key, tensor in stored.items():
        torch.testing.assert_close(tensor, kept[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_images_do_not_influence_each_other(name: str) -> None:
    maps = torch.randn(3, 4, 6, 8)
    codec = fitted(name, maps)
    together = codec.encode(maps, level="C4", images=["a", "b", "c"])
    single_process = codec.encode(maps[1:2], level="C4", images=["b"])
    for part, values_of in single_process.parts.items():
        torch.testing.assert_close(values_of[0], together.parts[part][1], rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_survives_being_stored(name: str) -> None:
    maps = torch.randn(2, 3, 6, 8)
    codec = fitted(name, maps)
    again = make_codec(name).with_state(codec.state(), spec=SPEC)
    assert state_digest(again.state()) == state_digest(codec.state())
    one, other = round_trip(codec, maps), round_trip(again, maps)
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_a_number_is_refused_with_the_images_name(name: str, value: float) -> None:
    maps = torch.randn(2, 3, 6, 8)
    codec = fitted(name, maps)
    maps[1, 2, 3, 4] = value
    with pytest.raises(CodecError, match=r"b.jpg: level C4 holds (nan|-?inf), which is not a num"):
        codec.encode(maps, level="C4", images=["a.jpg", "b.jpg"])


def test_values_a_codec_cannot_represent_are_refused() -> None:
    maps = torch.ones(1, 2, 3, 4)
    codec = fitted("int8", maps)
    maps[0, 0, 0, 0] = -1
    with pytest.raises(CodecError, match=r"a.jpg: level C4 holds -1, which is negative where the"):
        codec.encode(maps, level="C4", images=["a.jpg"])
    maps[0, 0, 0, 0] = 70000
    with pytest.raises(CodecError, match=r"beyond the range of fp16 \(\+-65504\); use --codec fp3"):
        make_codec("fp16").encode(maps, level="C4", images=["a.jpg"])
    maps[0, 0, 0, 0] = -500_000
    with pytest.raises(CodecError, match=r"-500000, which is beyond the range of int4 scales"):
        make_codec("int4").encode(maps, level="C4", images=["a.jpg"])
    maps[0, 0, 0, 0] = 3.4e38  # rounds up beyond the largest bfloat16
    with pytest.raises(CodecError, match=r"beyond the range of bf16"):
        make_codec("bf16").encode(maps, level="C4", images=["a.jpg"])


def test_maps_without_negative_values_use_all_eight_bits() -> None:
    maps = torch.rand(1, 2, 6, 8)
    codec = fitted("int8", maps)
    assert codec.parts("C4", (2, 6, 8))[0].dtype == "uint8"
    assert codec.encode(maps, level="C4", images=["a"]).parts["codes"].max() == 255


def test_exact_sizes() -> None:
    maps = torch.randn(1, 4, 6, 8)
    sizes = {"fp32": 768 + 4, "fp16": 384 + 4, "bf16": 384 + 4, "int8": 192 + 4 + 16 + 4}
    sizes["int4"] = 96 + 4 + 8 + 4
    for name, size in sizes.items():
        parts = fitted(name, maps).parts("C4", (4, 6, 8))
        assert sum(part.packed_nbytes for part in parts) == size


@given(
    hnp.arrays(
        np.int8,
        st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
        elements=st.integers(-8, 7),
    )
)
@settings(deadline=None)
def test_nibbles(codes: np.ndarray) -> None:
    maps = torch.from_numpy(codes).float()
    shape = (codes.shape[1], codes.shape[2], codes.shape[3])
    torch.testing.assert_close(unpack_nibbles(pack_nibbles(maps), shape), maps, rtol=0, atol=0)


def correlated(count: int, *, seed: int = 0) -> torch.Tensor:
    """Maps of 12 channels that are mixtures of few strong sources."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(12, 12, generator=torch.Generator().manual_seed(9))
    mixing *= 0.6 ** torch.arange(12)
    sources = torch.randn(count, 12, 160, generator=generator)
    return (mixing @ sources + 0.5).reshape(count, 12, 10, 16)


def test_statistics_are_those_of_all_cells() -> None:
    maps = correlated(6)
    seen = LevelStatistics(12)
    seen.add(maps[:2])
    seen.add(maps[2:])
    cells = maps.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(seen.mean, cells.mean(1))
    torch.testing.assert_close(seen.covariance, torch.cov(cells, correction=0))
    assert seen.minimum == float(maps.min())
    assert seen.power == pytest.approx(float(cells.square().mean()))
    rows, variances = principal_components(seen)
    torch.testing.assert_close(rows @ rows.T, torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(rows @ seen.covariance @ rows.T, torch.diag(variances))


@pytest.mark.parametrize("decibels", [6, 12, 18])
def test_the_noise_is_about_what_was_asked_for(decibels: int) -> None:
    codec = fitted(f"snr{decibels}", correlated(64))
    fresh = correlated(16, seed=1)
    decoded, _ = round_trip(codec, fresh)
    noise = (decoded - fresh).square().mean() / fresh.square().mean()
    assert -10 * torch.log10(noise).item() == pytest.approx(decibels, abs=1.0)


def test_a_shared_step_after_a_rotation_needs_fewer_bytes_at_the_same_noise() -> None:
    fresh = correlated(16, seed=1)

    def cost(name: str) -> tuple[float, float]:
        codec = fitted(name, correlated(64))
        encoded = codec.encode(fresh, level="C4", images=["a"] * 16)
        parts = codec.parts("C4", (12, 10, 16))
        size = sum(
            len(piece)
            for part in parts
            for one in encoded.arrays()[part.name]
            for piece in pack_chunk(one, part)
        )
        decoded, _ = round_trip(codec, fresh)
        return size, float((decoded - fresh).square().mean())

    size, noise = cost("snr21")
    other_size, other_noise = cost("int4+zstd")
    assert noise < other_noise
    assert size < other_size


def test_components_below_the_noise_are_not_stored() -> None:
    codec = fitted("snr6", correlated(64))
    assert isinstance(codec, SnrCodec)
    assert len(codec.projections["C4"].basis) < 12
    assert 0 < codec.projections["C4"].explained < 1


def test_codes_that_were_cut_off_are_counted() -> None:
    maps = correlated(8)
    codec = fitted("snr12", maps)
    encoded = codec.encode(maps * 20, level="C4", images=["a"] * 8)
    assert encoded.saturated > 1000


def test_a_image_unlike_the_sample_is_refused_instead_of_cut_off() -> None:
    maps = correlated(3)
    codec = fitted("snr12", maps)
    maps[1] *= 1e19
    with pytest.raises(CodecError, match=r"b: level C4 holds .*so far from the sample snr12 was.*"):
        codec.encode(maps, level="C4", images=["a", "b", "c"])


def test_a_image_without_energy_is_measured_by_the_sample() -> None:
    """What is cut off of a black image must be little beside a usual one, or it is refused."""
    maps = torch.randn(8, 12, 10, 16)
    maps[:, 0] *= 4
    maps[:, 3] = 0.7 * maps[:, 3] + 6
    black = torch.zeros(1, 12, 10, 16)
    decoded, saturated = round_trip(fitted("snr24", maps), black)
    assert saturated > 0
    assert decoded.square().mean() < 0.2 * maps.square().mean()
    constant = fitted("snr24", torch.full((8, 12, 10, 16), 2.5))
    with pytest.raises(CodecError, match=r"0.jpg: level C4 holds 0, which is so far from the sam"):
        round_trip(constant, black)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("magnitude", [1e19, 3e19, 1e30, 3e37, 1e38, 3.4e38])
@pytest.mark.parametrize("sample", ["usual", "the same"])
def test_at_the_end_of_the_range(name: str, magnitude: float, sample: str) -> None:
    """Squares of such values are no float32: refused by name, or within the bound."""
    usual = torch.randn(2, 3, 6, 8)
    maps = usual.clone()
    maps[1] *= magnitude / maps[1].abs().max()
    codec = fitted(name, maps if sample == "the same" else usual)
    try:
        decoded, saturated = round_trip(codec, maps)
    except CodecError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert re.search(r"1.jpg: level C4 holds -?\d.*(beyond the range|so far from)", refusal)
        assert name != "fp32"
        return
    assert_within_bound(codec, maps, decoded, saturated)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(array=maps_of_any_floats)
def test_any_floats_are_refused_or_within_the_bound(name: str, array: np.ndarray) -> None:
    maps = torch.from_numpy(array)
    codec = fitted(name, maps)
    try:
        decoded, saturated = round_trip(codec, maps)
    except CodecError:
        assert maps.abs().max() > 400_000 or name.startswith(("fp16", "snr"))
        return
    assert_within_bound(codec, maps, decoded, saturated)


def test_constant_maps() -> None:
    maps = torch.full((1, 3, 4, 4), 2.5)
    for name in NAMES:
        decoded, _ = round_trip(fitted(name, maps), maps)
        torch.testing.assert_close(decoded, maps, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["int7", "snr2", "snr25", "pca0+int8", "pca4", "FP16", ""])
def test_unknown_codecs(name: str) -> None:
    with pytest.raises(InputError, match=r"unknown codec .*known: fp32, fp16, .*snr<dB>"):
        make_codec(name)


def test_a_state_of_another_codec_is_refused() -> None:
    maps: Any = torch.randn(1, 3, 4, 4)
    state = fitted("pca2+int8", maps).state()
    with pytest.raises(StoreError, match=r"codec snr12 lacks 'C4/step'"):
        make_codec("snr12").with_state(state, spec=SPEC)
