"""The backbone alone, and what each codec makes of its features."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.device import wait_for
from cachedet.estimation.measured import CodecFigures
from cachedet.estimation.sample import Sizes, count_pixels
from cachedet.estimation.trial import Fit
from cachedet.store.codecs.codec import Codec
from cachedet.store.codecs.registry import make_codec
from cachedet.store.format.layout import Layout
from cachedet.store.format.shards import pack_chunk
from cachedet.structures import Features, FeatureSpec, SizeHW

CODECS = ("fp32", "fp16", "int8", "int8+zstd", "int4", "int4+zstd")  # that are always compared
_ROUNDS = 3
_MOST_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class BackboneCost:
    """Seconds and FLOPs of a forward, a padded pixel."""

    seconds: float
    flops: float


@dataclass(frozen=True, kw_only=True, eq=False)
class CodecCost:
    """One codec on the features of the sample."""

    layout: Layout
    share: float  # of the bytes that zstd could need at most; 1 without it
    seconds: float  # of encoding and packing, in one thread, a padded pixel


def measure_backbone(backbone: FrozenBackbone, images: Tensor) -> tuple[BackboneCost, Features]:
    """Cost of the forward alone, and the features of `images` (n, 3, H, W)."""
    pixels = images.shape[0] * images.shape[2] * images.shape[3]
    with FlopCounterMode(display=False) as counter:
        features = backbone(images[:1])
    flops = counter.get_total_flops() / (pixels / images.shape[0])
    backbone(images)
    times: list[float] = []
    while len(times) < _ROUNDS and sum(times) < _MOST_SECONDS:
        with _timed(images.device, times):
            features = backbone(images)
    return BackboneCost(seconds=sorted(times)[len(times) // 2] / pixels, flops=flops), features


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
    nbytes = unpacked = 0.0
    for (height, width), count in zip(buckets.tolist(), counts.tolist(), strict=True):
        bucket = (height, width)
        nbytes += count * cost.layout.image_nbytes(bucket) * share
        unpacked += count * sum(part.nbytes for part in cost.layout.parts(bucket).values())
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
            encoded = codec.encode(features[level], level=level, images=images)
            for part in parts:
                chunks = [pack_chunk(values, part) for values in encoded.parts[part.name]]
                packed_nbytes += sum(len(piece) for chunk in chunks for piece in chunk)
                most += part.packed_nbytes * count
    return CodecCost(
        layout=layout,
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
