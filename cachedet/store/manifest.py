"""The manifest: what a store holds, of which inputs, in which format.

Its fingerprint covers everything that changes features (weights content, preprocessing, views,
codec, pictures, annotations), never workers or device.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import platform
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.data.views import VIEWS
from cachedet.errors import StoreError
from cachedet.store.blocks import Block, plan_blocks
from cachedet.store.layout import MANIFEST, TRUTH
from cachedet.store.source import ByteSource
from cachedet.structures import CategoryMap, FeatureSpec, Preprocessing, Truth
from cachedet.version import __version__

FORMAT_VERSION = 2
_LARGEST_SIDE = 1 << 20  # pixels of a picture
_LIBRARIES = ("torch", "torchvision", "timm", "zarr", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Identity and description of a store."""

    spec: FeatureSpec
    preprocessing: Preprocessing
    backbone: str  # timm name
    weights: str  # where they came from, in words; not part of the identity
    weights_digest: str
    image_size: int  # long side of the base view in pixels
    views: tuple[str, ...]
    codec: str
    block_size: int
    batch_size: int
    truth_digest: str
    pictures_digest: str
    categories: CategoryMap
    skipped: tuple[tuple[str, str], ...]  # file name, reason
    versions: dict[str, str]  # for people; not part of the identity
    codec_digest: str = ""  # of what the codec learnt from the sample; decided when a store is made
    metadata_digest: str = ""  # of all zarr.json files; decided when a store is made

    def identity(self) -> dict[str, Any]:
        """The fields that decide which features the store holds."""
        return {
            "backbone": self.backbone,
            "weights_digest": self.weights_digest,
            "preprocessing": self.preprocessing.to_json(),
            "spec": self.spec.to_json(),
            "image_size": self.image_size,
            "views": list(self.views),
            "codec": self.codec,
            "block_size": self.block_size,
            "batch_size": self.batch_size,
            "truth_digest": self.truth_digest,
            "pictures_digest": self.pictures_digest,
            "categories": {
                "ids": list(self.categories.ids),
                "names": list(self.categories.names),
            },
        }

    def fingerprint(self) -> str:
        """sha256 over the identity fields and what the codec learnt."""
        return digest_json({**self.identity(), "codec_digest": self.codec_digest})

    def block_fingerprint(self) -> str:
        """The same without the list of views: what the bytes of one block depend on."""
        fields = {**self.identity(), "codec_digest": self.codec_digest}
        return digest_json({k: v for k, v in fields.items() if k != "views"})

    def differing_fields(self, other: Manifest) -> list[str]:
        """``"codec: 'fp16' here, 'fp32' there"`` for each identity field that differs."""
        ours, theirs = self.identity(), other.identity()
        return [
            f"{field}: {_short(ours[field])} in the store, {_short(theirs[field])} now"
            for field in ours
            if ours[field] != theirs[field]
        ]

    def incompatible_field(self, other: Manifest) -> str | None:
        """The first field that keeps heads trained on this store from fitting `other`."""
        for field in ("backbone", "weights_digest", "spec", "preprocessing", "categories"):
            if getattr(self, field) != getattr(other, field):
                return field
        return None

    def plan(self, truth: Truth) -> tuple[Block, ...]:
        """Every block of the finished store."""
        return plan_blocks(
            truth=truth,
            views=[VIEWS[name] for name in self.views],
            image_size=self.image_size,
            pad_multiple=self.spec.pad_multiple,
            block_size=self.block_size,
        )

    def to_json(self) -> dict[str, Any]:
        body = {
            "format_version": FORMAT_VERSION,
            **self.identity(),
            "weights": self.weights,
            "skipped": [list(pair) for pair in self.skipped],
            "versions": self.versions,
            "codec_digest": self.codec_digest,
            "metadata_digest": self.metadata_digest,
            "fingerprint": self.fingerprint(),
        }
        return {**body, "checksum": digest_json(body)}

    @classmethod
    def from_json(cls, values: dict[str, Any], *, where: str) -> Manifest:
        """Raises StoreError: newer format, missing or malformed field, altered identity."""
        _require_version(values.get("format_version"), where)
        try:
            manifest = cls(
                spec=FeatureSpec.from_json(values["spec"]),
                preprocessing=Preprocessing.from_json(values["preprocessing"]),
                backbone=values["backbone"],
                weights=values["weights"],
                weights_digest=values["weights_digest"],
                image_size=values["image_size"],
                views=tuple(values["views"]),
                codec=values["codec"],
                block_size=values["block_size"],
                batch_size=values["batch_size"],
                truth_digest=values["truth_digest"],
                pictures_digest=values["pictures_digest"],
                categories=CategoryMap(
                    ids=tuple(values["categories"]["ids"]),
                    names=tuple(values["categories"]["names"]),
                ),
                skipped=tuple((name, reason) for name, reason in values["skipped"]),
                versions=dict(values["versions"]),
                codec_digest=values["codec_digest"],
                metadata_digest=values["metadata_digest"],
            )
            _require_counts(manifest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{where} is not a manifest of cachedet: {error!r}") from error
        if manifest.to_json() != values:
            raise StoreError(f"{where} was altered: its fields do not give its own checksum")
        return manifest


def truth_digest(truth: Truth) -> str:
    """sha256 over pictures, boxes and categories."""
    digest = hashlib.sha256()
    for array in truth_arrays(truth).values():
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(json.dumps([truth.categories.ids, truth.categories.names]).encode())
    return digest.hexdigest()


def truth_arrays(truth: Truth) -> dict[str, NDArray[Any]]:
    """The arrays of `truth`; file names as UTF-8 bytes with newlines between."""
    names = "\n".join(truth.file_names).encode()
    return {
        "image_ids": truth.image_ids,
        "file_names": np.frombuffer(names, dtype=np.uint8),
        "sizes_hw": truth.sizes_hw,
        "offsets": truth.offsets,
        "boxes": truth.boxes,
        "labels": truth.labels,
        "crowd": truth.crowd,
        "areas": truth.areas,
    }


def pictures_digest(contents: NDArray[np.uint64]) -> str:
    """sha256 over the content hash of every picture file, in the order of the rows."""
    return hashlib.sha256(contents.astype("<u8").tobytes()).hexdigest()


def digest_json(value: Any) -> str:
    """sha256 of a JSON value with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """What wrote the store, for people who ask later."""
    found = {name: version(name) for name in _LIBRARIES}
    return {"cachedet": __version__, "python": platform.python_version(), **found}


def _short(value: Any, *, most: int = 120) -> str:
    if isinstance(value, str) and len(value) == 64:  # a digest: its beginning tells it apart
        return value[:12]
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def _names_from_bytes(encoded: NDArray[np.uint8]) -> Sequence[str]:
    """Inverse of the file names in `truth_arrays`."""
    text = encoded.tobytes().decode()
    return text.split("\n") if text else []


def load_manifest(source: ByteSource) -> Manifest:
    """The manifest of the store. Raises StoreError where there is no readable store."""
    where = source.describe(MANIFEST)
    try:
        content = source.read(MANIFEST)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            f"{source.describe('')} is not a feature store: it has no {MANIFEST}; "
            "expected a folder written by `cachedet extract --store`"
        ) from error
    except OSError as error:
        raise StoreError(f"cannot read {where}: {error.strerror}") from error
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{where} is damaged: it is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise StoreError(f"{where} is damaged: expected a JSON object")
    return Manifest.from_json(values, where=where)


def load_truth(source: ByteSource, manifest: Manifest) -> tuple[Truth, NDArray[np.uint64]]:
    """Pictures and boxes kept in the store, with the pictures' content hashes.

    Raises StoreError where they are missing, damaged or not the ones of the manifest.
    """
    arrays = load_arrays(source, TRUTH)
    try:
        truth = Truth(
            image_ids=arrays["image_ids"],
            file_names=tuple(_names_from_bytes(arrays["file_names"])),
            sizes_hw=arrays["sizes_hw"],
            offsets=arrays["offsets"],
            boxes=arrays["boxes"],
            labels=arrays["labels"],
            crowd=arrays["crowd"],
            areas=arrays["areas"],
            categories=manifest.categories,
        )
        contents = arrays["contents"]
        _require_consistent(truth, contents)
    except (KeyError, ValueError, UnicodeDecodeError) as error:
        raise StoreError(f"{source.describe(TRUTH)} is damaged: {error!r}") from error
    digests = truth_digest(truth), pictures_digest(contents)
    if digests != (manifest.truth_digest, manifest.pictures_digest):
        raise StoreError(
            f"{source.describe(TRUTH)} is not the one this store was extracted with; the same "
            "`cachedet extract` again writes it anew"
        )
    return truth, contents


def _require_consistent(truth: Truth, contents: NDArray[np.uint64]) -> None:
    """Raises ValueError where the arrays do not describe one set of pictures and boxes."""
    rows, boxes = len(truth.image_ids), len(truth.labels)
    expected: dict[str, tuple[NDArray[Any], str, tuple[int, ...]]] = {
        "image_ids": (truth.image_ids, "int64", (rows,)),
        "sizes_hw": (truth.sizes_hw, "int64", (rows, 2)),
        "offsets": (truth.offsets, "int64", (rows + 1,)),
        "boxes": (truth.boxes, "float64", (boxes, 4)),
        "labels": (truth.labels, "int64", (boxes,)),
        "crowd": (truth.crowd, "bool", (boxes,)),
        "areas": (truth.areas, "float64", (boxes,)),
        "contents": (contents, "uint64", (rows,)),
    }
    for name, (array, dtype, shape) in expected.items():
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {dtype} {shape}")
    if len(truth.file_names) != rows:
        raise ValueError(f"there are {len(truth.file_names)} file names for {rows} pictures")
    if rows and not 1 <= truth.sizes_hw.min() <= truth.sizes_hw.max() <= _LARGEST_SIDE:
        raise ValueError(f"sizes_hw must be 1 to {_LARGEST_SIDE}")
    if truth.offsets[0] != 0 or truth.offsets[-1] != boxes or (np.diff(truth.offsets) < 0).any():
        raise ValueError("offsets must rise from 0 to the number of boxes")
    if boxes and not 0 <= truth.labels.min() <= truth.labels.max() < len(truth.categories):
        raise ValueError(f"labels must be 0 to {len(truth.categories) - 1}")


def load_arrays(source: ByteSource, key: str) -> dict[str, NDArray[Any]]:
    """Every array of an .npz file. Raises StoreError where it is missing or damaged."""
    where = source.describe(key)
    try:
        content = source.read(key)
        _require_honest_sizes(content)
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # numpy and zipfile raise a different type for each damage
        raise StoreError(f"{where} is missing or damaged: {error}") from error


def dump_arrays(arrays: dict[str, NDArray[Any]]) -> bytes:
    """The content of an .npz file."""
    stored = io.BytesIO()
    entries: dict[str, Any] = arrays
    np.savez(stored, **entries)
    return stored.getvalue()


def _require_honest_sizes(content: bytes) -> None:
    """No entry is compressed, and no array claims more values than its entry has bytes."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > len(content):
                raise ValueError(f"entry {entry.filename} is compressed or larger than the file")
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    raise ValueError(f"entry {entry.filename} has npy version {version}")
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if math.prod(shape) * dtype.itemsize > entry.file_size:
                raise ValueError(f"entry {entry.filename} claims to be of shape {shape}")


def _require_counts(manifest: Manifest) -> None:
    """Raises ValueError where a number is not one that `extract` could have written."""
    for name, most in {"image_size": 1 << 16, "block_size": 256, "batch_size": 1 << 16}.items():
        value = getattr(manifest, name)
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name} must be a whole number from 1 to {most}, got {value!r}")


def _require_version(found: object, where: str) -> None:
    if found == FORMAT_VERSION:
        return
    if isinstance(found, int) and 0 < found < FORMAT_VERSION:
        raise StoreError(
            f"{where} has store format {found}, which no released cachedet wrote; "
            f"extract again: this one writes format {FORMAT_VERSION}"
        )
    raise StoreError(
        f"{where} has store format {found}, this cachedet {__version__} reads {FORMAT_VERSION}; "
        "upgrade cachedet to read it"
    )
