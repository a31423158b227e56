"""Weights of the backbone's stages behind the first level, from which training can go on.

They lie beside the manifest, which has their digest, in the safetensors format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cachedet.errors import StoreError
from cachedet.store.files.names import STAGES
from cachedet.store.files.source import ByteSource
from cachedet.store.format.manifest import Manifest
from cachedet.store.format.shards import proves_damage, unreadable

_AGAIN = "run the same `cachedet extract` command again, which writes them"


def encode_stages(weights: Mapping[str, Tensor]) -> bytes:
    """The content of their file."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})


def stages_digest(content: bytes) -> str:
    """sha256 of the file."""
    return hashlib.sha256(content).hexdigest()


def load_stages(source: ByteSource, manifest: Manifest) -> dict[str, Tensor]:
    """Tensors by name. Raises StoreError: the store has none, or they are not what was written."""
    where = source.describe(STAGES)
    if not manifest.stages_digest:
        raise StoreError(
            f"{source.describe('').rstrip('/')} holds no weights of its backbone's stages: it was "
            "extracted before stores kept them, or its backbone cannot be cut; "
            f"{_AGAIN} where it can"
        )
    try:
        content = source.read(STAGES)
    except OSError as error:
        if not (isinstance(error, FileNotFoundError) or proves_damage(error)):
            raise unreadable(where, error) from error
        raise StoreError(f"{where} is missing or damaged ({error.strerror}); {_AGAIN}") from error
    if stages_digest(content) != manifest.stages_digest:
        raise StoreError(f"{where} is damaged: its sha256 is not that of the manifest; {_AGAIN}")
    try:
        tensors: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise StoreError(f"{where} is not what cachedet writes: {error}; {_AGAIN}") from error
    return tensors
