"""Names of the files in a store, and how large each may be."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

MANIFEST = "manifest.json"
IMAGES = "images.npz"
TRUTH = "truth"  # with the start of its digest behind it: see `truth_key`
CODEC_STATE = "codec.npz"
STAGES = "stages.safetensors"
COMMITS = "commits"
LEASES = "leases"
METADATA = "zarr.json"
WITHDRAWN_SUFFIX = ".bad"
_TRUTH_KEY = re.compile(rf"{TRUTH}-[0-9a-f]{{16}}\.npz", re.ASCII)
_RECORD = re.compile(r".+-b\d+x\d+-\d{6,}\.json(\.bad)?", re.ASCII)  # see `Block.name`
_MOST_NBYTES = {
    MANIFEST: 32 << 20,  # 200,000 skipped images; parsed it takes up to 25 times as much memory
    IMAGES: 4 << 30,  # 16 million images with names of 200 bytes
    TRUTH: 16 << 30,  # 5 million images of 7 boxes with masks of 350 bytes take 13 GB
    CODEC_STATE: 1 << 30,  # bases of three levels of 8,192 channels take 0.8 GB
    STAGES: 16 << 30,  # 4 billion parameters
    METADATA: 64 << 10,  # an array of five axes takes 2 kB
}
_MOST_RECORD_NBYTES = 1 << 20  # 64 levels of two parts and 256 images take 0.4 MB


def most_nbytes(key: str) -> int:
    """Bytes of a file that is read whole beyond which it is not one that cachedet wrote."""
    name = key.rpartition("/")[2]
    return _MOST_NBYTES.get(TRUTH if is_truth_key(name) else name, _MOST_RECORD_NBYTES)


def truth_key(digest: str) -> str:
    """The file of the boxes with this digest: others have another name, so that none is changed."""
    return f"{TRUTH}-{digest[:16]}.npz"


def is_truth_key(name: str) -> bool:
    """Whether a file of boxes has this name, of whatever boxes."""
    return _TRUTH_KEY.fullmatch(name) is not None


def require_size(nbytes: int, key: str) -> None:
    """Before anything is read, or kept. Raises OSError."""
    most = most_nbytes(key)
    if nbytes > most:
        reason = f"it has {nbytes:,} bytes, which such a file never has (at most {most:,})"
        raise OSError(errno.EFBIG, reason, key)


def holds_records(root: Path) -> bool:
    """Whether commits/ has what can only be records of blocks: a store, also without a manifest."""
    try:
        return any(map(_RECORD.fullmatch, os.listdir(root / COMMITS)))
    except OSError:
        return False
