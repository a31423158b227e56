"""The paper's experiment on the user's own data: is a frozen backbone enough, what does it save?"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cachedet.backbone.frozen import load_backbone
from cachedet.backbone.split import split_backbone
from cachedet.backbone.taps import require_uncut
from cachedet.comparison.cautions import Caution, find_cautions
from cachedet.comparison.cell import CellTask, ComparisonConfig, Interrupted, run_cell
from cachedet.comparison.folder import ComparisonFolder, Extracted, require_known
from cachedet.comparison.given_store import identity_of, require_fitting
from cachedet.comparison.page import comparison_page
from cachedet.comparison.page_charts import CurveOf
from cachedet.comparison.results import CellResult
from cachedet.comparison.scoring import compare_on_images
from cachedet.comparison.summary import Summary, summarise
from cachedet.config.run import AugmentConfig, ExtractConfig
from cachedet.data.coco import CocoDataset
from cachedet.data.sections import listed
from cachedet.data.views import TRAINING_VIEWS, parse_views
from cachedet.device import choose_device
from cachedet.errors import (
    BackboneError,
    CheckpointError,
    ConfigError,
    InputError,
    StoreError,
    UnwrittenError,
)
from cachedet.extract import extract_dataset, open_dataset, open_network
from cachedet.inspection.image_faults import files_in_both
from cachedet.live.mode_names import cut_of, needs_cache
from cachedet.live.modes import require_shared
from cachedet.outputs import Kind, require_ours, require_outside_stores, write_file
from cachedet.progress import count_of
from cachedet.reporting.rendering import render_markdown, render_page
from cachedet.reporting.scored_run import read_metrics
from cachedet.store.files.durable import encode_json
from cachedet.store.format.manifest import library_versions
from cachedet.store.reader import FeatureStore
from cachedet.text import printable
from cachedet.training.run_folder import RunFolder
from cachedet.training.start import require_fit
from cachedet.training.stopping import StopSignals
from cachedet.version import __version__

_log = logging.getLogger("cachedet.compare")

OnCell = Callable[[CellResult, int, int], None]
"""Called with each cell that is done, its number and how many there are."""


@dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    """What a comparison came to."""

    out: Path
    cells: tuple[CellResult, ...]  # all in the folder that are done, failed ones among them
    left: int  # of those asked for: to be trained, failed ones among them
    interrupted_by: str | None  # a signal; the same command goes on
    page: Path
    cautions: tuple[Caution, ...] = ()  # why it may be too early to believe

    @property
    def summary(self) -> Summary:
        return summarise(self.cells)

    def to_json(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            "page": str(self.page),
            "left": self.left,
            "interrupted_by": self.interrupted_by,
            "cautions": [vars(caution) for caution in self.cautions],
            "summary": self.summary.to_json(),
            "cells": [cell.to_json() for cell in self.cells],
        }


def compare(config: ComparisonConfig, *, on_cell: OnCell | None = None) -> ComparisonReport:
    """Train and score every cell, each in a process of its own, and write the page about them.

    Called again with the same config it goes on: finished cells are read, a begun one continues,
    failed ones are tried again. Stores that do not lie in the comparison's folder are only read.

    Raises:
        InputError, ConfigError: the options do not fit together, or the folder is of another
            comparison or in use.
        DatasetError, BadImageError, BackboneError, StoreError: what extraction raises, or a store
            that was given and is not one, or unfinished.
        CheckpointError: images to train on and to score on do not fit together.
        UnwrittenError: the page could not be written; it holds the report.
    """
    require_outside_stores(config.out)
    _require_sensible(config)
    train, val = open_dataset(config.train), open_dataset(config.val)
    _require_scorable(config, train, val)
    config = _store_cuts(config)
    folder = ComparisonFolder(config.out)
    settings = _settings(config) | _given_stores(config, folder, train, val)
    _require_replaceable(folder)
    with folder.undone_if_refused(), folder.owned():
        folder.require_same(settings)
        extracted = extract_stores((config.train, train), (config.val, val), folder)
        store = FeatureStore.open(config.train.store)
        validation = FeatureStore.open(config.val.store)
        _require_fit(config, store, validation)
        left = [key for key in config.cell_keys() if folder.result_of(key) is None]
        if config.budget is not None and any(needs_cache(key.mode) for key in left):
            require_known(extracted, store=config.train.store, is_own=folder.owns(config.train))
        interrupted_by = _train_cells(config, folder, extracted, on_cell)
        cells = folder.results()
        report = ComparisonReport(
            out=config.out,
            cells=cells,
            left=sum(folder.result_of(key) is None for key in config.cell_keys()),
            interrupted_by=interrupted_by,
            page=folder.page,
            cautions=_find_cautions(config, folder, validation, cells),
        )
        if cells:
            try:
                _write_page(config, folder, store, extracted, report)
            except InputError as error:
                raise UnwrittenError(str(error), report=report) from error
    return report


def _require_sensible(config: ComparisonConfig) -> None:
    """Refuse what can be known to fail before anything is written.

    Raises InputError, ConfigError.
    """
    for part in (config.train, config.val):
        part.require_image_folder()
    if config.epochs is not None and config.budget is not None:
        raise InputError("--epochs and --budget are two ways to end training; give one of them")
    if not config.cell_keys():
        raise InputError("a comparison needs a config, a mode and a seed or more")
    for what, given in (("mode", config.modes), ("seed", config.seeds)):
        twice = [str(one) for one in given if list(given).count(one) > 1]
        if twice:
            raise InputError(f"the {what} {twice[0]} is named more than once; name each once")
    for heads in config.heads.values():
        require_shared(heads)
        choose_device(heads.device)


def _store_cuts(config: ComparisonConfig) -> ComparisonConfig:
    """Cut the backbone wherever a mode trains stages; states of a ViT are stored for it, too.

    Raises BackboneError where it cannot be cut.
    """
    levels = config.train.levels
    for mode in config.modes:
        if (cut := cut_of(mode)) is not None:
            levels = _cut_levels(config.train, levels, cut)
    stores = [store.model_copy(update={"levels": levels}) for store in (config.train, config.val)]
    return replace(config, train=stores[0], val=stores[1])


def _cut_levels(
    train: ExtractConfig, levels: tuple[str, ...] | None, cut: str
) -> tuple[str, ...] | None:
    """The levels that a store needs to train behind `cut`, too."""
    name, size = train.backbone, train.image_size
    try:  # which weights it has decides nothing
        if train.taps is not None:
            require_uncut(cut)
        backbone = load_backbone(name, weights="none", levels=levels, image_size=size)
        if cut not in backbone.spec.names:
            deeper = load_backbone(name, weights="none", levels=levels, cut=cut, image_size=size)
            if cut not in deeper.spec.pyramid.names:  # other cells would train on it, too
                backbone, levels = deeper, deeper.spec.names
        split_backbone(backbone, cut)
    except BackboneError as error:
        raise BackboneError(
            f"--modes partial trains the stages behind --freeze-at {cut}: {error}"
        ) from error
    return levels


def _require_scorable(config: ComparisonConfig, train: CocoDataset, val: CocoDataset) -> None:
    """Raises InputError where the classes differ; images in both sets are noted."""
    where = f"--val-annotations {config.val.annotations}"
    known, scored = train.annotations.categories, val.annotations.categories
    if known != scored:
        raise InputError(
            f"{where} has other classes than --annotations {config.train.annotations}: "
            f"{scored.unlike(known, where='for training')}; give both files the same `categories` "
            "(a class may be without boxes; a folder of VOC lists them in classes.txt)"
        )
    if shared := files_in_both(val, train):
        names = [val.annotations.file_names[row] for row, _ in shared]
        _log.warning(
            "note: %s of %s are in --annotations, too (%s): scores on them are too good",
            count_of(len(shared), "image"), printable(where), printable(listed(names)),
        )  # fmt: skip


def _settings(config: ComparisonConfig) -> dict[str, Any]:
    """What the cells of one folder share; seeds, modes and configs may be added later."""
    not_shared = {
        "store", "device", "workers", "follow_links", "rotated", "choose", "global_token",
    }  # fmt: skip
    return {
        "train": config.train.model_dump(mode="json", exclude=not_shared),
        "val": config.val.model_dump(mode="json", exclude=not_shared),
        "epochs": config.epochs,
        "budget": config.budget,
        "backbone": vars(config.backbone),
        # With the device that `auto` came to: times on another one are not to be compared.
        "heads": {
            name: heads.model_dump(mode="json") | {"device": choose_device(heads.device).type}
            for name, heads in config.heads.items()
        },
    }


def _given_stores(
    config: ComparisonConfig, folder: ComparisonFolder, train: CocoDataset, val: CocoDataset
) -> dict[str, Any]:
    """What cells share of stores that do not lie in the folder; nothing where there are none.

    Raises InputError, StoreError where they are not what is asked for.
    """
    runs_backbone = any(mode in ("live", "tuned") for mode in config.modes)
    identities = {}
    for name, part, dataset in (("train", config.train, train), ("val", config.val, val)):
        if not folder.owns(part):
            has_weights = runs_backbone or part.weights != "auto"  # named ones are held against it
            weights = part.weights if has_weights else "none"
            network = open_network(part.model_copy(update={"weights": weights}))
            store, option = FeatureStore.open(part.store), f"--{name}-store"
            require_fitting(store, part, dataset, network, option=option, has_weights=has_weights)
            identities[name] = identity_of(store, part)
    return {"stores": identities} if identities else {}


def extract_stores(
    train: tuple[ExtractConfig, CocoDataset],
    val: tuple[ExtractConfig, CocoDataset],
    folder: ComparisonFolder,
) -> Extracted:
    """Extract the stores of the folder, others are left as they are.

    Where they are whole this only checks that the data is the same.

    Raises what `extract` raises.
    """
    config, dataset = train
    recipe = config.views or TRAINING_VIEWS
    views = tuple(view.name for view in parse_views(recipe))
    log = folder.extraction
    try:
        if folder.owns(config):
            log.begin()
            done = extract_dataset(config.model_copy(update={"views": recipe}), dataset)
            log.end(seconds=done.seconds, blocks=done.blocks_written)
        if folder.owns(val[0]):
            extract_dataset(*val)  # cells that are done have seen none of them
    except StoreError as error:
        raise type(error)(
            f"{error}. The stores of a comparison lie in its own folder, and its cells have to see "
            "the same labels: instead of another --store, or of relabelling, choose another --out"
        ) from error
    if not folder.owns(config):
        return Extracted(views=views, seconds=math.nan)
    blocks = sum(block.view in views for block in FeatureStore.open(config.store).blocks)
    return Extracted(views=views, seconds=log.seconds_of(blocks))


def _require_fit(config: ComparisonConfig, store: FeatureStore, validation: FeatureStore) -> None:
    """Refuse what every cell of some heads would fail of. Raises ConfigError, CheckpointError."""
    for name, heads in config.heads.items():
        try:
            require_fit(heads, store, validation)
        except (ConfigError, CheckpointError) as error:
            raise type(error)(
                f"{name}: {error}. A comparison reads --annotations and --val-annotations; with "
                "others, choose another --out"
            ) from error


def _train_cells(
    config: ComparisonConfig, folder: ComparisonFolder, extracted: Extracted, on_cell: OnCell | None
) -> str | None:
    """Train those that are not done; returns the signal that came meanwhile."""
    keys = config.cell_keys()
    with StopSignals() as signals:
        for number, key in enumerate(keys, start=1):
            result = folder.result_of(key)
            if result is None:
                task = CellTask(
                    key=key, comparison=config, extracted=extracted, folder=folder.cell(key)
                )
                try:
                    result = run_cell(task, signals)
                except Interrupted as error:
                    return str(error)
            if on_cell is not None:
                on_cell(result, number, len(keys))
    return None


def _find_cautions(
    config: ComparisonConfig,
    folder: ComparisonFolder,
    validation: FeatureStore,
    cells: Sequence[CellResult],
) -> tuple[Caution, ...]:
    on_images = partial(
        compare_on_images,
        folder=folder,
        annotations=validation.annotations,
        resamples=config.resamples,
    )
    return find_cautions(summarise(cells), on_images=on_images)


def _write_page(
    config: ComparisonConfig,
    folder: ComparisonFolder,
    store: FeatureStore,
    extracted: Extracted,
    report: ComparisonReport,
) -> None:
    """HTML, Markdown and JSON of everything in the folder."""
    cells = report.cells
    page = comparison_page(
        cells,
        title=f"Frozen or fine-tuned: {' and '.join(sorted({cell.key.heads for cell in cells}))}",
        standfirst=_standfirst(config, store),
        facts=_facts(config, store, extracted, cells),
        curves=[curve for cell in cells if (curve := _curve(folder, cell)) is not None],
        cautions=report.cautions,
    )
    found = report.to_json()
    values = {
        "cachedet": __version__,
        "settings": _settings(config),
        **{name: found[name] for name in ("cautions", "summary", "cells")},
    }
    html, markdown = render_page(page, curves=(), sheet=None), render_markdown(page)
    contents = (html.encode("utf-8"), markdown.encode("utf-8"), encode_json(values))
    for (path, kind), content in zip(_files_of(folder), contents, strict=True):
        write_file(path, content, kind=kind)


def _files_of(folder: ComparisonFolder) -> list[tuple[Path, Kind]]:
    """HTML, Markdown and JSON."""
    page = folder.page
    return [
        (page, Kind.PAGE),
        (page.with_suffix(".md"), Kind.MARKDOWN),
        (page.with_suffix(".json"), Kind.COMPARISON),
    ]


def _require_replaceable(folder: ComparisonFolder) -> None:
    """Raises InputError where somebody's file has the name of one that is to be written."""
    for path, kind in _files_of(folder):
        require_ours(path, kind=kind)


def _standfirst(config: ComparisonConfig, store: FeatureStore) -> str:
    budget = config.budget
    each = "the same number of epochs" if budget is None else f"{budget:.0f} s of training"
    boxes = int((~store.annotations.crowd).sum())
    learns = f"{len(store)} images with {boxes} boxes to learn from"
    return f"{learns}, {store.manifest.backbone}, {each} each"


def _facts(
    config: ComparisonConfig, store: FeatureStore, extracted: Extracted, cells: Sequence[CellResult]
) -> list[tuple[str, str]]:
    """What was equal in all cells, and what could not be."""
    manifest, training = store.manifest, config.backbone
    extraction = (
        "not known what it took: the features were not written by this comparison"
        if math.isnan(extracted.seconds)
        else f"{extracted.seconds:,.0f} s to write the features once"
    )
    ends = (
        f"{config.budget:.0f} s of steps; extraction of the cache counts, validations do not"
        if config.budget is not None
        else f"{config.epochs or 'as the config says'} epochs"
    )
    live = "the same views; jitter and colour are drawn anew every epoch"
    if any(heads.augment != AugmentConfig() for heads in config.heads.values()):
        live += "; what augment moves in maps is moved in the images"
    return [
        ("backbone", f"{manifest.backbone}, weights: {manifest.weights}"),
        ("image size", f"{manifest.image_size} pixels, long side"),
        ("views of the cache", f"{', '.join(extracted.views)} ({manifest.codec})"),
        ("augmentation without the cache", live),
        ("extraction", extraction),
        ("each cell ends after", ends),
        ("scored", "the weights of the last step, on view base"),
        (
            "fine-tuned backbone",
            f"learning rate x {training.lr_scale:g}, batch norms {training.batch_norm}",
        ),
        ("backbone from scratch", "random weights, learning rate x 1, batch norms trained"),
        ("device", ", ".join(sorted({cell.device for cell in cells if cell.device}))),
        ("versions", ", ".join(f"{k} {v}" for k, v in library_versions().items())),
    ]


def _curve(folder: ComparisonFolder, cell: CellResult) -> CurveOf | None:
    """Validation AP against seconds in steps; None where nothing was validated."""
    if cell.has_failed:
        return None
    points = read_metrics(RunFolder(folder.cell(cell.key)).metrics)
    each = cell.seconds / max(cell.steps, 1)
    ap_at = {point.step * each: point.val_ap for point in points if point.val_ap is not None}
    ap_at[cell.seconds] = cell.ap  # a run that ends inside an epoch has no validation there
    start = 0.0 if math.isnan(cell.extraction_seconds) else cell.extraction_seconds
    return CurveOf(
        key=cell.key, seconds=tuple(start + at for at in ap_at), ap=tuple(ap_at.values())
    )
