"""A file of `cachedet export` at work in onnxruntime; needs neither heads nor a backbone.

Letters: N images, H W input pixels, D detections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedet.data.geometry import Geometry
from cachedet.data.images import DecodedImage, make_input, resize
from cachedet.data.views import View, make_geometry, parse_views
from cachedet.detector.fixed_rows import Candidates, FixedDetections, select
from cachedet.device import usable_cores
from cachedet.errors import ExportError
from cachedet.exporting.model_facts import KEY, ModelFacts
from cachedet.exporting.onnx_file import require_packages
from cachedet.structures import CategoryMap, Detections, Preprocessing, SizeHW

BASE = parse_views("base")[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """What the graph takes, of images of one padded size."""

    images: Tensor  # (N, 3, H, W) float32, or (N, H, W, 3) uint8
    sizes_hw: Tensor  # (N, 2) without padding

    def numpy(self) -> dict[str, NDArray[Any]]:
        return {"images": self.images.numpy(), "sizes_hw": self.sizes_hw.numpy()}


class ExportedModel:
    """An exported detector; called on an image it gives its detections."""

    def __init__(self, content: bytes, *, where: str, threads: int | None = None) -> None:
        """Raises ExportError: no onnxruntime, no ONNX file, or not one of ours."""
        require_packages(["onnxruntime"], command="running an exported model")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores() or 1
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no parent of their own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ExportError(f"{where} is no ONNX file that runs here: {reason}") from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.facts = ModelFacts.from_text(metadata.get(KEY), where=where)

    @classmethod
    def open(cls, path: Path) -> ExportedModel:
        """Raises ExportError."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ExportError(
                f"--model {path}: {error.strerror or error}; expected a file of `cachedet export`"
            ) from error
        return cls(content, where=str(path))

    def __call__(self, pixels: NDArray[np.uint8], *, image_id: int = 0) -> Detections:
        """Detections in pixels of an image (H, W, 3) RGB."""
        whole = DecodedImage(pixels=pixels, image_hw=(pixels.shape[0], pixels.shape[1]))
        return self.of_image(whole, image_id=image_id)

    def of_image(self, image: DecodedImage, *, image_id: int = 0) -> Detections:
        """The same of an image as it was decoded for the base view."""
        geometry = self.geometry(image.image_hw, BASE)
        inputs = stack([image.pixels], [geometry], self.facts)
        found = self.detect(inputs, image_ids=[image_id])[0]
        return geometry.detections_to_image(found)

    @property
    def categories(self) -> CategoryMap:
        return self.facts.categories

    @property
    def image_size(self) -> int:
        return self.facts.image_size

    def geometry(self, image_hw: SizeHW, view: View) -> Geometry:
        """How an image comes to lie in the input."""
        return make_geometry(
            view,
            image_hw=image_hw,
            image_id=0,
            image_size=self.facts.image_size,
            pad_multiple=self.facts.pad_multiple,
        )

    def make_input(self, pixels: NDArray[np.uint8], geometry: Geometry) -> Tensor:
        """What the graph takes of one image, without the axis of the batch."""
        return _maker(self.facts)(pixels, geometry, self.facts.preprocessing)

    def run(self, inputs: Inputs) -> list[Tensor]:
        """The outputs of the graph. Raises ExportError on sides that it does not take."""
        at = (1, 2) if self.facts.preprocess == "inside" else (2, 3)
        sides = [inputs.images.shape[axis] for axis in at]
        if any(side % self.facts.pad_multiple for side in sides):
            raise ExportError(
                f"the model takes sides that are multiples of {self.facts.pad_multiple}, got "
                f"{sides[0]} x {sides[1]}: pad at the bottom and right"
            )
        return [torch.from_numpy(each) for each in self._session.run(None, inputs.numpy())]

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
        make(pixels, geometry, facts.preprocessing)
        for pixels, geometry in zip(images, geometries, strict=True)
    ]
    sizes = torch.tensor([geometry.valid_hw for geometry in geometries])
    return Inputs(images=torch.stack(rows), sizes_hw=sizes)


def _maker(facts: ModelFacts) -> Callable[[NDArray[np.uint8], Geometry, Preprocessing], Tensor]:
    return _raw_input if facts.preprocess == "inside" else make_input


def _raw_input(
    pixels: NDArray[np.uint8], geometry: Geometry, preprocessing: Preprocessing
) -> Tensor:
    """Resized and padded with zeros: (*geometry.padded_hw, 3) uint8."""
    height, width = geometry.valid_hw
    padded = np.zeros((*geometry.padded_hw, 3), dtype=np.uint8)
    padded[:height, :width] = resize(pixels, geometry, interpolation=preprocessing.interpolation)
    return torch.from_numpy(padded)
