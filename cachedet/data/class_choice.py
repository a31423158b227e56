"""Which classes of a data set are used: some, all but some, several as one.

Applied to the sections of a source before anything is made of them: all that follows knows the
chosen classes alone. Classes keep their ids; a merged one has the smallest id of its parts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cachedet.config.run import ClassChoice
from cachedet.data.coco import categories_of
from cachedet.data.repairs import Findings, number_ids
from cachedet.data.sections import Sections
from cachedet.errors import DatasetError, nearest_names
from cachedet.structures import Annotations, CategoryMap

_NAMED = 10  # classes in one message
_LVIS_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclass(frozen=True, kw_only=True)
class ChosenClasses:
    """What a choice makes of the classes of a source."""

    categories: CategoryMap  # that are used
    id_of: dict[int, int | None]  # of every class of the source: its id now; None: left out
    left_out: tuple[str, ...] = ()  # their names
    notes: tuple[str, ...] = ()


def choose_classes(categories: CategoryMap, choose: ClassChoice, *, where: Path) -> ChosenClasses:
    """Raises DatasetError: a class that is not there, or a choice that contradicts itself."""
    merged = _merged(categories, choose.merge, where)
    name_of = dict(zip(categories.ids, categories.names, strict=True)) | merged
    names = list(name_of.values())
    become = {
        name: merged[number]
        for number, name in zip(categories.ids, categories.names, strict=True)
        if number in merged and merged[number] != name
    }
    wanted = _names_of("--classes", choose.classes, names, where, become)
    ignored = _names_of("--ignore-classes", choose.ignore, names, where, become)
    if both := [name for name in wanted if name in ignored]:
        raise DatasetError(
            f"--classes and --ignore-classes both name {both[0]!r}; leave it out of one of them"
        )
    kept = {name for name in names if (not wanted or name in wanted) and name not in ignored}
    if not kept:
        raise DatasetError(
            f"--ignore-classes names all classes of {where}: {_shown(names)}; keep one or more"
        )
    first = {name: min(n for n in merged if merged[n] == name) for name in merged.values()}
    id_of = {
        number: (first[name] if number in merged else number) if name in kept else None
        for number, name in name_of.items()
    }
    used = sorted({(new, name_of[old]) for old, new in id_of.items() if new is not None})
    return ChosenClasses(
        categories=CategoryMap(ids=tuple(n for n, _ in used), names=tuple(n for _, n in used)),
        id_of=id_of,
        left_out=tuple(dict.fromkeys(name for name in names if name not in kept)),
        notes=tuple(_notes(names, kept, become)),
    )


def with_chosen(sections: Sections, choose: ClassChoice) -> Sections:
    """Only boxes of the chosen classes, under their ids. Raises DatasetError."""
    if not (choose.classes or choose.ignore or choose.merge):
        return sections
    content = sections.content
    mended = number_ids(content)
    categories = categories_of(content, sections.source)
    chosen = choose_classes(categories, choose, where=sections.source)
    entries = [
        _with_new_id(entry, chosen.id_of)
        for entry in content["annotations"]
        if not _is_left_out(entry.get("category_id"), chosen.id_of)
    ]
    by_id = {entry["id"]: entry for entry in content["categories"]}
    used = zip(chosen.categories.ids, chosen.categories.names, strict=True)
    gone = len(content["annotations"]) - len(entries)
    return replace(
        sections,
        content={
            **content,
            "images": [_with_lists(image, chosen.id_of) for image in content["images"]],
            "annotations": entries,
            "categories": [{**by_id[number], "name": name} for number, name in used],
        },
        notes=(*sections.notes, *mended, *chosen.notes),
        counts={**sections.counts, "boxes of classes left out": gone},
        id_of=chosen.id_of,
        left_out=chosen.left_out,
    )


def without_background(
    annotations: Annotations, found: Findings, *, unread: Collection[str], where: Path
) -> tuple[Annotations, Findings]:
    """Without the images that have no box; those of `unread`, whose boxes nobody knows, stay.

    Raises DatasetError where no image is left.
    """
    boxes = np.diff(annotations.offsets)
    kept = [row for row, name in enumerate(annotations.file_names) if boxes[row] or name in unread]
    if not kept:
        raise DatasetError(
            f"{where}: no image has a box, and --no-background leaves out those without; leave "
            "it away, or choose other classes"
        )
    counts = {
        **found.counts,
        "images": len(kept),
        "images without boxes": int((boxes[kept] == 0).sum()),
        "images without boxes left out": len(annotations) - len(kept),
    }
    return annotations.keep_rows(kept), Findings(counts=counts, notes=found.notes)


def _merged(categories: CategoryMap, merges: Sequence[str], where: Path) -> dict[int, str]:
    """Id of each class that is merged -> the name it gets. Raises DatasetError."""
    merged: dict[int, str] = {}
    for text in merges:
        parts, _, name = (part.strip() for part in text.rpartition("="))
        if not parts or not name:
            raise DatasetError(
                f"--merge-classes expects classes and the name they get, as car,truck=vehicle, "
                f"got {text!r}"
            )
        if name in merged.values():
            raise DatasetError(
                f"--merge-classes merges into {name!r} twice; name all its parts at once, as "
                f"a,b,c={name}"
            )
        taken = _names_of("--merge-classes", [parts], categories.names, where, {})
        if twice := [part for part in dict.fromkeys(taken) if taken.count(part) > 1]:
            raise DatasetError(
                f"--merge-classes names {_quoted(twice)} twice in {text!r}; name each part once"
            )
        for number, part in zip(categories.ids, categories.names, strict=True):
            if part in taken and number in merged:
                raise DatasetError(
                    f"--merge-classes merges {part!r} into {merged[number]!r} and {name!r}; "
                    "choose one"
                )
            if part in taken:
                merged[number] = name
    for number, name in zip(categories.ids, categories.names, strict=True):
        if number not in merged and name in merged.values():
            raise DatasetError(
                f"--merge-classes makes a class {name!r}, and {where} has another one of that name "
                f"(id {number}): name it among the parts too, or take a new name"
            )
    return merged


def _names_of(
    option: str,
    texts: Sequence[str],
    known: Sequence[str],
    where: Path,
    become: Mapping[str, str],  # classes that were merged, and into what
) -> list[str]:
    """A text that is the name of a class as it stands, else names with commas between.

    Raises DatasetError.
    """
    names = []
    for text in texts:
        parts = [text.strip()] if text.strip() in known else text.split(",")
        names += [part.strip() for part in parts if part.strip()]
    if texts and not names:
        raise DatasetError(f"{option} names no class; {where} has {_shown(known)}")
    for name in names:
        if name in known:
            continue
        why = f"; it is merged into {become[name]!r}" if name in become else ""
        raise DatasetError(
            f"{option}: {where} has no class {name!r}{why or nearest_names(name, known)}; it has "
            f"{_shown(known)}"
        )
    return names


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_NAMED]))


def _shown(names: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(names))
    more = len(distinct) - _NAMED
    return ", ".join([*distinct[:_NAMED], *([f"and {more} more"] if more > 0 else [])])


def _notes(names: Sequence[str], kept: Collection[str], become: Mapping[str, str]) -> list[str]:
    distinct = list(dict.fromkeys(names))
    left = [name for name in distinct if name not in kept]
    notes = []
    if left:
        notes.append(
            f"classes used: {len(distinct) - len(left)} of {len(distinct)}; left out: "
            f"{_shown(left)}"
        )
    for name in dict.fromkeys(become.values()):
        parts = [part for part, into in become.items() if into == name]
        notes.append(f"merged into {name!r}: {_shown(parts)}")
    return notes


def _is_left_out(number: Any, id_of: Mapping[int, int | None]) -> bool:
    """Not an id that no class has: it is refused where all boxes are looked at."""
    return type(number) is int and id_of.get(number, number) is None


def _with_new_id(entry: dict[str, Any], id_of: Mapping[int, int | None]) -> dict[str, Any]:
    old = entry.get("category_id")
    new = id_of.get(old) if type(old) is int else None
    return entry if new in (None, old) else {**entry, "category_id": new}


def _with_lists(image: dict[str, Any], id_of: Mapping[int, int | None]) -> dict[str, Any]:
    """LVIS's lists of classes without those that are left out."""
    changed = {
        key: [number for number in image[key] if not _is_left_out(number, id_of)]
        for key in _LVIS_LISTS
        if isinstance(image.get(key), list)
    }
    return {**image, **changed} if changed else image
