"""From pixels to boxes in one module of tensors: what `export` writes.

Letters: N images, H W input pixels, C channels, h w feature cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from cachedet.detector.fixed_rows import Candidates, FixedDetections
from cachedet.detector.protocol import exportable
from cachedet.errors import ExportError
from cachedet.structures import Features, Preprocessing

if TYPE_CHECKING:  # who runs an exported model needs no timm
    from cachedet.backbone.frozen import FrozenBackbone

Outputs = Literal["raw", "detections"]
Preprocess = Literal["inside", "outside"]


class DetectionGraph(nn.Module):
    """Backbone and detector of a run, without Python between them.

    Takes images, padded at the bottom and right to sides that are multiples of `pad_multiple`, and
    the sizes (N, 2) of what is not padding. With `preprocess` "inside" images are (N, H, W, 3)
    uint8 RGB, resized but not normalised; "outside" (N, 3, H, W) float32 as `make_input` makes
    them. Gives "raw" all boxes and their class scores, or "detections" (see `output_names`).
    """

    def __init__(
        self,
        *,
        backbone: FrozenBackbone,
        detector: nn.Module,
        levels: Sequence[str],  # that the detector takes
        preprocessing: Preprocessing,
        preprocess: Preprocess,
        outputs: Outputs,
    ) -> None:
        super().__init__()
        exportable(detector)
        self.backbone = backbone
        self.detector = detector
        self.levels = tuple(levels)
        self.preprocess, self.outputs = preprocess, outputs
        self.register_buffer("mean", torch.tensor(preprocessing.mean))
        self.register_buffer("std", torch.tensor(preprocessing.std))
        self.to(memory_format=torch.contiguous_format).eval()

    @torch.no_grad()
    def forward(self, images: Tensor, sizes_hw: Tensor) -> tuple[Tensor, ...]:
        """Tensors in the order of `output_names`, boxes in pixels of the input."""
        inputs = self._normalise(images, sizes_hw) if self.preprocess == "inside" else images
        features, detector = self._features(inputs), cast(Any, self.detector)
        if self.outputs == "raw":
            candidates: Candidates = detector.candidates(features, sizes_hw)
            return candidates.boxes, candidates.scores
        found: FixedDetections = detector.detect_rows(features, sizes_hw)
        masks = () if found.masks is None else (found.masks,)
        return found.boxes, found.scores, found.labels, *masks

    def _normalise(self, images: Tensor, sizes_hw: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, H, W): as `make_input`, which pads with zeros last."""
        rows, columns = (torch.arange(images.shape[axis]) for axis in (1, 2))
        is_row = rows < sizes_hw[:, :1]
        is_column = columns < sizes_hw[:, 1:]
        valid = (is_row[:, :, None] & is_column[:, None, :])[..., None]
        normalised = (images.float() / 255 - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        return torch.where(valid, normalised, 0.0).permute(0, 3, 1, 2)

    def _features(self, images: Tensor) -> Features:
        """What `FrozenBackbone` gives; sides of maps are said as shares of the input's.

        From the network's layers exporters derive sides that they cannot compare any more.
        """
        count, (height, width) = images.shape[0], images.shape[2:]
        maps = self.backbone.model(images)
        if self.backbone.is_nhwc:
            maps = [each.permute(0, 3, 1, 2) for each in maps]
        features = {
            level.name: each
            if level.tokens
            else each.reshape(count, level.channels, height // level.stride, width // level.stride)
            for level, each in zip(self.backbone.spec, maps, strict=True)
        }
        return {name: features[name] for name in self.levels}


def parse_outputs(text: str) -> Outputs:
    """Raises ExportError."""
    return cast(Outputs, _one_of(text, get_args(Outputs), option="--outputs"))


def parse_preprocess(text: str) -> Preprocess:
    """Raises ExportError."""
    return cast(Preprocess, _one_of(text, get_args(Preprocess), option="--preprocess"))


def _one_of(text: str, known: tuple[str, ...], *, option: str) -> str:
    if text not in known:
        raise ExportError(f"{option} expects {' or '.join(known)}, got {text!r}")
    return text


def output_names(outputs: Outputs, *, has_masks: bool) -> tuple[str, ...]:
    """raw: boxes (N, T, 4) or (N, T, K, 4), scores (N, T, K). detections: D rows of each image.

    Those are boxes (N, D, 4), scores (N, D), falling, 0 where nothing was found, labels (N, D), and
    masks (N, D, S, S).
    """
    if outputs == "raw":
        return "boxes", "scores"
    return ("boxes", "scores", "labels", *(("masks",) if has_masks else ()))
