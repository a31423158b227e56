"""Scoring detections of any producer: a COCO results file against an annotation file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachedet.data.coco import load_annotations, truth_of
from cachedet.errors import InputError
from cachedet.evaluation.detection_table import count_oddities, read_results
from cachedet.evaluation.error_kinds import ErrorReport, analyse_errors
from cachedet.evaluation.lvis import LvisScores, read_federated, score_lvis
from cachedet.evaluation.metrics import CocoScores, score_table
from cachedet.evaluation.significance import (
    BootstrapReport,
    ComparisonReport,
    bootstrap,
    compare_runs,
)
from cachedet.evaluation.strata import DEFAULT_EDGES, Stratum, count_annotations, stratify


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What a pair of files tells; None where it was not asked for or is not there."""

    scores: CocoScores
    mask_scores: CocoScores | None  # where both files have masks
    lvis: LvisScores | None
    mask_lvis: LvisScores | None
    errors: ErrorReport
    intervals: BootstrapReport | None
    comparison: ComparisonReport | None
    strata: tuple[Stratum, ...] | None
    oddities: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """The figures as `eval RUN` gives them, the rest under names of its own."""
        parts = {
            "masks": self.mask_scores,
            "lvis": self.lvis,
            "lvis_masks": self.mask_lvis,
            "errors": self.errors,
            "intervals": self.intervals,
            "comparison": self.comparison,
        }
        told = {name: part.to_json() for name, part in parts.items() if part is not None}
        if self.strata is not None:
            told["strata"] = {"bins": [stratum.to_json() for stratum in self.strata]}
        return {**self.scores.to_json(), **told, "oddities": dict(self.oddities)}


def score_files(
    *,
    detections: Path,
    annotations: Path,
    against: Path | None = None,
    training: Path | None = None,
    edges: Sequence[int] = DEFAULT_EDGES,
    lvis: bool = False,
    resamples: int = 0,
    seed: int = 0,
) -> FileReport:
    """Score a results file as pycocotools would, and say what else the files tell.

    Args:
        detections: a COCO results file.
        annotations: the COCO (or LVIS) file the pictures are described in; no picture is opened.
        against: a second results file on the same pictures; needs resamples.
        training: the annotation file of training, for AP by number of annotations.
        edges: of the bins of training annotations.
        lvis: also score as LVIS v1; `annotations` must be an LVIS file.
        resamples: of the bootstrap; 0: no intervals.
        seed: of the bootstrap.

    Raises:
        InputError: detections that do not fit the annotations, or `against` without resamples.
        DatasetError: an annotation file that cannot be used, or is not LVIS's where it should be.
    """
    if against is not None and resamples < 1:
        raise InputError(
            f"comparing two runs needs resamples of the bootstrap, such as 1000, got {resamples}"
        )
    content = load_annotations(annotations)
    truth, _ = truth_of(content, where=annotations, keep_all=True)
    table = read_results(detections, truth)
    scores = score_table(truth, table)
    intervals, comparison = None, None
    if against is not None:
        other = read_results(against, truth)
        comparison = compare_runs(truth, table, other, resamples=resamples, seed=seed)
    elif resamples:
        intervals = bootstrap(truth, table, resamples=resamples, seed=seed)
    federated = read_federated(content, truth, where=annotations) if lvis else None
    masks = truth.masks is not None and table.masks is not None
    return FileReport(
        scores=scores,
        mask_scores=score_table(truth, table, of="segm") if masks else None,
        lvis=score_lvis(truth, federated, table) if federated else None,
        mask_lvis=score_lvis(truth, federated, table, of="segm") if federated and masks else None,
        errors=analyse_errors(truth, table),
        intervals=intervals,
        comparison=comparison,
        strata=_strata(scores, training, edges),
        oddities=count_oddities(truth, table),
    )


def _strata(
    scores: CocoScores, training: Path | None, edges: Sequence[int]
) -> tuple[Stratum, ...] | None:
    if training is None:
        return None
    learnt, _ = truth_of(load_annotations(training), where=training)
    return stratify(scores.per_class, count_annotations(learnt), edges=edges)
