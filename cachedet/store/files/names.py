"""Names of the files in a store, and how large each may be."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

MANIFEST = "manifest.json"
IMAGES = "images"  # with the start of a digest behind it but for the first: see `images_key`
TRUTH = "truth"  # with the start of its digest behind it: see `truth_key`
CODEC_STATE = "codec.npz"
STAGES = "stages.safetensors"
COMMITS = "commits"
LEASES = "leases"
METADATA = "zarr.json"
WITHDRAWN_SUFFIX = ".bad"
_TABLE = re.compile(rf"({IMAGES}(?=\.)|({IMAGES}|{TRUTH})-[0-9a-f]{{16}})\.npz", re.ASCII)
_RECORD = re.compile(r".+-b\d+x\d+(g\d+)?-\d{6,}\.json(\.bad)?", re.ASCII)  # see `Block.name`
_MOST_NBYTES = {
    MANIFEST: 32 << 20,  # 200,000 skipped images; parsed it takes up to 25 times as much memory
    IMAGES: 4 << 30,  # 16 million images with names of 200 bytes
    TRUTH: 16 << 30,  # 5 million images of 7 boxes with masks of 350 bytes take 13 GB
    CODEC_STATE: 1 << 30,  # bases of three levels of 8,192 channels take 0.8 GB
    STAGES: 16 << 30,  # 4 billion parameters
    METADATA: 64 << 10,  # an array of five axes takes 2 kB
}
_MOST_ROOT_NBYTES = 4 << 20  # lists the metadata of up to 1,000 arrays and groups
_MOST_RECORD_NBYTES = 1 << 20  # 64 levels of two parts and 256 images take 0.4 MB


def most_nbytes(key: str) -> int:
    """Bytes of a file that is read whole beyond which it is not one that cachedet wrote."""
    if key == METADATA:
        return _MOST_ROOT_NBYTES
    name = key.rpartition("/")[2]
    kind = re.split(r"[-.]", name)[0] if is_table_key(name) else name
    return _MOST_NBYTES.get(kind, _MOST_RECORD_NBYTES)


def truth_key(digest: str) -> str:
    """The file of the boxes with this digest: others have another name, so that none is changed."""
    return f"{TRUTH}-{digest[:16]}.npz"


def images_key(generation: int, digest: str) -> str:
    """The file of the images of a generation: the first, or one that was added later."""
    return f"{IMAGES}.npz" if generation == 0 else f"{IMAGES}-{digest[:16]}.npz"


def is_table_key(name: str) -> bool:
    """Whether a file of images or boxes has this name, of whatever ones."""
    return _TABLE.fullmatch(name) is not None


def require_size(nbytes: int, key: str) -> None:
    """Before anything is read, or kept. Raises OSError."""
    most = most_nbytes(key)
    if nbytes > most:
        reason = f"it has {nbytes:,} bytes, which such a file never has (at most {most:,})"
        raise OSError(errno.EFBIG, reason, key)


def is_record(name: str) -> bool:
    """Whether it can only be the record of a block."""
    return _RECORD.fullmatch(name) is not None


def holds_records(root: Path) -> bool:
    """Whether commits/ has what can only be records of blocks: a store, also without a manifest."""
    try:
        return any(map(is_record, os.listdir(root / COMMITS)))
    except OSError:
        return False
