"""Kinds of errors and how much AP50 they cost: the analysis of TIDE (arXiv 2008.08115, section 2).

A detection that is wrong at IoU 0.5 gets the first kind that fits, a box that nothing found and no
detection nearly found is missed. The cost of a kind is the AP50 gained if it alone were put right.

Letters: D detections, M ground-truth boxes, K classes, P pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.evaluation.detection_table import DetectionsOrTable, DetectionTable, tabulate
from cachedet.evaluation.matches import HALF, MatchTable, match_detections
from cachedet.evaluation.metrics import Floats, Ints
from cachedet.evaluation.overlaps import candidate_pairs
from cachedet.evaluation.precision import average_precision, to_json_values
from cachedet.structures import Annotations

FOREGROUND = 0.5  # from this IoU on a box is found
BACKGROUND = 0.1  # below this IoU a detection has nothing to do with a box

RIGHT, IGNORED = "right", "ignored"
ERROR_KINDS = (
    "localisation",  # right class, IoU in [0.1, 0.5)
    "classification",  # IoU >= 0.5 with a box of another class
    "duplicate",  # right class, IoU >= 0.5, but the box was taken by a better score
    "background",  # IoU < 0.1 with every box
    "both",  # wrong class and IoU in [0.1, 0.5)
)
KIND_NAMES = (*ERROR_KINDS, RIGHT, IGNORED)  # codes of `DetectionKinds.codes`


@dataclass(frozen=True, kw_only=True)
class ErrorCost:
    """How often a kind of error occurs and the AP50 (0..1) that it costs."""

    kind: str
    count: int
    cost: float


@dataclass(frozen=True, kw_only=True)
class ErrorReport:
    """The six kinds of TIDE, and the two sums it gives beside them."""

    ap50: float
    kinds: tuple[ErrorCost, ...]  # those of ERROR_KINDS, and missed
    false_positives: ErrorCost  # all wrong detections gone
    false_negatives: ErrorCost  # all boxes not found gone
    per_class: tuple[dict[str, int], ...]  # K times kind -> count

    def to_json(self) -> dict[str, Any]:
        return to_json_values(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionKinds:
    """The kind of each detection; those past COCO's 100 a class and image are left out."""

    matches: MatchTable  # at IoU 0.5, all sizes
    codes: NDArray[np.int64]  # (D,) index in KIND_NAMES, in the order of `matches`
    targets: NDArray[np.int64]  # (D,) box that a repair would give it, -1: none
    missed: NDArray[np.bool_]  # (M,)

    def of_kind(self, kind: str) -> NDArray[np.bool_]:
        """(D,) flags."""
        return np.asarray(self.codes == KIND_NAMES.index(kind))


def analyse_errors(annotations: Annotations, detections: DetectionsOrTable) -> ErrorReport:
    """Kinds of errors and their costs. Raises InputError as `tabulate`."""
    kinds = sort_errors(annotations, tabulate(annotations, detections))
    state = _State.of(annotations, kinds)
    ap50 = state.ap50()

    def cost_of(kind: str, count: int, fixed: _State) -> ErrorCost:
        after = fixed.ap50()
        # A class that only missed boxes leaves the mean once they are gone: nothing left is NaN.
        after = 1.0 if math.isnan(after) and not math.isnan(ap50) else after
        return ErrorCost(kind=kind, count=count, cost=after - ap50)

    counts = {kind: int(kinds.of_kind(kind).sum()) for kind in ERROR_KINDS}
    costs = [cost_of(kind, counts[kind], _repair(state, kinds, kind)) for kind in ERROR_KINDS]
    hits, missed = (
        np.bincount(labels, minlength=len(annotations.categories))
        for labels in (state.labels[state.right], annotations.labels[kinds.missed])
    )
    without_missed = replace(state, num_gt=state.num_gt - missed)
    unfound = int(state.num_gt.sum() - hits.sum())
    all_wrong = sum(counts.values())
    return ErrorReport(
        ap50=ap50,
        kinds=(*costs, cost_of("missed", int(kinds.missed.sum()), without_missed)),
        false_positives=cost_of("false positives", all_wrong, state.keep(state.right)),
        false_negatives=cost_of("false negatives", unfound, replace(state, num_gt=hits)),
        per_class=_per_class(annotations, kinds),
    )


def sort_errors(annotations: Annotations, table: DetectionTable) -> DetectionKinds:
    """The kind of every detection and which boxes were missed."""
    matches = match_detections(annotations, table, iou_thresholds=HALF)
    kept = table.keep(matches.source)
    pairs = candidate_pairs(annotations, kept, at_least=BACKGROUND)
    counted = ~annotations.crowd[pairs[1]]
    detections, boxes, ious = (column[counted] for column in pairs)
    same = kept.labels[detections] == annotations.labels[boxes]
    own_iou, own_box = _best(detections[same], boxes[same], ious[same], len(kept))
    other_iou, other_box = _best(detections[~same], boxes[~same], ious[~same], len(kept))
    right = matches.right[0]
    tests = {
        IGNORED: ~matches.judged[0],
        RIGHT: right,
        "localisation": (own_iou >= BACKGROUND) & (own_iou < FOREGROUND),
        "classification": other_iou >= FOREGROUND,
        "duplicate": own_iou >= FOREGROUND,
        "both": other_iou >= BACKGROUND,
    }
    codes = np.select(
        list(tests.values()),
        [KIND_NAMES.index(kind) for kind in tests],
        KIND_NAMES.index("background"),
    ).astype(np.int64)
    targets = np.full(len(kept), -1, dtype=np.int64)
    free = ~annotations.crowd
    free[matches.partner[0][right]] = False
    for kind, box in (("localisation", own_box), ("classification", other_box)):
        of_kind = codes == KIND_NAMES.index(kind)
        targets[of_kind] = np.where(free[box[of_kind]], box[of_kind], -1)
    missed = free.copy()
    missed[targets[targets >= 0]] = False
    return DetectionKinds(matches=matches, codes=codes, targets=targets, missed=missed)


def _best(detections: Ints, boxes: Ints, ious: Floats, count: int) -> tuple[Floats, Ints]:
    """Highest IoU of each detection (0: no pair) and its box, the first of equals (-1)."""
    best_iou, best_box = np.zeros(count), np.full(count, -1, dtype=np.int64)
    order = np.lexsort((-boxes, ious, detections))  # the last of a detection wins
    best_iou[detections[order]] = ious[order]
    best_box[detections[order]] = boxes[order]
    return best_iou, best_box


@dataclass(frozen=True, eq=False)
class _State:
    """What AP50 is computed from."""

    labels: NDArray[np.int64]  # (D,) of judged detections
    scores: NDArray[np.float64]
    order: NDArray[np.int64]  # (D,) who comes first among equal scores
    right: NDArray[np.bool_]
    numbers: NDArray[np.int64]  # (D,) index in the MatchTable
    num_gt: NDArray[np.int64]  # (K,)

    @classmethod
    def of(cls, annotations: Annotations, kinds: DetectionKinds) -> _State:
        judged = np.flatnonzero(~kinds.of_kind(IGNORED))
        matches = kinds.matches
        order_of_row = np.argsort(np.argsort(annotations.image_ids, kind="stable"))
        order = np.empty(len(matches.scores), dtype=np.int64)
        order[np.lexsort((matches.source, order_of_row[matches.rows]))] = np.arange(len(order))
        return cls(
            labels=matches.labels[judged],
            scores=matches.scores[judged],
            order=order[judged],
            right=kinds.of_kind(RIGHT)[judged],
            numbers=judged,
            num_gt=np.bincount(
                annotations.labels[~annotations.crowd], minlength=len(annotations.categories)
            ),
        )

    def ap50(self) -> float:
        """Mean over classes that have boxes; NaN where none has."""
        order = np.lexsort((self.order, -self.scores, self.labels))
        labels, right = self.labels[order], self.right[order]
        present = np.flatnonzero(self.num_gt)
        starts = np.searchsorted(labels, present)
        stops = np.searchsorted(labels, present, side="right")
        values = [
            average_precision(right[a:b], int(self.num_gt[label]))
            for label, a, b in zip(present.tolist(), starts, stops, strict=True)
        ]
        return float(np.mean(values)) if values else math.nan

    def keep(self, which: NDArray[np.bool_]) -> _State:
        columns = ("labels", "scores", "order", "right", "numbers")
        return replace(self, **{name: getattr(self, name)[which] for name in columns})


def _repair(state: _State, kinds: DetectionKinds, kind: str) -> _State:
    """The state with one kind put right: given its box, or gone where that is another's."""
    of_kind = kinds.of_kind(kind)[state.numbers]
    targets = kinds.targets[state.numbers]
    hopeful = np.flatnonzero(of_kind & (targets >= 0))
    hopeful = hopeful[np.lexsort((state.order[hopeful], -state.scores[hopeful]))]
    first = np.unique(targets[hopeful], return_index=True)[1]
    winners = hopeful[first]  # the best score of each box; the others would be duplicates
    labels, right = state.labels.copy(), state.right.copy()
    labels[winners] = kinds.matches.gt_labels[targets[winners]]
    right[winners] = True
    kept = ~of_kind
    kept[winners] = True
    return replace(state, labels=labels, right=right).keep(kept)


def _per_class(annotations: Annotations, kinds: DetectionKinds) -> tuple[dict[str, int], ...]:
    classes = len(annotations.categories)
    columns = {
        kind: np.bincount(kinds.matches.labels[kinds.of_kind(kind)], minlength=classes)
        for kind in (RIGHT, *ERROR_KINDS)
    }
    columns["missed"] = np.bincount(annotations.labels[kinds.missed], minlength=classes)
    return tuple(
        {kind: int(counts[label]) for kind, counts in columns.items()} for label in range(classes)
    )
