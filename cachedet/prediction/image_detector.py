"""From pixels to detections: a network behind the geometry of an image's views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cachedet.data.backbone_input import Pixels, make_input, nbytes_of
from cachedet.data.geometry import Geometry
from cachedet.data.images import DecodedImage, GiantImage
from cachedet.data.pixel_windows import PixelWindows
from cachedet.data.views import View, make_geometry, parse_views
from cachedet.detector.build import choose_read_levels
from cachedet.detector.protocol import run_detector
from cachedet.device import choose_device
from cachedet.errors import BackboneError, ConfigError
from cachedet.evaluation.inference import EVAL_VIEW
from cachedet.evaluation.merging import Merging, ViewDetections
from cachedet.evaluation.subject import load_detector
from cachedet.prediction.window_inputs import Window, window_batches
from cachedet.store.format.manifest import Manifest
from cachedet.structures import CategoryMap, Detections, SizeHW
from cachedet.training.checkpoint import Checkpoint, load_checkpoint
from cachedet.training.run_folder import RunFolder

if TYPE_CHECKING:  # with an exported model timm is not needed
    from cachedet.backbone.frozen import FrozenBackbone

_BASE = parse_views(EVAL_VIEW)


class Network(Protocol):
    """What detects in input that is made already: backbone and heads, or a file of both."""

    def __call__(
        self, images: Tensor, *, sizes_hw: Sequence[SizeHW], image_ids: Sequence[int]
    ) -> list[Detections]:
        """Detections of each image in pixels of its view, best first.

        Args:
            images: (N, ...) on the CPU, as the detector's `make` makes them.
            sizes_hw: valid pixels of each, without padding.
            image_ids: of the images, for the results.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedImage:
    """One image as input of a network, in each view; and its pixels, where they are wanted."""

    image_id: int
    image_hw: SizeHW
    geometries: tuple[Geometry, ...]
    inputs: tuple[Tensor, ...]  # by view
    pixels: NDArray[np.uint8] | None = None  # (H, W, 3), all of them
    windows: tuple[Geometry, ...] = ()  # whose inputs are made when their turn comes
    sources: tuple[Pixels, ...] = ()  # by window: pixels of the image, or one reduced

    @property
    def bucket(self) -> tuple[SizeHW, ...]:
        """Images of one bucket can share a batch."""
        return tuple(geometry.padded_hw for geometry in self.geometries)

    @property
    def nbytes(self) -> int:
        """In memory."""
        held = sum(view.nbytes for view in self.inputs)
        pixels = self.sources if self.pixels is None else (*self.sources, self.pixels)
        return held + sum({id(each): nbytes_of(each) for each in pixels}.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageDetector:
    """A network with all that it takes to give it images."""

    network: Network
    categories: CategoryMap
    image_size: int  # long side of the base view
    pad_multiple: int
    make: Callable[[Pixels, Geometry], Tensor]  # the network's input, padded
    merging: Merging
    views: Sequence[View] = _BASE  # of an image; their detections are merged as `detect_store` does
    windows: Sequence[PixelWindows] = ()  # beside them

    def __call__(self, pixels: NDArray[np.uint8], *, image_id: int = 0) -> Detections:
        """Detections in pixels of an image (H, W, 3) RGB; windows are drawn from `image_id`."""
        whole = DecodedImage(pixels=pixels, image_hw=(pixels.shape[0], pixels.shape[1]))
        return self.detect([self.prepare([whole], image_id=image_id)])[0]

    def needs_all_pixels(self, image: DecodedImage) -> bool:
        """Whether some view has more detail than an image that was reduced."""
        geometries, windows = self._all_geometries(image.image_hw, image_id=0)
        return not all(map(image.suffices, (*geometries, *windows)))

    def prepare(
        self,
        images: Sequence[DecodedImage | GiantImage],
        *,
        image_id: int = 0,
        keeps_pixels: bool = False,
    ) -> PreparedImage:
        """Each view from the first of `images` that has its detail; the last one has all pixels."""
        whole = images[-1]

        def pixels_for(geometry: Geometry) -> Pixels:
            return next(image.pixels for image in images if image.suffices(geometry))

        geometries, windows = self._all_geometries(images[0].image_hw, image_id=image_id)
        return PreparedImage(
            image_id=image_id,
            image_hw=images[0].image_hw,
            geometries=geometries,
            inputs=tuple(self.make(pixels_for(geometry), geometry) for geometry in geometries),
            pixels=whole.pixels if keeps_pixels and isinstance(whole, DecodedImage) else None,
            windows=windows,
            sources=tuple(map(pixels_for, windows)),
        )

    @torch.no_grad()
    def detect(
        self, batch: Sequence[PreparedImage], *, windows_at_once: int = 2
    ) -> list[Detections]:
        """Detections in images of one bucket, each in pixels of its image, on the CPU.

        Of images with windows in pixels each window may find as many as an image otherwise does.
        """
        by_image: list[list[ViewDetections]] = [[] for _ in batch]
        for number in range(len(batch[0].inputs)):
            geometries = [image.geometries[number] for image in batch]
            inputs = torch.stack([image.inputs[number] for image in batch])
            ids = [image.image_id for image in batch]
            for of_image, found in zip(by_image, self._look(inputs, geometries, ids), strict=True):
                of_image.append(found)
        if any(image.windows for image in batch):
            self._look_at_windows(batch, by_image, at_once=windows_at_once)
        return [
            replace(
                self.merging,
                max_detections=self.merging.max_detections * max(1, len(image.windows)),
            )(found)
            for image, found in zip(batch, by_image, strict=True)
        ]

    def _look(
        self, inputs: Tensor, geometries: Sequence[Geometry], image_ids: Sequence[int]
    ) -> list[ViewDetections]:
        sizes = [geometry.valid_hw for geometry in geometries]
        found = self.network(inputs, sizes_hw=sizes, image_ids=image_ids)
        return list(map(ViewDetections.of, found, geometries))

    def _look_at_windows(
        self,
        batch: Sequence[PreparedImage],
        by_image: Sequence[list[ViewDetections]],
        *,
        at_once: int,
    ) -> None:
        """Adds what each window found."""
        windows = [
            Window(image=number, pixels=pixels, geometry=geometry)
            for number, image in enumerate(batch)
            for geometry, pixels in zip(image.windows, image.sources, strict=True)
        ]
        with closing(window_batches(windows, self.make, size=at_once)) as made:
            for of_batch, inputs in made:
                geometries = [window.geometry for window in of_batch]
                ids = [batch[window.image].image_id for window in of_batch]
                looked = self._look(inputs, geometries, ids)
                for window, found in zip(of_batch, looked, strict=True):
                    by_image[window.image].append(found)

    def geometries(self, image_hw: SizeHW, *, image_id: int = 0) -> tuple[Geometry, ...]:
        """How an image comes to lie in the input, in each view."""
        return tuple(
            make_geometry(
                view,
                image_hw=image_hw,
                image_id=image_id,
                image_size=self.image_size,
                pad_multiple=self.pad_multiple,
            )
            for view in self.views
        )

    def _all_geometries(
        self, image_hw: SizeHW, *, image_id: int
    ) -> tuple[tuple[Geometry, ...], tuple[Geometry, ...]]:
        """Of the views, and of windows; a single window shows the whole image, so is a view."""
        geometries = self.geometries(image_hw, image_id=image_id)
        many: tuple[Geometry, ...] = ()
        for windows in self.windows:
            found = windows.geometries(
                image_hw, image_size=self.image_size, pad_multiple=self.pad_multiple
            )
            if len(found) > 1:
                many += found
            elif found[0] not in geometries:
                geometries += found
        return geometries, many


@dataclass(frozen=True, kw_only=True, eq=False)
class JoinedRun:
    """Backbone and trained heads of one run: a `Network`."""

    backbone: FrozenBackbone
    detector: nn.Module
    levels: Sequence[str]  # that the detector takes
    manifest: Manifest
    merging: Merging

    def __call__(
        self, images: Tensor, *, sizes_hw: Sequence[SizeHW], image_ids: Sequence[int]
    ) -> list[Detections]:
        device = next(self.detector.parameters()).device
        maps = self.backbone(images.to(device))
        features = {name: maps[name] for name in self.levels}
        return run_detector(self.detector, features, sizes_hw=sizes_hw, image_ids=image_ids)

    def on_images(
        self, views: Sequence[View] = _BASE, windows: Sequence[PixelWindows] = ()
    ) -> ImageDetector:
        """Ready for images, in these views and windows of each."""
        return ImageDetector(
            network=self,
            categories=self.manifest.categories,
            image_size=self.manifest.image_size,
            pad_multiple=self.manifest.pad_multiple,
            make=partial(make_input, preprocessing=self.manifest.preprocessing),
            merging=self.merging,
            views=views,
            windows=windows,
        )


def load_image_detector(
    run: Path,
    *,
    weights: str = "auto",
    device: str = "auto",
    views: Sequence[View] = _BASE,
    windows: Sequence[PixelWindows] = (),
    iou: float | None = None,
    most: int | None = None,
    detector: nn.Module | None = None,
    backbone: FrozenBackbone | None = None,
) -> ImageDetector:
    """The run's heads joined with its backbone, ready for images; see `join_run`."""
    joined = join_run(
        run,
        weights=weights,
        device=device,
        iou=iou,
        most=most,
        detector=detector,
        backbone=backbone,
    )
    return joined.on_images(views, windows)


def join_run(
    run: Path,
    *,
    checkpoint: Checkpoint | None = None,  # its best, where that was loaded already
    weights: str = "auto",
    device: str = "auto",
    iou: float | None = None,  # of suppression, in place of the run's
    most: int | None = None,  # detections of an image that must be possible
    detector: nn.Module | None = None,
    backbone: FrozenBackbone | None = None,
) -> JoinedRun:
    """Join the run's heads with its backbone, whose weights must be those it was trained on.

    Raises CheckpointError, BackboneError, and ConfigError where `iou` is given with a detector that
    no config describes.
    """
    from cachedet.backbone.frozen import RANDOM, FrozenBackbone, load_backbone
    from cachedet.backbone.split import freeze_trunk

    checkpoint = checkpoint or load_checkpoint(RunFolder.open(run).best)
    if iou is not None and (detector is not None or checkpoint.config.detector.kind == "custom"):
        raise ConfigError("iou is of detectors that a config describes; yours suppresses by itself")
    checkpoint = _selecting(checkpoint, iou=iou, most=most)
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
            weights="none" if weights == "auto" and manifest.weights == RANDOM else weights,
            levels=manifest.network,
            image_size=manifest.image_size,
            device=chosen,
        )
    if backbone.digest != manifest.weights_digest:
        raise BackboneError(
            f"{run} was trained on features of {manifest.backbone} with weights "
            f"{manifest.weights} (sha256 {manifest.weights_digest[:12]}), got {backbone.weights} "
            f"(sha256 {backbone.digest[:12]}); give the same ones with --weights"
        )
    backbone = backbone.to(chosen)
    return JoinedRun(
        backbone=backbone if cut is None else freeze_trunk(backbone, cut),
        detector=load_detector(checkpoint, device=chosen, detector=detector),
        levels=choose_read_levels(checkpoint.config, manifest),
        manifest=manifest,
        merging=Merging.like(checkpoint.config.detector.postprocess),
    )


def _selecting(checkpoint: Checkpoint, *, iou: float | None, most: int | None) -> Checkpoint:
    """The same weights, with other numbers for what is selected of their detections."""
    config = checkpoint.config
    postprocess = config.detector.postprocess
    changed = {
        "nms_iou": postprocess.nms_iou if iou is None else iou,
        "max_detections": max(postprocess.max_detections, most or 0),
    }
    selecting = config.detector.model_copy(
        update={"postprocess": postprocess.model_copy(update=changed)}
    )
    return replace(checkpoint, config=config.model_copy(update={"detector": selecting}))
