"""What zarr lists of a store: `consolidated_metadata` in the root's zarr.json.

With it zarr does not look at files that are not its own, and lists where a server cannot. It is a
convenience: cachedet plans by the manifest, and `metadata_digest` takes the root without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from cachedet.store.files.names import METADATA

_SECTION = "consolidated_metadata"
_MOST_NODES = 1000  # beyond that the root would take long to read at every opening


def with_listing(files: Mapping[str, bytes]) -> bytes:
    """The root's zarr.json with what all others say, given by their keys; plain for too many."""
    root, _ = split_listing(files[METADATA])
    others = sorted(key for key in files if key != METADATA)
    if len(others) > _MOST_NODES:
        return root
    nodes = {_path_of(key): json.loads(files[key]) for key in others}
    section = {"kind": "inline", "must_understand": False, "metadata": nodes}
    return json.dumps({**json.loads(root), _SECTION: section}).encode()


def split_listing(root: bytes) -> tuple[bytes, dict[str, Any]]:
    """The root's zarr.json as zarr makes it for a group, and what it lists by path.

    What is no JSON of that kind stays as it is.
    """
    try:
        values = json.loads(root)
        nodes = values.pop(_SECTION)["metadata"]
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return root, {}
    return json.dumps(values, indent=2).encode(), nodes if isinstance(nodes, dict) else {}


def lists_all(root: bytes, keys: Iterable[str]) -> bool:
    """Whether the root lists these zarr.json files, or they are too many to be listed."""
    paths = {_path_of(key) for key in keys if key != METADATA}
    return len(paths) > _MOST_NODES or paths <= split_listing(root)[1].keys()


def agrees(nodes: Mapping[str, Any], key: str, content: bytes) -> bool:
    """Whether what the root lists of a zarr.json, if it does, is what that says."""
    path = _path_of(key)
    if path not in nodes:
        return True
    try:
        return bool(nodes[path] == json.loads(content))
    except (ValueError, RecursionError):
        return False


def _path_of(key: str) -> str:
    return key.removesuffix(METADATA).rstrip("/")
