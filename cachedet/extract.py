"""Stage 1: compute the frozen backbone's features of every picture and view, once."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cachedet.backbone.frozen import FrozenBackbone, load_backbone
from cachedet.config import ExtractConfig
from cachedet.data.coco import CocoDataset, read_coco
from cachedet.data.images import Survey, decode_picture, make_input, require_good, survey_pictures
from cachedet.data.views import VIEWS, make_geometry, parse_views
from cachedet.device import choose_device
from cachedet.progress import StageProgress
from cachedet.store.blocks import Block
from cachedet.store.codec import make_codec
from cachedet.store.manifest import Manifest, library_versions, pictures_digest, truth_digest
from cachedet.store.writer import StoreWriter
from cachedet.structures import Features, Preprocessing, Truth


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What one call of `extract` did."""

    store: Path
    pictures: int  # in the data set, without the skipped ones
    blocks_written: int
    blocks_total: int
    nbytes_written: int
    seconds: float  # of extraction alone, without the survey of the pictures
    skipped: tuple[tuple[str, str], ...]  # file name, reason
    remarks: tuple[tuple[str, str], ...]  # file name, what was noticed; the picture is used
    counts: dict[str, int]  # of the annotation file


def extract(config: ExtractConfig) -> ExtractReport:
    """Write the features of every (picture, view) once; safe to interrupt and repeat.

    Raises:
        DatasetError, BadImageError, BackboneError: the inputs cannot be used.
        StoreMismatchError: the store holds features of other inputs.
        StoreError, CodecError: the store cannot be written.
    """
    views = parse_views(config.views)
    make_codec(config.codec)
    dataset = read_coco(annotations=config.annotations, images=config.images)
    backbone = load_backbone(
        config.backbone,
        weights=config.weights,
        levels=config.levels,
        image_size=config.image_size,
        device=choose_device(config.device),
    )
    survey = _survey(dataset, config)
    kept, skipped = _split_bad(dataset, survey, on_bad_image=config.on_bad_image)
    truth = dataset.truth.keep_rows(kept)
    contents = survey.contents[kept]
    manifest = Manifest(
        spec=backbone.spec,
        preprocessing=backbone.preprocessing,
        backbone=backbone.name,
        weights=backbone.weights,
        weights_digest=backbone.digest,
        image_size=config.image_size,
        views=tuple(view.name for view in views),
        codec=config.codec,
        block_size=config.block_size,
        batch_size=config.batch_size,
        truth_digest=truth_digest(truth),
        pictures_digest=pictures_digest(contents),
        categories=truth.categories,
        skipped=skipped,
        versions=library_versions(),
    )
    writer = StoreWriter.open(config.store, manifest=manifest, truth=truth, contents=contents)
    missing = writer.missing_blocks()
    started = time.perf_counter()
    _write_blocks(writer, missing, dataset, truth, backbone, config)
    return ExtractReport(
        store=config.store,
        pictures=len(truth),
        blocks_written=len(missing),
        blocks_total=len(writer.blocks),
        nbytes_written=writer.nbytes_written,
        seconds=time.perf_counter() - started,
        skipped=skipped,
        remarks=_named(dataset.truth, survey.remarks),
        counts=dataset.counts,
    )


def _survey(dataset: CocoDataset, config: ExtractConfig) -> Survey:
    """Read every picture once, before anything is written: content hashes and all bad files."""
    with StageProgress("check pictures", total=len(dataset.truth), unit="pictures") as progress:
        return survey_pictures(dataset, workers=config.workers, on_progress=progress.advance)


def _split_bad(
    dataset: CocoDataset, survey: Survey, *, on_bad_image: str
) -> tuple[list[int], tuple[tuple[str, str], ...]]:
    """Rows to extract, and the skipped (file name, reason) pairs."""
    bad_rows = {row for row, _ in survey.bad}
    kept = [row for row in range(len(dataset.truth)) if row not in bad_rows]
    if on_bad_image == "fail" or not kept:
        require_good(dataset, survey)
    return kept, _named(dataset.truth, survey.bad)


def _named(truth: Truth, findings: Sequence[tuple[int, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((truth.file_names[row], reason) for row, reason in findings)


def _write_blocks(
    writer: StoreWriter,
    blocks: Sequence[Block],
    dataset: CocoDataset,
    truth: Truth,
    backbone: FrozenBackbone,
    config: ExtractConfig,
) -> None:
    paths = [dataset.images / name for name in truth.file_names]
    total = sum(len(block.rows) for block in blocks)
    with (
        StageProgress("extract", total=total, unit="pictures") as progress,
        ThreadPoolExecutor(config.workers, thread_name_prefix="decode") as decoders,
    ):
        inputs = _decoded_ahead(decoders, blocks, paths, truth, backbone, config.image_size)
        for block, images in inputs:
            before = writer.nbytes_written
            writer.write(block, run_backbone(backbone, images, batch_size=config.batch_size))
            progress.advance(len(block.rows), nbytes=writer.nbytes_written - before)


def _decoded_ahead(
    decoders: ThreadPoolExecutor,
    blocks: Sequence[Block],
    paths: Sequence[Path],
    truth: Truth,
    backbone: FrozenBackbone,
    image_size: int,
) -> Iterator[tuple[Block, Tensor]]:
    """Yield (block, (n, 3, H, W) inputs), decoding the next block while this one is used."""
    waiting: deque[tuple[Block, list[Future[Tensor]]]] = deque()
    for block in blocks:
        waiting.append(
            (
                block,
                [
                    decoders.submit(
                        load_input,
                        paths[row],
                        view=block.view,
                        image_size=image_size,
                        pad_multiple=backbone.spec.pad_multiple,
                        preprocessing=backbone.preprocessing,
                    )
                    for row in block.rows
                ],
            )
        )
        if len(waiting) > 1:
            ready, futures = waiting.popleft()
            yield ready, torch.stack([future.result() for future in futures])
    for ready, futures in waiting:
        yield ready, torch.stack([future.result() for future in futures])


def load_input(
    path: Path, *, view: str, image_size: int, pad_multiple: int, preprocessing: Preprocessing
) -> Tensor:
    """One picture file as backbone input (3, H, W) of one view."""
    pixels = decode_picture(path)
    geometry = make_geometry(
        VIEWS[view],
        picture_hw=(pixels.shape[0], pixels.shape[1]),
        image_size=image_size,
        pad_multiple=pad_multiple,
    )
    return make_input(pixels, geometry, preprocessing)


def run_backbone(backbone: FrozenBackbone, images: Tensor, *, batch_size: int) -> Features:
    """(n, 3, H, W) -> CPU maps (n, C, h, w), in batches that depend on nothing but the block."""
    device = next(backbone.parameters()).device
    parts = [backbone(batch.to(device)) for batch in torch.split(images, batch_size)]
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in backbone.spec.names}


def default_workers() -> int:
    """Decoding threads for this machine."""
    return max(1, min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4))
