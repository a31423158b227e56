"""Detect in image files: the one verb that joins backbone and heads."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cachedet.data.image_folders import images_in
from cachedet.data.images import DecodedImage, decode_bytes, decoded, make_input, opened
from cachedet.data.masks import decode_mask, paste_masks, rle_of
from cachedet.data.views import View, make_geometry, parse_views
from cachedet.detector.build import choose_read_levels
from cachedet.detector.protocol import run_detector
from cachedet.device import choose_device
from cachedet.errors import BackboneError, BadImageError, InputError, UnwrittenError
from cachedet.evaluation.inference import EVAL_VIEW, drop_cut
from cachedet.evaluation.merging import Merging
from cachedet.evaluation.plots import Drawing, draw_boxes
from cachedet.evaluation.subject import load_detector
from cachedet.exporting.exported_model import ExportedModel
from cachedet.outputs import (
    DRAWING_COMMENT,
    Kind,
    distinct_names,
    require_folder,
    require_ours,
    write_file,
)
from cachedet.progress import StageProgress
from cachedet.store.format.manifest import Manifest
from cachedet.structures import CategoryMap, Detections, SizeHW
from cachedet.text import printable
from cachedet.training.checkpoint import load_checkpoint
from cachedet.training.run_folder import RunFolder

if TYPE_CHECKING:  # with an exported model timm is not needed
    from cachedet.backbone.frozen import FrozenBackbone

_FOUND = "detections.json"
_BASE = parse_views(EVAL_VIEW)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageDetector:
    """Backbone and trained heads of one run, ready for images."""

    backbone: FrozenBackbone
    detector: nn.Module
    levels: Sequence[str]  # that the detector takes
    manifest: Manifest
    merging: Merging
    views: Sequence[View] = _BASE  # of an image; their detections are merged as `detect_store` does

    @property
    def categories(self) -> CategoryMap:
        return self.manifest.categories

    @property
    def image_size(self) -> int:
        return self.manifest.image_size

    @torch.no_grad()
    def __call__(
        self,
        pixels: NDArray[np.uint8],
        *,
        image_id: int = 0,
        decoded_as: DecodedImage | None = None,  # by extraction; None: `pixels` are looked at
    ) -> Detections:
        """Detections in pixels of an image (H, W, 3) RGB; windows are drawn from `image_id`."""
        whole = DecodedImage(pixels=pixels, image_hw=(pixels.shape[0], pixels.shape[1]))
        images = [whole] if decoded_as is None else [decoded_as, whole]
        return self.merging([self._detect(images, view, image_id) for view in self.views])

    def _detect(self, images: list[DecodedImage], view: View, image_id: int) -> Detections:
        """What is found in one view, in pixels of the image: of the first that has the detail."""
        geometry = make_geometry(
            view,
            image_hw=images[0].image_hw,
            image_id=image_id,
            image_size=self.manifest.image_size,
            pad_multiple=self.manifest.pad_multiple,
        )
        pixels = next(image.pixels for image in images if image.suffices(geometry))
        device = next(self.detector.parameters()).device
        image = make_input(pixels, geometry, self.manifest.preprocessing).to(device)
        maps = self.backbone(image[None])
        detections = run_detector(
            self.detector,
            {name: maps[name] for name in self.levels},
            sizes_hw=[geometry.valid_hw],
            image_ids=[image_id],
        )[0]
        return geometry.detections_to_image(drop_cut(detections, geometry))


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageReport:
    """What was detected in one image file."""

    file: Path
    drawing: Path
    detections: Detections  # pixels of the image, best first
    categories: CategoryMap
    size_hw: SizeHW
    highest: float | None = None  # score of all that was found, also below the least one

    def to_json(self) -> dict[str, Any]:
        """File, drawing and detections: name, category_id, score, box xyxy, COCO RLE of a mask."""
        columns = (self.detections.boxes, self.detections.scores, self.detections.labels)
        detections: list[dict[str, Any]] = [
            {
                "name": self.categories.names[label],
                "category_id": self.categories.ids[label],
                "score": score,
                "box": box,
            }
            for box, score, label in zip(*(column.tolist() for column in columns), strict=True)
        ]
        codes = paste_masks(self.detections, self.size_hw)
        for detection, code in zip(detections, codes, strict=False):
            detection["segmentation"] = rle_of(code, self.size_hw)
        return {"file": str(self.file), "drawing": str(self.drawing), "detections": detections}


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictReport:
    """What one call of `predict` did."""

    images: tuple[ImageReport, ...]
    bad: tuple[tuple[Path, str], ...]  # files that cannot be used, and why
    out: Path  # folder of the drawings and detections.json

    def to_json(self) -> dict[str, Any]:
        """What was detected, and the files that were left out."""
        return {
            "images": [image.to_json() for image in self.images],
            "bad": [{"file": str(file), "reason": reason} for file, reason in self.bad],
        }


def predict(
    run: Path | str | None = None,
    *,
    images: Sequence[Path | str],
    out: Path | str,
    model: Path | str | None = None,
    weights: str = "auto",
    views: str = EVAL_VIEW,
    min_score: float = 0.3,
    device: str = "auto",
    detector: nn.Module | None = None,
    backbone: FrozenBackbone | None = None,
) -> PredictReport:
    """Detect in image files or folders of them; writes drawn images and detections.json.

    Args:
        run: folder of the run; its best weights are taken.
        model: a file of `export`, instead of a run; `weights`, `device`, `detector` and `backbone`
            are of runs.
        images: files, or folders of files; what cannot be decoded is named in the report.
        out: folder to write into; made where it is missing. Of what is there, only drawings and
            detections that `predict` made are replaced.
        weights: of the backbone: "auto", "none" or a file.
        views: of each image, as `parse_views` takes them; their detections are merged as
            `evaluate` merges them.
        min_score: least score of what is drawn and listed, 0..1.
        device: "auto", "cpu", "cuda", ...
        detector: what the run trained, where that was an object.
        backbone: what the store was extracted with, where that was an object.

    Raises:
        CheckpointError: no such run, or weights that do not fit `detector`.
        BackboneError: the run's backbone cannot be had, or has other weights now.
        ExportError: a model that `export` did not write, or no onnxruntime.
        InputError: neither a run nor a model, or both; a view that files cannot have, no images,
            or a file in `out` that another made.
        UnwrittenError: the disk refused in the middle; it holds what was found so far.

    Example:
        >>> report = cachedet.predict("runs/first", images=["photos/"], out="drawn/")
        >>> report.images[0].detections.boxes  # (D, 4) xyxy in pixels
    """
    chosen = _views_of_files(views)
    files = _image_files([Path(path) for path in images])
    out = Path(out)
    drawings = _plan_drawings(files, out, images=images)
    image_detector: ImageDetector | ExportedModel
    if run is not None and model is None:
        image_detector = load_image_detector(
            Path(run), weights=weights, device=device, views=chosen, detector=detector,
            backbone=backbone,
        )  # fmt: skip
    else:
        image_detector = _open_model(run, model, views=views)
    reports: list[ImageReport] = []
    bad: list[tuple[Path, str]] = []
    try:
        with StageProgress("predict", total=len(files), unit="images") as progress:
            for file, drawing in zip(files, drawings, strict=True):
                try:
                    reports.append(
                        _predict_file(file, image_detector, drawing, min_score=min_score)
                    )
                except BadImageError as error:  # the others are not to blame
                    bad.append((file, str(error).removeprefix(f"{printable(file)}: ")))
                progress.advance()
        report = PredictReport(images=tuple(reports), bad=tuple(bad), out=out)
        content = json.dumps(report.to_json()["images"], indent=1).encode()
        write_file(out / _FOUND, content, kind=Kind.FOUND)
    except InputError as error:
        report = PredictReport(images=tuple(reports), bad=tuple(bad), out=out)
        raise UnwrittenError(str(error), report=report) from error
    return report


def _open_model(run: Path | str | None, model: Path | str | None, *, views: str) -> ExportedModel:
    """Raises InputError where it is not clear what shall detect, ExportError."""
    if run is not None or model is None:
        raise InputError("predict expects a run or --model, a file of `export`: one of the two")
    if views != EVAL_VIEW:
        raise InputError(
            f"an exported model sees each image once, in the view base; got --views {views}: leave "
            "it out, or use the run"
        )
    return ExportedModel.open(Path(model))


def _plan_drawings(files: Sequence[Path], out: Path, *, images: Sequence[Path | str]) -> list[Path]:
    """Where each image is drawn: no two share a file, and nothing of the user's is replaced.

    Raises InputError.
    """
    require_folder(out, inputs=[Path(path) for path in images])
    names = (f"{file.stem}{'' if file.suffix == '.jpg' else file.suffix}.jpg" for file in files)
    drawings = [out / name for name in distinct_names([*names])]
    for drawing in drawings:
        require_ours(drawing, kind=Kind.DRAWING)
    require_ours(out / _FOUND, kind=Kind.FOUND)
    return drawings


def _predict_file(
    file: Path, image_detector: ImageDetector | ExportedModel, drawing: Path, *, min_score: float
) -> ImageReport:
    pixels, image = _read(file, image_detector.image_size)
    if isinstance(image_detector, ExportedModel):
        found = image_detector.of_image(image)
    else:
        found = image_detector(pixels, decoded_as=image)
    detections = found.above(min_score)
    size_hw = (pixels.shape[0], pixels.shape[1])
    categories = image_detector.categories
    drawn = draw_boxes(pixels, make_drawing(detections, categories, size_hw=size_hw))
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", comment=DRAWING_COMMENT)
    write_file(drawing, buffer.getvalue(), kind=Kind.DRAWING)
    return ImageReport(
        file=file,
        drawing=drawing,
        detections=detections,
        categories=categories,
        size_hw=size_hw,
        highest=float(found.scores.max()) if len(found) else None,
    )


def _read(file: Path, image_size: int) -> tuple[NDArray[np.uint8], DecodedImage]:
    """All pixels, to draw on, and the image as extraction decodes it. Raises BadImageError."""
    try:
        with opened(file) as content:
            with decoded(content, image_size=image_size) as image:
                pass
            return decode_bytes(content)[0] if image.is_reduced else image.pixels, image
    except BadImageError as error:
        raise BadImageError(f"{printable(file)}: {error}") from error


def load_image_detector(
    run: Path,
    *,
    weights: str = "auto",
    device: str = "auto",
    views: Sequence[View] = _BASE,
    detector: nn.Module | None = None,
    backbone: FrozenBackbone | None = None,
) -> ImageDetector:
    """Join the run's heads with its backbone, whose weights must be those it was trained on."""
    from cachedet.backbone.frozen import FrozenBackbone, load_backbone

    checkpoint = load_checkpoint(RunFolder.open(run).best)
    manifest = checkpoint.manifest
    chosen, cut = choose_device(device), checkpoint.config.freeze_at
    if backbone is not None and not isinstance(backbone, FrozenBackbone):
        raise BackboneError(
            "expected what cachedet.wrap_backbone(module, name=..., levels=[...]) returns, got "
            f"{type(backbone).__name__}"
        )
    if backbone is None:
        backbone = load_backbone(
            manifest.backbone,
            weights=weights,
            levels=manifest.network.names,
            image_size=manifest.image_size,
            device=chosen,
        )
    if backbone.digest != manifest.weights_digest:
        raise BackboneError(
            f"{run} was trained on features of {manifest.backbone} with weights "
            f"{manifest.weights} (sha256 {manifest.weights_digest[:12]}), got {backbone.weights} "
            f"(sha256 {backbone.digest[:12]}); give the same ones with --weights"
        )
    return ImageDetector(
        backbone=_up_to(cut, backbone.to(chosen)),
        detector=load_detector(checkpoint, device=chosen, detector=detector),
        levels=choose_read_levels(checkpoint.config, manifest),
        manifest=manifest,
        merging=Merging.like(checkpoint.config.detector.postprocess),
        views=views,
    )


def _up_to(cut: str | None, backbone: FrozenBackbone) -> FrozenBackbone:
    """The part of the backbone in front of the stages that were trained."""
    from cachedet.backbone.split import freeze_trunk

    return backbone if cut is None else freeze_trunk(backbone, cut)


def make_drawing(detections: Detections, categories: CategoryMap, *, size_hw: SizeHW) -> Drawing:
    """Boxes with name and score, the weakest first so that the strongest lie on top."""
    masks = [decode_mask(code, size_hw) > 0 for code in paste_masks(detections, size_hw)]
    order = range(len(detections) - 1, -1, -1)
    labels = detections.labels.numpy()[list(order)]
    return Drawing(
        boxes=detections.boxes.double().numpy()[list(order)],
        labels=labels,
        captions=tuple(
            f"{categories.names[detections.labels[i]]} {float(detections.scores[i]):.2f}"
            for i in order
        ),
        masks=tuple(masks[i] for i in order) if masks else (),
    )


def _views_of_files(text: str) -> tuple[View, ...]:
    """Views that need nothing but the pixels. Raises InputError."""
    views = parse_views(text)
    if any(view.family in ("crop", "jitter") for view in views):
        raise InputError(
            f"predict expects views among base, hflip and scale=<f>, got {text!r}: crop and jitter "
            "are drawn from a data set's image ids, which image files do not have; leave them out"
        )
    return views


def _image_files(images: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in images:
        if os.path.isdir(path):
            files.extend(images_in(path))
        elif os.path.lexists(path):  # whether it can be read is seen when its turn comes
            files.append(path)
        else:
            raise InputError(f"there is no image {printable(path)}{_hint_of_url(path)}")
    if not files:
        raise InputError("expected at least one image or folder of images")
    return files


def _hint_of_url(path: Path) -> str:
    """A path has one slash where a URL has two."""
    is_url = re.match(r"(https?|ftp|s3|gs):/", str(path), re.IGNORECASE)
    return "; URLs are not taken: download the image and name the file" if is_url else ""
