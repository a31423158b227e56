"""Other boxes, masks and classes for the images of a store, or fewer images; no other feature."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.config.run import ALL_CLASSES, ClassChoice, make_class_choice
from cachedet.data.annotation_formats import describe_sections, read_sections, with_split
from cachedet.data.file_names import match_names
from cachedet.data.label_changes import LabelChanges, compare_labels
from cachedet.data.sections import Sections, listed, parse_rotated
from cachedet.errors import InputError, StoreError
from cachedet.store.files.depot import open_depot
from cachedet.store.files.source import ByteSource
from cachedet.store.format.annotations import load_images, load_truth, rows_but, spread_rows
from cachedet.store.format.commits import find_held
from cachedet.store.format.manifest import (
    NO_ROWS,
    Manifest,
    load_manifest,
    truth_digest,
    withdrawn_digest,
)
from cachedet.store.format.plan import StorePlan
from cachedet.store.leftovers import remove_leftovers
from cachedet.store.truth import replace_truth
from cachedet.structures import Annotations, CategoryMap

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RelabelReport:
    """What one call of `relabel` changed, or would have."""

    store: Path | str  # a folder, or the URL of an object storage
    images: int  # of the store now
    images_withdrawn: int  # that were taken out of it by this call
    images_returned: int  # that had been taken out and are in it again
    images_lacking: int  # of the annotations, that it never had or no longer has features of
    boxes: int  # it has now
    changes: LabelChanges | None  # of images it had and has; None: its boxes cannot be read
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
    withdraw: bool = False,
    dry_run: bool = False,
) -> RelabelReport:
    """Give a store other boxes, masks and classes; its features stay as they are, byte for byte.

    With `withdraw`, images that the annotations lack leave it. Images that had left it and are
    among them come back, with or without it, as long as the store has their features.

    Images are matched by file name. The store keeps its image ids, whatever those of the file are.
    A writer that dies, at any moment, leaves the old labels or the new ones. Readers and trainings
    that have the store open go on with the old ones.

    Args:
        store: folder of the store, or such as s3://bucket/train.zarr, finished or not.
        annotations: as `extract` takes them, of exactly the store's images; with `withdraw` of any.
        split: of a data set with several.
        images: folder that file names shall start from; YOLO may need it.
        rotated: "refuse", or "outer": upright boxes around rotated ones.
        choose: which classes, as for `extract`.
        withdraw: whether images may leave the store; `prune` then frees what they alone hold.
        dry_run: only compare.

    Raises:
        DatasetError: the annotations cannot be used.
        ConfigError: `choose` has keys that do not exist.
        InputError: they are of more, fewer or other images, of none with `withdraw`, or sizes
            differ.
        StoreError: the store cannot be read or written, or was relabelled meanwhile.

    Examples:
        >>> report = cachedet.relabel("train.zarr", annotations="corrected.json")
        >>> report.changes.added, report.changes.moved
    """
    depot, given = open_depot(store), with_split(Path(annotations), split)
    chosen = make_class_choice(choose, where="relabel")
    source, root = depot.source, str(depot)
    manifest = load_manifest(source)
    held = _Held.read(source, manifest)
    sections = read_sections(
        given,
        images=None if images is None else Path(images),
        rotated=parse_rotated(rotated),
        choose=chosen,
    )
    described, found = describe_sections(sections, background=chosen.background)
    match = _match(held, described, withdraw=withdraw)
    if not (chosen.background or withdraw):
        _require_background(match, held, sections, root)
    _require_same_images(held, described, match, sections, root, withdraw=withdraw)
    now, notes = _fit_to(held, described, match, sections, root)
    digest = truth_digest(now, match.withdrawn)
    is_same = held.truth is not None and digest == manifest.truth_digest
    if not dry_run and not is_same:
        replace_truth(depot, manifest, now, withdrawn=match.withdrawn, back=match.back)
        if depot.folder is not None:
            remove_leftovers(depot.folder)
    return RelabelReport(
        store=depot.folder or root,
        images=len(match.rows),
        images_withdrawn=len(match.lost),
        images_returned=len(match.back),
        images_lacking=len(match.unknown),
        boxes=len(now.labels),
        changes=_compare(held, now, match),
        truth_before=manifest.truth_digest,
        truth=digest,
        written=not dry_run and not is_same,
        counts=found.counts,
        notes=(*sections.notes, *found.notes, *notes),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Held:
    """What a store has, by its rows."""

    manifest: Manifest
    source: ByteSource
    images: Annotations  # without boxes
    truth: Annotations | None  # None: damaged, which a new one puts right
    withdrawn: Rows  # of those that were taken out

    @classmethod
    def read(cls, source: ByteSource, manifest: Manifest) -> _Held:
        images, _ = load_images(source, manifest)
        truth, withdrawn = None, NO_ROWS
        with suppress(StoreError):
            truth, withdrawn = load_truth(source, manifest, images)
        return cls(
            manifest=manifest, source=source, images=images, truth=truth, withdrawn=withdrawn
        )

    @property
    def count(self) -> int:
        """Images that were not taken out."""
        return len(self.images) - len(self.withdrawn)

    def names(self, rows: Rows) -> list[str]:
        return [self.images.file_names[row] for row in rows.tolist()]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Match:
    """Which images of a file are which of a store."""

    rows: Rows  # of the store, rising: the images that it shall have
    given: list[int]  # of the file, one for each of `rows`
    lost: Rows  # of the store: images it has that the file lacks
    back: Rows  # of the store: images that were taken out and have features
    withdrawn: Rows  # of the store: all that it shall not have
    unknown: list[int]  # of the file: the others


def _match(held: _Held, described: Annotations, *, withdraw: bool) -> _Match:
    """By file name: first the images that the store has, then those that were taken out of it.

    Where images may leave or come back, and names of the file start where the store's do, only
    whole names count: `b/1.jpg` is not `a/1.jpg`, which left.
    """
    kept, names = rows_but(len(held.images), held.withdrawn), described.file_names
    starts_alike = not _whole(held.names(kept)).isdisjoint(_whole(names))
    found = _find(held.names(kept), kept, names, whole=withdraw and starts_alike)
    lost = np.array([row for row, given in found.items() if given is None], dtype=np.int64)
    if held.truth is None and withdrawn_digest(lost) == held.manifest.withdrawn_digest:
        lost = NO_ROWS  # they were taken out before the truth was damaged
    used = {given for given in found.values() if given is not None}
    others = [row for row in range(len(described)) if row not in used]
    returned = _find_returned(held, others, names, whole=starts_alike)
    found |= returned
    rows = np.array(sorted(r for r, given in found.items() if given is not None), dtype=np.int64)
    given = [found[row] for row in rows.tolist()]
    skipped = [name for name, _ in held.manifest.skipped]
    beside = match_names([names[row] for row in others], skipped)
    return _Match(
        rows=rows,
        given=[row for row in given if row is not None],
        lost=lost,
        back=np.array(sorted(returned), dtype=np.int64),
        withdrawn=rows_but(len(held.images), rows),
        unknown=[
            row
            for row, known in zip(others, beside, strict=True)
            if known is None and row not in returned.values()
        ],
    )


def _find(
    wanted: Sequence[str], rows: Rows, names: Sequence[str], *, whole: bool
) -> dict[int, int | None]:
    """Which of `names` each wanted one is, by its row in the store."""
    found = match_names(wanted, names)
    if whole:
        found = [
            None if place is None or _whole([name]) != _whole([names[place]]) else place
            for name, place in zip(wanted, found, strict=True)
        ]
    return dict(zip(rows.tolist(), found, strict=True))


def _whole(names: Sequence[str]) -> set[str]:
    return {posixpath.normpath(name) for name in names}


def _find_returned(
    held: _Held, others: list[int], names: Sequence[str], *, whole: bool
) -> dict[int, int]:
    """Row of the store and of the file of images that were taken out and have features still.

    Of two with one name the file does not say which: `extract`, which reads the image, tells.
    """
    if not len(held.withdrawn) or not others:
        return {}
    theirs, rows = [names[row] for row in others], held.withdrawn
    found = _find(held.names(rows), rows, theirs, whole=whole)
    place_of = {row: place for row, place in found.items() if place is not None}
    if not place_of:
        return {}
    wanted = np.array(sorted(place_of), dtype=np.int64)
    there = find_held(StorePlan.load(held.source), wanted)
    return {row: others[place_of[row]] for row in there.tolist()}


def _compare(held: _Held, now: Annotations, match: _Match) -> LabelChanges | None:
    if held.truth is None:
        return None
    stay = np.setdiff1d(match.rows, match.back).tolist()
    return compare_labels(held.truth.keep_rows(stay), now.keep_rows(stay))


def _fit_to(
    held: _Held, described: Annotations, match: _Match, sections: Sections, root: str
) -> tuple[Annotations, list[str]]:
    """What the file says of the store's images, by rows of the store; and a note.

    Raises InputError.
    """
    images = held.images.keep_rows(match.rows.tolist())
    kept = described.keep_rows(match.given)
    differ = np.flatnonzero((kept.sizes_hw != images.sizes_hw).any(axis=1))
    if len(differ):
        sizes = [_sizes(images, kept, row) for row in differ.tolist()]
        raise InputError(
            f"{sections.source} gives other sizes than the images of {root} have: {len(sizes)} "
            f"({listed(sizes)}). Boxes of resized images do not fit its features: give "
            "annotations of the images as they were extracted, or extract into a new --store"
        )
    notes = []
    if not sections.are_ids_ours and not np.array_equal(kept.image_ids, images.image_ids):
        notes.append(
            "the file has other image ids than the store, which keeps its own: images were "
            "matched by file name, and views are drawn from the ids"
        )
    own = replace(kept, image_ids=images.image_ids, file_names=images.file_names)
    own = _with_known_ids(held.images.categories, own) if sections.are_ids_ours else own
    return spread_rows(held.images, match.rows, own), notes


def _sizes(held: Annotations, kept: Annotations, row: int) -> str:
    there, here = (" x ".join(map(str, reversed(each.size_of(row)))) for each in (held, kept))
    return f"{held.file_names[row]}: {there} pixels in the store, {here} in the file"


def _require_same_images(
    held: _Held,
    described: Annotations,
    match: _Match,
    sections: Sections,
    root: str,
    *,
    withdraw: bool,
) -> None:
    """Raises InputError where images are missing in the file, or it has some beside."""
    if not len(match.rows):
        there, here = (listed(each.file_names) for each in (held.images, described))
        raise InputError(
            f"{sections.source} has no image of {root} (there {there}; here {here}). A store keeps "
            "at least one: give annotations of its images"
        )
    if len(match.lost) and not withdraw:
        raise InputError(
            f"{sections.source} lacks images of {root}: {len(match.lost)} of "
            f"{held.count} ({listed(held.names(match.lost))}). Give "
            "annotations of all of them (an image may be without boxes), or take these out of the "
            "store with --withdraw"
        )
    unread = {*sections.unread} & {described.file_names[row] for row in match.given}
    if unread:
        raise InputError(
            f"{sections.source}: images whose size is not known: {len(unread)} "
            f"({listed(sorted(unread))}). The format gives boxes as shares of it: name the folder "
            "of the images with --images"
        )
    if match.unknown and not withdraw:
        names = [described.file_names[row] for row in match.unknown]
        raise InputError(
            f"{sections.source} has images that {root} lacks: {len(names)} ({listed(names)}). "
            "Nothing was changed: `cachedet extract` into this store with this file extracts them "
            "alone, and takes what it says of all images; or leave them out of it"
        )


def _require_background(match: _Match, held: _Held, sections: Sections, root: str) -> None:
    """Raises InputError where it was the option that left out images of the store."""
    missing = held.names(match.lost)
    everything = [str(image.get("file_name")) for image in sections.content["images"]]
    there = match_names(missing, everything)
    without = [name for name, row in zip(missing, there, strict=True) if row is not None]
    if without:
        raise InputError(
            f"--no-background leaves out images of {root}, as {sections.source} has no box in "
            f"them: {len(without)} of {held.count} ({listed(without)}). "
            "Relabel without the option, or take these out of the store with --withdraw"
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
