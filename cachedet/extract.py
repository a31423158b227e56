"""Stage 1: compute the frozen backbone's features of every image and view, once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cachedet.backbone.frozen import FrozenBackbone, load_backbone
from cachedet.backbone.split import freeze_trunk, stage_weights
from cachedet.config.engine import RayEngine
from cachedet.config.run import ClassChoice, ExtractConfig, make_extract_config
from cachedet.data.annotation_formats import read_dataset
from cachedet.data.coco import CocoDataset
from cachedet.data.survey import Scan, scan_images
from cachedet.data.views import TRAINING_VIEWS, View, parse_views
from cachedet.device import choose_device, default_workers
from cachedet.errors import BackboneError, ConfigError, StoreError
from cachedet.extraction.bf16_error import log_bf16
from cachedet.extraction.block_job import Job, Write, Written
from cachedet.extraction.image_bucket import open_images
from cachedet.extraction.inputs import InputLoader, make_inputs, make_manifest
from cachedet.extraction.local_engine import write_here
from cachedet.extraction.preparation import (
    fit_to_first,
    kept_images,
    named_files,
    note_greys,
    order_rows,
)
from cachedet.extraction.ranks import find_rank
from cachedet.extraction.ray_engine import ray_cluster
from cachedet.loading.memory import free_ram
from cachedet.progress import StageProgress
from cachedet.store.additions import StoredOrder
from cachedet.store.codecs.codec import Codec
from cachedet.store.codecs.registry import make_codec
from cachedet.store.creation import require_place
from cachedet.store.files.depot import Depot, Place, open_depot
from cachedet.store.files.names import MANIFEST
from cachedet.store.format.manifest import Manifest, load_manifest
from cachedet.store.format.stages import encode_stages, load_stages, stages_digest
from cachedet.store.writer import StoreWriter

_log = logging.getLogger("cachedet.extract")

_Open = Callable[[ExtractConfig], CocoDataset]

_KEPT_NBYTES = 512 << 20  # of decoded images, from their check until the last view


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What one call of `extract` did."""

    store: Path | str  # a folder, or the URL of an object storage
    views: tuple[str, ...]  # all that the store holds now
    views_kept: tuple[str, ...]  # of those the ones that were not asked for
    images: int  # in the data set, without the skipped ones
    images_added: int  # to those the store had
    images_returned: int  # of those that were taken out of it
    blocks_written: int
    blocks_missing: int  # left to other writers that were still at work
    blocks_total: int
    nbytes_written: int
    seconds: float  # of extraction alone, without the scan of the images
    stages: dict[str, float]  # images per second each stage could have done
    slowest_stage: str | None
    skipped: tuple[tuple[str, str], ...]  # file name, reason
    notes: tuple[tuple[str, str], ...]  # file name, what was noticed of annotations or an image
    counts: dict[str, int]  # of the annotation file


def extract(
    config: ExtractConfig | None = None,
    *,
    images: Path | str | None = None,
    annotations: Path | str | None = None,
    store: Path | str | None = None,
    backbone: str | FrozenBackbone | None = None,
    weights: str | None = None,
    levels: Sequence[str] | None = None,
    freeze_at: str | None = None,
    taps: int | Sequence[int] | None = None,
    global_token: bool | None = None,
    precision: str | None = None,
    compile: bool | None = None,
    image_size: int | None = None,
    views: str | Sequence[str] | None = None,
    codec: str | None = None,
    on_bad_image: str | None = None,
    follow_links: bool | None = None,
    rotated: str | None = None,
    choose: ClassChoice | Mapping[str, Any] | None = None,
    block_size: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    engine: str | Mapping[str, Any] | None = None,
    add_images: bool = True,
) -> ExtractReport:
    """Write the features of every (image, view) once; safe to interrupt and repeat.

    Views and images that an existing store lacks are added to it; what it holds is not touched.
    Where images are added, or come back that `relabel` took out, the annotations are taken for all.
    Several processes may extract into one store at once; each block is written by one of them.

    Args:
        config: all of it at once, or the plain arguments; what is left out has its default.
        images: folder of the images, or such as s3://bucket/photos.
        annotations: COCO or LVIS file, YOLO data.yaml, folder of VOC XML, or CVAT XML; a split
            stands behind a colon, as in "data.yaml:train".
        store: folder to write, or to go on writing; or such as s3://bucket/train.zarr.
        backbone, weights: a timm model or what `wrap_backbone` made; "auto", "none" or a file.
        levels, freeze_at: such as ["C3", "C4"]; such as "C4", or "L8" behind the eighth block of a
            plain ViT: levels above it are left out, and trained stages make them.
        taps: of a plain ViT, in the place of levels: so many of its blocks, evenly spaced, or
            which, counted from 1. global_token: whether the last one's class token is kept.
        precision, compile: "fp32", or "bf16", about twice as fast; let torch compile the backbone.
        image_size, views, codec: the long side in pixels; such as "base,hflip"; such as "int8".
        on_bad_image, follow_links: "fail" or "skip"; whether links may lead out of `images`.
        rotated: "refuse", or "outer": upright boxes around rotated ones.
        choose: which classes, as {"classes": "cat,dog", "ignore": "bird", "background": False,
            "merge": "car,truck=vehicle"}; one text or a list of them each.
        block_size, batch_size: images of a commit, and of a forward pass.
        workers, device: threads that read and decode images; "auto", "cpu", "cuda", ...
        rank, world_size: of the processes that share the work.
        engine: "local", "ray", or such as {"kind": "ray", "workers": 8, "cpus_per_worker": 4}.
        add_images: whether images may be added to a store that is there, or come back to it.

    Raises:
        ConfigError: a value out of range, or both a config and plain arguments.
        DatasetError, BadImageError, BackboneError: the inputs cannot be used.
        StoreMismatchError: the store holds features of other inputs.
        StoreError, CodecError, EngineError: the store cannot be written, or Ray not be used.

    Examples:
        >>> report = cachedet.extract(images="photos", annotations="train.json", store="t.zarr")
        >>> report.images, report.nbytes_written
    """
    network = backbone if isinstance(backbone, FrozenBackbone) else None
    given = {
        "images": images, "annotations": annotations, "store": store, "weights": weights,
        "backbone": _name_of(backbone), "levels": levels, "freeze_at": freeze_at, "taps": taps,
        "global_token": global_token, "precision": precision, "compile": compile, "codec": codec,
        "image_size": image_size, "on_bad_image": on_bad_image, "follow_links": follow_links,
        "views": ",".join(views) if isinstance(views, list | tuple) else views, "device": device,
        "rotated": rotated, "choose": choose, "block_size": block_size, "batch_size": batch_size,
        "workers": workers, "rank": rank, "world_size": world_size, "engine": engine,
    }  # fmt: skip
    return _extract(_join_config(config, given), network, open_dataset, add_images=add_images)


def _join_config(config: ExtractConfig | None, given: Mapping[str, Any]) -> ExtractConfig:
    plain = {name: value for name, value in given.items() if value is not None}
    if config is None:
        return make_extract_config({"workers": default_workers(), **plain})
    if set(plain) - {"backbone"}:
        raise ConfigError(
            f"extract takes a config or plain arguments, got both: a config and {', '.join(plain)}"
        )
    return config.model_copy(update=plain)


def _name_of(backbone: object) -> str | None:
    if backbone is None or isinstance(backbone, str):
        return backbone
    if isinstance(backbone, FrozenBackbone):
        return backbone.name
    raise BackboneError(
        "expected the name of a timm model, or what cachedet.wrap_backbone(module, name=..., "
        f"levels=[...]) returns, got {type(backbone).__name__}"
    )


def extract_dataset(config: ExtractConfig, dataset: CocoDataset) -> ExtractReport:
    """`extract` of a data set that `open_dataset` has read already; adds no images to a store."""
    return _extract(config, None, lambda _: dataset, add_images=False)


def extract_opened(config: ExtractConfig, opened: _Open) -> ExtractReport:
    """`extract` of what `opened` gives; it is called once the rest of the config is known to do."""
    return _extract(config, None, opened, add_images=True)


def _extract(
    config: ExtractConfig,
    network: FrozenBackbone | None,
    opened: _Open,
    *,
    add_images: bool,
) -> ExtractReport:
    depot = open_depot(config.store)
    require_place(depot)
    views = parse_views(config.views or default_views(depot))
    make_codec(config.codec)
    with _open_engine(config) as write:
        dataset = opened(config)
        device = choose_device(config.device)
        network = _open_network(config, network).to(device)
        return _extract_dataset(
            config, dataset, network, depot, views, write, add_images=add_images
        )


def _open_engine(config: ExtractConfig) -> AbstractContextManager[Write]:
    """What writes the blocks. Raises ConfigError, EngineError."""
    if isinstance(config.engine, RayEngine):
        return ray_cluster(config.engine)
    return nullcontext(partial(write_here, rank=find_rank(config.rank, config.world_size)))


def _extract_dataset(
    config: ExtractConfig,
    dataset: CocoDataset,
    network: FrozenBackbone,
    depot: Depot,
    views: Sequence[View],
    write: Write,
    *,
    add_images: bool,
) -> ExtractReport:
    backbone = network if config.freeze_at is None else freeze_trunk(network, config.freeze_at)
    stages, digest = _find_stages(network, depot)
    scan = _scan(dataset, config)
    order, skipped = order_rows(dataset, scan, config, depot, add_images=add_images)
    annotations, contents = order.annotations, order.contents
    manifest = make_manifest(
        config,
        backbone,
        network=network.spec,
        stages_digest=digest,
        views=views,
        annotations=annotations,
        contents=contents,
        skipped=skipped,
        starts=order.starts,
        withdrawn=order.withdrawn,
    )
    inputs = partial(
        make_inputs,
        annotations,
        images=dataset.files,
        image_size=config.image_size,
        pad_multiple=manifest.pad_multiple,
        preprocessing=backbone.preprocessing,
        contents=contents,
    )
    loader = inputs(kept=kept_images(scan, order))

    def fit(codec: Codec) -> Codec:
        learns_from = _held_manifest(depot) or manifest  # a store under repair: its own view
        return fit_to_first(codec, loader, backbone, order, learns_from, store=str(depot))

    writer = StoreWriter.open(
        depot,
        manifest=manifest,
        annotations=annotations,
        contents=contents,
        fit=fit,
        stages=stages,
        withdrawn=order.withdrawn,
    )
    job = _make_job(config, backbone, inputs, writer)
    missing = writer.missing_blocks()
    if backbone.spec.bf16 and missing:
        log_bf16(backbone, loader, missing[0], gone=writer.gone)
    started = time.perf_counter()
    written = write(job, writer, loader, missing)
    seconds = time.perf_counter() - started
    notes = (
        *((str(config.annotations), note) for note in dataset.notes),
        *((str(config.images), note) for note in note_greys(views, scan)),
        *named_files(dataset.annotations, scan.notes),
    )
    return _report(
        config,
        dataset,
        order,
        writer,
        written,
        asked=manifest.views,
        seconds=seconds,
        skipped=skipped,
        notes=notes,
    )


def _make_job(
    config: ExtractConfig,
    backbone: FrozenBackbone,
    inputs: Callable[[], InputLoader],
    writer: StoreWriter,
) -> Job:
    return Job(
        store=config.store,
        backbone=backbone,
        make_inputs=inputs,
        device=config.device,
        compile=config.compile,
        batch_size=config.batch_size,
        workers=config.workers,
        fingerprint=writer.manifest.block_fingerprint(0),
    )


def _report(
    config: ExtractConfig,
    dataset: CocoDataset,
    order: StoredOrder,
    writer: StoreWriter,
    written: Written,
    *,
    asked: Sequence[str],
    seconds: float,
    skipped: tuple[tuple[str, str], ...],
    notes: tuple[tuple[str, str], ...],
) -> ExtractReport:
    return ExtractReport(
        store=config.store,
        views=writer.manifest.views,
        views_kept=tuple(view for view in writer.manifest.views if view not in asked),
        images=len(order.annotations) - len(order.withdrawn),
        images_added=order.added,
        images_returned=order.returned,
        blocks_written=written.blocks,
        blocks_missing=len(writer.missing_blocks()),
        blocks_total=len(writer.blocks),
        nbytes_written=written.nbytes,
        seconds=seconds,
        stages={name: work.images_per_second for name, work in written.clock.stages.items()},
        slowest_stage=written.clock.slowest,
        skipped=skipped,
        notes=notes,
        counts=dataset.counts,
    )


def _scan(dataset: CocoDataset, config: ExtractConfig) -> Scan:
    with StageProgress("check images", total=len(dataset.annotations), unit="images") as progress:
        return scan_images(
            dataset,
            workers=config.workers,
            image_size=config.image_size,
            keep_nbytes=min(_KEPT_NBYTES, free_ram() // 8),
            on_progress=progress.advance,
        )


def open_dataset(config: ExtractConfig) -> CocoDataset:
    """What is to be extracted. Raises DatasetError."""
    return read_dataset(
        annotations=config.annotations,
        images=open_images(config.images),
        follow_links=config.follow_links,
        rotated=config.rotated,
        choose=config.choose,
    )


def _open_network(config: ExtractConfig, given: FrozenBackbone | None) -> FrozenBackbone:
    """The one `given` as an object, else the one that is named. Raises ConfigError."""
    if given is not None and config.taps is not None:
        raise ConfigError(
            f"taps are chosen of a timm model that is named; {given.name} was given as an object "
            "and gives the levels it declares: leave taps out"
        )
    if given is not None and config.precision == "bf16" and not given.spec.bf16:
        raise ConfigError(
            f"{given.name} was given as an object, which declares its own precision: leave "
            "precision out, and give its levels as LevelSpec(..., bf16=True)"
        )
    return given or load_backbone(
        config.backbone,
        weights=config.weights,
        levels=config.levels,
        cut=config.freeze_at,
        taps=config.taps,
        global_token=config.global_token,
        bf16=config.precision == "bf16",
        image_size=config.image_size,
    )


def _find_stages(network: FrozenBackbone, depot: Depot) -> tuple[bytes | None, str]:
    """The file of the stages' weights, None where the store has it, and its digest.

    Where the network cannot be cut there is no file, and the digest is empty.
    """
    held = _held_manifest(depot)
    if held is not None and (held.weights_digest, held.network) == (network.digest, network.spec):
        with suppress(StoreError):  # it has none, or a damaged one
            load_stages(depot.source, held)
            return None, held.stages_digest
    try:
        content = encode_stages(stage_weights(network))
    except BackboneError as error:
        _log.debug("no stage weights are kept: %s", error)
        return None, ""
    return content, stages_digest(content)


def default_views(store: Place) -> str:
    """Those it has, so that nothing is added unasked; of a new store what training wants.

    Raises StoreError where its manifest is damaged.
    """
    held = _held_manifest(open_depot(store))
    return TRAINING_VIEWS if held is None else ",".join(held.views)


def _held_manifest(depot: Depot) -> Manifest | None:
    """None where there is no store yet. Raises StoreError where it is damaged."""
    return load_manifest(depot.source) if depot.has(MANIFEST) else None
