"""Every codec by name."""

from __future__ import annotations

from cachedet.errors import InputError, nearest_names
from cachedet.store.codecs.codec import Codec
from cachedet.store.codecs.floats import FLOAT_CODECS
from cachedet.store.codecs.integers import INT_CODECS
from cachedet.store.codecs.projections import SNR_RANGE, parse_pca_codec

CODECS: dict[str, Codec] = {**FLOAT_CODECS, **INT_CODECS}


def make_codec(name: str) -> Codec:
    """The codec called `name`, not fitted yet. Raises InputError on an unknown one."""
    codec = CODECS.get(name) or parse_pca_codec(name)
    if codec is None:
        families = f"pca<k>+int8, snr<dB> ({SNR_RANGE.start} to {SNR_RANGE.stop - 1})"
        near = nearest_names(name, [*CODECS, "pca64+int8", "snr12"])
        raise InputError(f"unknown codec {name!r}{near}; known: {', '.join(CODECS)}, {families}")
    return codec
