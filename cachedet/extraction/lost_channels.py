"""Whether a codec keeps the channels of what it was fitted on.

A codec may hold its noise against a whole level. Where a few channels are far larger than the
others, as in transformers, that noise can cover all the others, and no figure of a level shows it.
"""

from __future__ import annotations

from torch import Tensor

from cachedet.store.codecs.codec import Codec
from cachedet.structures import Features

_LOST = 0.5  # of a channel's variance is noise
_MOST = 0.75  # of the channels
_LOUD = 8.0  # energy of a level over its noise, 9 dB: below it nobody expects them to be kept


def describe_lost_channels(codec: Codec, features: Features) -> str:
    """A note on the levels whose noise is low and covers most channels; empty without any.

    `features` (1, C, h, w) are those of an image of the sample.
    """
    shares = {level: _lost_share(codec, maps, level=level) for level, maps in features.items()}
    lost = [f"{share:.0%} of {level}" for level, share in shares.items() if share > _MOST]
    if not lost:
        return ""
    return (
        f"note: codec {codec.name} loses most channels ({', '.join(lost)}): a few are so large "
        "that its noise covers the others; take --codec int8, whose channels each have a scale"
    )


def _lost_share(codec: Codec, maps: Tensor, *, level: str) -> float:
    """Of the channels that vary; 0 where the level as a whole is noisy, too."""
    exact = maps.detach().cpu().float()
    encoded = codec.encode(exact, level=level, images=["an image of the sample"])
    shape = (exact.shape[1], exact.shape[2], exact.shape[3])
    squares = (codec.decode(encoded.parts, level=level, shape=shape).double() - exact).square()
    variance = exact.double().var(dim=(2, 3), correction=0)[0]
    varies = variance > 0
    if exact.double().square().sum() < _LOUD * squares.sum() or not bool(varies.any()):
        return 0.0
    return float((squares.mean(dim=(2, 3))[0] > _LOST * variance)[varies].double().mean())
