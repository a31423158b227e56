"""Detect in images with a model of `cachedet export`: python detect_x.py x.onnx IMAGE ...

Needs numpy, onnxruntime and Pillow, and nothing else. Prints one JSON object for each image; files
that cannot be read are named on standard error, and the exit status is 1.
"""

import json
import sys
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def make_inputs(image: Image.Image, facts: dict[str, Any]) -> dict[str, np.ndarray]:
    """Resized to the model's size, padded with zeros at the bottom and right."""
    factor, multiple = facts["image_size"] / max(image.size), facts["pad_multiple"]
    width, height = (max(1, round(side * factor)) for side in image.size)
    how = Image.Resampling[facts["preprocessing"]["interpolation"].upper()]
    pixels = np.asarray(image.resize((width, height), how))
    padding = [(0, -height % multiple), (0, -width % multiple), (0, 0)]
    sizes = np.array([[height, width]], dtype=np.int64)
    if facts["preprocess"] == "inside":
        return {"images": np.pad(pixels, padding)[None], "sizes_hw": sizes}
    mean, std = (np.array(facts["preprocessing"][k], dtype=np.float32) for k in ("mean", "std"))
    normalised = np.pad((pixels.astype(np.float32) / 255 - mean) / std, padding)
    return {"images": normalised.transpose(2, 0, 1)[None].copy(), "sizes_hw": sizes}


def detect(session: Any, image: Image.Image, *, min_score: float = 0.3) -> list[dict[str, Any]]:
    """Name, category id, score and box (x1 y1 x2 y2 in pixels of the image), best first."""
    facts = json.loads(session.get_modelmeta().custom_metadata_map["cachedet"])
    inputs = make_inputs(image, facts)
    boxes, scores, labels = session.run(["boxes", "scores", "labels"], inputs)
    height, width = inputs["sizes_hw"][0]
    scale = np.array([width / image.width, height / image.height] * 2)
    names, ids = facts["categories"]["names"], facts["categories"]["ids"]
    return [
        {
            "name": names[label],
            "category_id": ids[label],
            "score": float(score),
            "box": (box / scale).tolist(),
        }
        for box, score, label in zip(boxes[0], scores[0], labels[0], strict=True)
        if score >= min_score and score > 0
    ]


def main() -> int:
    """One line of JSON an image; the exit status."""
    if len(sys.argv) < 3:
        sys.stderr.write(f"usage: python {sys.argv[0]} MODEL.onnx IMAGE ...\n")
        return 2
    session, status = onnxruntime.InferenceSession(sys.argv[1]), 0
    for file in sys.argv[2:]:
        try:
            with Image.open(file) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
        except Exception as error:  # Pillow raises many kinds
            sys.stderr.write(f"{file}: {error}\n")
            status = 1
            continue
        sys.stdout.write(json.dumps({"file": file, "detections": detect(session, image)}) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
