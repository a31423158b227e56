"""Other boxes, masks and classes for a store whose images are unchanged: no feature is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cachedet.config.run import ALL_CLASSES, ClassChoice, make_class_choice
from cachedet.data.annotation_formats import describe_sections, read_sections, with_split
from cachedet.data.file_names import match_names
from cachedet.data.label_changes import LabelChanges, compare_labels
from cachedet.data.sections import Sections, listed, parse_rotated
from cachedet.errors import InputError, StoreError
from cachedet.store.files.depot import open_depot
from cachedet.store.files.source import ByteSource
from cachedet.store.format.annotations import load_images, load_truth
from cachedet.store.format.manifest import Manifest, load_manifest, truth_digest
from cachedet.store.leftovers import remove_leftovers
from cachedet.store.truth import replace_truth
from cachedet.structures import Annotations, CategoryMap


@dataclass(frozen=True, kw_only=True)
class RelabelReport:
    """What one call of `relabel` changed, or would have."""

    store: Path | str  # a folder, or the URL of an object storage
    images: int  # of the store
    boxes: int  # it has now
    changes: LabelChanges | None  # None: the boxes it had cannot be read
    truth_before: str  # digests
    truth: str
    written: bool  # False: only shown, or there was nothing to change
    counts: dict[str, int]  # of the annotation file
    notes: tuple[str, ...]  # for a person

    def to_json(self) -> dict[str, Any]:
        changes = None if self.changes is None else self.changes.to_json()
        return {
            **vars(self),
            "store": str(self.store),
            "changes": changes,
            "notes": list(self.notes),
        }


def relabel(
    store: Path | str,
    *,
    annotations: Path | str,
    split: str | None = None,
    images: Path | str | None = None,
    rotated: str = "refuse",
    choose: ClassChoice | Mapping[str, Any] = ALL_CLASSES,
    dry_run: bool = False,
) -> RelabelReport:
    """Give a store other boxes, masks and classes; its features stay as they are, byte for byte.

    Images are matched by file name. The store keeps its image ids, whatever those of the file are.
    A writer that dies, at any moment, leaves the old labels or the new ones. Readers and trainings
    that have the store open go on with the old ones.

    Args:
        store: folder of the store, or such as s3://bucket/train.zarr, finished or not.
        annotations: as `extract` takes them, of exactly the store's images.
        split: of a data set with several.
        images: folder that file names shall start from; YOLO may need it.
        rotated: "refuse", or "outer": upright boxes around rotated ones.
        choose: which classes, as for `extract`.
        dry_run: only compare.

    Raises:
        DatasetError: the annotations cannot be used.
        ConfigError: `choose` has keys that do not exist.
        InputError: they are of more, fewer or other images, or sizes differ.
        StoreError: the store cannot be read or written, or was relabelled meanwhile.

    Example:
        >>> report = cachedet.relabel("train.zarr", annotations="corrected.json")
        >>> report.changes.added, report.changes.moved
    """
    depot, given = open_depot(store), with_split(Path(annotations), split)
    chosen = make_class_choice(choose, where="relabel")
    source, root = depot.source, str(depot)
    manifest = load_manifest(source)
    held, _ = load_images(source, manifest)
    sections = read_sections(
        given,
        images=None if images is None else Path(images),
        rotated=parse_rotated(rotated),
        choose=chosen,
    )
    described, found = describe_sections(sections, background=chosen.background)
    now, note = _fit_to(held, described, sections, manifest, root)
    before = _truth_of(source, manifest, held)
    digest = truth_digest(now)
    is_same = before is not None and digest == manifest.truth_digest
    if not dry_run and not is_same:
        replace_truth(depot, manifest, now)
        if depot.folder is not None:
            remove_leftovers(depot.folder)
    return RelabelReport(
        store=depot.folder or root,
        images=len(now),
        boxes=len(now.labels),
        changes=None if before is None else compare_labels(before, now),
        truth_before=manifest.truth_digest,
        truth=digest,
        written=not dry_run and not is_same,
        counts=found.counts,
        notes=(*sections.notes, *found.notes, *note),
    )


def _truth_of(source: ByteSource, manifest: Manifest, held: Annotations) -> Annotations | None:
    """The boxes the store has now; None where they are damaged, which new ones put right."""
    try:
        return load_truth(source, manifest, held)
    except StoreError:
        return None


def _fit_to(
    held: Annotations,
    described: Annotations,
    sections: Sections,
    manifest: Manifest,
    root: str,
) -> tuple[Annotations, list[str]]:
    """What the file says of the store's images, in the order of its rows; and a note.

    Raises InputError.
    """
    rows = match_names(held.file_names, described.file_names)
    _require_same_images(held, described, rows, sections, manifest, root)
    kept = described.keep_rows([row for row in rows if row is not None])
    differ = np.flatnonzero((kept.sizes_hw != held.sizes_hw).any(axis=1))
    if len(differ):
        sizes = [_sizes(held, kept, row) for row in differ.tolist()]
        raise InputError(
            f"{sections.source} gives other sizes than the images of {root} have: {len(sizes)} "
            f"({listed(sizes)}). Boxes of resized images do not fit its features: give "
            "annotations of the images as they were extracted, or extract into a new --store"
        )
    note = []
    if not sections.are_ids_ours and not np.array_equal(kept.image_ids, held.image_ids):
        note.append(
            "the file has other image ids than the store, which keeps its own: images were "
            "matched by file name, and views are drawn from the ids"
        )
    own = replace(kept, image_ids=held.image_ids, file_names=held.file_names)
    return (_with_known_ids(held.categories, own) if sections.are_ids_ours else own), note


def _sizes(held: Annotations, kept: Annotations, row: int) -> str:
    there, here = (" x ".join(map(str, reversed(each.size_of(row)))) for each in (held, kept))
    return f"{held.file_names[row]}: {there} pixels in the store, {here} in the file"


def _require_same_images(
    held: Annotations,
    described: Annotations,
    rows: Sequence[int | None],
    sections: Sections,
    manifest: Manifest,
    root: str,
) -> None:
    """Raises InputError where images are missing in the file, or it has some beside."""
    missing = [name for name, row in zip(held.file_names, rows, strict=True) if row is None]
    if missing:
        raise InputError(
            f"{sections.source} lacks images of {root}: {len(missing)} of {len(held)} "
            f"({listed(missing)}). Give annotations of all of them (an image may be without "
            "boxes; for one that shall leave, extract into a new --store)"
        )
    unread = {*sections.unread} & {described.file_names[row] for row in rows if row is not None}
    if unread:
        raise InputError(
            f"{sections.source}: images whose size is not known: {len(unread)} "
            f"({listed(sorted(unread))}). The format gives boxes as shares of it: name the folder "
            "of the images with --images"
        )
    others = sorted({*range(len(described))} - {*rows})
    names = [described.file_names[row] for row in others]
    skipped = match_names(names, [name for name, _ in manifest.skipped])
    added = [name for name, known in zip(names, skipped, strict=True) if known is None]
    if added:
        raise InputError(
            f"{sections.source} has images that {root} lacks: {len(added)} ({listed(added)}). "
            "Nothing was changed: `cachedet extract` into this store with this file extracts them "
            "alone, and takes what it says of all images; or leave them out of it"
        )


def _with_known_ids(held: CategoryMap, annotations: Annotations) -> Annotations:
    """Classes of a format without ids get those that the store has for their names.

    New ones are numbered behind the largest, so that no class of the store becomes another.
    """
    names = annotations.categories.names
    known = dict(zip(held.names, held.ids, strict=True))
    if len(known) < len(held) or len({*names}) < len(names):
        return annotations  # two of one name: nobody knows which is which
    beyond = max(held.ids) + 1
    new = [name for name in names if name not in known]
    ids = known | {name: beyond + number for number, name in enumerate(new)}
    ordered = sorted(names, key=lambda name: ids[name])
    label_of = {name: label for label, name in enumerate(ordered)}
    labels = np.array([label_of[name] for name in names], dtype=np.int64)
    return replace(
        annotations,
        labels=labels[annotations.labels],
        categories=CategoryMap(ids=tuple(ids[name] for name in ordered), names=tuple(ordered)),
    )
