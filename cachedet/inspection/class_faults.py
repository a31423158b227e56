"""Classes: how often each occurs, and whether two sets have the same ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cachedet.inspection.annotated_set import AnnotatedSet
from cachedet.inspection.finding import Finding
from cachedet.structures import CategoryMap

_FEW = 10  # boxes of a class to learn from
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """How often a class occurs in one set."""

    set_name: str
    category_id: int
    name: str
    boxes: int
    images: int

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def count_classes(annotated: AnnotatedSet) -> list[ClassCount]:
    """Boxes and images of each class, crowds too; the most frequent class first.

    Of those that extract takes; where it refuses them, of all.
    """
    columns, categories = annotated.columns, annotated.categories
    if columns is None or categories is None:
        return []
    labels, image_of = columns.labels, columns.rows
    if annotated.dataset is not None and not annotated.refusals:
        taken = annotated.dataset.annotations
        labels, image_of = taken.labels, np.repeat(np.arange(len(taken)), np.diff(taken.offsets))
    boxes = np.bincount(labels, minlength=len(categories))
    pairs = np.unique(image_of * len(categories) + labels)
    images = np.bincount(pairs % len(categories), minlength=len(categories))
    rows = zip(categories.ids, categories.names, boxes.tolist(), images.tolist(), strict=True)
    counts = [
        ClassCount(set_name=annotated.name, category_id=i, name=name, boxes=m, images=n)
        for i, name, m, n in rows
    ]
    return sorted(counts, key=lambda one: -one.boxes)


def class_findings(train: AnnotatedSet, val: AnnotatedSet | None) -> Iterator[Finding]:
    """Whether val can be scored with what learns of train, and classes of which little is known."""
    if val is not None and train.categories is not None and val.categories is not None:
        yield _compare(train.categories, val.categories)
    for one in (train, val):
        if one is not None and one.categories is not None:
            yield from _note_alike(one.name, one.categories)
    counts = count_classes(train)
    if counts and not any(one.boxes for one in counts):
        advice = "Nothing can be learned: is it the annotation file, and the split, that you meant?"
        text = f"{train.name}: not one box"
        yield Finding(rank="stops", kind="no box", text=text, count=1, advice=advice)
        return
    scored: dict[int, int] = {}
    if val is not None and val.categories == train.categories:
        scored = {one.category_id: one.boxes for one in count_classes(val)}
    empty = [one for one in counts if not one.boxes]
    unlearned = [one.name for one in empty if scored.get(one.category_id)]
    if unlearned:
        text = f"{_classes(len(unlearned))} of val without a box in train"
        yield _of_classes("val only", text, unlearned, "They will score 0: add images of them.")
    if unused := [one.name for one in empty if not scored.get(one.category_id)]:
        text = f"{train.name}: {_classes(len(unused))} without a box"
        yield _of_classes("no boxes", text, unused, "They cannot be learned, and cost a little.")
    if unscored := [one.name for one in counts if one.boxes and scored.get(one.category_id) == 0]:
        text = f"{_classes(len(unscored))} of train without a box in val"
        yield _of_classes("train only", text, unscored, "Their AP will be unknown.")
    if few := [one.name for one in counts if 0 < one.boxes < _FEW]:
        text = f"{train.name}: {_classes(len(few))} with fewer than {_FEW} boxes"
        advice = "Little is learned of so few; --set sampling.kind=class_balanced draws them more."
        yield _of_classes("few boxes", text, few, advice)


def _classes(count: int) -> str:
    return "1 class" if count == 1 else f"{count} classes"


def _of_classes(kind: str, text: str, names: Sequence[str], advice: str) -> Finding:
    named = _listed(names)
    return Finding(
        rank="look at", kind=kind, text=f"{text}: {named}", advice=advice, count=len(names)
    )


def _listed(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _compare(train: CategoryMap, val: CategoryMap) -> Finding:
    if train == val:
        return Finding(
            rank="fine", kind="classes", text=f"{_classes(len(train))}, the same in train and val"
        )
    ours, theirs = set(train.names), set(val.names)
    count = len(ours ^ theirs) or sum(
        one != other for one, other in zip(train.names, val.names, strict=False)
    )
    advice = "Give both files the same `categories`; a class may be without boxes."
    if Counter(train.names) == Counter(val.names):
        text = "have the same names under other ids"
        advice = "Number them alike, in the same order: scores would go to the wrong classes."
    elif sorted(map(_plain, ours)) == sorted(map(_plain, theirs)):
        text = "differ in how they are written"
    else:
        text = "differ"
    pairs = [[*zip(each.ids, each.names, strict=True)] for each in (train, val)]
    only = [
        _listed([f"{i} {name!r}" for i, name in one if (i, name) not in other]) or "none"
        for one, other in (pairs, pairs[::-1])
    ]
    return Finding(
        rank="stops",
        kind="classes differ",
        text=f"the classes of train and val {text}; "
        f"only in train: {only[0]}; only in val: {only[1]}",
        advice=advice,
        count=max(count, 1),
    )


def _plain(name: str) -> str:
    return "".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _note_alike(set_name: str, categories: CategoryMap) -> Iterator[Finding]:
    """Names of one set that differ in case, spaces or dashes alone."""
    alike: dict[str, list[str]] = {}
    for name in categories.names:
        alike.setdefault(_plain(name), []).append(name)
    twice = [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
    if twice:
        text = f"{set_name}: {_classes(len(twice))} written in two ways: {_listed(twice)}"
        advice = "They are learned as two: give them one name."
        yield Finding(
            rank="look at", kind="names alike", text=text, advice=advice, count=len(twice)
        )
