"""Take a run away: backbone, trained stages, neck and heads as one ONNX file, proven equal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cachedet.backbone.canvas import FixedCanvas
from cachedet.backbone.frozen import FrozenBackbone
from cachedet.data.annotation_formats import read_dataset
from cachedet.data.image_folders import images_in
from cachedet.data.images import decode_image
from cachedet.detector.boxes import Postprocess
from cachedet.detector.end_to_end import heads_of
from cachedet.detector.protocol import trains_masks
from cachedet.errors import ExportError, InputError
from cachedet.exporting.agreement import Agreement, SizeAgreement, Tolerance, prove, total
from cachedet.exporting.detection_graph import DetectionGraph, Outputs, Preprocess
from cachedet.exporting.exported_model import ExportedModel
from cachedet.exporting.int8 import MOST_CALIBRATION_IMAGES, Int8Report, Truth, make_int8
from cachedet.exporting.model_card import CardFacts, KnownScores, make_card, read_training
from cachedet.exporting.model_facts import KEY, ModelFacts
from cachedet.exporting.onnx_file import OPSET, add_metadata, make_onnx, require_packages
from cachedet.outputs import Kind, require_file, write_file
from cachedet.prediction.image_detector import JoinedRun, join_run
from cachedet.progress import StageProgress
from cachedet.structures import Detections, SizeHW
from cachedet.training.checkpoint import Checkpoint, load_checkpoint
from cachedet.training.run_folder import RunFolder
from cachedet.version import __version__

MOST_IMAGES = 24  # of a folder, by default
MOST_AP_LOST = 0.5  # by int8, in points of 100
_GENERATED = (1.0, 0.75), (0.75, 1.0), (1.0, 1.0), (0.5, 1.0)  # sides, in shares of image_size
_SCRIPT = Path(__file__).parent / "exporting" / "standalone.py"
_OF_EACH = 3  # generated images


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What one call of `export` did."""

    out: Path
    card: Path
    script: Path | None
    nbytes: int
    facts: ModelFacts
    proof: tuple[SizeAgreement, ...]
    found: Agreement  # over all sizes
    images: str  # what the proof ran on
    int8: Int8Report | None  # where that was asked for; the proof is of the float file

    def to_json(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            "card": str(self.card),
            "script": self.script and str(self.script),
            "bytes": self.nbytes,
            "outputs": self.facts.outputs,
            "preprocess": self.facts.preprocess,
            "opset": self.facts.opset,
            "image_size": self.facts.image_size,
            "pad_multiple": self.facts.pad_multiple,
            "images": self.images,
            "proof": self.found.to_json(),
            "int8": self.int8 and self.int8.to_json(),
            "sizes": [row.to_json() for row in self.proof],
        }


@dataclass(frozen=True, kw_only=True)
class ProofImages:
    """Which images the proof runs on; generated ones where no folder is named."""

    folder: Path | None = None
    annotations: Path | None = None  # that name the images to take, with the run's classes
    most: int = MOST_IMAGES


def export(
    run: Path | str,
    *,
    out: Path | str,
    outputs: Outputs = "detections",
    preprocess: Preprocess = "inside",
    weights: str = "auto",
    proof: ProofImages | None = None,
    tolerance: Tolerance | None = None,
    detector: nn.Module | None = None,
    backbone: FrozenBackbone | None = None,
    with_script: bool = False,
    int8: bool = False,
    most_ap_lost: float = MOST_AP_LOST,
) -> ExportReport:
    """Write a run as ONNX, after the file has found in images what torch finds in them.

    A model card is written beside it, `out` with the ending .md.

    Args:
        run: folder of the run; its best weights are taken.
        out: file to write; one that is there is replaced only if `export` wrote it.
        outputs: "raw" (boxes and scores before suppression) or "detections".
        preprocess: whether the graph takes resized pixels ("inside") or normalised input.
        weights: of the backbone: "auto", "none" or a file.
        proof: the images to compare on.
        tolerance: how much the file may differ.
        detector: what the run trained, where that was an object.
        backbone: what the store was extracted with, where that was an object.
        with_script: also write `out` with the ending .py, which needs no cachedet.
        int8: quantise the file after the proof, with ranges from up to 64 images of `proof`.
        most_ap_lost: by int8, in points of 100, where `proof` has annotations.

    Raises:
        ExportError: a package is missing, torch cannot write the graph, the file differs, or int8
            loses more AP.
        CheckpointError: no such run.
        BackboneError: the run's backbone cannot be had, or has other weights now.
        InputError: a file in `out` that another made, or a place that belongs to something else.

    Example:
        >>> report = cachedet.export("runs/first", out="model.onnx")
        >>> report.found.box_px, report.nbytes
    """
    require_packages()
    run, out, proof = Path(run), Path(out), proof or ProofImages()
    card = _beside(out, ".md", kind=Kind.CARD)
    checkpoint = load_checkpoint(RunFolder.open(run).best)
    _require_place(out, run=run, images=proof.folder, int8=int8)
    script = _plan_script(out, outputs) if with_script else None
    samples, described = _read_images(proof, checkpoint)
    joined = join_run(run, weights=weights, device="cpu", detector=detector, backbone=backbone)
    content, facts = _write(joined, checkpoint, outputs=outputs, preprocess=preprocess)
    model = ExportedModel(content, where=str(out))
    rows = _prove(model, joined, samples)
    found = total(rows)
    found.require(tolerance or Tolerance())
    int8_report = None
    if int8:
        content, facts, int8_report = _quantise(content, model, proof, checkpoint, out=out)
        int8_report.require(most_ap_lost)
    write_file(out, content, kind=Kind.MODEL)
    told = _tell(joined, run=run, step=checkpoint.step, out=out, proof=(found, described))
    _write_card(card, replace(told, int8=int8_report), facts)
    if script is not None:
        write_file(script, _SCRIPT.read_bytes(), kind=Kind.SCRIPT)
    return ExportReport(
        out=out,
        card=card,
        script=script,
        nbytes=len(content),
        facts=facts,
        proof=tuple(rows),
        found=found,
        images=described,
        int8=int8_report,
    )


def _prove(
    model: ExportedModel, joined: JoinedRun, samples: Sequence[NDArray[np.uint8]]
) -> list[SizeAgreement]:
    with StageProgress("prove", total=len(samples), unit="images") as progress:
        rows = prove(model, partial(_detect, joined), samples)
        progress.advance(len(samples))
    return rows


def _write_card(path: Path, told: CardFacts, facts: ModelFacts) -> None:
    content = make_card(told, facts, written=date.today().isoformat())
    write_file(path, content, kind=Kind.CARD)


def _quantise(
    content: bytes, model: ExportedModel, proof: ProofImages, checkpoint: Checkpoint, *, out: Path
) -> tuple[bytes, ModelFacts, Int8Report]:
    pixels, _ = _read_images(replace(proof, most=MOST_CALIBRATION_IMAGES), checkpoint)
    truth = None
    if proof.folder is not None and proof.annotations is not None:
        truth = Truth(images=proof.folder, annotations=proof.annotations)
    return make_int8(content, model, pixels=pixels, truth=truth, where=str(out))


def _tell(
    joined: JoinedRun, *, run: Path, step: int, out: Path, proof: tuple[Agreement, str]
) -> CardFacts:
    """What the card says beyond the file's own facts, once the file is written."""
    from cachedet.backbone.licences import licence_of

    folder, backbone, network = RunFolder(run), joined.backbone, joined.manifest.network
    return CardFacts(
        file=out.name,
        nbytes=out.stat().st_size,
        finest_stride=min(level.stride for level in network if level.name in joined.levels),
        licence=licence_of(backbone.name, weights=backbone.weights),
        proof=proof[0],
        proven_on=proof[1],
        training=read_training(folder),
        scores=KnownScores.read(folder, step=step),
    )


def _require_place(out: Path, *, run: Path, images: Path | None, int8: bool) -> None:
    """Raises InputError where `out` may not be written, is in the run, or among the images."""
    if int8 and images is None:
        raise InputError("--int8 takes the ranges of numbers from images: give a folder, --images")
    require_file(out, kind=Kind.MODEL)
    target = Path(os.path.realpath(out)).parent
    named = {"the run": run, "the folder of images": images}
    for what, folder in named.items():
        if folder is not None and Path(os.path.realpath(folder)) in (target, *target.parents):
            raise InputError(
                f"--out {out} lies inside {what} {folder}, whose files are not for others; choose "
                "another place"
            )


def _beside(out: Path, ending: str, *, kind: Kind) -> Path:
    """The file of this ending beside the model. Raises InputError where it may not be written."""
    path = out.with_suffix(ending)
    if path == out:
        raise InputError(
            f"export writes {path} beside the model, which is --out: choose another --out"
        )
    require_file(path, kind=kind)
    return path


def _plan_script(out: Path, outputs: Outputs) -> Path:
    """Raises InputError where it cannot be written, or what it would run finds nothing itself."""
    if outputs != "detections":
        raise InputError("--with-script writes what the file detects: give --outputs detections")
    script = _beside(out, ".py", kind=Kind.SCRIPT)
    if script.exists() and script.read_bytes() != _SCRIPT.read_bytes():
        raise InputError(
            f"{script} was changed since `export` wrote it: move it away, or choose another --out"
        )
    return script


def _write(
    joined: JoinedRun, checkpoint: Checkpoint, *, outputs: Outputs, preprocess: Preprocess
) -> tuple[bytes, ModelFacts]:
    """The file of the detector, and what it says of itself. Raises ExportError."""
    if isinstance(joined.backbone.model, FixedCanvas):
        raise ExportError(
            f"{joined.backbone.name} is built for squares of one size, and the graphs that are "
            "written take images of any: BEiT and Hiera cannot be exported"
        )
    manifest, has_masks = joined.manifest, trains_masks(heads_of(joined.detector))
    graph = DetectionGraph(
        backbone=joined.backbone,
        detector=joined.detector,
        levels=joined.levels,
        preprocessing=manifest.preprocessing,
        preprocess=preprocess,
        outputs=outputs,
    )
    facts = ModelFacts(
        outputs=outputs,
        preprocess=preprocess,
        has_masks=has_masks and outputs == "detections",
        categories=manifest.categories,
        image_size=manifest.image_size,
        pad_multiple=manifest.pad_multiple,
        preprocessing=manifest.preprocessing,
        postprocess=Postprocess(**checkpoint.config.detector.postprocess.model_dump()),
        opset=OPSET,
        provenance=_provenance(checkpoint),
    )
    content = make_onnx(
        graph,
        pad_multiple=manifest.pad_multiple,
        strides=[*(level.stride for level in manifest.network), _coarsest(joined)],
        has_masks=has_masks,
    )
    return add_metadata(content, {KEY: facts.to_text()}), facts


def _coarsest(joined: JoinedRun) -> int:
    """The stride of the neck's last level; that of the backbone where it is not known."""
    neck = getattr(heads_of(joined.detector), "neck", None)
    spec = getattr(neck, "spec", joined.manifest.network)
    return int(max(level.stride for level in spec))


def _provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    return {
        "cachedet": __version__,
        "torch": torch.__version__,
        "backbone": manifest.backbone,
        "weights": manifest.weights,
        "weights_digest": manifest.weights_digest,
        "store_fingerprint": manifest.fingerprint(),
        "step": checkpoint.step,
        "freeze_at": checkpoint.config.freeze_at,
        "config": checkpoint.config.model_dump(mode="json"),
    }


@torch.no_grad()
def _detect(joined: JoinedRun, images: Tensor, sizes_hw: Sequence[SizeHW]) -> list[Detections]:
    """What `predict` finds, in a batch."""
    return joined(images, sizes_hw=sizes_hw, image_ids=range(len(sizes_hw)))


def _read_images(proof: ProofImages, checkpoint: Checkpoint) -> tuple[list[NDArray[np.uint8]], str]:
    """Pixels, and what they are. Raises InputError, DatasetError, BadImageError."""
    if proof.folder is None:
        if proof.annotations is not None:
            raise InputError("--annotations name images of a folder: give it with --images")
        images = generated_images(checkpoint.manifest.image_size)
        return images, f"{len(images)} generated images"
    if proof.annotations is None:
        files = images_in(proof.folder)
    else:
        dataset = read_dataset(annotations=proof.annotations, images=proof.folder)
        files = [dataset.path_of(row) for row in range(len(dataset.annotations))]
    if not files:
        raise InputError(f"there is no image in {proof.folder}")
    steps = max(1, -(-len(files) // proof.most))  # spread over the folder
    taken = files[::steps]
    return [
        decode_image(file) for file in taken
    ], f"{len(taken)} images of the folder {proof.folder.name}"


def generated_images(image_size: int) -> list[NDArray[np.uint8]]:
    """Images of four shapes, always the same: coloured rectangles on soft noise."""
    draws = np.random.default_rng(0)
    images = []
    for tall, wide in _GENERATED * _OF_EACH:
        height, width = round(image_size * tall), round(image_size * wide)
        coarse = draws.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
        image = coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width].copy()
        for _ in range(8):
            top, left = draws.integers(0, height * 3 // 4), draws.integers(0, width * 3 // 4)
            rows, columns = draws.integers(8, height // 2), draws.integers(8, width // 2)
            image[top : top + rows, left : left + columns] = draws.integers(0, 256, 3)
        images.append(image)
    return images
