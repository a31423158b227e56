"""Random data sets are the same in every format; what damaged ones end in is a DatasetError.

One again: pytest tests/fuzz/test_formats.py --fuzz-seed 17
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachedet.config.run import ALL_CLASSES, ClassChoice
from cachedet.data.annotation_formats import read_dataset, read_sections
from cachedet.errors import DatasetError

SETS = 15  # in `make test`
MUTATIONS = 60
SHARE = 0.05  # of the seconds of `make fuzz`
ROUNDED = {"coco": 1e-9, "yolo": 1e-3, "voc": 0.5 + 1e-9, "cvat": 0.006}  # pixels
LETTERS = "abc 猫é-_1('"
PREFIXES = ("i", "i", "3f2a91bc-", "0badcafe-")  # the latter as Label Studio writes them
SUFFIXES = (".png", ".PNG", ".jpg", ".JPEG", ".bmp", ".webp")
CHOICES = (
    ALL_CLASSES, ClassChoice(classes=("cat",)), ClassChoice(background=False),
    ClassChoice(merge=("cat,bird=pet",), ignore=("dog",), background=False),
)  # fmt: skip


def random_shots(rng: random.Random, exports: Any, *, with_outlines: bool) -> list[Any]:
    """Images of any size and name, with boxes that lie inside; some are stored on their side."""
    shots: dict[str, Any] = {}
    for _ in range(rng.randint(1, 5)):
        height, width = rng.randint(8, 200), rng.randint(8, 200)
        stem = "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 6))).strip() or "a"
        suffix = rng.choice(SUFFIXES)
        boxes, outlines = [], []
        for _ in range(rng.randrange(6)):
            x, y = rng.uniform(0, width - 4), rng.uniform(0, height - 4)
            sides = rng.uniform(2.5, width - x), rng.uniform(2.5, height - y)
            boxes.append((rng.randrange(3), x, y, *sides))
        for _ in range(rng.randrange(3) if with_outlines else 0):
            points = [
                rng.uniform(0, (width, height)[place % 2]) for place in range(rng.choice((6, 10)))
            ]
            outlines.append((rng.randrange(3), tuple(points)))
        is_turned = suffix.lower() in (".jpg", ".jpeg") and rng.random() < 0.3
        shots[stem] = exports.Shot(
            f"{rng.choice(PREFIXES)}{stem}{suffix}",
            (height, width),
            tuple(boxes),
            is_turned,
            tuple(outlines),
        )
    return list(shots.values())


def write_all(exports: Any, root: Path, shots: Sequence[Any]) -> dict[str, tuple[Path, Path]]:
    """Annotations and the folder of the images, by format."""
    images = exports.write_images(root / "images", shots)
    (root / "classes.txt").write_text("\n".join(exports.NAMES) + "\n")
    yolo = exports.write_yolo(root / "yolo", {"train": shots})
    return {
        "coco": (exports.write_coco(root / "a.json", shots), images),
        "yolo": (yolo, root / "yolo" / "images" / "train"),
        "voc": (exports.write_voc(root / "voc", shots), images),
        "cvat": (exports.write_cvat(root / "a.xml", shots), images),
    }


@pytest.mark.parametrize("with_outlines", [False, True])
def test_one_data_set_is_the_same_in_every_format(
    exports: Any, cases: Any, tmp_path: Path, pytestconfig: pytest.Config, with_outlines: bool
) -> None:
    for seed in cases.seeds_of(pytestconfig, usual=SETS, share=SHARE):
        rng = random.Random(f"set {seed}")
        shots = random_shots(rng, exports, with_outlines=with_outlines)
        choose = rng.choice(CHOICES[:2])
        read = {
            name: read_dataset(annotations=source, images=images, choose=choose).annotations
            for name, (source, images) in write_all(exports, tmp_path / str(seed), shots).items()
            if name != "voc" or not with_outlines
        }
        truth = read["coco"]
        order = np.argsort(np.array(truth.file_names))
        truth = truth.keep_rows(order.tolist())  # the other formats are numbered by name
        for name, found in read.items():
            found = found.keep_rows(order.tolist()) if name == "coco" else found
            where = f"seed {seed}, {name}"
            assert found.file_names == truth.file_names, where
            assert found.categories == truth.categories, where
            for part in ("sizes_hw", "offsets", "labels"):
                assert (getattr(found, part) == getattr(truth, part)).all(), where
            apart = np.abs(found.boxes - truth.boxes)
            assert not apart.size or apart.max() <= ROUNDED[name], where


def test_damaged_files_are_read_or_refused(
    exports: Any, cases: Any, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    faults, read = [], 0
    sets = []
    for n in range(3):
        shots = random_shots(random.Random(n), exports, with_outlines=n == 2)
        sets.append(write_all(exports, tmp_path / str(n), shots))
    for seed in cases.seeds_of(pytestconfig, usual=MUTATIONS, share=SHARE):
        rng = random.Random(f"damage {seed}")
        name = rng.choice(("coco", "yolo", "voc", "cvat"))
        source, images = rng.choice(sets)[name]
        folder = source.parent if name == "yolo" else source
        files = [source] if source.is_file() and name != "yolo" else sorted(
            path for path in folder.rglob("*") if path.suffix in (".txt", ".yaml", ".xml")
        )  # fmt: skip
        path = rng.choice(files)
        before = path.read_bytes()
        path.write_bytes(cases.mutate_bytes(rng, before))
        choose = rng.choice(CHOICES)
        for options in ({"images": images, "rotated": "outer", "choose": choose}, {}):
            try:
                if options:
                    read_dataset(annotations=source, **options)
                else:
                    read_sections(source, choose=choose)
                read += 1
            except DatasetError:
                pass
            except Exception:
                faults.append(f"seed {seed}, {path.name}: {traceback.format_exc()}")
        path.write_bytes(before)
    assert not faults, "\n".join(faults[:3])
    assert read or pytestconfig.getoption("--fuzz-seed") is not None
