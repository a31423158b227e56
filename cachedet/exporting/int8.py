"""An exported file in int8: onnxruntime's static quantisation of the convolutions and layers.

What is quantised lies between two layers with weights. The last layers of the heads, and all that
makes boxes of them, stay float: their output is read to fractions of pixels. So do the first layers
of the network, whose maps hold the finest differences.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision.ops import box_iou

from cachedet.errors import ExportError
from cachedet.exporting.exported_model import ExportedModel, Inputs, stack
from cachedet.exporting.model_facts import KEY, ModelFacts
from cachedet.exporting.model_file import ModelFile
from cachedet.exporting.model_scores import score_model
from cachedet.exporting.onnx_file import add_metadata, strip
from cachedet.exporting.packages import require_packages
from cachedet.exporting.proof_images import Truth
from cachedet.progress import count_of

_FLOAT_LAYERS = 8  # at the start of the network: they cost 6 % of the time, and keep up to 1 AP
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_BETWEEN = {"Add", "AveragePool", "Clip", "GlobalAveragePool", "MaxPool", "Mul", "Pad", "Relu",
            "Resize", "Sigmoid"}  # fmt: skip
_OF_MANY = {"Add", "Concat", "Div", "MatMul", "Max", "Mul", "Sub", "Sum"}
_ENDS = {"NonMaxSuppression", "TopK", "Shape"}  # what comes behind has no values of the maps
_SURE = 0.3  # scores from which detections of the two are compared
_SAME_IOU = 0.5
_TIMED = 8  # images


@dataclass(frozen=True, kw_only=True)
class Int8Report:
    """What int8 costs and gains, beside the float file."""

    images: int  # of calibration
    calibrated_on: str  # what these are
    scored_images: int  # others; 0: there are no annotations
    layers: int  # with int8 weights
    float_layers: int
    float_nbytes: int
    nbytes: int
    sure: int  # detections of float with a score of at least 0.3
    kept: int  # of them found in int8, with the same class and an IoU of at least 0.5
    milliseconds: float  # of an image, the median; both in turn
    float_milliseconds: float
    ap: float | None = None  # where annotations were given
    float_ap: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def ap_lost(self) -> float | None:
        """In points of 100."""
        if self.ap is None or self.float_ap is None:
            return None
        return 100 * (self.float_ap - self.ap)

    def in_words(self) -> str:
        """Sentences for a person."""
        text = (
            f"{self.layers} of {self.layers + self.float_layers} layers are int8, their ranges "
            f"from {self.calibrated_on}; the first layers, the last ones of the heads and all "
            f"behind them are float. Of {self.sure} detections of the float file with scores of "
            f"{_SURE} or more it finds {self.kept}. An image takes {self.milliseconds:.0f} ms, "
            f"{self.float_milliseconds:.0f} ms in float; the file has {self.nbytes / 1e6:.1f} MB, "
            f"{self.float_nbytes / 1e6:.1f} MB in float."
        )
        if self.ap is None or self.float_ap is None:
            return text + " AP was not measured: no annotations were given."
        return (
            f"AP {self.ap:.3f}, {self.float_ap:.3f} in float, on {self.scored_images} images. "
            f"{text}"
        )

    def require(self, most_ap_lost: float) -> None:
        """Raises ExportError where int8 loses more AP; where it is not known nothing is asked."""
        lost = self.ap_lost
        if lost is not None and lost > most_ap_lost:
            raise ExportError(
                f"int8 loses {lost:.2f} points of AP ({100 * (self.float_ap or 0):.2f} in float, "
                f"{100 * (self.ap or 0):.2f} in int8; --most-ap-lost {most_ap_lost:g}); nothing "
                "was written. Export without --int8, or name more and other images for calibration"
            )


@dataclass(frozen=True, kw_only=True)
class Int8File:
    """The bytes, and how many layers they hold in which type."""

    content: bytes
    layers: int
    float_layers: int


def make_int8(
    content: bytes,
    model: ExportedModel,
    *,
    pixels: Sequence[NDArray[np.uint8]],  # of the images that ranges are taken from
    described: str,  # where these come from
    truth: Truth | None,  # None: AP is not measured
    where: str,
) -> tuple[bytes, ModelFacts, Int8Report]:
    """The file of `content`, which `model` runs, in int8, with what that costs and gains.

    Raises ExportError; DatasetError and BadImageError on what AP is measured on.
    """
    on_images = model.on_images()
    inputs = [
        stack([each], on_images.geometries((each.shape[0], each.shape[1])), model.facts)
        for each in pixels
    ]
    file = quantise(content, inputs)
    provenance = model.facts.provenance | {"int8": {"calibration_images": len(inputs)}}
    facts = replace(model.facts, provenance=provenance)
    quantised = add_metadata(file.content, {KEY: facts.to_text()})
    other = ExportedModel(ModelFile(content=quantised), where=where)
    sure, kept = count_kept(model, other, inputs)
    float_milliseconds, milliseconds = time_both(model, other, inputs)
    report = Int8Report(
        images=len(inputs),
        calibrated_on=f"{count_of(len(inputs), 'image')} {described}",
        scored_images=0 if truth is None else len(truth.rows),
        layers=file.layers,
        float_layers=file.float_layers,
        float_nbytes=len(content),
        nbytes=len(quantised),
        sure=sure,
        kept=kept,
        milliseconds=milliseconds,
        float_milliseconds=float_milliseconds,
        ap=None if truth is None else _score(other, truth),
        float_ap=None if truth is None else _score(model, truth),
    )
    return quantised, facts, report


def _score(model: ExportedModel, truth: Truth) -> float:
    analysis = score_model(
        model, images=truth.images, annotations=truth.annotations, rows=truth.rows
    )
    return analysis.scores.ap


def quantise(
    content: bytes, inputs: Sequence[Inputs], *, float_layers: int = _FLOAT_LAYERS
) -> Int8File:
    """The same graph with int8 weights (per channel) and uint8 maps, ranges taken from `inputs`.

    The first `float_layers` are left as they are.

    Raises ExportError where onnxruntime cannot, or nothing could be quantised.
    """
    require_packages(["onnx", "onnxruntime"])
    import onnx
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory(prefix="cachedet-int8-") as folder, _quiet():
        try:
            model = onnx.load_model_from_string(_fold(content, Path(folder) / "folded.onnx"))
            layers, names = find_layers(model.graph), choose_nodes(model.graph, float_layers)
            if not names & layers:
                raise ExportError(
                    "--int8 finds nothing to quantise: no layer lies in front of another; export "
                    "without --int8"
                )
            quantization.quantize_static(
                model,
                str(Path(folder) / "int8.onnx"),
                _Reader(inputs),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                op_types_to_quantize=sorted(
                    {node.op_type for node in model.graph.node if node.name in names}
                ),
                nodes_to_quantize=sorted(names),
            )
            written = (Path(folder) / "int8.onnx").read_bytes()
        except ExportError:
            raise
        except Exception as error:  # of any kind
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ExportError(
                f"onnxruntime cannot quantise this detector ({type(error).__name__}: {reason}); "
                "export without --int8"
            ) from error
    count = len(names & layers)
    return Int8File(content=strip(written), layers=count, float_layers=len(layers) - count)


def _fold(content: bytes, place: Path) -> bytes:
    """With normalisations folded into the layers before them, for there they cost nothing."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(place)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return place.read_bytes()


def find_layers(graph: Any) -> set[str]:
    """Names of the nodes that multiply by weights; attention multiplies maps by maps."""
    weights = {each.name for each in graph.initializer}
    return {
        node.name for node in graph.node if node.op_type in _LAYERS and {*node.input[:2]} & weights
    }


def choose_nodes(graph: Any, float_layers: int = 0) -> set[str]:
    """Names of the layers whose results reach another layer, and of what lies between layers.

    A graph's nodes come in the order in which they are computed; the first `float_layers` are out.
    """
    layers = find_layers(graph)
    leads, near = _find_leading(graph, layers)
    layers -= set([node.name for node in graph.node if node.name in layers][:float_layers])
    behind: set[str] = set()  # outputs of layers, and of what is quantised behind them
    chosen = layers & leads
    for node in graph.node:
        is_between = node.op_type in _BETWEEN and any(name in behind for name in node.input)
        if node.name in layers or is_between:
            behind.update(node.output)
        if is_between and node.name in near:
            chosen.add(node.name)
    return chosen


def _find_leading(graph: Any, layers: set[str]) -> tuple[set[str], set[str]]:
    """Names of nodes whose values reach a layer, and reach it by what can be quantised alone."""
    users = defaultdict(list)
    for node in graph.node:
        for place, name in enumerate(node.input):
            users[name].append((node, place))
    leads: set[str] = set()
    near: set[str] = set()
    for node in reversed(graph.node):
        for user, place in (use for name in node.output for use in users[name]):
            if not _takes_values(user, place):
                continue
            if user.name in layers or user.name in leads:
                leads.add(node.name)
            if user.name in layers or (user.op_type in _BETWEEN and user.name in near):
                near.add(node.name)
    return leads, near


def _takes_values(node: Any, place: int) -> bool:
    """Whether the node works on this input; others are indices, boxes, sizes and conditions."""
    if node.op_type in _ENDS:
        return False
    return place > 0 if node.op_type == "Where" else place == 0 or node.op_type in _OF_MANY


class _Reader:
    """Images one after the other, as onnxruntime asks for them."""

    def __init__(self, inputs: Sequence[Inputs]) -> None:
        self._left = iter(inputs)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        each = next(self._left, None)
        return None if each is None else each.numpy()


@contextmanager
def _quiet() -> Iterator[None]:
    """It divides by ranges of parts that are not quantised, and advises on its own steps."""
    level, handlers = logging.root.manager.disable, [*logging.root.handlers]
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        logging.root.handlers[:] = handlers  # its notes add one that repeats ours


def count_kept(
    one: ExportedModel, other: ExportedModel, inputs: Sequence[Inputs]
) -> tuple[int, int]:
    """Sure detections of the first in all images, and how many of them the second has too."""
    sure = kept = 0
    for each in inputs:
        expected = one.detect(each, image_ids=[0])[0].above(_SURE)
        found = other.detect(each, image_ids=[0])[0]
        same = box_iou(expected.boxes, found.boxes) >= _SAME_IOU
        same &= expected.labels[:, None] == found.labels[None]
        sure, kept = sure + len(expected), kept + int(same.any(dim=1).sum())
    return sure, kept


def time_both(
    one: ExportedModel, other: ExportedModel, inputs: Sequence[Inputs]
) -> tuple[float, float]:
    """Milliseconds an image of each, the medians; in turn, so that both meet the same machine."""
    taken: list[list[float]] = [[], []]
    for each in (*inputs[:1], *inputs[:_TIMED], *inputs[:_TIMED]):
        for number, model in enumerate((one, other)):
            start = time.perf_counter()
            model.run(each)
            taken[number].append(time.perf_counter() - start)
    first, second = (1e3 * float(np.median(times[1:])) for times in taken)
    return first, second
