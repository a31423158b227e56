"""The backbone alone, and what each codec makes of its features."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.backbone.split import freeze_trunk
from cachedet.device import wait_for
from cachedet.estimation.measured import CodecFigures
from cachedet.estimation.sample import Sizes, count_pixels
from cachedet.estimation.trial import Fit
from cachedet.flops import flop_counter
from cachedet.store.codecs.codec import Codec
from cachedet.store.codecs.registry import make_codec
from cachedet.store.format.layout import Layout
from cachedet.store.format.shards import pack_chunk
from cachedet.structures import Features, FeatureSpec, SizeHW

CODECS = ("fp32", "fp16", "int8", "int8+zstd", "int4", "int4+zstd")  # that are always compared
_ROUNDS = 3
_MOST_SECONDS = 5.0
_WHOLE = ""  # no level's name


@dataclass(frozen=True, kw_only=True)
class BackboneCost:
    """Seconds and FLOPs of a forward, a padded pixel."""

    seconds: float
    flops: float
    trunks: Mapping[str, float] = field(default_factory=dict)  # share of the seconds up to each cut


@dataclass(frozen=True, kw_only=True, eq=False)
class CodecCost:
    """One codec on the features of the sample."""

    spec: FeatureSpec  # the levels that are stored
    codec: Codec  # fitted
    share: float  # of the bytes that zstd could need at most; 1 without it
    seconds: float  # of encoding and packing, in one thread, a padded pixel

    def stored_to(self, level: str) -> CodecCost:
        """The levels up to this one alone; zstd is taken to leave the same share of them."""
        return replace(self, spec=self.spec.up_to(level))


def measure_backbone(
    backbone: FrozenBackbone, images: Tensor, *, cuts: Sequence[str] = ()
) -> tuple[BackboneCost, Features]:
    """Cost of the forward alone, and the features of `images` (n, 3, H, W).

    The forwards up to `cuts` are timed in turn with it.
    """
    pixels = images.shape[0] * images.shape[2] * images.shape[3]
    with flop_counter() as counter:
        features = backbone(images[:1])
    flops = counter.get_total_flops() / (pixels / images.shape[0])
    backbone(images)
    trunks = {cut: freeze_trunk(backbone, cut) for cut in cuts}
    times: dict[str, list[float]] = {name: [] for name in (_WHOLE, *trunks)}
    while len(times[_WHOLE]) < _ROUNDS and sum(times[_WHOLE]) < _MOST_SECONDS:
        with _timed(images.device, times[_WHOLE]):
            features = backbone(images)
        for cut, trunk in trunks.items():
            with _timed(images.device, times[cut]):
                trunk(images)
    seconds = {name: sorted(taken)[len(taken) // 2] for name, taken in times.items()}
    cost = BackboneCost(
        seconds=seconds[_WHOLE] / pixels,
        flops=flops,
        trunks={cut: min(1.0, seconds[cut] / seconds[_WHOLE]) for cut in cuts},
    )
    return cost, features


def measure_codecs(
    features: Features, fit: Fit, *, spec: FeatureSpec, bucket: SizeHW, codec: str
) -> dict[str, CodecCost]:
    """Bytes and seconds of the usual codecs and of `codec`, which comes first."""
    names = (codec, *(name for name in CODECS if name != codec))
    return {
        name: _measure_codec(fit.fitted(make_codec(name)), features, spec=spec, bucket=bucket)
        for name in names
    }


def codec_figures(cost: CodecCost, sizes: Sizes, *, share: float) -> CodecFigures:
    """The whole cache: what the layout of a codec takes for every size, times what zstd leaves.

    `share` is of the bytes that zstd could need at most.
    """
    buckets, counts = np.unique(sizes.reshape(-1, 2), axis=0, return_counts=True)
    layout, nbytes, unpacked = Layout(spec=cost.spec, codec=cost.codec), 0.0, 0.0
    for (height, width), count in zip(buckets.tolist(), counts.tolist(), strict=True):
        bucket = (height, width)
        nbytes += count * layout.image_nbytes(bucket) * share
        unpacked += count * sum(part.nbytes for part in layout.parts(bucket).values())
    return CodecFigures(
        nbytes=nbytes, unpacked=unpacked, encode_seconds=cost.seconds * count_pixels(sizes)
    )


def _measure_codec(
    codec: Codec, features: Features, *, spec: FeatureSpec, bucket: SizeHW
) -> CodecCost:
    layout = Layout(spec=spec, codec=codec)
    first = next(iter(features.values()))
    count = len(first)
    images = [f"image {number} of the sample" for number in range(count)]
    packed_nbytes, most = 0, 0
    times: list[float] = []
    with _timed(first.device, times):
        for level, parts in layout.levels(bucket).items():
            arrays = codec.encode(features[level], level=level, images=images).arrays()
            for part in parts:
                chunks = [pack_chunk(values, part) for values in arrays[part.name]]
                packed_nbytes += sum(len(piece) for chunk in chunks for piece in chunk)
                most += part.packed_nbytes * count
    return CodecCost(
        spec=spec,
        codec=codec,
        share=packed_nbytes / most,
        seconds=times[0] / (count * bucket[0] * bucket[1]),
    )


@contextmanager
def _timed(device: torch.device, times: list[float]) -> Iterator[None]:
    wait_for(device)
    started = time.perf_counter()
    yield
    wait_for(device)
    times.append(time.perf_counter() - started)
