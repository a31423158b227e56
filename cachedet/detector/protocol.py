"""What a module must have to be trained, scored, resumed, averaged and shared among processes.

Any `nn.Module` with `forward` and `detect` will do: RetinaNet, a cascade, or a head of your own.
tests/detector/contract.py checks one; docs/tutorials/own-head.md writes one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cachedet.errors import DetectorError
from cachedet.structures import Detections, Features, SizeHW, Targets

_BORDER = 0.01  # pixels a box may reach out of its image: rounding of clipped corners


@runtime_checkable
class Detector(Protocol):
    """A detector on features; an `nn.Module` besides.

    Two methods are required, `forward` and `detect`. It may have more, which this module asks for:

    - `normalizes_over_ranks: bool`: its losses are this process's part of those of the global
      batch, since it divides by counts over all processes (`count_over_ranks`). Without it they
      are taken for means over its own images, and weighted by their number.
    - `trains_masks: bool`: it learns masks, so the store must hold some; `Detections.masks` is
      what it finds.
    - `parts() -> list[nn.Module]`: what `compile: true` compiles; without it, the whole.
    - `classifiers() -> list[nn.Module]`: the last layers that name classes, all that
      `trainable: classifier` trains.
    - `lr_scales() -> list[tuple[nn.Module, float]]`: what is trained, and its learning rate as a
      share of the schedule's; without it, all of it at the schedule's.
    - `propose(features, *, sizes_hw, image_ids) -> list[Detections]` and `max_proposals: int`: a
      first stage, whose recall `eval --proposals` measures.
    - `candidates(features, sizes_hw) -> Candidates` and
      `detect_rows(features, sizes_hw) -> FixedDetections`: the same as `detect` before and after
      suppression, all tensors in and out (`sizes_hw` is (N, 2)) and of shapes that do not depend
      on what is found: what `export` writes.
    """

    def forward(self, features: Features, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Losses by name: scalars whose sum is minimised.

        Args:
            features: C levels (N, C, h, w) float32, fine to coarse.
            targets: boxes and labels of the N images, in pixels of their views.
        """
        ...

    def detect(
        self, features: Features, *, sizes_hw: Sequence[SizeHW], image_ids: Sequence[int]
    ) -> list[Detections]:
        """Detections of each of the N images in pixels of its view, best first.

        Args:
            features: C levels (N, C, h, w) float32, fine to coarse.
            sizes_hw: valid pixels of each view; boxes end there.
            image_ids: of the images, for the results.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class CostedPart:
    """One part of a detector, and what a forward and a step make it compute."""

    name: str
    module: nn.Module
    forward: Callable[[], Any]
    step: Callable[[], Any]  # its backward is counted too


def require_detector(candidate: object) -> nn.Module:
    """The detector that was given. Raises DetectorError where it cannot be one."""
    name = type(candidate).__name__
    if not isinstance(candidate, nn.Module):
        raise DetectorError(f"expected a detector, a torch.nn.Module, got {name}")
    if not callable(getattr(candidate, "detect", None)):
        raise DetectorError(
            f"{name} has no method detect(features, *, sizes_hw, image_ids) that returns "
            "Detections for each image; a detector needs it besides forward(features, targets)"
        )
    return candidate


def compute_losses(
    detector: nn.Module, features: Features, targets: Sequence[Targets]
) -> dict[str, Tensor]:
    """What `forward` returns, checked: at least one loss, each a scalar, and one to learn from.

    Raises DetectorError. Losses that are NaN or Inf are the trainer's to find.
    """
    losses = detector(features, targets)
    name = type(detector).__name__
    if not isinstance(losses, Mapping):
        raise DetectorError(
            f"{name}.forward must return its losses as a dict of name to scalar tensor, got "
            f"{type(losses).__name__}; return {{'loss': ...}} where there is only one"
        )
    if not losses:
        raise DetectorError(f"{name}.forward returned no losses; there is nothing to train on")
    for key, loss in losses.items():
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise DetectorError(f"{name}.forward: loss {key!r} must be a scalar tensor, got {got}")
    if torch.is_grad_enabled() and not any(loss.requires_grad for loss in losses.values()):
        raise DetectorError(
            f"{name}.forward: no loss depends on a parameter that is trained; was it detached?"
        )
    return dict(losses)


def run_detector(
    detector: nn.Module,
    features: Features,
    *,
    sizes_hw: Sequence[SizeHW],
    image_ids: Sequence[int],
    method: str = "detect",
) -> list[Detections]:
    """What `detect` (or `propose`) returns, checked: Detections of each image, inside of it.

    Raises DetectorError.
    """
    detections = getattr(detector, method)(features, sizes_hw=sizes_hw, image_ids=image_ids)
    where = f"{type(detector).__name__}.{method}"
    if not isinstance(detections, Sequence) or len(detections) != len(image_ids):
        count = len(detections) if isinstance(detections, Sequence) else type(detections).__name__
        raise DetectorError(
            f"{where} must return a list with the Detections of each of the {len(image_ids)} "
            f"images, got {count}"
        )
    for of_image, size_hw in zip(detections, sizes_hw, strict=True):
        if not isinstance(of_image, Detections):
            raise DetectorError(f"{where} must return Detections, got {type(of_image).__name__}")
        _require_usable(of_image, size_hw, where=where)
    return list(detections)


def _require_usable(detections: Detections, size_hw: SizeHW, *, where: str) -> None:
    boxes, count = detections.boxes, len(detections.scores)
    shapes = tuple(boxes.shape), tuple(detections.scores.shape), tuple(detections.labels.shape)
    if shapes != ((count, 4), (count,), (count,)):
        raise DetectorError(
            f"{where}: expected boxes (D, 4), scores (D,) and labels (D,) for image id "
            f"{detections.image_id}, got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    if count == 0:
        return
    limits = boxes.new_tensor([size_hw[1], size_hw[0]] * 2)
    is_usable = ((boxes >= -_BORDER) & (boxes <= limits + _BORDER)).all(dim=1)
    is_usable &= torch.isfinite(detections.scores)
    if not bool(is_usable.all()):
        bad = int(is_usable.int().argmin())
        raise DetectorError(
            f"{where}: expected boxes xyxy within the {size_hw[1]} x {size_hw[0]} pixels of the "
            f"view and scores that are numbers, got box {boxes[bad].tolist()} with score "
            f"{float(detections.scores[bad]):g} for image id {detections.image_id}"
        )


def normalizes_over_ranks(detector: nn.Module) -> bool:
    """Whether its losses add up over processes; see `Detector`."""
    return bool(getattr(detector, "normalizes_over_ranks", False))


def trains_masks(detector: nn.Module) -> bool:
    """Whether it learns from masks."""
    return bool(getattr(detector, "trains_masks", False))


def parts_of(detector: Any) -> list[nn.Module]:
    """What is worth compiling."""
    parts: list[nn.Module] = detector.parts() if hasattr(detector, "parts") else [detector]
    return parts


def classifiers_of(detector: Any) -> list[nn.Module]:
    """The layers that a second stage may retrain. Raises DetectorError where it names none."""
    if not hasattr(detector, "classifiers"):
        raise DetectorError(
            f"trainable: classifier needs a detector with a method classifiers(); "
            f"{type(detector).__name__} has none"
        )
    layers: list[nn.Module] = detector.classifiers()
    return layers


def lr_scales_of(detector: Any) -> list[tuple[nn.Module, float]]:
    """What is trained, with its share of the learning rate."""
    if not hasattr(detector, "lr_scales"):
        return [(detector, 1.0)]
    scales: list[tuple[nn.Module, float]] = detector.lr_scales()
    return scales


def exportable(detector: nn.Module) -> Any:
    """The detector, which can be written as a graph. Raises DetectorError where it cannot."""
    missing = [name for name in ("candidates", "detect_rows") if not hasattr(detector, name)]
    if missing:
        raise DetectorError(
            f"{type(detector).__name__} has no method {' and no '.join(missing)}, which `export` "
            "writes as a graph; cachedet's own detectors have both"
        )
    return detector


def max_proposals_of(detector: Any) -> int | None:
    """Most proposals of an image; None where there is no first stage to ask."""
    return int(detector.max_proposals) if hasattr(detector, "propose") else None
