"""Extraction against the backbone alone on the same batches, and the rates of its stages.

python benchmarks/extraction.py --images DIR --annotations train.json --out DIR \
    [--backbones tf_efficientnet_lite0,resnet50] [--codec int8] [--batch-size 8] \
    [--variants eager,compile,bf16,bf16+compile] [--device cuda]

Backbones have random weights: only time is measured. Both ways run in turn, three rounds; the
ratio is the median of the rounds. "Alone" is the same variant, of decoded batches in pinned memory;
its first round, which compiles, is told apart. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from device_clock import add_device_option, describe_device, wall_seconds
from torch import Tensor

from cachedet.backbone.compiled import CompiledBackbone
from cachedet.backbone.frozen import load_backbone
from cachedet.data.annotation_formats import read_dataset
from cachedet.device import choose_device, default_workers
from cachedet.extraction.block_job import committers_to
from cachedet.extraction.codec_sample import fit_codec
from cachedet.extraction.inputs import InputLoader
from cachedet.extraction.pipeline import ExtractionPipeline
from cachedet.store.codecs.registry import make_codec
from cachedet.store.format.layout import Block
from cachedet.store.format.manifest import (
    Manifest,
    images_digest,
    library_versions,
    truth_digest,
)
from cachedet.store.writer import StoreWriter

ROUNDS = 3
VARIANTS = ("eager", "compile", "bf16", "bf16+compile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbones", default="tf_efficientnet_lite0,resnet50")
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--variants", default="eager", help=f"of {','.join(VARIANTS)}")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--count", type=int, default=64, help="images")
    add_device_option(parser)
    options = parser.parse_args()
    results = [
        measure(name, options, variant=variant)
        for name in options.backbones.split(",")
        for variant in options.variants.split(",")
    ]
    print(
        json.dumps(
            {
                "codec": options.codec,
                "image_size": options.image_size,
                "results": results,
                "cores": os.cpu_count(),
                "threads_of_torch": torch.get_num_threads(),
                "machine": describe_device(choose_device(options.device)),
                "versions": library_versions(),
            },
            indent=1,
        )
    )


def measure(name: str, options: argparse.Namespace, *, variant: str) -> dict[str, Any]:
    """Images per second of both ways."""
    assert variant in VARIANTS, f"expected one of {VARIANTS}, got {variant}"
    device = choose_device(options.device)
    backbone = load_backbone(
        name,
        weights="none",
        bf16="bf16" in variant,
        image_size=options.image_size,
        device=device,
    )
    batch_size = options.batch_size
    is_compiled = "compile" in variant
    computing = CompiledBackbone(backbone, batch_size=batch_size) if is_compiled else backbone
    dataset = read_dataset(annotations=options.annotations, images=options.images)
    annotations = dataset.annotations.keep_rows(range(min(options.count, len(dataset.annotations))))
    loader = InputLoader(
        files=dataset.files,
        names=annotations.file_names,
        image_ids=annotations.image_ids.tolist(),
        image_size=options.image_size,
        pad_multiple=backbone.spec.pad_multiple,
        preprocessing=backbone.preprocessing,
    )
    codec = make_codec(options.codec)
    fitted = fit_codec(codec, loader, backbone, view="base") if codec.needs_fit else codec
    contents = torch.arange(len(annotations)).numpy().astype("uint64")
    manifest = Manifest(
        spec=backbone.spec,
        preprocessing=backbone.preprocessing,
        backbone=name,
        weights="random",
        weights_digest=backbone.digest,
        image_size=options.image_size,
        views=("base",),
        codec=codec.name,
        block_size=max(16, batch_size),
        batch_size=batch_size,
        images_digest=images_digest(annotations, contents),
        truth_digest=truth_digest(annotations),
        categories=annotations.categories,
        skipped=(),
        versions=library_versions(),
        network=backbone.spec,
    )
    root = options.out / "extraction.zarr"
    seconds: dict[str, list[float]] = {"alone": [], "extraction": []}
    stages: dict[str, float] = {}
    batches: list[Tensor] = []
    first = 0.0
    for turn in range(ROUNDS + 1):
        shutil.rmtree(root, ignore_errors=True)
        writer = StoreWriter.open(
            root,
            manifest=manifest,
            annotations=annotations,
            contents=contents,
            fit=lambda _: fitted,
        )
        batches = batches or decode(writer.blocks, loader, batch_size, device)
        started = wall_seconds(device)
        for batch in batches:
            computing(batch.to(device, non_blocking=True))
        alone = wall_seconds(device) - started
        pipeline = ExtractionPipeline(
            loader=loader,
            backbone=computing,
            writer=writer,
            batch_size=batch_size,
            workers=default_workers(),
            on_block=lambda *_: None,
            committers=committers_to(writer.depot, device),
        )
        started = wall_seconds(device)
        pipeline.run(writer.blocks)
        first = first or alone
        if turn:  # the first warms up
            seconds["alone"].append(alone)
            seconds["extraction"].append(wall_seconds(device) - started)
        stages = {k: work.images_per_second for k, work in pipeline.clock.stages.items()}
    shutil.rmtree(root, ignore_errors=True)
    pairs = zip(seconds["alone"], seconds["extraction"], strict=True)
    return {
        "backbone": name,
        "variant": variant,
        "images": len(annotations),
        "batch_size": batch_size,
        "first_seconds_alone": first,
        "alone_images_per_second": len(annotations) / statistics.median(seconds["alone"]),
        "extraction_images_per_second": len(annotations) / statistics.median(seconds["extraction"]),
        "extraction_to_alone": statistics.median(alone / whole for alone, whole in pairs),
        "stage_images_per_second": stages,
    }


def decode(
    blocks: Sequence[Block], loader: InputLoader, batch_size: int, device: torch.device
) -> list[Tensor]:
    """All batches, where a GPU copies from at its best."""
    batches = [
        torch.stack([loader.load(row, "base") for row in block.rows[start : start + batch_size]])
        for block in blocks
        for start in range(0, len(block.rows), batch_size)
    ]
    return [batch.pin_memory() for batch in batches] if device.type == "cuda" else batches


if __name__ == "__main__":
    main()
