"""Extraction of a sample, as `extract` does it, into a store that is thrown away.

The stages run at the same time on the same cores and the same disk as in the real extraction, so
what they cost each other is measured and not assumed. The store lies in a folder beside the one
that is meant, which is removed whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.config.run import ExtractConfig
from cachedet.data.coco import CocoDataset
from cachedet.data.survey import Scan, require_good, scan_images
from cachedet.data.views import View
from cachedet.errors import InputError
from cachedet.estimation.sample import Keys
from cachedet.extraction.block_job import committers_to
from cachedet.extraction.inputs import InputLoader, make_inputs, make_manifest
from cachedet.extraction.pipeline import ExtractionPipeline
from cachedet.loading.residency import StreamedFeatures
from cachedet.store.codecs.codec import Codec
from cachedet.store.codecs.statistics import FeatureStatistics, LevelStatistics
from cachedet.store.files.owner import Owner
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.layout import Block
from cachedet.store.format.manifest import Manifest
from cachedet.store.format.plan import StorePlan
from cachedet.store.format.stages import stages_digest
from cachedet.store.leftovers import is_dead
from cachedet.store.reader import FeatureStore
from cachedet.store.writer import StoreWriter
from cachedet.structures import Annotations, SizeHW

_SUFFIX = ".estimating"  # of the folder's name
_READ_IMAGES = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Good images that stand for all, and how long it took to find out that they are good."""

    annotations: Annotations
    loader: InputLoader
    scan: Scan  # of them
    scan_seconds: float  # an image
    skipped: tuple[tuple[str, str], ...]  # file name, reason


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """What codecs learn from, and what collecting it took."""

    statistics: dict[str, LevelStatistics]
    seconds: float  # an image

    def fitted(self, codec: Codec) -> Codec:
        return codec.fit(self.statistics) if codec.needs_fit else codec


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """What writing the sample took. Pixels are those of padded views."""

    store: Path
    manifest: Manifest  # of the trial store
    views: tuple[str, ...]  # that were written in the time there was
    keys: dict[SizeHW, Keys]  # what can be read by bucket, of `views`
    start_seconds: float  # that starting takes beyond the steady rate
    seconds_per_pixel: float
    stages: dict[str, float]  # seconds a pixel of each, all its workers together
    nbytes: int  # of the shards
    unpacked: int  # of these once zstd is undone
    stored_share: float  # of the bytes that zstd could need at most; 1 without it


@contextlib.contextmanager
def trial_folder(store: Path) -> Iterator[Path]:
    """An empty folder beside `store`, or in the nearest folder above it that there is.

    It is removed at the end, whatever that is; what a killed process left there is removed too.

    Raises InputError where nothing can be written.
    """
    above = existing_folder(store)
    with contextlib.suppress(OSError):  # a folder that may not be listed
        for name in os.listdir(above):
            if name.endswith(_SUFFIX) and is_dead(name):
                shutil.rmtree(above / name, ignore_errors=True)
    name = os.path.basename(os.path.realpath(store))
    folder = above / f".{name}.{Owner.me().token}{_SUFFIX}"
    try:
        folder.mkdir()
    except OSError as error:
        raise InputError(
            f"--store {store}: nothing can be written in {above}: {error.strerror or error}; "
            "`cachedet estimate` writes a small trial store where the store shall lie. Choose "
            "another place, or repair the permissions"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def existing_folder(store: Path) -> Path:
    """The one that holds, or will hold, the store or the folders on the way to it."""
    return next(path for path in Path(os.path.realpath(store)).parents if path.is_dir())


def take_sample(
    dataset: CocoDataset, rows: Sequence[int], config: ExtractConfig, backbone: FrozenBackbone
) -> Sample:
    """Look at the images of `rows` as `extract` looks at all.

    Raises BadImageError where there are bad ones and they may not be skipped, or none is good.
    """
    chosen = replace(dataset, annotations=dataset.annotations.keep_rows(rows))
    started = time.perf_counter()
    scan = scan_images(chosen, workers=config.workers, image_size=config.image_size)
    seconds = time.perf_counter() - started
    bad = dict(scan.bad)
    good = [row for row in range(len(rows)) if row not in bad]
    if config.on_bad_image == "fail" or not good:
        require_good(chosen, scan)
    annotations = chosen.annotations.keep_rows(good)
    return Sample(
        annotations=annotations,
        loader=make_inputs(
            annotations,
            images=dataset.files,
            image_size=config.image_size,
            pad_multiple=backbone.spec.pad_multiple,
            preprocessing=backbone.preprocessing,
            contents=scan.contents[good],
        ),
        scan=replace(scan, contents=scan.contents[good]),
        scan_seconds=seconds / len(rows),
        skipped=tuple((chosen.annotations.file_names[row], reason) for row, reason in scan.bad),
    )


def collect_statistics(sample: Sample, backbone: FrozenBackbone, *, view: str, count: int) -> Fit:
    """What `extract` shows a codec, of fewer images; the first warms up and is not timed."""
    images = len(sample.annotations)
    rows = np.linspace(0, images - 1, min(count, images)).round().astype(int).tolist()
    device = next(backbone.parameters()).device
    statistics = FeatureStatistics()
    times = []
    for row in [rows[0], *rows]:
        started = time.perf_counter()
        statistics.add(backbone(sample.loader.load(row, view)[None].to(device)))
        times.append(time.perf_counter() - started)
    return Fit(statistics=statistics.levels, seconds=sum(times[1:]) / len(rows))


def write_trial(
    folder: Path,
    sample: Sample,
    backbone: FrozenBackbone,
    fit: Fit,
    *,
    config: ExtractConfig,
    views: Sequence[View],
    stages: bytes | None,
    seconds: float,
) -> Trial:
    """Extract the sample into `folder`, view by view.

    After `seconds` no other view is begun; the first is always finished. `stages` is the file of
    the weights that can be trained.

    Raises what `extract` raises.
    """
    manifest = make_manifest(
        config,
        backbone,
        network=backbone.spec,
        stages_digest="" if stages is None else stages_digest(stages),
        views=views,
        annotations=sample.annotations,
        contents=sample.scan.contents,
        skipped=sample.skipped,
    )
    writer = StoreWriter.open(
        folder / "trial.zarr",
        manifest=manifest,
        annotations=sample.annotations,
        contents=sample.scan.contents,
        fit=fit.fitted,
        stages=stages,
    )
    blocks: list[Block] = []
    moments: list[float] = []  # when each was committed

    def note(block: Block, _: object) -> None:
        blocks.append(block)
        moments.append(time.perf_counter())

    pipeline = ExtractionPipeline(
        loader=sample.loader,
        backbone=backbone,
        writer=writer,
        batch_size=config.batch_size,
        workers=config.workers,
        on_block=note,
        committers=committers_to(writer.depot, next(backbone.parameters()).device),
    )
    started = time.perf_counter()
    pipeline.run(_until(writer.blocks, started + seconds))
    times = [(at - started, _pixels(block)) for at, block in zip(moments, blocks, strict=True)]
    start, per_pixel = split_start(times, _warm(blocks))
    written = tuple(view.name for view in views if view.name in {block.view for block in blocks})
    return Trial(
        store=writer.root,
        manifest=manifest,
        views=written,
        keys=_keys_of(blocks, written),
        start_seconds=start,
        seconds_per_pixel=per_pixel,
        stages={
            name: work.seconds / work.workers / sum(map(_pixels, blocks))
            for name, work in pipeline.clock.stages.items()
        },
        nbytes=writer.nbytes_written,
        unpacked=_unpacked(writer.root, blocks),
        stored_share=writer.nbytes_written / writer.planned_nbytes(blocks),
    )


def read_seconds(trial: Trial, levels: Sequence[str]) -> float:
    """Seconds of reading and decoding a padded pixel in one thread, from the system's cache."""
    store = FeatureStore.open(trial.store)
    source = StreamedFeatures(store, levels=levels, device=torch.device("cpu"))
    bucket, keys = max(trial.keys.items(), key=lambda item: len(item[1]))
    pairs = [(int(row), trial.views[view]) for view, row in keys[:_READ_IMAGES]]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a reading thread has it
    try:
        source.read(pairs)
        started = time.perf_counter()
        source.read(pairs)
        return (time.perf_counter() - started) / (len(pairs) * bucket[0] * bucket[1])
    finally:
        torch.set_num_threads(threads)


def split_start(times: Sequence[tuple[float, int]], warm: int) -> tuple[float, float]:
    """Seconds of starting, and seconds a pixel from then on.

    `times` are (seconds since the start, pixels) of each commit in order; the first `warm` of them
    belong to the start, and with no more than these all count alike.
    """
    pixels = [count for _, count in times]
    if len(times) <= warm:
        return 0.0, times[-1][0] / sum(pixels)
    at_start = times[warm - 1][0]
    rate = (times[-1][0] - at_start) / sum(pixels[warm:])
    return max(0.0, at_start - rate * sum(pixels[:warm])), rate


def _warm(blocks: Sequence[Block]) -> int:
    """Blocks of the first view, which meets every size for the first time; at least one.

    Where there is one view, the first block.
    """
    first = [block for block in blocks if block.view == blocks[0].view]
    return len(first) if len(first) < len(blocks) else 1


def _until(blocks: Sequence[Block], deadline: float) -> Iterator[Block]:
    """Whole views: what trains on the trial store needs each image of a view."""
    begun = blocks[0].view
    for block in blocks:
        if block.view != begun and time.perf_counter() > deadline:
            return
        begun = block.view
        yield block


def _unpacked(store: Path, blocks: Sequence[Block]) -> int:
    layout = StorePlan.load(LocalFiles(store)).layout
    return sum(
        len(block.rows) * sum(part.nbytes for part in layout.parts(block.bucket).values())
        for block in blocks
    )


def _keys_of(blocks: Sequence[Block], views: Sequence[str]) -> dict[SizeHW, Keys]:
    by_bucket: dict[SizeHW, list[tuple[int, int]]] = {}
    for block in blocks:
        keys = [(views.index(block.view), row) for row in block.rows]
        by_bucket.setdefault(block.bucket, []).extend(keys)
    rng = np.random.default_rng(0)
    return {bucket: rng.permutation(np.array(keys)) for bucket, keys in by_bucket.items()}


def _pixels(block: Block) -> int:
    return len(block.rows) * block.bucket[0] * block.bucket[1]
