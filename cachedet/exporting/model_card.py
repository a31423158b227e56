"""The model card: what a person should know before using an exported file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachedet.errors import CheckpointError
from cachedet.exporting.agreement import Agreement
from cachedet.exporting.int8 import Int8Report
from cachedet.exporting.model_facts import ModelFacts
from cachedet.exporting.model_file import Format
from cachedet.outputs import CARD_COMMENT
from cachedet.text import escape_markdown, printable
from cachedet.training.run_folder import RunFolder, TrainingData
from cachedet.version import __version__

_MOST_CLASSES = 40  # in the table
_FILES: dict[Format, str] = {
    "onnx": "one ONNX file of {size} that onnxruntime runs alone",
    "openvino": "an OpenVINO model of {size}, two files that stay together (.xml and .bin)",
    "torch": "a program of `torch.export` of {size} that torch and torchvision run alone",
}
_RUNNERS: dict[Format, str] = {
    "onnx": "onnxruntime", "openvino": "OpenVINO", "torch": "the program, loaded again,"
}  # fmt: skip
_EXAMPLES: dict[Format, str] = {
    "onnx": """import json, onnxruntime
session = onnxruntime.InferenceSession({file})
facts = json.loads(session.get_modelmeta().custom_metadata_map["cachedet"])
found = session.run(None, {{"images": images, "sizes_hw": sizes_hw}})""",
    "openvino": """import json, openvino
model = openvino.Core().read_model({file})
facts = json.loads(model.get_rt_info(["cachedet"]).astype(str))
run = openvino.compile_model(model, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
found = run({{"images": images, "sizes_hw": sizes_hw}})""",
    "torch": """import json, torch, torchvision
texts = {{"cachedet": ""}}
program = torch.export.load({file}, extra_files=texts).module()
facts = json.loads(texts["cachedet"])
found = program(torch.from_numpy(images), torch.from_numpy(sizes_hw))""",
}
_KINDS = {"retinanet": "RetinaNet", "faster_rcnn": "Faster R-CNN", "cascade_rcnn": "Cascade R-CNN"}


@dataclass(frozen=True, kw_only=True)
class KnownScores:
    """AP as `eval` wrote it into the run folder, of the weights that are exported."""

    ap: float
    ap50: float | None
    ap_small: float | None
    interval: tuple[float, float, float] | None  # low, high, confidence
    images: int
    store: str
    per_class: dict[int, float | None]  # by category id

    @classmethod
    def read(cls, folder: RunFolder, *, step: int) -> KnownScores | None:
        """None: not scored, other weights, other views than the file's, or a file of others."""
        try:
            values = json.loads(folder.results.read_text(encoding="utf-8"))
            if values["step"] != step or values["views"] != ["base"] or values["ap"] is None:
                return None
            low_high = values.get("intervals")
            return cls(
                ap=float(values["ap"]),
                ap50=values["ap50"],
                ap_small=values["ap_small"],
                interval=None if low_high is None else _interval(low_high),
                images=int(values["num_images"]),
                store=Path(str(values["store"])).name,
                per_class={int(row["category_id"]): row["ap"] for row in values["per_class"]},
            )
        except (OSError, LookupError, TypeError, ValueError):
            return None


def _interval(values: dict[str, Any]) -> tuple[float, float, float]:
    ap = values["ap"]
    return float(ap["low"]), float(ap["high"]), float(values["confidence"])


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card tells beyond what the file says of itself."""

    file: str  # its name
    nbytes: int
    finest_stride: int  # of the maps that the heads look at
    licence: str  # of the backbone's weights, in words
    proof: Agreement
    proven_on: str
    training: TrainingData | None
    scores: KnownScores | None
    format: Format = "onnx"
    int8: Int8Report | None = None  # None: the file is float


def read_training(folder: RunFolder) -> TrainingData | None:
    """None where the run does not tell: a card can do without."""
    try:
        return TrainingData.read(folder)
    except CheckpointError:
        return None


def make_card(card: CardFacts, facts: ModelFacts, *, written: str) -> bytes:
    """Markdown; what came from outside is escaped."""
    parts = [
        f"{CARD_COMMENT.decode()}\n\n# {escape_markdown(card.file)}",
        _summary(card, facts),
        "## Data\n\n" + _data(card, facts),
        "## How good it is\n\n" + _quality(card) + _cost_of_int8(card.int8),
        "## Limits\n\n" + _limits(card, facts),
        "## What goes in and comes out\n\n" + _contract(facts),
        "## Use\n\n" + _example(card),
        "## The file\n\n" + _origin(card, facts),
        f"Written {written} by cachedet {__version__}.",
    ]
    return ("\n\n".join(parts) + "\n").encode("utf-8", "backslashreplace")


def _summary(card: CardFacts, facts: ModelFacts) -> str:
    kind = facts.provenance["config"]["detector"]["kind"]
    count, names = len(facts.categories), facts.categories.names
    what = escape_markdown(names[0]) if count == 1 else f"objects of {count} classes"
    masks = " and their masks" if facts.has_masks else ""
    numbers = "float32" if card.int8 is None else "int8"
    file = _FILES[card.format].format(size=f"{card.nbytes / 1e6:.1f} MB ({numbers})")
    return (
        f"Finds {what}{masks} in images: a {_KINDS.get(kind, kind)} on "
        f"{escape_markdown(facts.provenance['backbone'])}, as {file}."
    )


def _data(card: CardFacts, facts: ModelFacts) -> str:
    training = card.training
    if training is None:
        return "The run does not tell what it was trained on.\n\n" + _classes(card, facts)
    boxes = sum(training.boxes.values())
    text = f"Trained on {training.images:,} images with {boxes:,} boxes."
    if training.relabelled:
        text += " Boxes were corrected on the way."
    return f"{text}\n\n{_classes(card, facts)}"


def _classes(card: CardFacts, facts: ModelFacts) -> str:
    """The classes with the most boxes first, where boxes are known."""
    boxes = card.training.boxes if card.training is not None else {}
    aps = card.scores.per_class if card.scores is not None else {}
    rows = list(zip(facts.categories.ids, facts.categories.names, strict=True))
    rows.sort(key=lambda row: -boxes.get(row[0], 0))
    lines = ["| class | id | boxes trained on | AP |", "|:--|--:|--:|--:|"]
    for number, name in rows[:_MOST_CLASSES]:
        ap, count = aps.get(number), boxes.get(number)
        lines.append(
            f"| {escape_markdown(name)} | {number} | {'?' if count is None else f'{count:,}'} | "
            f"{'?' if ap is None else f'{ap:.3f}'} |"
        )
    left = len(rows) - _MOST_CLASSES
    if left > 0:
        lines.append(f"\nAnd {left:,} more classes; all are in the file's metadata.")
    return "\n".join(lines)


def _quality(card: CardFacts) -> str:
    scores = card.scores
    if scores is None:
        return (
            "Not known here. `cachedet eval --model` with this file, `--images` and "
            "`--annotations` gives its AP."
        )
    text = f"AP {scores.ap:.3f}"
    if scores.interval is not None:
        low, high, confidence = scores.interval
        text += f" ({confidence:.0%} interval over the images {low:.3f} to {high:.3f})"
    if scores.ap50 is not None:
        text += f", AP50 {scores.ap50:.3f}"
    return (
        f"{text}, on {scores.images:,} images of {escape_markdown(scores.store)}, by the run "
        "itself. Where these images also chose the best step, that is a little too good."
    )


def _cost_of_int8(int8: Int8Report | None) -> str:
    if int8 is None:
        return ""
    text = f"\n\nThat is the float network; this file is int8. {int8.in_words()}"
    return text + " Times are onnxruntime's on the machine that exported it."


def _limits(card: CardFacts, facts: ModelFacts) -> str:
    size, stride = facts.image_size, card.finest_stride
    small = card.scores.ap_small if card.scores is not None else None
    figure = "" if small is None else f" AP of small ones (below 32 x 32) is {small:.3f}."
    many = facts.postprocess.max_detections
    return "\n".join(
        [
            "- It knows its classes in images like those it was trained on. Other places, cameras, "
            'light or angles were not tried, and it has no answer "something else".',
            f"- Small objects are lost: images are shrunk to {size} pixels, and what is then "
            f"smaller than about {2 * stride} pixels is hardly seen; in a photo of 4000 pixels "
            f"that is {round(2 * stride * 4000 / size)}.{figure}",
            "- It looks at each image once, whole: no tiles, no flips, no memory of other images.",
            f"- It gives at most {many} boxes an image. Scores only rank: choose a threshold on "
            "images of your own.",
        ]
    )


def _contract(facts: ModelFacts) -> str:
    multiple, size = facts.pad_multiple, facts.image_size
    inside = facts.preprocess == "inside"
    images = "(N, H, W, 3) uint8 RGB" if inside else "(N, 3, H, W) float32, normalised RGB"
    if facts.outputs == "raw":
        out = "| out | `boxes` | all boxes x1 y1 x2 y2 before suppression |\n"
        out += f"| out | `scores` | (N, T, {len(facts.categories)}) |"
    else:
        rows = facts.postprocess.max_detections
        out = f"| out | `boxes` | (N, {rows}, 4) x1 y1 x2 y2 in pixels of the input |\n"
        out += f"| out | `scores` | (N, {rows}), best first, 0 behind the last |\n"
        out += f"| out | `labels` | (N, {rows}), from 0, in the order of the metadata |"
        if facts.has_masks:
            out += f"\n| out | `masks` | (N, {rows}, S, S) probabilities of each box's cells |"
    return (
        "| | name | |\n|:--|:--|:--|\n"
        f"| in | `images` | {images}: long side resized to {size} "
        f"({facts.preprocessing.interpolation}), padded with zeros at the bottom and right to "
        f"multiples of {multiple} |\n"
        f"| in | `sizes_hw` | (N, 2) int64: height and width without the padding |\n{out}"
    )


def _example(card: CardFacts) -> str:
    code = _EXAMPLES[card.format].format(file=repr(printable(card.file)))
    return f'```python\n{code}\nnames = facts["categories"]["names"]\n```'


def _origin(card: CardFacts, facts: ModelFacts) -> str:
    made, proof = facts.provenance, card.proof
    trained = made["freeze_at"]
    weights = str(made["weights"])
    if weights.startswith("file "):
        weights = f"file {Path(weights.removeprefix('file ')).name}"  # no place of this machine
    masks = f", masks by {proof.mask:.0e}" if facts.has_masks else ""
    rows = {
        "Proof": f"{_RUNNERS[card.format]} beside torch on {card.proven_on}: boxes differ by up to "
        f"{proof.box_px:.0e} px, scores by {proof.score:.0e}{masks}; {proof.changed} of "
        f"{proof.detections:,} detections changed",
        "Backbone": f"{made['backbone']}, "
        + ("frozen" if trained is None else f"frozen up to {trained}, trained behind it"),
        "Its weights": f"{weights}, sha256 {made['weights_digest'][:12]}",
        "Their licence": card.licence,
        "Run": f"step {made['step']:,}, store {made['store_fingerprint'][:12]}",
        "Made with": f"cachedet {made['cachedet']}, torch {made['torch']}"
        + ("" if facts.opset is None else f", opset {facts.opset}"),
    }
    lines = [f"| {name} | {escape_markdown(text)} |" for name, text in rows.items()]
    return "| | |\n|:--|:--|\n" + "\n".join(lines)
