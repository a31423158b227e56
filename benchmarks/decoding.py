"""JPEGs to backbone input on one core: all pixels by Pillow, reduced ones, and other decoders.

python benchmarks/decoding.py --images DIR [DIR ...] [--count 40]

Of each folder the first JPEGs as they are, and of the first folder two sets enlarged to 640x480
and 4000x3000 with some grain. Each way takes a file's bytes to the normalised base view, the ways
in turn, five rounds; milliseconds of processor time are medians. simplejpeg and torchcodec are
timed where they are installed. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from device_clock import describe_device
from numpy.typing import NDArray
from PIL import Image

from cachedet.data.backbone_input import make_input
from cachedet.data.images import decode_bytes, decoded
from cachedet.data.views import make_geometry, view_named
from cachedet.store.format.manifest import library_versions
from cachedet.structures import Preprocessing

ROUNDS = 5
GRAIN = 3.0  # standard deviation, of 255
IMAGENET = Preprocessing(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bicubic"
)
Decoder = Callable[[bytes], NDArray[np.uint8]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    parser.add_argument("--count", type=int, default=40, help="images of each set")
    parser.add_argument("--image-size", type=int, default=384)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        name: measure(contents, options.image_size)
        for name, contents in image_sets(options.images, options.count)
    }
    print(
        json.dumps(
            {
                "image_size": options.image_size,
                "results": results,
                "machine": describe_device(torch.device("cpu")),
                "versions": library_versions(),
            },
            indent=1,
        )
    )


def image_sets(folders: list[Path], count: int) -> Iterator[tuple[str, list[bytes]]]:
    for folder in folders:
        files = sorted(path for path in folder.rglob("*.jp*g"))[:count]
        yield str(folder), [path.read_bytes() for path in files]
    rng = np.random.default_rng(0)
    files = sorted(path for path in folders[0].rglob("*.jp*g"))
    for size, most in (((640, 480), count), ((4000, 3000), max(1, count // 8))):
        yield f"{size[0]}x{size[1]}", [enlarged(path, size, rng) for path in files[:most]]


def enlarged(path: Path, size: tuple[int, int], rng: np.random.Generator) -> bytes:
    image = Image.open(path).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, GRAIN, (size[1], size[0], 1))
    pixels = (np.asarray(image) + grain).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measure(contents: list[bytes], image_size: int) -> dict[str, Any]:
    """Milliseconds an image of each way, alone and up to the base view, and the differences."""
    ways = {"all pixels": lambda content: decode_bytes(content)[0], **other_decoders()}
    ways["reduced"] = lambda content: reduced_pixels(content, image_size)
    decode_ms: dict[str, list[float]] = {name: [] for name in ways}
    view_ms: dict[str, list[float]] = {name: [] for name in ways}
    views: dict[str, torch.Tensor] = {}
    for _ in range(ROUNDS):
        for name, decode in ways.items():
            started = time.process_time()
            pixels = [decode(content) for content in contents]
            decode_ms[name].append(1e3 * (time.process_time() - started) / len(contents))
            started = time.process_time()
            inputs = [
                base_view(array, content, image_size)
                for array, content in zip(pixels, contents, strict=True)
            ]
            view_ms[name].append(1e3 * (time.process_time() - started) / len(contents))
            views[name] = torch.cat([one.flatten() for one in inputs])
    scale = 255 * float(np.mean(IMAGENET.std))
    return {
        name: {
            "decode_ms": round(statistics.median(decode_ms[name]), 2),
            "view_ms": round(statistics.median(view_ms[name]), 2),
            "mean_difference_of_255": round(scale * difference.mean().item(), 3),
            "largest_difference_of_255": round(scale * difference.max().item(), 1),
        }
        for name in ways
        for difference in [(views[name] - views["all pixels"]).abs()]
    }


def base_view(pixels: NDArray[np.uint8], content: bytes, image_size: int) -> torch.Tensor:
    with Image.open(io.BytesIO(content)) as image:
        image_hw = (image.height, image.width)
    geometry = make_geometry(
        view_named("base"), image_hw=image_hw, image_id=1, image_size=image_size, pad_multiple=32
    )
    return make_input(pixels, geometry, IMAGENET)


def reduced_pixels(content: bytes, image_size: int) -> NDArray[np.uint8]:
    with decoded(content, image_size=image_size) as image:
        return image.pixels


def other_decoders() -> dict[str, Decoder]:
    found: dict[str, Decoder] = {}
    try:
        simplejpeg = importlib.import_module("simplejpeg")
        found["simplejpeg"] = lambda content: simplejpeg.decode_jpeg(content)
    except ImportError:
        pass
    try:
        torchcodec = importlib.import_module("torchcodec.decoders")
        found["torchcodec"] = lambda content: (
            torchcodec.decode_image(content).permute(1, 2, 0).numpy()
        )
    except (ImportError, OSError, RuntimeError):  # it also fails without its shared libraries
        pass
    return found


if __name__ == "__main__":
    main()
