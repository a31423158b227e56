"""Take a run away: backbone, trained stages, neck and heads as one file, proven equal."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cachedet.backbone.canvas import FixedCanvas, has_shifted_windows
from cachedet.backbone.frozen import FrozenBackbone
from cachedet.detector.boxes import Postprocess
from cachedet.detector.end_to_end import heads_of
from cachedet.detector.protocol import trains_masks
from cachedet.errors import ExportError, InputError
from cachedet.exporting.agreement import Agreement, SizeAgreement, Tolerance, prove, total
from cachedet.exporting.detection_graph import DetectionGraph, Outputs, Preprocess
from cachedet.exporting.exported_model import ExportedModel
from cachedet.exporting.file_maker import make_file
from cachedet.exporting.int8 import Int8Report, make_int8
from cachedet.exporting.model_card import CardFacts, KnownScores, make_card, read_training
from cachedet.exporting.model_facts import ModelFacts
from cachedet.exporting.model_file import (
    SUFFIXES,
    Format,
    ModelFile,
    choose_format,
    require_model_place,
)
from cachedet.exporting.onnx_file import OPSET
from cachedet.exporting.packages import ONNX, require_packages
from cachedet.exporting.proof_images import Calibration, ProofImages, choose_calibration
from cachedet.outputs import Kind, require_file, write_file
from cachedet.prediction.image_detector import JoinedRun, join_run
from cachedet.progress import StageProgress
from cachedet.structures import Detections, SizeHW
from cachedet.training.checkpoint import Checkpoint, load_checkpoint
from cachedet.training.run_folder import RunFolder
from cachedet.version import __version__

MOST_AP_LOST = 0.5  # by int8, in points of 100
_SCRIPT = Path(__file__).parent / "exporting" / "standalone.py"


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What one call of `export` did."""

    out: Path
    format: Format
    card: Path
    script: Path | None
    nbytes: int  # of OpenVINO's two files together
    facts: ModelFacts
    proof: tuple[SizeAgreement, ...]
    found: Agreement  # over all sizes
    images: str  # what the proof ran on
    int8: Int8Report | None  # where that was asked for; the proof is of the float file

    def to_json(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            "format": self.format,
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


def export(
    run: Path | str,
    *,
    out: Path | str,
    format: str | None = None,
    outputs: Outputs = "detections",
    preprocess: Preprocess = "inside",
    weights: str = "auto",
    proof: ProofImages | None = None,
    tolerance: Tolerance | None = None,
    detector: nn.Module | None = None,
    backbone: FrozenBackbone | None = None,
    with_script: bool = False,
    int8: bool = False,
    calibrate: Path | None = None,
    most_ap_lost: float = MOST_AP_LOST,
) -> ExportReport:
    """Write a run as one model, after the file has found in images what torch finds in them.

    A model card is written beside it, `out` with the ending .md.

    Args:
        run: folder of the run; its best weights are taken.
        out: file to write; one that is there is replaced only if `export` wrote it.
        format: "onnx", "openvino" (.xml, with a .bin beside it) or "torch" (.pt2, a program of
            `torch.export`); by default what the ending of `out` says.
        outputs: "raw" (boxes and scores before suppression) or "detections".
        preprocess: whether the graph takes resized pixels ("inside") or normalised input.
        weights: of the backbone: "auto", "none" or a file.
        proof: the images to compare on.
        tolerance: how much the file may differ.
        detector: what the run trained, where that was an object.
        backbone: what the store was extracted with, where that was an object.
        with_script: also write a script, detect_<name>.py, which needs no cachedet; of ONNX.
        int8: quantise the file after the proof; of ONNX.
        calibrate: folder whose images, up to 64, give int8 its ranges; by default those of `proof`
            that its annotations do not name, for those score it.
        most_ap_lost: by int8, in points of 100, where `proof` has annotations.

    Raises:
        ExportError: a package is missing, torch cannot write the graph, the file differs, or int8
            loses more AP.
        CheckpointError: no such run.
        BackboneError: the run's backbone cannot be had, or has other weights now.
        InputError: a file in `out` that another made, or a place that belongs to something else.

    Examples:
        >>> report = cachedet.export("runs/first", out="model.onnx")
        >>> report.found.box_px, report.nbytes
    """
    run, out, proof = Path(run), Path(out), proof or ProofImages()
    chosen = choose_format(format, out)
    _require_fitting(chosen, with_script=with_script, int8=int8, calibrate=calibrate, proof=proof)
    _require_packages(chosen)
    card = _beside(out, out.with_suffix(".md"), kind=Kind.CARD)
    checkpoint = load_checkpoint(RunFolder.open(run).best)
    require_model_place(out, chosen)
    inputs = {"the run": run, "the folder of images": proof.folder, "--calibrate": calibrate}
    _require_place(out, inputs)
    script = _plan_script(out, outputs) if with_script else None
    calibration = choose_calibration(proof, calibrate) if int8 else None
    samples, described = proof.read(image_size=checkpoint.manifest.image_size)
    joined = join_run(
        run, checkpoint=checkpoint, weights=weights, device="cpu", detector=detector,
        backbone=backbone,
    )  # fmt: skip
    joined = replace(joined, backbone=joined.backbone.in_float32())  # as files compute
    file, facts = _write(joined, checkpoint, chosen, outputs=outputs, preprocess=preprocess)
    model = ExportedModel(file, where=str(out))
    rows = _prove(model, joined, samples)
    found = total(rows)
    found.require(tolerance or Tolerance())
    int8_report = None
    if calibration is not None:
        file, facts, int8_report = _quantise(file, model, calibration, out=out)
        int8_report.require(most_ap_lost)
    told = _tell(joined, file, run=run, checkpoint=checkpoint, proof=(found, described))
    told = replace(told, file=out.name, int8=int8_report)
    return _leave(file, facts, told, rows=rows, places=(out, card, script))


def _leave(
    file: ModelFile,
    facts: ModelFacts,
    told: CardFacts,
    *,
    rows: Sequence[SizeAgreement],
    places: tuple[Path, Path, Path | None],
) -> ExportReport:
    """Write model, card and script. Raises InputError."""
    out, card, script = places
    file.write(out)
    _write_card(card, told, facts)
    if script is not None:
        write_file(script, _SCRIPT.read_bytes(), kind=Kind.SCRIPT)
    return ExportReport(
        out=out,
        format=file.format,
        card=card,
        script=script,
        nbytes=file.nbytes,
        facts=facts,
        proof=tuple(rows),
        found=told.proof,
        images=told.proven_on,
        int8=told.int8,
    )


def _require_fitting(
    format: Format,
    *,
    with_script: bool,
    int8: bool,
    calibrate: Path | None,
    proof: ProofImages,
) -> None:
    """Raises InputError where what is asked for does not go together."""
    if format != "onnx":
        of_onnx = {"--with-script": with_script, "--int8": int8}
        given = [name for name, is_given in of_onnx.items() if is_given]
        if given:
            raise InputError(
                f"{' and '.join(given)} work on ONNX files and cannot be used with --format "
                f"{format}: export a second file with --format onnx"
            )
    if calibrate is not None and not int8:
        raise InputError("--calibrate is the folder that --int8 takes its ranges from: give --int8")
    if int8 and calibrate is None and proof.folder is None:
        raise InputError(
            "--int8 takes the ranges of numbers from images: give a folder, --images or --calibrate"
        )


def _require_packages(format: Format) -> None:
    """Raises ExportError where an extra is missing."""
    if format != "torch":
        require_packages(ONNX if format == "onnx" else ONNX[:2])
    if format == "openvino":
        require_packages(["openvino"], extra="openvino")


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
    file: ModelFile, model: ExportedModel, calibration: Calibration, *, out: Path
) -> tuple[ModelFile, ModelFacts, Int8Report]:
    content, facts, report = make_int8(
        file.content,
        model,
        pixels=calibration.read(),
        described=calibration.described,
        truth=calibration.truth,
        where=str(out),
    )
    return ModelFile(content=content), facts, report


def _tell(
    joined: JoinedRun,
    file: ModelFile,
    *,
    run: Path,
    checkpoint: Checkpoint,
    proof: tuple[Agreement, str],
) -> CardFacts:
    """What the card says beyond the file's own facts."""
    from cachedet.backbone.licences import licence_of

    folder, backbone, network = RunFolder(run), joined.backbone, joined.manifest.network
    return CardFacts(
        file=f"model{SUFFIXES[file.format]}",
        format=file.format,
        nbytes=file.nbytes,
        finest_stride=min(level.stride for level in network if level.name in joined.levels),
        licence=licence_of(backbone.name, weights=backbone.weights),
        proof=proof[0],
        proven_on=proof[1],
        training=read_training(folder),
        scores=KnownScores.read(folder, step=checkpoint.step),
    )


def _require_place(out: Path, folders: Mapping[str, Path | None]) -> None:
    """Raises InputError where `out` lies in the run, or among images."""
    target = Path(os.path.realpath(out)).parent
    for what, folder in folders.items():
        if folder is not None and Path(os.path.realpath(folder)) in (target, *target.parents):
            raise InputError(
                f"--out {out} lies inside {what} {folder}, whose files are not for others; choose "
                "another place"
            )


def _beside(out: Path, path: Path, *, kind: Kind) -> Path:
    """A file beside the model. Raises InputError where it may not be written."""
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
    # Python looks for modules beside a script: numpy.py would be taken for numpy.
    script = _beside(out, out.with_name(f"detect_{out.stem}.py"), kind=Kind.SCRIPT)
    if script.exists() and script.read_bytes() != _SCRIPT.read_bytes():
        raise InputError(
            f"{script} was changed since `export` wrote it: move it away, or choose another --out"
        )
    return script


def _write(
    joined: JoinedRun,
    checkpoint: Checkpoint,
    format: Format,
    *,
    outputs: Outputs,
    preprocess: Preprocess,
) -> tuple[ModelFile, ModelFacts]:
    """The file of the detector, and what it says of itself. Raises ExportError."""
    _require_free_sides(joined.backbone)
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
        opset=None if format == "torch" else OPSET,
        provenance=_provenance(checkpoint),
    )
    strides = [*(level.stride for level in manifest.network), _coarsest(joined)]
    return make_file(graph, facts, format, strides=strides), facts


def _require_free_sides(backbone: FrozenBackbone) -> None:
    """Raises ExportError where a network cannot be written for images of any size."""
    if isinstance(backbone.model, FixedCanvas):
        raise ExportError(
            f"{backbone.name} is built for squares of one size, and the graphs that are "
            "written take images of any: BEiT and Hiera cannot be exported"
        )
    if has_shifted_windows(backbone.model):
        raise ExportError(
            f"{backbone.name} pads its maps to whole windows, and torch {torch.__version__} takes "
            "minutes and more over such sides in graphs for images of any: Swins cannot be "
            "exported; extract with a backbone of another family"
        )


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
