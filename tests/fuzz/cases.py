"""Random command lines and random input for them, each kind of case from a seed of its own."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

PRESETS = ("retinanet_fpn_tiny", "faster_rcnn_fpn_tiny", "cascade_rcnn_fpn_tiny")
JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 3, 2**31, 2**63, 10**30, 1e308, -0.5, 1e-300, float("nan"), float("inf"),
    [], {}, [[]], [1, 2], {"a": 1}, "", "..", "../../x", "/etc/passwd", "a\0b", "\ud800",
    "caf\udce9", "x" * 5000, "\x1b[31mred", "a\nb", "[bold]", "=1+1", "\u202e", "猫", "0" * 64,
    "none", "1e9",
)  # fmt: skip
NAMES = (
    "new", "a b", "-x", "--out", "caf\udce9", "\x1b[31m", "line\nbreak", "猫", "[bold]", "..", ".",
    "n" * 200, "n" * 300, "%s{}$HOME", "x.html", "x.json", "'", "a.zarr", "deep/er/and/deeper",
)  # fmt: skip


@dataclass
class Case:
    """What is run, and where it may write."""

    words: list[str]
    outputs: list[Path] = field(default_factory=list)


@dataclass
class Workshop:
    """The folder of one case; `user` and `elsewhere` hold what nobody may change."""

    root: Path
    weights: Path  # of the backbone

    def __post_init__(self) -> None:
        self.user = self.root / "user"
        self.elsewhere = self.root / "elsewhere"
        self.given = self.root / "given"  # random input
        self.store = self.root / "made" / "store.zarr"
        self.run = self.root / "made" / "run"
        self.out = self.root / "out"
        self.photos = self.user / "photos"
        self.annotations = self.user / "annotations.json"
        self.results = self.user / "results.json"


Make = Callable[[random.Random, Workshop], Case]


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """One to four changes: bits, runs, cuts, doublings, numbers of the ends of their range."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 8, 64))
        action = rng.randrange(7)
        if action == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif action == 1:
            data[at : at + size] = rng.randbytes(size)
        elif action == 2:
            data[at : at + size] = rng.choice((b"\0", b"\xff", b"\x7f")) * size
        elif action == 3:
            del data[at : at + size]
        elif action == 4:
            data[at:at] = data[at : at + size]
        elif action == 5:
            del data[at:]
        else:
            data[at:at] = rng.choice((b"\xef\xbb\xbf", b"\0", b"9" * 400, b"[" * 300, b"\r\n"))
    return bytes(data)


def seeds_of(pytestconfig: Any, *, usual: int, share: float = 1.0) -> Iterator[int]:
    """The one that is asked for, new ones for a share of the time that is, else the first ones."""
    seed, seconds = (pytestconfig.getoption(f"--fuzz-{name}") for name in ("seed", "seconds"))
    if seed is not None or not seconds:
        yield from range(usual) if seed is None else [seed]
        return
    until = time.monotonic() + seconds * share
    while time.monotonic() < until:
        yield random.randrange(10**9)


def mutate_values(rng: random.Random, values: Any) -> Any:
    """One to three changes of a JSON value in place: replaced, deleted, doubled."""
    for _ in range(rng.randint(1, 3)):
        slots = _slots(values)
        if not slots:
            break
        container, key = rng.choice(slots)
        action = rng.randrange(4)
        if action < 2:
            container[key] = rng.choice(JUNK)
        elif action == 2:
            del container[key]
        elif isinstance(container, list):
            container.append(container[key])
        else:
            container[f"{key}2"] = container[key]
    return values


def mutated_json(rng: random.Random, values: Any) -> bytes:
    """A file of changed values, or of values whose bytes are changed."""
    if rng.random() < 0.8:
        return json.dumps(mutate_values(rng, values)).encode()
    return mutate_bytes(rng, json.dumps(values).encode())


def _slots(values: Any) -> list[tuple[Any, Any]]:
    if not isinstance(values, dict | list):
        return []
    keys = list(values) if isinstance(values, dict) else range(len(values))
    return [
        *((values, key) for key in keys),
        *(slot for key in keys for slot in _slots(values[key])),
    ]


def extraction(shop: Workshop, images: Path, annotations: Path, store: Path) -> list[str]:
    """Of the same settings as the store of the workshop."""
    return [
        "extract", "--images", str(images), "--annotations", str(annotations),
        "--store", str(store), "--backbone", "test_resnet", "--weights", str(shop.weights),
        "--image-size", "128", "--views", "base,hflip", "--codec", "fp32", "--block-size", "3",
        "--batch-size", "2", "--workers", "1", "--device", "cpu",
    ]  # fmt: skip


def training(shop: Workshop, store: Path, run: Path, *more: str) -> list[str]:
    config = str(shop.run / "config.yaml")
    return ["train-heads", config, "--train", str(store), "--run", str(run), *more]


def annotations(rng: random.Random, shop: Workshop) -> Case:
    """A COCO file that is damaged, extracted or scored."""
    path = shop.given / "annotations.json"
    content = json.loads(shop.annotations.read_text())
    if rng.random() < 0.5:
        add_masks(rng, content["annotations"])
    path.write_bytes(mutated_json(rng, content))
    if rng.random() < 0.5:
        words = ["eval", "--detections", str(shop.results), "--annotations", str(path)]
        return Case([*words, *rng.choice(([], ["--lvis"], ["--json"], ["--training", str(path)]))])
    words = extraction(shop, shop.photos, path, shop.out / "s.zarr")
    return Case([*words, *rng.choice(([], ["--on-bad-image", "skip"]))], [shop.out / "s.zarr"])


def add_masks(rng: random.Random, entries: list[dict[str, Any]]) -> None:
    """Polygons or run lengths, some of them of impossible numbers."""
    for entry in entries:
        x, y, w, h = entry["bbox"]
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        counts = [rng.randrange(50) for _ in range(6)]
        if rng.random() < 0.1:
            polygon[rng.randrange(8)] = rng.choice((-1e3, 1e9, 1e300, -0.0))
            counts[rng.randrange(6)] = rng.choice((-1, 2**31, 2**40, 10**9))
        run_lengths = {"counts": counts, "size": rng.choice(([64, 64], [128, 96], [2**20, 2**20]))}
        entry["segmentation"] = rng.choice(([polygon], [polygon, polygon], run_lengths))


def results(rng: random.Random, shop: Workshop) -> Case:
    """A results file that is damaged."""
    path = shop.given / "results.json"
    content = json.loads(shop.results.read_text())
    if rng.random() < 0.3:
        add_masks(rng, content)
    path.write_bytes(mutated_json(rng, content))
    words = ["eval", "--detections", str(path), "--annotations", str(shop.annotations)]
    if rng.random() < 0.5:
        words += ["--against", str(shop.results), "--resamples", "3"]
    return Case(words)


def configs(rng: random.Random, shop: Workshop) -> Case:
    """A config that is damaged or made up, and values of --set."""
    from cachedet.config.presets import read_preset

    path = shop.given / "config.yaml"
    text = read_preset(rng.choice(PRESETS))
    values = yaml.safe_load(text)
    kind = rng.randrange(4)
    if kind == 0:
        path.write_bytes(mutate_bytes(rng, text.encode()))
    elif kind == 1:
        path.write_text(json.dumps(mutate_values(rng, values)))
    elif kind == 2:
        bomb = rng.choice(("[" * 9999, "- " * 9999, "a: &a [*a]", "{a: " * 999, "!!map {}", "\t:"))
        path.write_text(bomb)
    else:
        path.write_text(text)
    keys = [".".join(map(str, keys)) for keys in _paths(values)]
    sets = []
    for _ in range(rng.randrange(3)):
        value = rng.choice((json.dumps(rng.choice(JUNK)), "[" * 999, "{a: b", "", "&a [*a]", "1e9"))
        sets += ["--set", _argument(f"{rng.choice([*keys, 'no', ''])}={value}")]
    if rng.random() < 0.5:
        return Case(["model", str(path), "--image-size", "64", *sets])
    run = shop.out / "run"
    return Case(["train-heads", str(path), "--train", "none", "--run", str(run), *sets], [run])


def _paths(values: Any, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(values, dict):
        return [before]
    return [path for key, value in values.items() for path in _paths(value, (*before, str(key)))]


def store(rng: random.Random, shop: Workshop) -> Case:
    """A store of which files are damaged, gone, or links to what is somebody else's."""
    of_kind: dict[str, list[Path]] = {}
    for path in sorted(path for path in shop.store.rglob("*") if path.is_file()):
        kind = path.name if path.parent == shop.store else path.parts[-2] + path.suffix
        of_kind.setdefault(kind, []).append(path)
    for _ in range(rng.randint(1, 2)):
        path = rng.choice(of_kind[rng.choice(sorted(of_kind))])
        action = rng.randrange(6)
        if not path.is_file():
            continue
        if action < 3 and path.suffix == ".json":
            path.write_bytes(mutated_json(rng, json.loads(path.read_bytes())))
        elif action < 3:
            path.write_bytes(mutate_bytes(rng, path.read_bytes()))
        elif action == 3:
            path.unlink()
        elif action == 4:
            _plant_link(rng, shop, path)
        else:
            left = path.with_name(f"{path.name}.{rng.randrange(99)}.tmp")
            left.symlink_to(rng.choice((shop.photos, shop.elsewhere, shop.annotations)))
    given = str(shop.store)
    commands: list[list[str]] = [
        ["info", given], ["verify", given], ["verify", "--deep", given], ["prune", given],
        ["prune", "--dry-run", given], ["prune", "--keep-views", "base", given],
        extraction(shop, shop.photos, shop.annotations, shop.store),
        training(shop, shop.store, shop.out / "run", "--set", "max_steps=1"),
        ["eval", str(shop.run), "--store", given],
    ]  # fmt: skip
    return Case(rng.choice(commands), [shop.store, shop.out / "run", shop.run])


def _plant_link(rng: random.Random, shop: Workshop, path: Path) -> None:
    """A link in the place of a file or of its folder; what was there lies elsewhere then."""
    if rng.random() < 0.5:
        path = path.parent
    if path == shop.store:
        return
    moved = shop.elsewhere / f"moved{rng.randrange(10**6)}"
    shutil.move(path, moved)
    path.symlink_to(rng.choice((moved, moved, shop.photos, shop.annotations, path)))


Encode = Callable[[Image.Image, io.BytesIO], None]


def _as(mode: str, kind: str, **options: Any) -> Encode:
    return lambda image, file: image.convert(mode).save(file, kind, **options)


def _deep(kind: str, dtype: str, **options: Any) -> Encode:
    def save(image: Image.Image, file: io.BytesIO) -> None:
        values = np.asarray(image.convert("L")).astype(dtype) * (1 if dtype[0] == "f" else 257)
        Image.fromarray(values.astype(dtype)).save(file, kind, **options)

    return save


def _animated(kind: str) -> Encode:
    return lambda image, file: image.save(
        file, kind, save_all=True, append_images=[image.rotate(90)]
    )


ENCODINGS: dict[str, Encode] = {
    "baseline.jpg": _as("RGB", "JPEG"),
    "progressive.jpg": _as("RGB", "JPEG", progressive=True),
    "cmyk.jpg": _as("CMYK", "JPEG"),
    "grey.jpg": _as("L", "JPEG"),
    "exif.jpg": _as("RGB", "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0"),
    "rgb.png": _as("RGB", "PNG"),
    "alpha.png": _as("RGBA", "PNG"),
    "grey_alpha.png": _as("LA", "PNG"),
    "palette.png": _as("P", "PNG", transparency=0),
    "bits.png": _as("1", "PNG"),
    "deep.png": _deep("PNG", "uint16"),
    "flat.gif": _as("P", "GIF"),
    "moving.gif": _animated("GIF"),
    "plain.bmp": _as("RGB", "BMP"),
    "palette.bmp": _as("P", "BMP"),
    "plain.tif": _as("RGB", "TIFF"),
    "lzw.tif": _as("RGB", "TIFF", compression="tiff_lzw"),
    "jpeg.tiff": _as("RGB", "TIFF", compression="jpeg"),
    "deflated.tif": _deep("TIFF", "uint16", compression="tiff_adobe_deflate"),
    "float.tif": _deep("TIFF", "float32"),
    "fax.tif": _as("1", "TIFF", compression="group4"),
    "plain.webp": _as("RGB", "WEBP"),
    "lossless.webp": _as("RGBA", "WEBP", lossless=True),
    "moving.webp": _animated("WEBP"),
    "postscript.png": _as("RGB", "EPS"),
    "plain.ppm": _as("RGB", "PPM"),
    "plain.avif": _as("RGB", "AVIF"),
    "two.jp2": _as("RGB", "JPEG2000"),
}


def images(rng: random.Random, shop: Workshop) -> Case:
    """Images of several encodings, some of them damaged, detected in or extracted."""
    folder = shop.given / "images"
    folder.mkdir()
    pixels = np.random.default_rng(rng.randrange(99)).integers(0, 255, (30, 40, 3), np.uint8)
    entries = []
    for number, name in enumerate(rng.sample(sorted(ENCODINGS), 5)):
        file = io.BytesIO()
        try:
            ENCODINGS[name](Image.fromarray(pixels), file)
        except (OSError, KeyError):  # Pillow was built without it
            continue
        content = file.getvalue()
        (folder / name).write_bytes(content if rng.random() < 0.3 else mutate_bytes(rng, content))
        entries.append({"id": number, "file_name": name, "width": 40, "height": 30})
    if rng.random() < 0.4:
        out = shop.out / "drawn"
        words = ["predict", str(shop.run), str(folder), "--out", str(out)]
        return Case([*words, "--weights", str(shop.weights), "--device", "cpu"], [out])
    path = shop.given / "annotations.json"
    content = json.loads(shop.annotations.read_text())
    path.write_text(json.dumps({**content, "images": entries, "annotations": []}))
    words = extraction(shop, folder, path, shop.out / "s.zarr")
    return Case([*words, "--on-bad-image", rng.choice(("fail", "skip"))], [shop.out / "s.zarr"])


def runs(rng: random.Random, shop: Workshop) -> Case:
    """A run folder of which files are damaged, used in every way."""
    files = sorted(path for path in shop.run.rglob("*") if path.is_file())
    for path in rng.sample(files, rng.randint(1, 2)):
        if path.suffix == ".json" and rng.random() < 0.7:
            path.write_bytes(mutated_json(rng, json.loads(path.read_bytes())))
        else:
            path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    given, held = str(shop.run), str(shop.store)
    predict = ["predict", given, str(shop.photos), "--out", str(shop.out / "drawn")]
    commands: list[list[str]] = [
        ["eval", given, "--store", held],
        ["eval", given, "--store", held, "--against", given, "--resamples", "3"],
        [*predict, "--weights", str(shop.weights)],
        ["report", given, "--store", held, "--resamples", "3", "--images", str(shop.photos)],
        training(shop, shop.store, shop.run, "--resume"),
        training(shop, shop.store, shop.out / "run", "--init-from", given, "--set", "max_steps=1"),
    ]
    return Case(rng.choice(commands), [shop.run, shop.out / "run", shop.out / "drawn"])


def paths(rng: random.Random, shop: Workshop) -> Case:
    """Commands whose paths are files, folders, links, missing or odd."""
    there = [*shop.user.iterdir(), *shop.photos.iterdir(), shop.store, shop.run, shop.elsewhere]

    def place() -> Path:
        if rng.random() < 0.5:
            return rng.choice(there)
        folder = rng.choice((shop.out, shop.user, shop.photos, shop.user / "notes.txt", shop.run))
        return folder / rng.choice(NAMES)

    out = place()
    given, held = str(shop.run), str(shop.store)
    mostly: Callable[[Path], str] = lambda good: str(good if rng.random() < 0.8 else place())  # noqa: E731
    scored = ["--detections", mostly(shop.results), "--annotations", mostly(shop.annotations)]
    commands: Sequence[tuple[list[str], list[Path]]] = [
        (["eval", *scored, "--out", str(out)], []),
        (["eval", mostly(shop.run), "--store", mostly(shop.store), "--out", str(out)], [shop.run]),
        (["predict", mostly(shop.run), mostly(shop.photos), "--out", str(out),
          "--weights", mostly(shop.weights)], []),
        (["report", mostly(shop.run), "--store", held, "--resamples", "2", "--out", str(out)], []),
        (["report", given, str(place()), "--resamples", "2"], [shop.run]),
        (extraction(shop, Path(mostly(shop.photos)), Path(mostly(shop.annotations)), out), []),
        (training(shop, Path(mostly(shop.store)), out, "--set", "max_steps=1"), []),
        (training(shop, shop.store, out, "--resume"), []),
        (["prune", str(out)], []),
        (["verify", str(out)], []),
        (["info", str(out)], []),
        (["demo", "--out", str(rng.choice(there))], []),
        (["compare", str(place()), "--images", str(shop.photos), "--annotations",
          mostly(shop.annotations), "--val-annotations", mostly(shop.annotations),
          "--out", str(rng.choice(there)), "--modes", "cached", "--epochs", "1"], []),
    ]  # fmt: skip
    words, more = rng.choice(commands)
    return Case(list(map(_argument, words)), [out, *more])


def _argument(text: str) -> str:
    """What a command line can hold."""
    return re.sub("[\0\ud800-\udc7f\udd00-\udfff]", "", text)


KINDS: dict[str, Make] = {
    "annotations": annotations, "results": results, "configs": configs, "store": store,
    "images": images, "runs": runs, "paths": paths,
}  # fmt: skip
