"""Images and boxes in a store: images.npz and the truth as they are read back, whoever wrote them.

The images are for good, as features are of them; the truth, also which of them were taken out, is
what `relabel` replaces. Annotations with all of them are said to be by rows of the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.errors import StoreError
from cachedet.store.files.names import images_key, truth_key
from cachedet.store.files.source import ByteSource
from cachedet.store.format.manifest import (
    NO_ROWS,
    Manifest,
    images_digest,
    truth_digest,
    withdrawn_digest,
)
from cachedet.store.format.npz import load_arrays
from cachedet.store.format.shards import altered
from cachedet.structures import Annotations, CategoryMap, MaskCodes

_LARGEST_SIDE = 1 << 20  # pixels of an image
_MOST_IMAGES = 1 << 24  # each takes a few hundred bytes of memory beside its arrays
_OTHER = "is not the one the manifest names"
_LISTED = 10  # names in one message
_PER_BOX = ("boxes", "classes", "areas", "crowds", "masks")
_REPAIR = "The same `cachedet extract` again writes it anew"
_REPAIR_TRUTH = (
    "`cachedet extract` or `cachedet relabel` with the annotations that were last given writes it "
    "anew"
)
_Wanted = dict[str, tuple[str, tuple[str | int, ...]]]  # type and shape
_IMAGE_ARRAYS: _Wanted = {
    "image_ids": ("int64", ("images",)),
    "file_names": ("uint8", ("bytes of names",)),
    "sizes_hw": ("int64", ("images", 2)),
    "contents": ("uint64", ("images",)),
}
_TRUTH_ARRAYS: _Wanted = {
    "offsets": ("int64", ("images + 1",)),
    "boxes": ("float64", ("boxes", 4)),
    "labels": ("int64", ("boxes",)),
    "crowd": ("bool", ("boxes",)),
    "areas": ("float64", ("boxes",)),
    "masks": ("uint8", ("bytes of masks",)),
    "mask_offsets": ("int64", ("boxes + 1",)),
    "withdrawn": ("int64", ("images taken out",)),
}


def load_annotations(
    source: ByteSource, manifest: Manifest
) -> tuple[Annotations, NDArray[np.uint64]]:
    """Images and boxes of the store, with the images' content hashes; none that was taken out.

    Raises StoreError where they are missing, damaged or not the ones of the manifest.
    """
    images, contents = load_images(source, manifest)
    annotations, withdrawn = load_truth(source, manifest, images)
    rows = rows_but(len(annotations), withdrawn)
    return annotations.keep_rows(rows.tolist()), contents[rows]


def rows_but(count: int, withdrawn: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first `count` rows without those that were taken out."""
    return np.delete(np.arange(count), withdrawn)


def spread_rows(
    images: Annotations, rows: NDArray[np.int64], annotations: Annotations
) -> Annotations:
    """The images of `annotations` in these rising rows; in the others those of `images`, bare."""
    count = max(len(images), int(rows[-1]) + 1)
    numbers = np.zeros(count + 1, dtype=np.int64)  # of boxes, with a 0 in front
    numbers[rows + 1] = np.diff(annotations.offsets)
    names = dict(enumerate(images.file_names))
    names.update(zip(rows.tolist(), annotations.file_names, strict=True))
    return replace(
        annotations,
        image_ids=spread(images.image_ids, rows, annotations.image_ids),
        file_names=tuple(names[row] for row in range(count)),
        sizes_hw=spread(images.sizes_hw, rows, annotations.sizes_hw),
        offsets=np.cumsum(numbers),
    )


def spread(before: NDArray[Any], rows: NDArray[np.int64], values: NDArray[Any]) -> NDArray[Any]:
    """`before` with other values in these rows, and as many more as that takes."""
    more = max(0, int(rows[-1]) + 1 - len(before))
    made = np.concatenate([before, np.zeros((more, *before.shape[1:]), before.dtype)])
    made[rows] = values
    return made


def load_images(source: ByteSource, manifest: Manifest) -> tuple[Annotations, NDArray[np.uint64]]:
    """All images of the store as if they had no boxes, with their content hashes.

    Raises as `load_annotations`.
    """
    tables, rows = [], 0
    for generation, (start, digest) in enumerate(
        zip(manifest.starts, manifest.image_digests, strict=True)
    ):
        key = images_key(generation, digest)
        if rows != start:
            reason = f"there are {rows} images before it, {start} by the manifest"
            raise altered(source.describe(key), reason, remedy=_REPAIR)
        tables.append(_load_table(source, key, digest, manifest.categories))
        rows += len(tables[-1][0])
    if len(tables) == 1:
        return tables[0]
    images = [table for table, _ in tables]
    return _without_boxes(
        np.concatenate([table.image_ids for table in images]),
        tuple(name for table in images for name in table.file_names),
        np.concatenate([table.sizes_hw for table in images]),
        manifest.categories,
    ), np.concatenate([contents for _, contents in tables])


def _load_table(
    source: ByteSource, key: str, digest: str, categories: CategoryMap
) -> tuple[Annotations, NDArray[np.uint64]]:
    with _reading(source, key, _REPAIR):
        arrays = load_arrays(source, key, wanted=_IMAGE_ARRAYS, remedy=_REPAIR)
        _require_shapes(arrays, _IMAGE_ARRAYS, rows=arrays["image_ids"].size)
        _require_names(arrays)
        names = arrays["file_names"].tobytes().decode(errors="surrogatepass")
        listed = tuple(names.split("\n")) if names else ()
        sizes, contents = arrays["sizes_hw"], arrays["contents"]
        if len(sizes) and not 1 <= sizes.min() <= sizes.max() <= _LARGEST_SIDE:
            raise ValueError(f"sizes_hw must be 1 to {_LARGEST_SIDE}")
        images = _without_boxes(arrays["image_ids"], listed, sizes, categories)
    if images_digest(images, contents) != digest:
        raise altered(source.describe(key), _OTHER, remedy=_REPAIR, verdict="")
    return images, contents


def _without_boxes(
    image_ids: NDArray[np.int64],
    file_names: tuple[str, ...],
    sizes_hw: NDArray[np.int64],
    categories: CategoryMap,
) -> Annotations:
    return Annotations(
        image_ids=image_ids,
        file_names=file_names,
        sizes_hw=sizes_hw,
        offsets=np.zeros(len(image_ids) + 1, dtype=np.int64),
        boxes=np.zeros((0, 4)),
        labels=np.zeros(0, dtype=np.int64),
        crowd=np.zeros(0, dtype=np.bool_),
        areas=np.zeros(0),
        categories=categories,
    )


def load_truth(
    source: ByteSource, manifest: Manifest, images: Annotations
) -> tuple[Annotations, NDArray[np.int64]]:
    """All images with the boxes that the store has now, and the rows of those taken out.

    Raises as `load_annotations`.
    """
    key = truth_key(manifest.truth_digest)
    with _reading(source, key, _REPAIR_TRUTH):
        arrays = load_arrays(source, key, wanted=_TRUTH_ARRAYS, remedy=_REPAIR_TRUTH)
        _require_shapes(arrays, _TRUTH_ARRAYS, rows=len(images))
        annotations = replace(
            images,
            offsets=arrays["offsets"],
            boxes=arrays["boxes"],
            labels=arrays["labels"],
            crowd=arrays["crowd"],
            areas=arrays["areas"],
            masks=MaskCodes(codes=arrays["masks"], offsets=arrays["mask_offsets"])
            if "masks" in arrays
            else None,
        )
        _require_consistent(annotations)
        withdrawn = arrays.get("withdrawn", NO_ROWS)
        _require_taken_out(withdrawn, annotations)
    digests = truth_digest(annotations, withdrawn), withdrawn_digest(withdrawn)
    if digests != (manifest.truth_digest, manifest.withdrawn_digest):
        raise altered(source.describe(key), _OTHER, remedy=_REPAIR_TRUTH, verdict="")
    return annotations, withdrawn


@contextmanager
def _reading(source: ByteSource, key: str, remedy: str) -> Iterator[None]:
    """Inside, arrays that lack something or do not fit each other are a damaged file."""
    try:
        yield
    except StoreError:
        raise
    except (KeyError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise altered(source.describe(key), str(reason), remedy=remedy) from error


def describe_changes(
    held: tuple[Annotations, NDArray[np.uint64]], given: tuple[Annotations, NDArray[np.uint64]]
) -> list[str]:
    """What differs between the images and annotations of a store and others, in words.

    Both are annotations with the images' content hashes.
    """
    (before, old_contents), (now, new_contents) = held, given
    old_rows, new_rows = (
        {name: row for row, name in enumerate(each.file_names)} for each in (before, now)
    )
    shared = [(name, old_rows[name], row) for name, row in new_rows.items() if name in old_rows]
    changes = {
        "images gone": sorted(old_rows.keys() - new_rows),
        "images added": sorted(new_rows.keys() - old_rows),
        "image files changed": [
            n for n, old, new in shared if old_contents[old] != new_contents[new]
        ],
    }
    for what in ("ids", "sizes", *_PER_BOX):
        changes[f"{what} changed in the annotations of"] = [
            name for name, old, new in shared if _part(before, old, what) != _part(now, new, what)
        ]
    words = [f"{what}: {_listed(names)}" for what, names in changes.items() if names]
    order = [old for _, old, _ in shared]
    if order != sorted(order):
        words.append("the images stand in another order: give `images` in the order they had")
    return words


def _part(annotations: Annotations, row: int, what: str) -> Any:
    """What the annotations say of one image, in values that can be compared."""
    if what == "ids":
        return int(annotations.image_ids[row])
    if what == "sizes":
        return annotations.size_of(row)
    boxes = annotations.boxes_of(row)
    if what == "masks":
        masks = annotations.masks
        return [masks and masks[box] for box in range(boxes.start, boxes.stop)]
    if what == "classes":
        return [annotations.categories.ids[label] for label in annotations.labels[boxes]]
    columns = {"boxes": annotations.boxes, "areas": annotations.areas, "crowds": annotations.crowd}
    return columns[what][boxes].tolist()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _require_shapes(arrays: dict[str, NDArray[Any]], wanted: _Wanted, *, rows: int) -> None:
    """Before any of them becomes Python objects. Raises KeyError or ValueError."""
    if rows > _MOST_IMAGES:
        raise ValueError(f"{rows:,} images are more than a store may hold, {_MOST_IMAGES:,}")
    lengths: dict[str | int, int] = {"images": rows, "images + 1": rows + 1}
    if "labels" in wanted:
        boxes = arrays["labels"].size
        lengths |= {"boxes": boxes, "boxes + 1": boxes + 1}
    for name, array in arrays.items():
        dtype, axes = wanted[name]
        shape = tuple(
            axis if isinstance(axis, int) else lengths.get(axis, array.size) for axis in axes
        )
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {dtype} {shape}")


def _require_names(arrays: dict[str, NDArray[Any]]) -> None:
    joined, rows = arrays["file_names"], arrays["image_ids"].size
    names = int(np.count_nonzero(joined == ord("\n"))) + bool(joined.size)
    if names != rows:
        raise ValueError(f"there are {names} file names for {rows} images")


def _require_consistent(annotations: Annotations) -> None:
    """Raises ValueError where the values do not describe one set of images and boxes."""
    boxes, classes = len(annotations.labels), len(annotations.categories)
    labels = annotations.labels
    if not _is_rising(annotations.offsets, boxes):
        raise ValueError("offsets must rise from 0 to the number of boxes")
    masks = annotations.masks
    if masks is not None and not _is_rising(masks.offsets, len(masks.codes)):
        raise ValueError("mask_offsets must rise from 0 to the number of bytes in masks")
    if boxes and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels must be 0 to {classes - 1}")
    if not np.isfinite(annotations.boxes).all():
        raise ValueError("boxes must be finite")


def _require_taken_out(rows: NDArray[np.int64], annotations: Annotations) -> None:
    """Raises ValueError where these cannot be the rows of images that were taken out."""
    if not len(rows):
        return
    if rows[0] < 0 or rows[-1] >= len(annotations) or (np.diff(rows) <= 0).any():
        raise ValueError(f"withdrawn must be rising rows up to {len(annotations) - 1}")
    if len(rows) == len(annotations):
        raise ValueError("every image was withdrawn")
    if (np.diff(annotations.offsets)[rows] > 0).any():
        raise ValueError("images that were withdrawn have boxes")


def _is_rising(offsets: NDArray[np.int64], end: int) -> bool:
    return offsets[0] == 0 and offsets[-1] == end and bool((np.diff(offsets) >= 0).all())
