"""The manifest: what a store holds, of which inputs, in which format.

Two things have an identity: features (weights content, preprocessing, views, codec, images), which
commit records name, and the truth, boxes, classes and which images were taken out, which `relabel`
replaces. The fingerprint covers both; neither ever depends on workers or device.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from cachedet.data.views import MOST_VIEWS, view_named
from cachedet.errors import StoreError
from cachedet.store.files.durable import encode_json
from cachedet.store.files.names import COMMITS, MANIFEST, most_nbytes
from cachedet.store.files.source import ByteSource, LocalFiles
from cachedet.store.format.layout import Block, plan_blocks
from cachedet.store.format.shards import altered, proves_damage, unreadable
from cachedet.structures import Annotations, CategoryMap, FeatureSpec, Preprocessing
from cachedet.version import __version__

_BEYOND_INT64 = 2**63  # whole numbers go into arrays and tensors


def require_types(value: Any, declared: Any, *, name: str) -> None:
    """Compare `value`, and everything inside it, with a type hint.

    The value was read from JSON, with tuples and dataclasses in place of lists and objects; the
    hint is made of str, int, float, tuple, dict and dataclasses. Messages call the value `name`.

    Raises TypeError on another type, ValueError on a number not finite or beyond int64.
    """
    origin, inner = get_origin(declared), get_args(declared)
    if is_dataclass(declared):
        _require(type(value) is declared, value, declared, name)
        kind: Any = type(value)  # as Any, since mypy takes no type for hashable
        hints = _hints_of(kind)
        for field in fields(declared):
            require_types(getattr(value, field.name), hints[field.name], name=field.name)
    elif origin is dict:
        _require(isinstance(value, dict), value, declared, name)
        for key, item in value.items():
            require_types(key, inner[0], name=f"a key of {name}")
            require_types(item, inner[1], name=f"{name}[{reprlib.repr(key)}]")
    elif origin is tuple:
        _require(isinstance(value, tuple), value, declared, name)
        each = (inner[0],) * len(value) if inner[-1] is Ellipsis else inner
        _require(len(value) == len(each), value, declared, name)
        for item, hint in zip(value, each, strict=True):
            if not (hint is str and type(item) is str):  # most are: millions need no call each
                require_types(item, hint, name=name)
    else:
        fits = type(value) is declared or (declared is float and type(value) is int)
        _require(fits, value, declared, name)
        _require_sane_number(value, name)


@cache
def _hints_of(declared: Any) -> dict[str, Any]:
    """As they are text in the source, Python compiles each of them at every call."""
    return get_type_hints(declared)


def _require(fits: bool, value: Any, declared: Any, name: str) -> None:
    if not fits:
        expected = getattr(declared, "__name__", declared)
        raise TypeError(f"{name} must be {expected}, got {reprlib.repr(value)}")


def _require_sane_number(value: Any, name: str) -> None:
    if isinstance(value, int) and not -_BEYOND_INT64 <= value < _BEYOND_INT64:
        raise ValueError(f"{name} must fit into 64 bits, got {reprlib.repr(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


FORMAT_VERSION = 5  # of the files; part of every fingerprint
_LARGEST_SIDE = 1 << 20  # pixels of an image with its padding
_LONGEST_NAME = 200  # characters of a codec or view; folders and messages hold them
_LOST = "Copy it from a backup, or delete this store or choose a new --store, and extract again"
_REFETCH = (
    "cachedet writes no such file: fetch the store again from where it came from, or extract into "
    "a new --store"
)
_NOT_OF_BLOCKS = frozenset(
    {"views", "stages_digest", "truth_digest", "withdrawn_digest", "categories", "added"}
)
_MOST_ADDITIONS = 10_000
_DIGEST = re.compile(r"[0-9a-f]{64}")
ALL = slice(None)
NO_ROWS = np.zeros(0, dtype=np.int64)
_LIBRARIES = ("torch", "torchvision", "timm", "zarr", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Identity and description of a store."""

    spec: FeatureSpec  # the levels in the store
    preprocessing: Preprocessing
    backbone: str  # timm name
    weights: str  # where they came from, in words; not part of the identity
    weights_digest: str
    image_size: int  # long side of the base view in pixels
    views: tuple[str, ...]
    codec: str
    block_size: int
    batch_size: int
    images_digest: str  # of their files, names, ids and sizes
    truth_digest: str  # of their boxes, classes and masks, and of which were taken out
    categories: CategoryMap
    skipped: tuple[tuple[str, str], ...]  # file name, reason
    versions: dict[str, str]  # for people; not part of the identity
    codec_digest: str = ""  # of what the codec learnt from the sample; decided when a store is made
    metadata_digest: str = ""  # of all zarr.json files; decided when a store is made
    network: FeatureSpec  # all levels of the backbone, those that are left out too
    added: tuple[tuple[int, str], ...] = ()  # first row and images digest of those added later
    stages_digest: str = ""  # of the weights behind the first level; "": the store has none
    withdrawn_digest: str = ""  # of the rows of images that were taken out; "": none were

    @property
    def pad_multiple(self) -> int:
        """Sides of padded images are multiples of it, so that every level has whole cells."""
        return self.network.pad_multiple

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
            "images_digest": self.images_digest,
            "truth_digest": self.truth_digest,
            "categories": {"ids": list(self.categories.ids), "names": list(self.categories.names)},
            **({"added": [list(pair) for pair in self.added]} if self.added else {}),
            **({"network": self.network.to_json()} if self.network != self.spec else {}),
            **({"stages_digest": self.stages_digest} if self.stages_digest else {}),
            **({"withdrawn_digest": self.withdrawn_digest} if self.withdrawn_digest else {}),
        }

    def fingerprint(self) -> str:
        """sha256 over the identity fields, what the codec learnt and the format."""
        return digest_json(self._fingerprinted())

    @property
    def starts(self) -> tuple[int, ...]:
        """First row of each generation of images."""
        return (0, *(row for row, _ in self.added))

    @property
    def image_digests(self) -> tuple[str, ...]:
        """Of each generation of images."""
        return (self.images_digest, *(digest for _, digest in self.added))

    def block_fingerprint(self, generation: int = 0) -> str:
        """sha256 over what the bytes of blocks of these images depend on.

        That is no list of views, no stages, no boxes, and no other generation of images.
        """
        fields = self._fingerprinted() | {"images_digest": self.image_digests[generation]}
        return digest_json({k: v for k, v in fields.items() if k not in _NOT_OF_BLOCKS})

    def _fingerprinted(self) -> dict[str, Any]:
        digest = self.codec_digest
        return {**self.identity(), "codec_digest": digest, "format_version": FORMAT_VERSION}

    def differing_fields(self, other: Manifest) -> list[str]:
        """``"codec: 'fp16' here, 'fp32' there"`` for each identity field that differs."""
        ours, theirs = self.identity(), other.identity()
        classes = f"classes: {self.categories.unlike(other.categories, where='now')}"
        return [
            classes
            if field == "categories"
            else "{}: {} in the store, {} now".format(field, *self._both(other, field))
            for field in ours
            if ours[field] != theirs.get(field)
        ]

    def _both(self, other: Manifest, field: str) -> tuple[str, str]:
        """A field of both for messages: of levels their names, where these tell them apart."""
        if field in ("spec", "network") and self.shown(field) != other.shown(field):
            return self.shown(field), other.shown(field)
        return _short(self.identity()[field]), _short(other.identity().get(field))

    def incompatible_field(self, other: Manifest) -> str | None:
        """The first field that keeps heads trained on this store from fitting `other`.

        A store may hold fewer levels of the same network: `choose_read_levels` asks for those.
        """
        for field in ("backbone", "weights_digest", "network", "preprocessing", "categories"):
            if getattr(self, field) != getattr(other, field):
                return field
        return None

    def shown(self, field: str) -> str:
        """A field for messages; of levels the names, which are taps, and which in bf16."""
        value = getattr(self, field)
        if not isinstance(value, FeatureSpec):
            return str(value)
        named = [f"{level.name} (a tap)" if level.tap else level.name for level in value]
        return ", ".join(named) + (", computed in bf16" if value.bf16 else "")

    def plan(self, annotations: Annotations) -> tuple[Block, ...]:
        """Every block of the finished store."""
        return plan_blocks(
            annotations=annotations,
            views=[view_named(name) for name in self.views],
            image_size=self.image_size,
            pad_multiple=self.pad_multiple,
            block_size=self.block_size,
            starts=self.starts,
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
        """Raises StoreError: another format, a missing or malformed field, altered identity."""
        _require_version(values.get("format_version"), where)
        try:
            optional = {"network": values["spec"], "stages_digest": "", "added": []}
            optional["withdrawn_digest"] = ""
            given = {field.name: {**optional, **values}[field.name] for field in fields(cls)}
            categories = given["categories"]
            converted = {
                "spec": FeatureSpec.from_json(given["spec"]),
                "network": FeatureSpec.from_json(given["network"]),
                "preprocessing": Preprocessing.from_json(given["preprocessing"]),
                "views": tuple(given["views"]),
                "categories": CategoryMap(
                    ids=tuple(categories["ids"]), names=tuple(categories["names"])
                ),
                "skipped": tuple((name, reason) for name, reason in given["skipped"]),
                "versions": dict(given["versions"]),
                "added": tuple((row, digest) for row, digest in given["added"]),
            }
            manifest = cls(**{**given, **converted})
            require_types(manifest, cls, name="manifest")
            require_sane(manifest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise StoreError(f"{where} is not a manifest of cachedet: {reason}") from error
        if manifest.to_json() != values:
            raise StoreError(f"{where} was altered: its fields do not give its own checksum")
        return manifest


def truth_digest(annotations: Annotations, withdrawn: NDArray[np.int64] = NO_ROWS) -> str:
    """sha256 over boxes, masks, rows of images that were taken out, and categories."""
    categories = json.dumps([annotations.categories.ids, annotations.categories.names])
    return _digest_arrays(truth_arrays(annotations, withdrawn), categories)


def withdrawn_digest(rows: NDArray[np.int64]) -> str:
    """sha256 over the rows of images that were taken out; empty where none were."""
    return _digest_arrays({"withdrawn": rows}) if len(rows) else ""


def images_digest(annotations: Annotations, contents: NDArray[np.uint64], rows: slice = ALL) -> str:
    """sha256 over ids, names, sizes and the content hash of every image file of these rows."""
    return _digest_arrays(image_arrays(annotations, contents, rows))


def truth_arrays(
    annotations: Annotations, withdrawn: NDArray[np.int64] = NO_ROWS
) -> dict[str, NDArray[Any]]:
    """What `annotations` say of images, and which rows were taken out: that can change."""
    masks = annotations.masks
    of_masks: dict[str, NDArray[Any]] = (
        {} if masks is None else {"masks": masks.codes, "mask_offsets": masks.offsets}
    )
    return {
        "offsets": annotations.offsets,
        "boxes": annotations.boxes,
        "labels": annotations.labels,
        "crowd": annotations.crowd,
        "areas": annotations.areas,
        **of_masks,
        **({"withdrawn": withdrawn} if len(withdrawn) else {}),
    }


def image_arrays(
    annotations: Annotations, contents: NDArray[np.uint64], rows: slice = ALL
) -> dict[str, NDArray[Any]]:
    """The images of these rows; file names as UTF-8 bytes with newlines between."""
    joined = "\n".join(annotations.file_names[rows])
    names = joined.encode(errors="surrogatepass")  # of bytes no UTF-8
    return {
        "image_ids": annotations.image_ids[rows],
        "file_names": np.frombuffer(names, dtype=np.uint8),
        "sizes_hw": annotations.sizes_hw[rows],
        "contents": contents[rows].astype("<u8"),
    }


def _digest_arrays(arrays: Mapping[str, NDArray[Any]], text: str = "") -> str:
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(text.encode())
    return digest.hexdigest()


def digest_json(value: Any) -> str:
    """sha256 of a JSON value with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """What wrote the store, for people who ask later."""
    libraries = {name: version(name) for name in _LIBRARIES}
    return {"cachedet": __version__, "python": platform.python_version(), **libraries}


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:  # a digest: its beginning tells it apart
        return value[:12]
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."


def load_manifest(source: ByteSource) -> Manifest:
    """The manifest of the store. Raises StoreError where there is no readable store."""
    where = source.describe(MANIFEST)
    content = _read_manifest(source)
    try:
        values = json.loads(content)
        if not isinstance(values, dict):
            raise ValueError("expected a JSON object")
        body = {key: value for key, value in values.items() if key != "checksum"}
        is_whole = values.get("checksum") == digest_json(body)
    except (ValueError, RecursionError) as error:
        raise altered(where, f"it is not JSON ({error})", remedy=_LOST) from error
    if not is_whole:
        raise altered(where, "its checksum does not fit its fields", remedy=_LOST)
    _require_version(values.get("format_version"), where)
    try:
        return Manifest.from_json(values, where=where)
    except StoreError as error:
        raise StoreError(f"{error}. {_REFETCH}") from error


def encode_manifest(manifest: Manifest) -> bytes:
    """The content of its file. Raises StoreError where no reader would take it."""
    content = encode_json(manifest.to_json())
    if len(content) > most_nbytes(MANIFEST):
        raise StoreError(
            f"the manifest would have {len(content):,} bytes, at most {most_nbytes(MANIFEST):,} "
            f"are read: {len(manifest.skipped):,} images were skipped, "
            f"{len(manifest.categories):,} categories exist; repair the images, or leave out of "
            "--annotations what cannot be used"
        )
    return content


def _read_manifest(source: ByteSource) -> bytes:
    where = source.describe(MANIFEST)
    try:
        return source.read(MANIFEST)
    except (FileNotFoundError, NotADirectoryError) as error:
        if source.names(COMMITS):
            raise altered(where, "is missing", remedy=_LOST, verdict="") from error
        raise StoreError(
            f"{source.describe('')} is not a feature store: {_what_is_there(source)}; "
            "expected a folder written by `cachedet extract --store`"
        ) from error
    except OSError as error:
        if not proves_damage(error):
            raise unreadable(where, error) from error
        raise altered(where, str(error.strerror), remedy=_LOST) from error


def _what_is_there(source: ByteSource) -> str:
    """In the place of a store."""
    if isinstance(source, LocalFiles) and not source.root.is_dir():
        return "it is a file" if source.root.exists() else "nothing is there"
    return f"it has no {MANIFEST}"


def require_sane(manifest: Manifest) -> None:
    """Raises ValueError where a field is not one that `extract` could have written."""
    for name, most in {"image_size": 1 << 16, "block_size": 256, "batch_size": 1 << 16}.items():
        value = getattr(manifest, name)
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be a whole number from 1 to {most}, got {value!r}")
    if manifest.pad_multiple > _LARGEST_SIDE:
        raise ValueError(f"strides must have a common multiple of at most {_LARGEST_SIDE}")
    if tuple(manifest.network)[: len(manifest.spec)] != tuple(manifest.spec):
        raise ValueError("the levels are not the first ones of the network's")
    for digest in (*manifest.image_digests, manifest.truth_digest):  # files have their names
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"a digest is {reprlib.repr(digest)}, no sha256")
    if any(row >= beyond for row, beyond in pairwise(manifest.starts)):
        raise ValueError(f"added must name rising rows, got {reprlib.repr(manifest.added)}")
    if len(manifest.added) > _MOST_ADDITIONS:
        raise ValueError(f"images were added more than {_MOST_ADDITIONS:,} times")
    views = manifest.views
    if not views or len(set(views)) != len(views):
        raise ValueError(f"views must name each view once, got {reprlib.repr(views)}")
    if len(views) > MOST_VIEWS:
        raise ValueError(f"a store holds at most {MOST_VIEWS} views, got {len(views):,}")
    for name in (*views, manifest.codec):
        if len(name) > _LONGEST_NAME:
            raise ValueError(f"a name of {len(name):,} characters, {name[:40]}..., is no name")


def _require_version(version: object, where: str) -> None:
    if version != FORMAT_VERSION:
        raise StoreError(
            f"{where} has store format {reprlib.repr(version)}, cachedet {__version__} reads and "
            f"writes format {FORMAT_VERSION}; extract again into a new --store"
        )
