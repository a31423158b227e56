"""Detections as lists that other programs read: COCO results, YOLO's text files, a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from cachedet.data.masks import rle_of
from cachedet.outputs import COCO_IMAGES_DESCRIPTION, TABLE_COLUMNS, YAML_COMMENT
from cachedet.prediction.image_report import ImageReport
from cachedet.structures import CategoryMap


def coco_rows(images: Sequence[ImageReport]) -> list[dict[str, Any]]:
    """COCO results; images are numbered from 1 in their order, as in `coco_images`."""
    rows = []
    for image_id, image in enumerate(images, start=1):
        found = image.detections
        codes = image.mask_codes
        for place, (x1, y1, x2, y2) in enumerate(found.boxes.tolist()):
            row: dict[str, Any] = {
                "image_id": image_id,
                "score": float(found.scores[place]),
                "category_id": image.categories.ids[int(found.labels[place])],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
            if codes:
                row["segmentation"] = rle_of(codes[place], image.size_hw)
            rows.append(row)
    return rows


def coco_images(images: Sequence[ImageReport], categories: CategoryMap) -> dict[str, Any]:
    """What the ids of `coco_rows` mean, as the head of a COCO file."""
    listed = []
    for image_id, image in enumerate(images, start=1):
        height, width = image.size_hw
        entry = {"id": image_id, "file_name": str(image.file), "height": height, "width": width}
        frame = {} if image.frame is None else {"frame": image.frame, "time": image.time}
        listed.append({**entry, **frame})
    pairs = zip(categories.ids, categories.names, strict=True)
    return {
        "info": {"description": COCO_IMAGES_DESCRIPTION},
        "images": listed,
        "categories": [{"id": number, "name": name} for number, name in pairs],
    }


def yolo_lines(image: ImageReport) -> str:
    """A line per box: label, centre and sides as shares of the image, score; else an empty line.

    An empty file could be anybody's, and would not be replaced.
    """
    height, width = image.size_hw
    lines = []
    for place, (x1, y1, x2, y2) in enumerate(image.detections.boxes.tolist()):
        shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width)
        numbers = " ".join(f"{share:.6f}" for share in (*shares, (y2 - y1) / height))
        label, score = image.detections.labels[place], image.detections.scores[place]
        lines.append(f"{int(label)} {numbers} {float(score):.4f}\n")
    return "".join(lines) or "\n"


def yolo_classes(categories: CategoryMap) -> str:
    """The names that YOLO's labels stand for, as its data.yaml has them."""
    names = [f"  {label}: {json.dumps(name)}\n" for label, name in enumerate(categories.names)]
    return f"{YAML_COMMENT}\nnames:\n{''.join(names)}"


def table(images: Sequence[ImageReport]) -> str:
    """CSV with a line per detection."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(TABLE_COLUMNS)
    for image in images:
        found, categories = image.detections, image.categories
        columns = (found.boxes.tolist(), found.scores.tolist(), found.labels.tolist())
        for box, score, label in zip(*columns, strict=True):
            where = (str(image.file), image.frame, image.time)
            named = (categories.names[label], categories.ids[label], f"{score:.6f}")
            writer.writerow((*where, *named, *(f"{edge:.3f}" for edge in box)))
    return text.getvalue()
