"""Files that evaluation reads from the user: annotations, results, counts of training data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cachedet.config.run import ALL_CLASSES, ClassChoice
from cachedet.data.annotation_formats import is_annotations, read_sections
from cachedet.data.coco import annotations_of
from cachedet.data.file_names import match_names
from cachedet.data.sections import Sections, listed
from cachedet.errors import CheckpointError, DatasetError, InputError
from cachedet.evaluation.analysis import Analysis, analyse, require_resamples
from cachedet.evaluation.detection_table import read_results
from cachedet.evaluation.lvis import Federated, read_federated
from cachedet.evaluation.strata import DEFAULT_EDGES, check_edges
from cachedet.progress import count_of
from cachedet.store.files.locations import is_url, shown
from cachedet.store.files.names import MANIFEST
from cachedet.store.reader import FeatureStore
from cachedet.structures import Annotations, CategoryMap
from cachedet.training.run_folder import count_annotations


def score_files(
    *,
    detections: Path,  # a COCO results file
    annotations: Path,  # of any format that describes the images
    against: Path | None = None,  # a second results file on the same images; needs resamples
    training: str | None = None,  # annotation file or store, for AP by number of annotations
    edges: Sequence[int] = DEFAULT_EDGES,  # of the bins of training annotations
    lvis: bool = False,  # also score as LVIS v1; `annotations` must be an LVIS file
    resamples: int = 0,  # of the bootstrap; 0: no intervals
    seed: int = 0,
    choose: ClassChoice = ALL_CLASSES,  # of all files; detections of other classes are left out
) -> Analysis:
    """Score a results file as pycocotools would, and say what else the files tell.

    Raises:
        InputError: detections that do not fit the annotations, or `against` without resamples.
        DatasetError: an annotation file that cannot be used, or is not LVIS's where it should be.
        StoreError: `training` is a store that cannot be opened.
    """
    require_resamples(resamples, comparing=against is not None)
    check_edges(edges)
    require_separate(choose, lvis=lvis)
    sections = read_sections(annotations, choose=choose)
    # exactly as the official tools read them
    scored, found = annotations_of(sections.content, where=annotations, keep_all=True)
    federated = read_federated(sections.content, scored, where=annotations) if lvis else None
    notes = [f"{annotations}: {note}" for note in (*sections.notes, *found.notes)]
    if sections.are_ids_ours:
        notes.append(f"{annotations}: {_OUR_IDS}")
    return analyse(
        scored,
        read_results(detections, scored, id_of=sections.id_of),
        federated=federated,
        other=None
        if against is None
        else read_results(against, scored, option="--against", id_of=sections.id_of),
        counts=None
        if training is None
        else read_counts(training, scored.categories, choose=choose),
        edges=edges,
        resamples=resamples,
        seed=seed,
        notes=notes,
    )


_OUR_IDS = (
    "the format has no ids; images are numbered from 1 by name, classes from 1 (YOLO's n is n + 1)."
    " Detections that count otherwise are scored wrongly: make them for the file `cachedet "
    "convert` writes, and score them against it"
)


@dataclass(frozen=True, kw_only=True)
class TruthOfStore:
    """Ground truth of a store's images that is not the store's own."""

    annotations: Annotations  # in the order of the store's rows
    federated: Federated | None = None  # where LVIS was asked for
    notes: tuple[str, ...] = ()  # for a person


def require_separate(choose: ClassChoice, *, lvis: bool) -> None:
    """Raises InputError where classes are merged that LVIS rates by their frequency."""
    if lvis and choose.merge:
        raise InputError(
            "--merge-classes cannot be used with --lvis: it says of each class by itself how "
            "frequent it is and which images lack it; leave one of them out"
        )


def truth_of_classes(
    stored: Annotations, categories: CategoryMap, *, store: str, run: str = ""
) -> TruthOfStore:
    """The store's own ground truth, in the classes that a run knows.

    Raises CheckpointError where it knows others than the store.
    """
    labels = labels_in(categories, stored.categories)
    if labels is None:
        raise CheckpointError(
            f"the run {run}was trained on other classes than the store {store} has: "
            f"{categories.unlike(stored.categories)}; evaluate on a store extracted with the same "
            "ones, or give --annotations, and the --merge-classes of its training data"
        )
    notes = note_unknown(stored.categories, labels, store)
    return TruthOfStore(annotations=stored.with_classes(categories, labels), notes=notes)


def read_annotations_of(
    held: Annotations,
    annotations: Path,
    *,
    categories: CategoryMap | None = None,
    lvis: bool = False,
    choose: ClassChoice = ALL_CLASSES,
) -> TruthOfStore:
    """Ground truth of a store's images from an annotation file, in the order of the store's rows.

    Images are matched by image id, or by file name where the format has no ids or these are of
    other images; the file may describe more of them, which is noted. So are classes that are none
    of `categories`, which the detector knows; without it they are those of the store.

    Raises:
        DatasetError: the file cannot be used.
        InputError: it lacks images of the store, or gives them other sizes or other classes.
    """
    require_separate(choose, lvis=lvis)
    sections = read_sections(annotations, choose=choose)
    content, categories = sections.content, categories or held.categories
    described, found = annotations_of(content, where=annotations, keep_all=True)
    labels = labels_in(categories, described.categories, by_name=sections.are_ids_ours)
    if labels is None:
        _require_chosen(categories, sections, choose)
        raise InputError(
            f"{annotations} has other classes than the store: "
            f"{described.categories.unlike(categories)}; give a file with the store's categories, "
            "and the --merge-classes that the store was extracted with"
        )
    of_classes = note_unknown(described.categories, labels, str(annotations))
    described = described.with_classes(categories, labels)
    wanted = held.image_ids.tolist()
    rows = _rows_of(held, described, sections)
    scored = replace(described.keep_rows(rows), image_ids=held.image_ids)
    is_known = (scored.sizes_hw > 0).all(axis=1)
    wrong = np.flatnonzero((scored.sizes_hw != held.sizes_hw).any(axis=1) & is_known)
    if len(wrong):
        row = int(wrong[0])
        sizes = [" x ".join(map(str, each.size_of(row))) for each in (scored, held)]
        raise InputError(
            f"{annotations} says that image id {wanted[row]} has {sizes[0]} pixels, the store "
            f"{sizes[1]} ({len(wrong)} images differ); it is of other images"
        )
    scored = replace(scored, sizes_hw=held.sizes_hw)
    notes = [f"{annotations}: {note}" for note in (*sections.notes, *found.notes)]
    notes += of_classes
    if len(described) > len(held):
        more = count_of(len(described) - len(held), "image")
        notes.append(f"{annotations} describes {more} more than the store holds: not scored")
    federated = None
    if lvis:
        of_store: dict[str, Any] = {**content, "images": [content["images"][row] for row in rows]}
        federated = read_federated(of_store, scored, where=annotations)
    return TruthOfStore(annotations=scored, federated=federated, notes=tuple(notes))


def _require_chosen(known: CategoryMap, sections: Sections, choose: ClassChoice) -> None:
    """Raises InputError where the options leave out classes that shall be scored."""
    missing = [name for name in dict.fromkeys(known.names) if name in sections.left_out]
    if missing:
        named = (("--classes", choose.classes), ("--ignore-classes", choose.ignore))
        options = " and ".join(name for name, given in named if given)
        verb = "leave" if " and " in options else "leaves"
        raise InputError(
            f"{options} {verb} out classes that the run knows: {len(missing)} of {len(known)} "
            f"({listed(missing)}). A run is scored on all that it knows: drop the option, or name "
            "them all; what the file has beside them is left out without it"
        )


def _rows_of(held: Annotations, described: Annotations, sections: Sections) -> list[int]:
    """The row in the file of each image of the store. Raises InputError where one is unknown."""
    by_name = match_names(held.file_names, described.file_names)
    row_of = {image_id: row for row, image_id in enumerate(described.image_ids.tolist())}
    by_id = [row_of.get(image_id) for image_id in held.image_ids.tolist()]
    are_of_others = None not in by_id and None not in by_name  # ids that a reader made count alike
    found = by_name if sections.are_ids_ours or are_of_others else by_id
    unknown = [row for row, other in enumerate(found) if other is None]
    if unknown:
        first, same = f"image id {held.image_ids[unknown[0]]}", "image ids"
        if sections.are_ids_ours:
            first, same = f"the image {held.file_names[unknown[0]]}", "file names"
        raise InputError(
            f"{sections.source} does not describe {first} of the store "
            f"({len(unknown)} of its {len(held)} images are unknown to it); give the file the "
            f"store was extracted from, or one with the same {same}"
        )
    return [row for row in found if row is not None]


def labels_in(
    known: CategoryMap, described: CategoryMap, *, by_name: bool = False
) -> list[int] | None:
    """The label in `known` of each described class; -1 of those it lacks.

    None where they are classes of something else: some of `known` are not described, or, where
    only names tell (a reader made the ids), some on either side.
    """
    by_name &= len(set(known.names)) == len(known)
    ours, theirs = (
        each.names if by_name else tuple(zip(each.ids, each.names, strict=True))
        for each in (known, described)
    )
    label_of = {one: label for label, one in enumerate(ours)}
    is_within = by_name and all(one in label_of for one in theirs)
    if not is_within and any(one not in theirs for one in ours):
        return None
    return [label_of.get(one, -1) for one in theirs]


def note_unknown(described: CategoryMap, labels: Sequence[int], where: str) -> tuple[str, ...]:
    """Classes that a file or store has and the detector does not know."""
    unknown = [name for name, label in zip(described.names, labels, strict=True) if label < 0]
    if not unknown:
        return ()
    return (
        f"scored on {len(labels) - len(unknown)} of {len(labels)} classes of {where}: what is "
        f"scored does not know {listed(unknown)}",
    )


def read_counts(
    training: str, scored: CategoryMap, *, choose: ClassChoice = ALL_CLASSES
) -> dict[int, int]:
    """Category id -> training annotations, from an annotation file or a store.

    Raises:
        InputError: a class of that id has another name there.
        DatasetError, StoreError: neither of the two.
    """
    where = Path(training)
    is_store = is_url(training) or os.path.exists(where / MANIFEST)
    if not is_store and is_annotations(where):
        sections = read_sections(where, choose=choose)
        trained_on, _ = annotations_of(sections.content, where=where)
        by_name = sections.are_ids_ours
        labels = labels_in(scored, trained_on.categories, by_name=True) if by_name else None
        if labels is not None:
            trained_on = trained_on.with_classes(scored, labels)
    elif is_store or where.exists():
        trained_on = FeatureStore.open(training).annotations
    else:
        raise DatasetError(
            "--training expects annotations (as `extract` takes them) or a store; there is no "
            f"{training}"
        )
    names = dict(zip(trained_on.categories.ids, trained_on.categories.names, strict=True))
    for category_id, name in zip(scored.ids, scored.names, strict=True):
        if names.get(category_id, name) != name:
            raise InputError(
                f"category id {category_id} is {names[category_id]!r} in the training data "
                f"{shown(training)} and {name!r} in the scored images; give the data the detector "
                "was trained on"
            )
    return count_annotations(trained_on)
