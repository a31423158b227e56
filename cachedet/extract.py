"""Stage 1: compute the frozen backbone's features of every image and view, once."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachedet.backbone.frozen import FrozenBackbone, load_backbone
from cachedet.backbone.split import freeze_trunk, stage_weights
from cachedet.config.run import ClassChoice, ExtractConfig, make_extract_config
from cachedet.data.annotation_formats import read_dataset
from cachedet.data.coco import CocoDataset
from cachedet.data.colours import is_grey
from cachedet.data.images import DecodedImage
from cachedet.data.sections import listed
from cachedet.data.survey import Scan, require_good, scan_images
from cachedet.data.views import TRAINING_VIEWS, View, parse_views
from cachedet.device import choose_device, default_workers
from cachedet.errors import BackboneError, ConfigError, StoreError, StoreMismatchError
from cachedet.extraction.bf16_error import describe_bf16
from cachedet.extraction.codec_sample import fit_codec, fitted_rows
from cachedet.extraction.inputs import InputLoader, make_inputs, make_manifest
from cachedet.extraction.pipeline import ExtractionPipeline, StageClock
from cachedet.extraction.ranks import Rank, blocks_to_try, blocks_to_write, find_rank
from cachedet.loading.memory import free_ram
from cachedet.progress import StageProgress, count_of
from cachedet.store.additions import StoredOrder, order_as_stored
from cachedet.store.codecs.codec import Codec
from cachedet.store.codecs.registry import make_codec
from cachedet.store.creation import require_place
from cachedet.store.files.depot import Depot, Place, open_depot
from cachedet.store.files.leases import LeaseBook
from cachedet.store.files.names import MANIFEST
from cachedet.store.format.layout import Block
from cachedet.store.format.manifest import Manifest, load_manifest
from cachedet.store.format.stages import encode_stages, load_stages, stages_digest
from cachedet.store.writer import StoreWriter
from cachedet.structures import Annotations

_log = logging.getLogger("cachedet.extract")

_UPLOADS = 4  # blocks on their way to an object storage at once

_Open = Callable[[ExtractConfig], CocoDataset]

_KEPT_NBYTES = 512 << 20  # of decoded images, from their check until the last view
_LOOKED_AT = 64  # images, for colours


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
    add_images: bool = True,
) -> ExtractReport:
    """Write the features of every (image, view) once; safe to interrupt and repeat.

    Views and images that an existing store lacks are added to it; what it holds is not touched.
    Where images are added, or come back that `relabel` took out, the annotations are taken for all.
    Several processes may extract into one store at once; each block is written by one of them.

    Args:
        config: all of it at once, or the plain arguments; what is left out has its default.
        images: folder of the images.
        annotations: COCO or LVIS file, YOLO data.yaml, folder of VOC XML, or CVAT XML; a split
            stands behind a colon, as in "data.yaml:train".
        store: folder to write, or to go on writing; or such as s3://bucket/train.zarr.
        backbone: a timm model's name, or what `wrap_backbone` made of a module.
        weights: "auto", "none" or a checkpoint file.
        levels: such as ["C3", "C4"].
        freeze_at: such as "C4", or "L8" behind the eighth block of a plain ViT: levels above it
            are left out, and trained stages make them.
        taps: of a plain ViT, in the place of levels: so many of its blocks, evenly spaced, or
            which, counted from 1. global_token: whether the last one's class token is kept.
        precision: "fp32", or "bf16": the backbone computes in bfloat16, about twice as fast.
        image_size, views, codec: the long side in pixels; such as "base,hflip"; such as "int8".
        on_bad_image, follow_links: "fail" or "skip"; whether links may lead out of `images`.
        rotated: "refuse", or "outer": upright boxes around rotated ones.
        choose: which classes, as {"classes": "cat,dog", "ignore": "bird", "background": False,
            "merge": "car,truck=vehicle"}; one text or a list of them each.
        block_size, batch_size: images of a commit, and of a forward pass.
        workers: threads that read and decode images.
        device: "auto", "cpu", "cuda", ...
        rank, world_size: of the processes that share the work.
        add_images: whether images may be added to a store that is there, or come back to it.

    Raises:
        ConfigError: a value out of range, or both a config and plain arguments.
        DatasetError, BadImageError, BackboneError: the inputs cannot be used.
        StoreMismatchError: the store holds features of other inputs.
        StoreError, CodecError: the store cannot be written.

    Examples:
        >>> report = cachedet.extract(images="photos", annotations="train.json", store="t.zarr")
        >>> report.images, report.nbytes_written
    """
    network = backbone if isinstance(backbone, FrozenBackbone) else None
    given = {
        "images": images, "annotations": annotations, "store": store, "weights": weights,
        "backbone": _name_of(backbone), "levels": levels, "freeze_at": freeze_at, "taps": taps,
        "global_token": global_token, "precision": precision, "image_size": image_size,
        "views": ",".join(views) if isinstance(views, list | tuple) else views, "codec": codec,
        "on_bad_image": on_bad_image, "follow_links": follow_links, "rotated": rotated,
        "choose": choose, "block_size": block_size, "batch_size": batch_size,
        "workers": workers, "device": device, "rank": rank, "world_size": world_size,
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
    rank = find_rank(config.rank, config.world_size)
    dataset = opened(config)
    device = choose_device(config.device)
    network = _open_network(config, network).to(device)
    backbone = network if config.freeze_at is None else freeze_trunk(network, config.freeze_at)
    stages, digest = _find_stages(network, depot)
    scan = _scan(dataset, config)
    order, skipped = _order_rows(dataset, scan, config, depot, add_images=add_images)
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
    loader = make_inputs(
        annotations,
        images=dataset.images,
        image_size=config.image_size,
        pad_multiple=manifest.pad_multiple,
        preprocessing=backbone.preprocessing,
        contents=contents,
        kept=_kept_images(scan, order),
    )

    def fit(codec: Codec) -> Codec:
        learns_from = _held_manifest(depot) or manifest  # a store under repair: its own view
        return _fit_to_first(codec, loader, backbone, order, learns_from, store=str(depot))

    writer = StoreWriter.open(
        depot,
        manifest=manifest,
        annotations=annotations,
        contents=contents,
        fit=fit,
        stages=stages,
        withdrawn=order.withdrawn,
    )
    started = time.perf_counter()
    clock, blocks_written = _write_blocks(writer, loader, backbone, config, rank)
    seconds = time.perf_counter() - started
    return ExtractReport(
        store=config.store,
        views=writer.manifest.views,
        views_kept=tuple(v for v in writer.manifest.views if v not in manifest.views),
        images=len(annotations) - len(order.withdrawn),
        images_added=order.added,
        images_returned=order.returned,
        blocks_written=blocks_written,
        blocks_missing=len(writer.missing_blocks()),
        blocks_total=len(writer.blocks),
        nbytes_written=writer.nbytes_written,
        seconds=seconds,
        stages={name: work.images_per_second for name, work in clock.stages.items()},
        slowest_stage=clock.slowest,
        skipped=skipped,
        notes=(
            *((str(config.annotations), note) for note in dataset.notes),
            *((str(config.images), note) for note in _note_greys(views, scan)),
            *_named(dataset.annotations, scan.notes),
        ),
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


def _order_rows(
    dataset: CocoDataset,
    scan: Scan,
    config: ExtractConfig,
    depot: Depot,
    *,
    add_images: bool,
) -> tuple[StoredOrder, tuple[tuple[str, str], ...]]:
    """The images to extract as the store keeps them, and the skipped (file name, reason) pairs."""
    kept, skipped = _split_bad(dataset, scan, on_bad_image=config.on_bad_image)
    data = dataset.annotations, scan.contents, kept
    order = order_as_stored(depot, *data)
    if order.returned and not add_images:
        raise StoreMismatchError(
            f"{config.store} lacks images of {config.annotations} that `cachedet relabel "
            f"--withdraw` took out of it: {order.returned}. `cachedet extract` brings them back; "
            "else give annotations without them"
        )
    if order.added and not add_images:  # opening the store will refuse them by name
        order = StoredOrder.as_given(*data)
    return order, skipped


def _kept_images(scan: Scan, order: StoredOrder) -> dict[int, DecodedImage]:
    """What was decoded when images were checked, by rows of the store."""
    given = ((row, known) for row, known in enumerate(order.rows) if known is not None)
    return {row: scan.images[known] for row, known in given if known in scan.images}


def _fit_to_first(
    codec: Codec,
    loader: InputLoader,
    backbone: FrozenBackbone,
    order: StoredOrder,
    manifest: Manifest,
    *,
    store: str,
) -> Codec:
    """Show the codec the first images of a store: when it was made there were no others."""
    first = manifest.added[0][0] if manifest.added else len(order.annotations)
    _require_sample(store, order, first)
    return fit_codec(codec, loader, backbone, view=manifest.views[0], images=first)


def _require_sample(store: str, order: StoredOrder, images: int) -> None:
    """Raises StoreError where images that the codec learns from were taken out."""
    lost = [row for row in fitted_rows(images).tolist() if order.rows[row] is None]
    if lost:
        names = listed([order.annotations.file_names[row] for row in lost])
        raise StoreError(
            f"{store}: what its codec learnt (codec.npz) is lost, and of the images that it learnt "
            f"from {len(lost)} were taken out of the store ({names}). Give annotations that have "
            "them again, copy codec.npz from a backup, or extract into a new --store"
        )


def open_dataset(config: ExtractConfig) -> CocoDataset:
    """What is to be extracted. Raises DatasetError."""
    return read_dataset(
        annotations=config.annotations,
        images=config.images,
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


def _split_bad(
    dataset: CocoDataset, scan: Scan, *, on_bad_image: str
) -> tuple[list[int], tuple[tuple[str, str], ...]]:
    """Rows to extract, and the skipped (file name, reason) pairs."""
    bad_rows = {row for row, _ in scan.bad}
    kept = [row for row in range(len(dataset.annotations)) if row not in bad_rows]
    if on_bad_image == "fail" or not kept:
        require_good(dataset, scan)
    return kept, _named(dataset.annotations, scan.bad)


def _named(
    annotations: Annotations, findings: Sequence[tuple[int, str]]
) -> tuple[tuple[str, str], ...]:
    return tuple((annotations.file_names[row], reason) for row, reason in findings)


def _note_greys(views: Sequence[View], scan: Scan) -> list[str]:
    """Say that colours have little to change, where the first images have none."""
    if not any(view.family == "colour" for view in views):
        return []
    first = list(itertools.islice(scan.images.values(), _LOOKED_AT))
    if not first or not all(is_grey(image.pixels) for image in first):
        return []
    seen = "the first image is" if len(first) == 1 else f"the first {len(first)} images are"
    return [
        f"{seen} grey: of a colour view's changes saturation, hue and grey do nothing to them; "
        "jitter may be the better use of the bytes"
    ]


def _write_blocks(
    writer: StoreWriter,
    loader: InputLoader,
    backbone: FrozenBackbone,
    config: ExtractConfig,
    rank: Rank,
) -> tuple[StageClock, int]:
    """Write what is missing; returns the stages' times and how many blocks this process wrote."""
    missing = writer.missing_blocks()
    if backbone.spec.bf16 and missing:
        row = next(row for row in missing[0].rows if row not in writer.gone)
        _log.info(describe_bf16(backbone, loader.load(row, missing[0].view)[None]))
    lacking = {block.name for block in missing}
    ours = [block for number, block in enumerate(writer.blocks) if rank.owns(number)]
    total = sum(len(block.rows) for block in ours if block.name in lacking)
    committed: list[Block] = []
    folder = writer.depot.folder
    with (
        StageProgress("extract", total=total, unit="images") as progress,
        nullcontext() if folder is None else LeaseBook(folder) as leases,
    ):

        def on_block(block: Block, is_ours: bool) -> None:
            if leases is not None:
                leases.release(block.name)
            if is_ours:
                committed.append(block)
                moved = writer.nbytes_written - progress.nbytes
                progress.advance(len(block.rows), nbytes=moved, detail=pipeline.clock.describe())

        def on_wait(blocks: Sequence[Block]) -> None:
            held = f"waiting for another machine, which holds {count_of(len(blocks), 'block')}"
            progress.note(held if blocks else "")

        pipeline = ExtractionPipeline(
            loader=loader,
            backbone=backbone,
            writer=writer,
            batch_size=config.batch_size,
            workers=config.workers,
            on_block=on_block,
            committers=1 if folder is not None else _UPLOADS,
        )
        if leases is None:
            pipeline.run(blocks_to_try(writer, rank, missing))
        else:
            pipeline.run(blocks_to_write(writer, leases, rank, on_wait=on_wait))
        others = progress.total - sum(len(block.rows) for block in committed)
        if others > 0:
            progress.settle(f"{count_of(others, 'more image')} by other writers")
    return pipeline.clock, len(committed)
