"""The proof of an export: what the file finds beside what torch finds, image by image.

Letters: D detections of one image, E those that the file found in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedet.data.geometry import Geometry
from cachedet.data.views import parse_views
from cachedet.errors import ExportError
from cachedet.exporting.exported_model import ExportedModel, stack
from cachedet.structures import Detections, SizeHW

Reference = Callable[[Tensor, Sequence[SizeHW]], list[Detections]]
"""What torch finds in a batch (N, 3, H, W) of such valid sizes."""

_VIEWS = parse_views("base,scale=0.5")
_BATCHES = (3, 1, 2)  # images at a time, in turn
_SAME_PX, _SAME_SCORE = 1.0, 0.01  # further apart they are two detections


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far the file may be from torch."""

    box_px: float = 0.01
    score: float = 1e-4
    changed: float = 0.02  # share of detections that only one of the two found: ties of suppression

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) and value >= 0 for value in vars(self).values()):
            raise ExportError(f"tolerances are numbers of 0 or more, got {vars(self)}")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The largest differences in some images."""

    images: int
    detections: int  # of torch
    box_px: float
    score: float
    mask: float  # of probabilities; 0 without masks
    changed: int  # found by one of the two alone
    at_edge: int  # likewise, with a score at the threshold or at the last rank

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            images=self.images + other.images,
            detections=self.detections + other.detections,
            box_px=max(self.box_px, other.box_px),
            score=max(self.score, other.score),
            mask=max(self.mask, other.mask),
            changed=self.changed + other.changed,
            at_edge=self.at_edge + other.at_edge,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def require(self, tolerance: Tolerance) -> None:
        """Raises ExportError where there is more difference, or nothing was compared."""
        if not self.detections:
            raise ExportError(
                "the proof has nothing to compare: torch found nothing in its "
                f"{self.images} images; name a folder with objects of the classes in it with "
                "--images"
            )
        over = []
        if self.box_px > tolerance.box_px:
            over.append(
                f"boxes by up to {self.box_px:.3g} px (--tolerance-px {tolerance.box_px:g})"
            )
        if (probability := max(self.score, self.mask)) > tolerance.score:
            over.append(
                f"scores and masks by up to {probability:.3g} (--tolerance-score "
                f"{tolerance.score:g})"
            )
        if self.changed > tolerance.changed * self.detections:
            over.append(
                f"{self.changed} of {self.detections} detections are found by one of the two alone "
                f"(--tolerance-changed {tolerance.changed:g}; many near ties, as of a detector "
                "that was hardly trained, end so)"
            )
        if over:
            raise ExportError(
                f"the exported file differs from torch: {', '.join(over)}; nothing was written. "
                "Widen what you can accept"
            )


_NOTHING = Agreement(images=0, detections=0, box_px=0.0, score=0.0, mask=0.0, changed=0, at_edge=0)


@dataclass(frozen=True, kw_only=True)
class SizeAgreement:
    """The differences at one size of input."""

    padded_hw: SizeHW
    batches: tuple[int, ...]  # images at a time
    found: Agreement

    def to_json(self) -> dict[str, Any]:
        return {
            "size_hw": list(self.padded_hw), "batches": list(self.batches), **self.found.to_json()
        }  # fmt: skip


def prove(
    model: ExportedModel, reference: Reference, images: Sequence[NDArray[np.uint8]]
) -> list[SizeAgreement]:
    """Both on all images in two sizes, one, two and three at a time where sizes allow it."""
    on_images = model.on_images(_VIEWS)
    by_size: dict[SizeHW, list[tuple[NDArray[np.uint8], Geometry]]] = {}
    for pixels in images:
        for geometry in on_images.geometries((pixels.shape[0], pixels.shape[1])):
            by_size.setdefault(geometry.padded_hw, []).append((pixels, geometry))
    return [_prove_size(model, reference, size, of_size) for size, of_size in by_size.items()]


def total(rows: Sequence[SizeAgreement]) -> Agreement:
    """Over all sizes."""
    return sum((row.found for row in rows), _NOTHING)


def _prove_size(
    model: ExportedModel,
    reference: Reference,
    padded_hw: SizeHW,
    of_size: Sequence[tuple[NDArray[np.uint8], Geometry]],
) -> SizeAgreement:
    found, batches = _NOTHING, []
    for part in _parts(of_size):
        pixels, geometries = zip(*part, strict=True)
        sizes = [geometry.valid_hw for geometry in geometries]
        inputs = stack(pixels, geometries, replace(model.facts, preprocess="outside"))
        expected = reference(inputs.images, sizes)
        got = model.detect(stack(pixels, geometries, model.facts), image_ids=range(len(part)))
        for one, other in zip(expected, got, strict=True):
            found += compare(one, other, model=model)
        batches.append(len(part))
    return SizeAgreement(padded_hw=padded_hw, batches=tuple(sorted({*batches})), found=found)


def _parts(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    start, turn = 0, 0
    while start < len(rows):
        size = _BATCHES[turn % len(_BATCHES)]
        yield rows[start : start + size]
        start, turn = start + size, turn + 1


def compare(expected: Detections, found: Detections, *, model: ExportedModel) -> Agreement:
    """Detections of one image by torch and by the file."""
    pairs = _pair(expected, found)
    of_torch, of_file = (torch.tensor([pair[side] for pair in pairs]).long() for side in (0, 1))
    one, other = expected.keep(of_torch), found.keep(of_file)
    alone = [
        *_without(expected, of_torch).scores.tolist(),
        *_without(found, of_file).scores.tolist(),
    ]
    postprocess = model.facts.postprocess
    is_full = len(expected) >= postprocess.max_detections
    edge = postprocess.score_threshold
    edge = max(edge, float(expected.scores[-1])) if is_full else edge
    at_edge = sum(score <= edge + _EDGE for score in alone)
    masks = one.masks, other.masks
    return Agreement(
        images=1,
        detections=len(expected),
        box_px=_largest(one.boxes, other.boxes),
        score=_largest(one.scores, other.scores),
        mask=0.0 if masks[0] is None or masks[1] is None else _largest(masks[0], masks[1]),
        changed=len(alone) - at_edge,
        at_edge=at_edge,
    )


_EDGE = 1e-5  # of a score at the threshold, or at the last rank


def _pair(expected: Detections, found: Detections) -> list[tuple[int, int]]:
    """Each detection with the nearest one of its class that is free, best first."""
    boxes = (expected.boxes[:, None] - found.boxes[None]).abs().amax(dim=2)
    scores = (expected.scores[:, None] - found.scores[None]).abs()
    differ = expected.labels[:, None] != found.labels[None]
    far = differ | (boxes > _SAME_PX) | (scores > _SAME_SCORE)
    boxes = boxes.masked_fill(far, math.inf)
    pairs = []
    for row in range(len(expected)):
        if len(found) == 0 or math.isinf(float(boxes[row].min())):
            continue
        column = int(boxes[row].argmin())
        boxes[:, column] = math.inf
        pairs.append((row, column))
    return pairs


def _without(detections: Detections, rows: Tensor) -> Detections:
    left = torch.ones(len(detections), dtype=torch.bool)
    left[rows] = False
    return detections.keep(left)


def _largest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max()) if one.numel() else 0.0
