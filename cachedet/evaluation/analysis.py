"""Every figure of this room about one set of detections, asked for at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cachedet.errors import InputError
from cachedet.evaluation.curves import Curves, draw_curves
from cachedet.evaluation.detection_table import DetectionTable, count_oddities
from cachedet.evaluation.error_kinds import ErrorReport, analyse_errors
from cachedet.evaluation.lvis import Federated, LvisScores, score_lvis
from cachedet.evaluation.metrics import CocoScores, Kind, score_table
from cachedet.evaluation.significance import (
    BootstrapReport,
    ComparisonReport,
    bootstrap,
    compare_runs,
)
from cachedet.evaluation.strata import DEFAULT_EDGES, Stratum, check_edges, stratify
from cachedet.progress import StageProgress
from cachedet.structures import Annotations

DEFAULT_RESAMPLES = 1000  # of a comparison; percentiles of 95 % need about so many


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Figures of detections; None where they were not asked for or have nothing to stand on."""

    scores: CocoScores
    mask_scores: CocoScores | None  # where ground truth and detections have masks
    lvis: LvisScores | None
    mask_lvis: LvisScores | None
    errors: ErrorReport
    curves: Curves  # at IoU 0.5
    intervals: BootstrapReport | None
    comparison: ComparisonReport | None
    strata: tuple[Stratum, ...] | None
    training_boxes: dict[int, int] | None  # category id -> annotations to learn from
    oddities: dict[str, int]
    notes: tuple[str, ...] = ()  # on the ground truth, for a person

    def to_json(self) -> dict[str, Any]:
        """COCO's figures by their names, every other part under a name of its own."""
        parts = {
            "masks": self.mask_scores,
            "lvis": self.lvis,
            "lvis_masks": self.mask_lvis,
            "errors": self.errors,
            "intervals": self.intervals,
            "comparison": self.comparison,
        }
        values = {name: part.to_json() for name, part in parts.items() if part is not None}
        if self.strata is not None and self.training_boxes is not None:
            values["strata"] = {
                "bins": [stratum.to_json() for stratum in self.strata],
                "training_boxes": {str(key): boxes for key, boxes in self.training_boxes.items()},
            }
        return {
            **self.scores.to_json(),
            **values,
            "oddities": dict(self.oddities),
            "notes": list(self.notes),
            "curves": self.curves.to_json(),
        }


def analyse(
    annotations: Annotations,
    table: DetectionTable,
    *,
    federated: Federated | None = None,  # LVIS's fields of the images: LVIS v1 is scored too
    other: DetectionTable | None = None,  # of another run on the same images, to compare with
    counts: Mapping[int, int] | None = None,  # category id -> training annotations, for strata
    edges: Sequence[int] = DEFAULT_EDGES,  # of the bins of training annotations
    resamples: int = 0,  # of the bootstrap; 0: no intervals
    seed: int = 0,
    notes: Sequence[str] = (),  # on the ground truth, handed through
) -> Analysis:
    """Score detections and say what kinds of errors they make, how sure the figures are.

    Raises InputError: `other` without resamples, edges that do not rise from 0, a class without
    a count.
    """
    require_resamples(resamples, comparing=other is not None)
    check_edges(edges)
    scores = score_table(annotations, table)
    intervals, comparison = _resample(annotations, table, other, resamples=resamples, seed=seed)
    masks = annotations.masks is not None and table.masks is not None
    lvis: dict[Kind, LvisScores] = {}
    if federated:
        kinds: tuple[Kind, ...] = ("bbox", "segm") if masks else ("bbox",)
        lvis = {kind: score_lvis(annotations, federated, table, of=kind) for kind in kinds}
    return Analysis(
        scores=scores,
        mask_scores=score_table(annotations, table, of="segm") if masks else None,
        lvis=lvis.get("bbox"),
        mask_lvis=lvis.get("segm"),
        errors=analyse_errors(annotations, table),
        curves=draw_curves(annotations, table),
        intervals=intervals,
        comparison=comparison,
        strata=None if counts is None else stratify(scores.per_class, counts, edges=edges),
        training_boxes=None if counts is None else dict(counts),
        oddities=count_oddities(annotations, table),
        notes=(*notes, *_notes_on(annotations, table), *(other.notes if other else ())),
    )


def _notes_on(annotations: Annotations, table: DetectionTable) -> tuple[str, ...]:
    if table.masks is None or annotations.masks is not None:
        return table.notes
    return (
        *table.notes,
        "the detections have masks, the annotations have none that can be used: there are no "
        "figures of masks",
    )


def _resample(
    annotations: Annotations,
    table: DetectionTable,
    other: DetectionTable | None,
    *,
    resamples: int,
    seed: int,
) -> tuple[BootstrapReport | None, ComparisonReport | None]:
    """Resample with a progress line: for large sets it takes minutes."""
    if not resamples:
        return None, None
    tables = [table] if other is None else [table, other]
    total = len(tables) * len(annotations.categories)
    with StageProgress("resample", total=total, unit="classes") as progress:
        how = {"resamples": resamples, "seed": seed}
        if other is None:
            return bootstrap(annotations, table, **how, on_progress=progress.advance), None
        return None, compare_runs(annotations, table, other, **how, on_progress=progress.advance)


def require_resamples(resamples: int, *, comparing: bool) -> None:
    """Refuse too few of them before anything is computed. Raises InputError."""
    if resamples < (1 if comparing else 0):
        what = "comparisons of runs" if comparing else "intervals"
        raise InputError(
            f"{what} need resamples of the bootstrap, such as {DEFAULT_RESAMPLES}, got {resamples}"
        )
