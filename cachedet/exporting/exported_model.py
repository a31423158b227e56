"""A file of `cachedet export` at work; needs neither heads nor a backbone.

Letters: N images, H W input pixels, D detections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedet.data.backbone_input import Pixels, make_input, resize
from cachedet.data.geometry import Geometry
from cachedet.data.views import View, parse_views
from cachedet.detector.fixed_rows import Candidates, FixedDetections, select
from cachedet.device import usable_cores
from cachedet.errors import ExportError, InputError
from cachedet.evaluation.inference import EVAL_VIEW
from cachedet.evaluation.merging import Merging
from cachedet.exporting.model_facts import ModelFacts
from cachedet.exporting.model_file import ModelFile
from cachedet.exporting.runtimes import open_runtime
from cachedet.prediction.image_detector import ImageDetector
from cachedet.structures import Detections, Preprocessing, SizeHW

BASE = parse_views(EVAL_VIEW)


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """What the graph takes, of images of one padded size."""

    images: Tensor  # (N, 3, H, W) float32, or (N, H, W, 3) uint8
    sizes_hw: Tensor  # (N, 2) without padding

    def numpy(self) -> dict[str, NDArray[Any]]:
        return {"images": self.images.numpy(), "sizes_hw": self.sizes_hw.numpy()}


class ExportedModel:
    """An exported detector: a `Network`, which takes input that is made already."""

    def __init__(self, file: ModelFile, *, where: str, threads: int | None = None) -> None:
        """Raises ExportError: a package is missing, or the file does not run or is not of ours."""
        self._where = where
        self._runtime = open_runtime(file, where=where, threads=threads or usable_cores() or 1)
        self.facts = ModelFacts.from_text(self._runtime.text, where=where)

    @classmethod
    def open(cls, path: Path) -> ExportedModel:
        """Raises ExportError."""
        return cls(ModelFile.read(path), where=str(path))

    def on_images(self, views: Sequence[View] = BASE) -> ImageDetector:
        """Ready for images; detections are in pixels of the image."""
        return ImageDetector(
            network=self,
            categories=self.facts.categories,
            image_size=self.facts.image_size,
            pad_multiple=self.facts.pad_multiple,
            make=partial(_maker(self.facts), preprocessing=self.facts.preprocessing),
            merging=Merging(),  # of one view
            views=views,
        )

    def __call__(
        self, images: Tensor, *, sizes_hw: Sequence[SizeHW], image_ids: Sequence[int]
    ) -> list[Detections]:
        """Detections of each image in pixels of its view."""
        inputs = Inputs(images=images, sizes_hw=torch.tensor(sizes_hw))
        return self.detect(inputs, image_ids=image_ids)

    def run(self, inputs: Inputs) -> list[Tensor]:
        """The outputs of the graph. Raises ExportError on sides that it does not take."""
        at = (1, 2) if self.facts.preprocess == "inside" else (2, 3)
        sides = [inputs.images.shape[axis] for axis in at]
        if any(side % self.facts.pad_multiple for side in sides):
            raise ExportError(
                f"the model takes sides that are multiples of {self.facts.pad_multiple}, got "
                f"{sides[0]} x {sides[1]}: pad at the bottom and right"
            )
        try:
            outputs = [torch.from_numpy(each) for each in self._runtime.run(inputs.numpy())]
        except Exception as error:  # runtimes raise errors of any kind
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise ExportError(
                f"{self._where} fails on {len(inputs.images)} images of {sides[0]} x {sides[1]}: "
                f"{reason}"
            ) from error
        if any(len(each) != len(inputs.images) for each in outputs):  # OpenVINO 2026.4, cascades
            counts = ", ".join(str(len(each)) for each in outputs)
            raise ExportError(
                f"{self._where} gives outputs of {counts} images for {len(inputs.images)} of "
                f"{sides[0]} x {sides[1]}: a fault of its runtime; export to another --format"
            )
        return outputs

    def detect(self, inputs: Inputs, *, image_ids: Sequence[int]) -> list[Detections]:
        """Detections of each of the N images, in pixels of the input."""
        outputs = self.run(inputs)
        if self.facts.outputs == "raw":
            boxes, scores = outputs
            rows = select(self.facts.postprocess, Candidates(boxes=boxes, scores=scores))
        else:
            boxes, scores, labels, *masks = outputs
            rows = FixedDetections(
                boxes=boxes, scores=scores, labels=labels, masks=masks[0] if masks else None
            )
        return [_found(rows, n, image_id) for n, image_id in enumerate(image_ids)]


def load_model_detector(
    model: Path,
    *,
    weights: str = "auto",
    device: str = "auto",
    views: str = EVAL_VIEW,
    iou: float | None = None,
) -> ImageDetector:
    """An exported file ready for images, which leaves nothing to choose.

    Raises InputError where something was chosen, ExportError as `ExportedModel.open`.
    """
    of_a_run = {
        "--views": views != EVAL_VIEW, "--iou": iou is not None, "--weights": weights != "auto",
        "--device": device not in ("auto", "cpu"),
    }  # fmt: skip
    given = [name for name, is_given in of_a_run.items() if is_given]
    if given:
        raise InputError(
            f"{' and '.join(given)} cannot be used with an exported model: it has its weights, "
            "looks at each image once, suppresses as it was exported and runs on the CPU"
        )
    return ExportedModel.open(model).on_images()


def _found(rows: FixedDetections, n: int, image_id: int) -> Detections:
    """The rows of one image in which something was found."""
    count = int((rows.scores[n] > 0).sum())
    return Detections(
        image_id=image_id,
        boxes=rows.boxes[n, :count],
        scores=rows.scores[n, :count],
        labels=rows.labels[n, :count],
        masks=None if rows.masks is None else rows.masks[n, :count],
    )


def stack(
    images: Sequence[NDArray[np.uint8]], geometries: Sequence[Geometry], facts: ModelFacts
) -> Inputs:
    """Images (H, W, 3) of any sizes, whose views have one padded size, as a batch."""
    make = _maker(facts)
    rows = [
        make(pixels, geometry, preprocessing=facts.preprocessing)
        for pixels, geometry in zip(images, geometries, strict=True)
    ]
    sizes = torch.tensor([geometry.valid_hw for geometry in geometries])
    return Inputs(images=torch.stack(rows), sizes_hw=sizes)


def _maker(facts: ModelFacts) -> Callable[..., Tensor]:
    return _raw_input if facts.preprocess == "inside" else make_input


def _raw_input(pixels: Pixels, geometry: Geometry, preprocessing: Preprocessing) -> Tensor:
    """Resized and padded with zeros: (*geometry.padded_hw, 3) uint8."""
    height, width = geometry.valid_hw
    padded = np.zeros((*geometry.padded_hw, 3), dtype=np.uint8)
    padded[:height, :width] = resize(pixels, geometry, interpolation=preprocessing.interpolation)
    return torch.from_numpy(padded)
