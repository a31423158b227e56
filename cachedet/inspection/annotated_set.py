"""One set of annotations as it is inspected, with whatever of it could be read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cachedet.config.run import ALL_CLASSES, ClassChoice, Rotated
from cachedet.data.annotation_formats import dataset_of, read_sections
from cachedet.data.box_columns import BoxColumns
from cachedet.data.coco import CocoDataset, categories_of
from cachedet.data.image_files import ImageFiles, ImageFolder
from cachedet.data.repairs import (
    are_fractions,
    count_corners,
    note_boxes,
    place_of,
    reach_beyond,
)
from cachedet.data.sections import Sections
from cachedet.errors import DatasetError
from cachedet.inspection.finding import MOST_PLACES, Finding, Place
from cachedet.structures import CategoryMap


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnotatedSet:
    """A data set that may be broken; None is what could not be read."""

    name: str  # train or val
    files: ImageFiles
    categories: CategoryMap | None = None
    dataset: CocoDataset | None = None  # without boxes where extract would refuse them
    columns: BoxColumns | None = None  # all boxes of the file
    refusals: tuple[Finding, ...] = ()  # why extract would refuse it
    notes: tuple[Finding, ...] = ()  # what else reading came to
    named: tuple[str, ...] = ()  # all images of the file, also those that were not chosen

    @property
    def images(self) -> Path:
        """Their folder. Raises DatasetError where they lie in none."""
        return self.files.folder

    @property
    def sizes_hw(self) -> NDArray[np.int64]:
        """(N, 2) of the images as annotated."""
        known = self.dataset
        return np.zeros((0, 2), dtype=np.int64) if known is None else known.annotations.sizes_hw

    def places_of_images(self, rows: Iterable[int], reasons: Iterable[str] = ()) -> list[Place]:
        """For a finding; a reason stands behind each name where there are any."""
        assert self.dataset is not None
        names, given = self.dataset.annotations.file_names, list(reasons)
        return [
            Place(
                text=names[row] + (f": {given[index]}" if given else ""),
                set_name=self.name,
                row=int(row),
            )
            for index, row in enumerate(list(rows)[:MOST_PLACES])
        ]

    def places_of_boxes(self, which: NDArray[np.bool_]) -> tuple[Place, ...]:
        """For a finding: image, and where the box stands in the annotations."""
        assert self.dataset is not None
        assert self.columns is not None
        names, columns = self.dataset.annotations.file_names, self.columns
        numbers = np.flatnonzero(which)[:MOST_PLACES].tolist()
        return tuple(
            Place(
                text=f"{names[columns.rows[box]]} ({place_of(columns.entries[box])})",
                set_name=self.name,
                row=int(columns.rows[box]),
                box=box,
            )
            for box in numbers
        )


def read_annotated(
    name: str,
    *,
    annotations: Path,
    images: Path,
    rotated: Rotated,
    follow_links: bool,
    choose: ClassChoice = ALL_CLASSES,
) -> AnnotatedSet:
    """Read as much as can be; what extract would refuse becomes a finding."""
    nothing = AnnotatedSet(name=name, files=ImageFolder(images))
    try:
        sections = read_sections(annotations, images=images, rotated=rotated, choose=choose)
        categories = categories_of(sections.content, annotations)
    except DatasetError as error:
        return replace(nothing, refusals=(_refusal(name, error, annotations),))
    dataset, reasons = None, list[DatasetError]()
    for attempt in (sections, _without_boxes(sections)):
        try:
            dataset = dataset_of(
                attempt,
                annotations=annotations,
                images=images,
                follow_links=follow_links,
                background=choose.background or attempt is not sections,
            )
            break
        except DatasetError as error:
            reasons.append(error)
    if dataset is None or reasons:
        found = replace(nothing, categories=categories)
        if dataset is not None:
            found = _with_dataset(found, sections, dataset)
        refusal = _refusal(name, reasons[0], sections.source)
        return replace(found, refusals=(_with_places(found, refusal),))
    return annotated_of(name, sections, dataset)


def annotated_of(name: str, sections: Sections, dataset: CocoDataset) -> AnnotatedSet:
    """Of a data set that extract takes, with the sections it was made of."""
    found = AnnotatedSet(name=name, files=dataset.files, categories=dataset.annotations.categories)
    found = _with_dataset(found, sections, dataset)
    return replace(found, notes=_notes_of(found))


def _with_dataset(found: AnnotatedSet, sections: Sections, dataset: CocoDataset) -> AnnotatedSet:
    return replace(
        found,
        dataset=dataset,
        columns=_columns_of(sections, dataset),
        named=tuple(str(image.get("file_name")) for image in sections.content["images"]),
    )


def _without_boxes(sections: Sections) -> Sections:
    """Its images can be looked at also where its boxes are refused."""
    return replace(sections, content={**sections.content, "annotations": []})


def _columns_of(sections: Sections, dataset: CocoDataset) -> BoxColumns | None:
    """All boxes of the images that are used."""
    ids, entries = dataset.annotations.image_ids, sections.content["annotations"]
    if len(ids) < len(sections.content["images"]):  # background was left out
        used = set(ids.tolist())
        entries = [entry for entry in entries if entry.get("image_id") in used]
    try:
        return BoxColumns.read(
            entries, ids, dataset.annotations.categories, sections.source, as_they_stand=False
        )
    except DatasetError:  # the first error says the same
        return None


def _refusal(name: str, error: DatasetError, where: Path) -> Finding:
    text = ". ".join(map(str, error.args)).removeprefix(f"{where}: ")
    return Finding(rank="stops", kind="annotations", text=f"{name}: {text}", count=1)


def _with_places(found: AnnotatedSet, refusal: Finding) -> Finding:
    """The refusal of boxes in fractions or of corners, with its places."""
    columns = found.columns
    if columns is None:
        return refusal
    sizes = found.sizes_hw[columns.rows]
    if are_fractions(columns.xywh):
        kind, which = "normalised", np.ones(len(columns.rows), dtype=np.bool_)
    elif count_corners(columns.xywh, sizes):
        kind, which = "corners", reach_beyond(columns.xywh, sizes)
    else:
        return refusal
    text, _, advice = refusal.text.partition("; ")
    return replace(
        refusal,
        kind=kind,
        text=text,
        advice=f"{advice[:1].upper()}{advice[1:]}.",
        count=int(which.sum()),
        places=found.places_of_boxes(which),
    )


def _notes_of(found: AnnotatedSet) -> tuple[Finding, ...]:
    """All that reading noted, but for boxes whose faults are findings of their own."""
    assert found.dataset is not None
    own: set[str] = set()
    if found.columns is not None:
        for fault in found.columns.faults(found.sizes_hw):
            own.update(note_boxes(fault.which, found.columns.entries, fault.what))
    return tuple(
        Finding(rank="look at", kind="note", text=f"{found.name}: {note}", count=1)
        for note in found.dataset.notes
        if note not in own
    )
