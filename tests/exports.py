"""One data set as each tool exports it: the folder layouts and file contents that they document."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("cat", "dog", "bird")
Box = tuple[int, float, float, float, float]  # class, x, y, width, height in pixels


@dataclass(frozen=True)
class Shot:
    """One image and what is in it."""

    name: str
    size_hw: tuple[int, int]  # upright
    boxes: tuple[Box, ...] = ()
    is_turned: bool = False  # stored on its side, with an EXIF orientation
    outlines: tuple[tuple[int, tuple[float, ...]], ...] = ()  # class; x, y, ... in pixels

    @property
    def stem(self) -> str:
        return Path(self.name).stem


SHOTS = (
    Shot("a.jpg", (96, 128), ((0, 10, 12, 40, 30), (1, 60, 20, 50, 71))),
    Shot("b.png", (128, 96), ((2, 0, 0, 96, 128),)),
    Shot("c.jpg", (96, 128)),
    Shot("d.jpg", (120, 80), ((1, 5, 7, 31, 50), (0, 33, 61, 40, 44)), is_turned=True),
)
OUTLINED = (
    Shot("a.jpg", (96, 128), outlines=((0, (10, 10, 50, 12, 40, 60)), (1, (60, 9, 99, 9, 80, 50)))),
    Shot("b.png", (128, 96), outlines=((2, (8, 8, 88, 8, 88, 100, 40, 120, 8, 100)),)),
)


def write_image(path: Path, shot: Shot) -> None:
    """Noise of the shot's own, so that features of images differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = shot.size_hw
    rng = np.random.default_rng(len(shot.name) + sum(shot.size_hw) + ord(shot.name[0]))
    pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    if shot.is_turned:  # 6: the first row is the right side
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.rot90(pixels).copy()).save(path, exif=exif)
    else:
        Image.fromarray(pixels).save(path)


def write_images(folder: Path, shots: Sequence[Shot] = SHOTS) -> Path:
    for shot in shots:
        write_image(folder / shot.name, shot)
    return folder


def coco_of(shots: Sequence[Shot] = SHOTS, *, first: int = 1) -> dict[str, Any]:
    """As every tool writes it; images by name."""
    rows, annotations = [], []
    for number, shot in enumerate(shots, start=1):
        height, width = shot.size_hw
        rows.append({"id": number, "file_name": shot.name, "width": width, "height": height})
        for label, *xywh in shot.boxes:
            annotations.append({"image_id": number, "category_id": label + first, "bbox": xywh})
        for label, points in shot.outlines:
            xs, ys = points[0::2], points[1::2]
            box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
            annotations.append(
                {
                    "image_id": number,
                    "category_id": label + first,
                    "bbox": box,
                    "segmentation": [list(points)],
                }
            )
    for number, annotation in enumerate(annotations):
        annotation |= {"id": number, "iscrowd": 0}
    categories = [
        {"id": n, "name": name, "supercategory": "none"} for n, name in enumerate(NAMES, first)
    ]
    return {"images": rows, "annotations": annotations, "categories": categories}


def write_coco(path: Path, shots: Sequence[Shot] = SHOTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(coco_of(shots)))
    return path


def write_roboflow_coco(root: Path, split: str, shots: Sequence[Shot] = SHOTS) -> Path:
    """Images beside the file; category 0 is the project's name, which no box is of."""
    content = coco_of(shots)
    for category in content["categories"]:
        category["supercategory"] = "animals"
    above = {"id": 0, "name": "animals", "supercategory": "none"}
    content["categories"].insert(0, above)
    write_images(root / split, shots)
    (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def yolo_lines(shot: Shot) -> str:
    """Six decimals, as ultralytics and Label Studio write them."""
    height, width = shot.size_hw
    lines = []
    for label, x, y, w, h in shot.boxes:
        values = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
        lines.append(f"{label} " + " ".join(f"{value:.6f}" for value in values))
    for label, points in shot.outlines:
        values = [value / (width, height)[place % 2] for place, value in enumerate(points)]
        lines.append(f"{label} " + " ".join(f"{value:.6f}" for value in values))
    return "".join(f"{line}\n" for line in lines)


def write_labels(folder: Path, shots: Sequence[Shot] = SHOTS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shot in shots:
        (folder / f"{shot.stem}.txt").write_text(yolo_lines(shot))


def write_yolo(root: Path, splits: dict[str, Sequence[Shot]]) -> Path:
    """Ultralytics' layout: images/train, labels/train and a data.yaml that names its folder."""
    for split, shots in splits.items():
        write_images(root / "images" / split, shots)
        write_labels(root / "labels" / split, shots)
    lines = [f"path: {root.name}", *(f"{split}: images/{split}" for split in splits), "names:"]
    lines += [f"  {number}: {name}" for number, name in enumerate(NAMES)]
    (root / "data.yaml").write_text("\n".join(lines) + "\n")
    return root / "data.yaml"


def write_roboflow_yolo(root: Path, splits: dict[str, Sequence[Shot]]) -> Path:
    """train/images and train/labels; the paths begin with ../, which leads elsewhere."""
    for split, shots in splits.items():
        write_images(root / split / "images", shots)
        write_labels(root / split / "labels", shots)
    keys = {"valid": "val"}
    lines = [f"{keys.get(split, split)}: ../{split}/images" for split in splits]
    lines += [f"nc: {len(NAMES)}", f"names: {list(NAMES)}"]
    lines += ["roboflow:", "  workspace: zoo", "  version: 1"]
    (root / "data.yaml").write_text("\n".join(lines) + "\n")
    return root / "data.yaml"


def uploaded(shots: Sequence[Shot]) -> list[Shot]:
    """With the prefixes that Label Studio writes before names."""
    return [replace(shot, name=f"{n + 0x3F2A91BC:08x}-{shot.name}") for n, shot in enumerate(shots)]


def write_label_studio_yolo(root: Path, shots: Sequence[Shot] = SHOTS) -> Path:
    """classes.txt, notes.json and labels/; the images are those that were uploaded."""
    write_labels(root / "labels", uploaded(shots))
    (root / "images").mkdir()
    (root / "classes.txt").write_text("\n".join(NAMES))
    (root / "notes.json").write_text(json.dumps({"categories": [], "info": {"year": 2026}}))
    return root


def voc_xml(shot: Shot, *, shift: int = 0, database: str = "Unknown", size: str = "") -> str:
    """Whole numbers; `shift` is 1 for files that count pixels from 1, as PASCAL's."""
    height, width = shot.size_hw
    sides = size or f"<width>{width}</width><height>{height}</height><depth>3</depth>"
    objects = "".join(
        f"<object><name>{NAMES[label]}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox><xmin>{x + shift:.0f}</xmin><ymin>{y + shift:.0f}</ymin>"
        f"<xmax>{x + w:.0f}</xmax><ymax>{y + h:.0f}</ymax></bndbox></object>"
        for label, x, y, w, h in shot.boxes
    )
    return (
        f"<annotation><folder>images</folder><filename>{shot.name}</filename>"
        f"<source><database>{database}</database></source><size>{sides}</size>"
        f"<segmented>0</segmented>{objects}</annotation>"
    )


def write_voc(folder: Path, shots: Sequence[Shot] = SHOTS, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for shot in shots:
        (folder / f"{shot.stem}.xml").write_text(voc_xml(shot, **options))
    return folder


def cvat_xml(shots: Sequence[Shot] = SHOTS, *, subset: str = "", shapes: str = "") -> str:
    """`shapes` are more of the last image's."""
    labels = "".join(f"<label><name>{name}</name><attributes/></label>" for name in NAMES)
    images = []
    for number, shot in enumerate(shots):
        height, width = shot.size_hw
        drawn = "".join(
            f'<box label="{NAMES[label]}" source="manual" occluded="0" xtl="{x:.2f}" ytl="{y:.2f}" '
            f'xbr="{x + w:.2f}" ybr="{y + h:.2f}" z_order="0"></box>'
            for label, x, y, w, h in shot.boxes
        )
        for label, points in shot.outlines:
            pairs = zip(points[0::2], points[1::2], strict=True)
            text = ";".join(f"{x:.2f},{y:.2f}" for x, y in pairs)
            drawn += f'<polygon label="{NAMES[label]}" points="{text}" occluded="0"></polygon>'
        inside = f' subset="{subset}"' if subset else ""
        more = shapes if number == len(shots) - 1 else ""
        images.append(
            f'<image id="{number}" name="{shot.name}"{inside} width="{width}" height="{height}">'
            f"{drawn}{more}</image>"
        )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task>'
        f"<id>1</id><labels>{labels}</labels></task></meta>{''.join(images)}</annotations>"
    )


def write_cvat(path: Path, shots: Sequence[Shot] = SHOTS, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(cvat_xml(shots, **options))
    return path
